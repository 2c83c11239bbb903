"""Joined packets are cut into what they were: the same packets in the same order, right or wrong as before.

Only the identification of IPv4 packets that are never fragmented may be another one (RFC 6864), with the
checksum of its header.
"""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.errors import OffloadError
from shadowmesh.testing.packets import slow_sum, tcp_packet, udp_packet, unfinished
from shadowmesh.wire import offload, record
from shadowmesh.wire.coalesce import MAX_COUNT, MIN_COUNT, coalesce

PAIRS = st.sampled_from([("10.10.10.1", "10.10.10.7"), ("fd00::1", "fd00::7")])
SIZES = st.sampled_from([0, 1, 2, 12, 100, 1200])


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[int, bytes]]:
    """Records of one flow, as one burst of a program makes them, some of them spoilt."""
    pair, size = draw(PAIRS), draw(SIZES)
    sizes = [size] * draw(st.integers(1, 12)) + draw(st.lists(SIZES, max_size=2))
    port, identification, df = draw(st.integers(1, 2)), draw(st.integers(0, 0xFFFF)), draw(st.booleans())
    counting, finished, tcp = draw(st.booleans()), draw(st.integers(0, 9)) == 0, draw(st.integers(0, 9)) == 0
    given = []
    for number, length in enumerate(sizes):
        payload = bytes([number]) * length
        packet = bytearray(tcp_packet(*pair, payload) if tcp else udp_packet(*pair, payload))
        at = 20 if packet[0] >> 4 == 4 else 40
        if at == 20:
            packet[4:6] = (identification + number * counting & 0xFFFF).to_bytes(2, "big")
            packet[6] = 0x40 * (df or number % 3 > 0)
            packet[10:12] = bytes(2)
            packet[10:12] = struct.pack(">H", 0xFFFF - slow_sum(bytes(packet[:20])))
        packet[at + 1] += port
        if finished:
            given.append((record.PACKET, bytes(packet)))
        else:
            given.append((record.OFFLOAD, bytes(unfinished(bytes(packet)))))
    for _ in range(draw(st.sampled_from([0, 0, 0, 1, 2]))):
        which = draw(st.integers(0, len(given) - 1))
        kind, body = given[which]
        at = draw(st.integers(0, min(len(body), 70) - 1))
        given[which] = kind, body[:at] + bytes([draw(st.integers(0, 255))]) + body[at + 1 :]
    return given


def packets(kind: int, body: bytes) -> list[bytes]:
    """What the kernel makes of it, but for identification and header checksum, if that one is right."""
    if kind == record.PACKET:
        cut = [body]
    else:
        its = memoryview(bytearray(body))
        try:
            offload.sanitize(its)
        except OffloadError:
            return [body]
        cut = offload.segment(its)
    return [anonymous(each) for each in cut]


def anonymous(packet: bytes) -> bytes:
    if packet[0] != 0x45 or packet[6] != 0x40:
        return packet
    whole = slow_sum(packet[:20]) == 0xFFFF
    return (
        packet[:4] + bytes([whole, 0]) + packet[6:10] + (bytes(2) if whole else packet[10:12]) + packet[12:]
    )


def joined(given: list[tuple[int, bytes]]) -> list[tuple[int, bytes, int]]:
    """(kind, body, count) of each record that is left."""
    message = b"".join(record.pack(kind, body) for kind, body in given)
    message += record.padding(len(message))
    plain = memoryview(bytearray(message + b"\xee" * 100))
    left, counts = coalesce(plain, record.split(plain, len(message)))
    assert plain[len(message) :] == b"\xee" * 100
    bodies = [(kind, bytes(plain[start:end]), counts.pop(start, 1)) for kind, start, end in left]
    assert not counts
    return [each for each in bodies if each[0] != record.PAD]


@given(st.lists(runs(), min_size=1, max_size=4))
def test_what_the_kernel_makes_of_it_stays(bursts: list[list[tuple[int, bytes]]]) -> None:
    given = [each for burst in bursts for each in burst]
    left = joined(given)
    assert sum(count for _, _, count in left) == len(given)
    before = [packet for kind, body in given for packet in packets(kind, body)]
    assert [packet for kind, body, _ in left for packet in packets(kind, body)] == before
    at = 0
    for kind, body, count in left:
        assert count <= MAX_COUNT
        if count == 1:
            assert (kind, body) == given[at]
        at += count


@given(PAIRS, st.sampled_from([1, 100, 1200]), st.integers(MIN_COUNT, 50), st.integers(0, 1199))
def test_a_burst_of_one_flow_is_one_record(pair: tuple[str, str], size: int, count: int, last: int) -> None:
    sizes = [size] * count + [last % size] * (last % size > 0)
    given = [(record.OFFLOAD, bytes(unfinished(udp_packet(*pair, bytes(length))))) for length in sizes]
    ((_, _, made),) = joined(given)
    assert made == len(sizes)


@given(st.binary(max_size=400), st.integers(4, 8))
def test_any_bytes(body: bytes, count: int) -> None:
    left = joined([(record.OFFLOAD, body)] * count)
    assert [(body, 1)] * count == [each[1:] for each in left] or packets(*left[0][:2]) == packets(
        2, body
    ) * count
