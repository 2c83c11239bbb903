"""No header that the kernel acts on points outside its packet, whatever a peer sends; cutting loses nothing.

The only exception allowed is OffloadError. What is let through is exactly what the second implementation lets
through, and the header it makes.
"""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from reference.offload import Refused, sanitise
from shadowmesh.errors import OffloadError
from shadowmesh.testing.packets import is_valid, tcp_packet, udp_packet, unfinished
from shadowmesh.wire import ip, offload

HEADER = struct.Struct("<BBHHHH")
PAIRS = st.sampled_from([("10.10.10.1", "10.10.10.7"), ("fd00::1", "fd00::7")])


@st.composite
def packets(draw: st.DrawFn, max_size: int = 4000) -> bytes:
    source, destination = draw(PAIRS)
    size = draw(st.integers(0, max_size))
    payload = (draw(st.binary(min_size=1, max_size=40)) * size)[:size]
    if draw(st.booleans()):
        return udp_packet(source, destination, payload)
    flags = draw(st.integers(0, 255)) & ~0x02
    options = bytes([1] * 4 * draw(st.integers(0, 10)))
    sequence = draw(st.integers(0, 2**32 - 1))
    return tcp_packet(source, destination, payload, flags=flags, sequence=sequence, options=options)


@st.composite
def hostile(draw: st.DrawFn) -> bytearray:
    """A good record, of which some bytes are changed, and some cut off or added."""
    record = unfinished(draw(packets(300)), draw(st.sampled_from([0, 1, 3, 100, 0xFFFF])))
    for _ in range(draw(st.integers(0, 4))):
        # Mostly where the headers are.
        at = draw(st.integers(0, min(len(record), 70) - 1))
        record[at] = draw(st.integers(0, 255))
    end = draw(st.sampled_from([len(record)] * 5 + [len(record) - 1, draw(st.integers(0, len(record)))]))
    return record[:end] + draw(st.sampled_from([b""] * 5 + [b"\0"]))


def check(record: bytearray) -> None:
    original = bytes(record)
    try:
        offload.sanitize(memoryview(record))
    except OffloadError:
        assert record == original
        return
    flags, gso, hdr_len, gso_size, start, offset = HEADER.unpack_from(record)
    packet = bytes(record[10:])
    assert packet == original[10:]
    assert ip.flow_key(packet, 0, len(packet))
    if not flags:
        assert record[:10] == bytes(10)
        return
    protocol = packet[9] if packet[0] >> 4 == 4 else packet[6]
    assert flags == 1
    assert offset == {6: 16, 17: 6}[protocol]
    assert start + offset + 2 <= hdr_len <= len(packet)
    assert gso & 0x7F in (0, 1, 4, 5)
    assert (gso_size > 0) == (gso > 0)
    segments = offload.segment(memoryview(record))
    assert len(segments) <= offload.MAX_SEGMENTS
    assert sum(len(segment) for segment in segments) <= len(packet) + hdr_len * len(segments)
    record[0] |= offload.DATA_VALID
    assert offload.from_tun(memoryview(record)) == offload.KIND_OFFLOAD


@given(st.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    check(bytearray(data))


@given(hostile())
def test_changed_records(record: bytearray) -> None:
    check(record)


@given(st.one_of(hostile(), st.binary(max_size=120).map(bytearray)))
def test_both_implementations_let_the_same_through(record: bytearray) -> None:
    try:
        expected: bytes | None = sanitise(bytes(record))
    except Refused:
        expected = None
    try:
        offload.sanitize(memoryview(record))
    except OffloadError:
        assert expected is None
    else:
        assert bytes(record[:10]) == expected


@given(hostile())
def test_own_records_raise_nothing_else_either(record: bytearray) -> None:
    if len(record) < 10:
        return
    original = bytes(record)
    try:
        kind = offload.from_tun(memoryview(record))
        if kind == offload.KIND_OFFLOAD:
            offload.sanitize(memoryview(record))
        elif kind == offload.KIND_SPLIT:
            for piece_kind, body in offload.split(memoryview(record)):
                if piece_kind == offload.KIND_OFFLOAD:
                    offload.sanitize(memoryview(bytearray(body)))
    except OffloadError:
        assert original[0] & offload.NEEDS_CSUM or original[1]


@given(packets(), st.integers(1, 2000))
def test_segments_are_valid_and_hold_all_payload(packet: bytes, gso_size: int) -> None:
    record = unfinished(packet, gso_size)
    headers = HEADER.unpack_from(record)[2]
    size = len(packet) - headers
    if size > 200 * gso_size:
        return
    segments = offload.segment(memoryview(record))
    assert b"".join(segment[headers:] for segment in segments) == packet[headers:]
    assert {len(segment) - headers for segment in segments[:-1]} <= {gso_size}
    assert all(is_valid(segment) for segment in segments[:3] + segments[-1:])
    if len(segments) <= offload.MAX_SEGMENTS:
        offload.sanitize(memoryview(record))
    else:
        pieces = [memoryview(bytearray(body)) for _, body in offload.split(memoryview(record))]
        for piece in pieces:
            offload.sanitize(piece)
        assert [cut for piece in pieces for cut in offload.segment(piece)] == segments


@given(st.binary(max_size=100), st.integers(0, 2**40))
def test_one_division_is_the_sum_of_rfc_1071(data: bytes, initial: int) -> None:
    words = list(struct.unpack(f">{(len(data) + 1) // 2}H", data + bytes(len(data) % 2)))
    total = sum(words) + initial
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    assert ip.ones_sum(data, initial) == total


@given(st.binary(max_size=100))
def test_icmp_errors_are_valid_or_none(data: bytes) -> None:
    error = ip.unreachable(data, ip.Unreachable.HELD_BACK)
    if error is not None:
        assert is_valid(error)
        assert ip.unreachable(error, ip.Unreachable.HELD_BACK) is None
