"""virtio_net_hdr: what a peer may send, what our own device's records become, software segmentation."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from shadowmesh.errors import OffloadError
from shadowmesh.testing.packets import ip_packet, is_valid, tcp_packet, udp_packet, unfinished
from shadowmesh.wire import offload

A4, B4, A6, B6 = "10.10.10.1", "10.10.10.7", "fd00::1", "fd00::7"
PAIRS = [(A4, B4), (A6, B6)]
HEADER = struct.Struct("<BBHHHH")
FIN, SYN, PSH, ACK, CWR = 0x01, 0x02, 0x08, 0x10, 0x80
PAYLOAD = bytes(range(256)) * 40


def sanitized(record: bytearray) -> tuple[int, ...]:
    packet = bytes(record[10:])
    offload.sanitize(memoryview(record))
    assert record[10:] == packet
    return HEADER.unpack_from(record)


def refused(record: bytearray) -> str:
    before = bytes(record)
    with pytest.raises(OffloadError) as caught:
        offload.sanitize(memoryview(record))
    assert record == before
    return caught.value.what


def with_header(record: bytearray, **fields: int) -> bytearray:
    names = ("flags", "gso", "hdr_len", "gso_size", "start", "offset")
    values = dict(zip(names, HEADER.unpack_from(record), strict=True)) | fields
    return bytearray(HEADER.pack(*values.values())) + record[10:]


def with_byte(record: bytearray, at: int, value: int) -> bytearray:
    """`at` counts from the start of the packet."""
    changed = bytearray(record)
    changed[10 + at] = value
    return changed


# --- what a peer may send


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_header_is_made_from_the_packet(source: str, destination: str) -> None:
    l4, tcp_type = (20, 1) if source == A4 else (40, 4)
    tcp = tcp_packet(source, destination, PAYLOAD, options=b"\x01" * 12)
    udp = udp_packet(source, destination, PAYLOAD)
    lies = {"hdr_len": 0xFFFF, "start": 0xFFFF, "offset": 0xFFFF}
    tcp_head = l4 + 32
    assert sanitized(with_header(unfinished(tcp, 1000), **lies)) == (1, tcp_type, tcp_head, 1000, l4, 16)
    ecn = with_header(unfinished(tcp, 1000, ecn=True), **lies)
    assert sanitized(ecn) == (1, tcp_type | 0x80, tcp_head, 1000, l4, 16)
    assert sanitized(with_header(unfinished(udp, 1000), **lies)) == (1, 5, l4 + 8, 1000, l4, 6)
    # Nothing to cut: the size goes too.
    assert sanitized(with_header(unfinished(tcp), gso_size=9, **lies)) == (1, 0, tcp_head, 0, l4, 16)
    assert sanitized(with_header(unfinished(udp), gso_size=9, **lies)) == (1, 0, l4 + 8, 0, l4, 6)
    assert sanitized(with_header(unfinished(tcp), flags=0, **lies)) == (0, 0, 0, 0, 0, 0)


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_finished_packets_may_have_any_protocol(source: str, destination: str) -> None:
    for protocol in (1, 58, 47, 132, 59):
        packet = ip_packet(source, destination, protocol, b"\x08" + bytes(20))
        assert sanitized(bytearray(b"\0\0\1\2\3\4\5\6\7\x08") + packet) == (0, 0, 0, 0, 0, 0)
        assert "neither TCP nor UDP" in refused(bytearray(b"\1" + bytes(9)) + packet)
        assert "neither TCP nor UDP" in refused(bytearray(b"\1\1\0\0\1" + bytes(5)) + packet)


@pytest.mark.parametrize("flags", [2, 3, 4, 5, 0x80, 0xFF])
def test_other_flags_are_refused(flags: int) -> None:
    assert "flags" in refused(with_header(unfinished(udp_packet(A4, B4)), flags=flags))


def test_gso_without_checksum_is_refused() -> None:
    record = unfinished(tcp_packet(A4, B4, PAYLOAD), 1000)
    assert "NEEDS_CSUM" in refused(with_header(record, flags=0))


@pytest.mark.parametrize("gso", [2, 3, 4, 5, 6, 0x40, 0x80, 0x83, 0x84, 0x85, 0xFF])
def test_gso_that_does_not_fit_tcp4_is_refused(gso: int) -> None:
    assert "gso type" in refused(with_header(unfinished(tcp_packet(A4, B4, PAYLOAD), 1000), gso=gso))


@pytest.mark.parametrize("gso", [1, 3, 5, 0x80, 0x81, 0x85])
def test_gso_that_does_not_fit_tcp6_is_refused(gso: int) -> None:
    assert "gso type" in refused(with_header(unfinished(tcp_packet(A6, B6, PAYLOAD), 1000), gso=gso))


@pytest.mark.parametrize("gso", [1, 3, 4, 0x80, 0x85])
def test_gso_that_does_not_fit_udp_is_refused(gso: int) -> None:
    for source, destination in PAIRS:
        record = unfinished(udp_packet(source, destination, PAYLOAD), 1000)
        assert "gso type" in refused(with_header(record, gso=gso))


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("make", [tcp_packet, udp_packet])
def test_ip_length_is_the_bodys(
    make: Callable[[str, str, bytes], bytes], source: str, destination: str
) -> None:
    record = unfinished(make(source, destination, PAYLOAD), 1000)
    assert "IP length" in refused(record + b"\0")
    assert "IP length" in refused(record[:-1])


@pytest.mark.parametrize("high", [0x20, 0x3F, 0x1F, 0x01])
def test_fragments_are_refused(high: int) -> None:
    for record in (unfinished(udp_packet(A4, B4)), bytearray(10) + udp_packet(A4, B4)):
        assert "fragment" in refused(with_byte(record, 6, high))
        assert "fragment" in refused(with_byte(record, 7, high))


@pytest.mark.parametrize("header", [0, 43, 44, 50, 51, 60, 135, 139, 140, 253, 254])
def test_ipv6_extension_headers_are_refused(header: int) -> None:
    packet = ip_packet(A6, B6, header, bytes([6, 0]) + bytes(6) + tcp_packet(A6, B6)[40:])
    for flags in (b"\0", b"\1"):
        assert "extension header" in refused(bytearray(flags + bytes(9)) + packet)


def test_headers_outside_the_body_are_refused() -> None:
    tcp = unfinished(tcp_packet(A4, B4))
    assert "20 bytes" in refused(with_byte(tcp, 0, 0x44))
    assert "outside" in refused(with_byte(tcp, 0, 0x46))  # options leave 16 bytes of TCP
    assert "outside" in refused(with_byte(tcp, 0, 0x4F))
    for words in (0, 4, 6, 15):
        assert "data offset" in refused(with_byte(tcp, 32, words << 4))
        assert "data offset" in refused(with_header(with_byte(tcp, 32, words << 4), flags=0))
    for protocol, size in ((6, 19), (17, 7)):
        for source, destination in PAIRS:
            packet = ip_packet(source, destination, 99, b"\x50" * size)
            at = 9 if source == A4 else 6
            assert "outside" in refused(with_byte(bytearray(10) + packet, at, protocol))
    assert "outside" in refused(with_byte(bytearray(10) + ip_packet(A4, B4, 99, b""), 0, 0x46))


def test_what_is_no_packet_is_refused() -> None:
    for size in range(10 + 20):
        refused(bytearray(size))
    assert "not an IP packet" in refused(bytearray(60))
    assert "IPv6 header" in refused(bytearray(10) + b"\x60" + bytes(38))


def test_sizes_of_segments() -> None:
    record = unfinished(tcp_packet(A4, B4, bytes(128 * 10)), 10)
    sanitized(with_header(record, gso_size=10))
    sanitized(with_header(record, gso_size=0xFFFF))
    assert "128 segments" in refused(with_header(record, gso_size=9))
    assert "gso size 0" in refused(with_header(record, gso_size=0))
    sanitized(with_header(unfinished(tcp_packet(A4, B4)), gso=1, gso_size=1))


def test_gso_with_syn_is_refused() -> None:
    for source, destination in PAIRS:
        packet = tcp_packet(source, destination, PAYLOAD, flags=SYN)
        assert "SYN" in refused(unfinished(packet, 1000))
        sanitized(unfinished(packet))


def test_the_longest_packets_pass() -> None:
    sanitized(unfinished(tcp_packet(A4, B4, bytes(65535 - 40)), 1400))
    record = unfinished(udp_packet(A6, B6, bytes(65535 - 8)), 1400)
    assert len(record) == offload.MAX_RECORD
    sanitized(record)


# --- what our own device gives


def test_finished_packets_travel_alone() -> None:
    packet = tcp_packet(A4, B4, b"hello")
    for flags in (0, offload.DATA_VALID):
        record = bytearray([flags]) + bytes(9) + packet
        assert offload.from_tun(memoryview(record)) == offload.KIND_PACKET
        assert record[10:] == packet


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_unfinished_packets_travel_with_their_header(source: str, destination: str) -> None:
    for packet in (tcp_packet(source, destination, PAYLOAD), udp_packet(source, destination, PAYLOAD)):
        for gso_size in (0, 1000):
            record = unfinished(packet, gso_size)
            record[0] |= offload.DATA_VALID
            assert offload.from_tun(memoryview(record)) == offload.KIND_OFFLOAD
            assert record == unfinished(packet, gso_size)
            sanitized(record)


def test_fragments_and_extension_headers_are_finished_and_travel_alone() -> None:
    fragment = bytearray(tcp_packet(A4, B4, PAYLOAD))
    record = unfinished(bytes(fragment))
    record[10 + 6] = 0x20
    assert offload.from_tun(memoryview(record)) == offload.KIND_PACKET
    assert record[10 + 20 :] == fragment[20:]

    finished, record = behind_options(tcp_packet(A6, B6, PAYLOAD))
    assert offload.from_tun(memoryview(record)) == offload.KIND_PACKET
    assert record[10:] == finished


def behind_options(packet: bytes) -> tuple[bytes, bytearray]:
    """An IPv6 TCP packet with a hop-by-hop header put in, finished and as a record."""
    record = unfinished(packet, 0)
    options = bytes([6, 0, 1, 4, 0, 0, 0, 0])
    wider = struct.pack(">H", len(packet) - 40 + 8)
    head = packet[:4] + wider + b"\0" + packet[7:40] + options
    header = HEADER.pack(1, 0, 68, 0, 48, 16)
    return head + packet[40:], bytearray(header + head + record[50:])


def test_packet_in_a_packet_is_finished_where_the_kernel_says() -> None:
    inner = unfinished(tcp_packet("192.0.2.1", "192.0.2.2", b"inner"))
    outer = udp_packet(A4, B4, bytes(8) + bytes(inner[10:]))
    record = bytearray(HEADER.pack(1, 0, 0, 0, 20 + 8 + 8 + 20, 16)) + outer
    assert offload.from_tun(memoryview(record)) == offload.KIND_PACKET
    assert record[10 + 36 :] == tcp_packet("192.0.2.1", "192.0.2.2", b"inner")
    assert record[10:46] == outer[:36]


@pytest.mark.parametrize(("start", "offset"), [(0xFFFF, 0), (45, 0), (30, 16), (0, 0xFFFF)])
def test_checksum_outside_the_packet_is_refused(start: int, offset: int) -> None:
    record = bytearray(HEADER.pack(1, 0, 0, 0, start, offset)) + ip_packet(A4, B4, 99, bytes(26))
    with pytest.raises(OffloadError):
        offload.from_tun(memoryview(record))
    with pytest.raises(OffloadError):
        offload.segment(memoryview(record))


@pytest.mark.parametrize(("source", "destination"), PAIRS)
@pytest.mark.parametrize("make", [tcp_packet, udp_packet])
def test_too_many_segments_are_split(
    make: Callable[[str, str, bytes], bytes], source: str, destination: str
) -> None:
    record = unfinished(make(source, destination, bytes(100 * 300 + 1)), 100)
    assert offload.from_tun(memoryview(record)) == offload.KIND_SPLIT
    pieces = offload.split(memoryview(record))
    assert [kind for kind, _ in pieces] == [offload.KIND_OFFLOAD] * 3
    bodies = [bytearray(body) for _, body in pieces]
    for body in bodies:
        made = bytes(body[:10])
        sanitized(body)
        assert body[:10] == made
    cut = [packet for body in bodies for packet in offload.segment(memoryview(body))]
    assert cut == offload.segment(memoryview(record))
    assert len(cut) == 301


@pytest.mark.parametrize(("most", "pieces"), [(1, 31), (999, 31), (1000, 31), (10_000, 4), (1 << 20, 1)])
def test_pieces_are_as_small_as_asked_for(most: int, pieces: int) -> None:
    record = unfinished(tcp_packet(A4, B4, bytes(range(250)) * 121), 1000)
    assert offload.from_tun(memoryview(record)) == offload.KIND_OFFLOAD
    found = offload.split(memoryview(record), most)
    assert len(found) == pieces
    cut = [packet for _, body in found for packet in offload.segment(memoryview(bytearray(body)))]
    assert cut == offload.segment(memoryview(record))


def test_last_piece_of_one_segment_has_nothing_to_cut() -> None:
    record = unfinished(tcp_packet(A4, B4, bytes(128 * 10 + 3), flags=ACK | CWR), 10, ecn=True)
    first, last = (body for _, body in offload.split(memoryview(record)))
    assert HEADER.unpack_from(first) == (1, 0x81, 40, 10, 20, 16)
    assert HEADER.unpack_from(last) == (1, 0, 40, 0, 20, 16)


def test_gso_that_no_peer_accepts_is_cut_here() -> None:
    finished, record = behind_options(tcp_packet(A6, B6, PAYLOAD))
    HEADER.pack_into(record, 0, 1, 4, 68, 1000, 48, 16)
    assert offload.from_tun(memoryview(record)) == offload.KIND_SPLIT
    pieces = offload.split(memoryview(record))
    assert {kind for kind, _ in pieces} == {offload.KIND_PACKET}
    assert b"".join(body[68:] for _, body in pieces) == PAYLOAD
    for _, body in pieces:
        # Without the options it is a packet that the slow code can judge.
        plain = bytearray(body[:40] + body[48:])
        struct.pack_into(">H", plain, 4, len(plain) - 40)
        plain[6] = 6
        assert is_valid(bytes(plain))
    assert finished[68:] == PAYLOAD


@pytest.mark.parametrize("make", [tcp_packet, udp_packet])
def test_gso_within_a_packet_that_looks_the_same_is_cut_here(make: Callable[..., bytes]) -> None:
    """A peer would cut by the outer header, which the kernel does not mean."""
    inner = make(A4, B4, PAYLOAD)
    record = unfinished(make(A4, B4, inner), 1000)
    headers = HEADER.unpack_from(record)[2]
    record = with_header(record, start=headers + 20, hdr_len=2 * headers)
    assert offload.from_tun(memoryview(record)) == offload.KIND_SPLIT
    pieces = offload.split(memoryview(record))
    assert pieces == [(offload.KIND_PACKET, packet) for packet in offload.segment(memoryview(record))]
    assert b"".join(body[2 * headers :] for _, body in pieces) == PAYLOAD


@pytest.mark.parametrize(
    "fields",
    [
        {"flags": 0},
        {"gso": 2},
        {"gso": 3},
        {"gso": 5},
        {"gso": 0x80},
        {"gso_size": 0},
        {"offset": 6},
        {"start": 19},
        {"start": 0xFFFF},
    ],
)
def test_impossible_gso_headers_of_the_kernel_are_refused(fields: dict[str, int]) -> None:
    record = with_header(unfinished(tcp_packet(A4, B4, PAYLOAD), 1000), **fields)
    for function in (offload.segment, offload.split):
        with pytest.raises(OffloadError):
            function(memoryview(record))


@pytest.mark.parametrize(("at", "value"), [(0, 0x55), (0, 0x44), (0, 0x4F), (32, 0x40), (32, 0xF0)])
def test_gso_headers_outside_the_packet_are_refused(at: int, value: int) -> None:
    record = with_byte(unfinished(tcp_packet(A4, B4, b"x"), 1), at, value)
    for function in (offload.segment, offload.split):
        with pytest.raises(OffloadError):
            function(memoryview(record))


# --- software segmentation


def test_segments_of_tcp4() -> None:
    options = bytes.fromhex("0101080a0000000100000002")
    flags = ACK | PSH | FIN | CWR
    packet = tcp_packet(A4, B4, PAYLOAD, flags=flags, sequence=0xFFFFF000, options=options)
    segments = offload.segment(memoryview(unfinished(packet, 1348, ecn=True)))
    assert all(is_valid(segment) for segment in segments)
    assert [len(segment) - 52 for segment in segments] == [1348] * 7 + [10240 - 7 * 1348]
    assert b"".join(segment[52:] for segment in segments) == PAYLOAD
    assert [struct.unpack(">H", s[4:6])[0] for s in segments] == [0x1234 + n for n in range(8)]
    sequences = [struct.unpack(">I", s[24:28])[0] for s in segments]
    assert sequences == [(0xFFFFF000 + 1348 * n) % 2**32 for n in range(8)]
    assert [s[33] for s in segments] == [ACK | CWR] + [ACK] * 6 + [ACK | PSH | FIN]
    assert all(s[40:52] == options for s in segments)


def test_segments_of_tcp6() -> None:
    segments = offload.segment(memoryview(unfinished(tcp_packet(A6, B6, PAYLOAD, flags=ACK | PSH), 5000)))
    assert [len(segment) for segment in segments] == [5060, 5060, 300]
    assert all(is_valid(segment) for segment in segments)
    assert [s[53] for s in segments] == [ACK, ACK, ACK | PSH]


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_segments_of_udp(source: str, destination: str) -> None:
    packet = udp_packet(source, destination, PAYLOAD)
    segments = offload.segment(memoryview(unfinished(packet, 1200)))
    assert segments == _renumbered(
        [udp_packet(source, destination, PAYLOAD[at : at + 1200]) for at in range(0, len(PAYLOAD), 1200)]
    )


def _renumbered(packets: list[bytes]) -> list[bytes]:
    """IPv4 identification counted up, checksum corrected; IPv6 as it is."""
    result = []
    for number, packet in enumerate(packets):
        changed = bytearray(packet)
        if packet[0] >> 4 == 4:
            identification, check = struct.unpack(">H4xH", packet[4:12])
            struct.pack_into(">H", changed, 4, identification + number)
            struct.pack_into(">H", changed, 10, check - number)
        result.append(bytes(changed))
    return result


def test_payload_within_one_segment() -> None:
    for packet in (tcp_packet(A4, B4, b"abc"), tcp_packet(A4, B4), udp_packet(A6, B6, b"abc")):
        assert offload.segment(memoryview(unfinished(packet, 3))) == [packet]


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_checksum_alone(source: str, destination: str) -> None:
    for packet in (tcp_packet(source, destination, b"odd"), udp_packet(source, destination, b"even")):
        assert offload.segment(memoryview(unfinished(packet))) == [packet]
        assert offload.segment(memoryview(bytearray(10) + packet)) == [packet]


def test_udp_checksum_is_never_zero() -> None:
    # The payload that brings the sum to ffff, so its complement to 0, which would say "no checksum".
    value = struct.unpack(">H", udp_packet(A4, B4, bytes(2))[26:28])[0]
    packet = udp_packet(A4, B4, struct.pack(">H", value))
    assert packet[26:28] == b"\xff\xff"
    assert offload.segment(memoryview(unfinished(packet))) == [packet]
    twice = udp_packet(A4, B4, struct.pack(">H", value) * 2)
    assert offload.segment(memoryview(unfinished(twice, 2))) == _renumbered([packet, packet])
