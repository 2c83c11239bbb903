"""IP headers, checksums and ICMP errors."""

from __future__ import annotations

import struct
from collections.abc import Callable
from ipaddress import ip_address

import pytest

from shadowmesh.testing.packets import ICMP, ICMPV6, ip_packet, is_valid, slow_sum, tcp_packet, udp_packet
from shadowmesh.wire import ip
from shadowmesh.wire.ip import Unreachable

A4, B4, A6, B6 = "10.10.10.1", "10.10.10.7", "fd00::1", "fd00::7"
PAIRS = [(A4, B4), (A6, B6)]


def packed(text: str) -> bytes:
    return ip_address(text).packed


def key_of(packet: bytes) -> bytes:
    return ip.flow_key(packet, 0, len(packet))


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_flow_key(source: str, destination: str) -> None:
    packet = tcp_packet(source, destination, b"x" * 100)
    key = packed(source) + packed(destination)
    assert key_of(packet) == key
    framed = memoryview(bytearray(b"ab" + packet + b"cd"))
    assert ip.flow_key(framed, 2, 2 + len(packet)) == key


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_flow_key_needs_exactly_the_packet(source: str, destination: str) -> None:
    packet = tcp_packet(source, destination, b"x" * 100)
    for wrong in (packet + b"\0", packet[:-1], packet[:39], packet[:20], packet[:19], b""):
        assert key_of(wrong) == b""


@pytest.mark.parametrize("first", [0x00, 0x44, 0x46, 0x55, 0x75, 0xFF])
def test_flow_key_refuses_other_versions_and_header_lengths(first: int) -> None:
    packet = bytes([first, 0, 0, 20]) + bytes(16)
    assert key_of(packet) == b""


@pytest.mark.parametrize(
    "text",
    [
        *("224.0.0.251", "255.255.255.255", "240.0.0.1", "169.254.1.1", "127.0.0.1", "0.0.0.0"),
        *("ff02::1", "fe80::1", "febf::1", "::1", "::", "::ffff:10.10.10.1"),
    ],
)
def test_unroutable(text: str) -> None:
    assert ip.is_unroutable(packed(text))


@pytest.mark.parametrize(
    "text", [A4, "223.255.255.255", "169.253.1.1", "1.1.1.1", A6, "fec0::1", "64:ff9b::1", "::2"]
)
def test_routable(text: str) -> None:
    assert not ip.is_unroutable(packed(text))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", 0xFFFF),
        (bytes(20), 0xFFFF),
        (b"\xff\xff", 0),
        (b"\xff\xff\xff\xff", 0),
        (b"\xff\xfe\x00\x01", 0),
        (b"\x01", 0xFEFF),
        # The example of RFC 1071 section 3: the sum is ddf2.
        (bytes.fromhex("0001f203f4f5f6f7"), 0xFFFF - 0xDDF2),
    ],
)
def test_checksum(data: bytes, expected: int) -> None:
    assert ip.checksum(data) == expected == 0xFFFF - slow_sum(data)


def test_checksum_goes_on_from_a_sum_before() -> None:
    data = bytes(range(1, 200))
    assert ip.checksum(data[100:], ip.ones_sum(data[:100])) == ip.checksum(data)
    assert ip.checksum(b"", 0x1_FFFE_0000) == 0


@pytest.mark.parametrize(
    ("kind", "code4", "code6"),
    [
        (Unreachable.NO_ROUTE, (3, 0), (1, 0)),
        (Unreachable.HELD_BACK, (3, 1), (1, 3)),
        (Unreachable.TOO_BIG, (3, 4), (2, 0)),
    ],
)
def test_unreachable(kind: Unreachable, code4: tuple[int, int], code6: tuple[int, int]) -> None:
    packet = tcp_packet(A4, B4, b"x" * 60)
    error = ip.unreachable(packet, kind, mtu=1300)
    assert error is not None
    assert is_valid(error)
    assert error[12:20] == packed(B4) + packed(A4)
    assert (error[20], error[21]) == code4
    assert error[24:28] == struct.pack(">HH", 0, 1300)
    assert error[28:] == packet

    packet = tcp_packet(A6, B6, b"x" * 60)
    error = ip.unreachable(packet, kind, mtu=1300)
    assert error is not None
    assert is_valid(error)
    assert error[8:40] == packed(B6) + packed(A6)
    assert (error[40], error[41]) == code6
    assert error[44:48] == struct.pack(">I", 1300)
    assert error[48:] == packet


@pytest.mark.parametrize(("source", "destination", "size"), [(A4, B4, 576), (A6, B6, 1280)])
def test_unreachable_quotes_what_fits(source: str, destination: str, size: int) -> None:
    packet = tcp_packet(source, destination, b"x" * 60_000)
    error = ip.unreachable(memoryview(packet), Unreachable.HELD_BACK)
    assert error is not None
    assert len(error) == size
    assert packet.startswith(error[28 if size == 576 else 48 :])
    assert is_valid(error)
    assert ip.unreachable(packet[:1300], Unreachable.HELD_BACK) == error  # of a packet cut short as well


@pytest.mark.parametrize(("source", "destination", "router"), [(A4, B4, "10.10.10.9"), (A6, B6, "fd00::9")])
def test_unreachable_from_another_source(source: str, destination: str, router: str) -> None:
    error = ip.unreachable(udp_packet(source, destination), Unreachable.NO_ROUTE, packed(router))
    assert error is not None
    assert is_valid(error)
    assert key_of(error) == packed(router) + packed(source)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        *((A4, to) for to in ("224.0.0.1", "255.255.255.255", "0.0.0.0")),
        *((from_, B4) for from_ in ("0.0.0.0", "127.0.0.1", "224.0.0.1")),
        *((A6, to) for to in ("ff02::1", "::")),
        *((from_, B6) for from_ in ("::", "::1", "ff02::1")),
    ],
)
def test_silent_about_addresses(source: str, destination: str) -> None:
    assert ip.unreachable(udp_packet(source, destination), Unreachable.NO_ROUTE) is None


@pytest.mark.parametrize(
    ("type_", "answered"),
    [
        (8, True),
        (0, True),
        (13, True),
        (3, False),
        (4, False),
        (5, False),
        (11, False),
        (12, False),
        (200, False),
    ],
)
def test_silent_about_icmp_errors(type_: int, answered: bool) -> None:
    packet = ip_packet(A4, B4, ICMP, bytes([type_]) + bytes(40))
    assert (ip.unreachable(packet, Unreachable.NO_ROUTE) is not None) is answered
    assert ip.unreachable(packet[:20], Unreachable.NO_ROUTE) is None  # cannot tell


@pytest.mark.parametrize(
    ("type_", "answered"), [(128, True), (129, True), (1, False), (2, False), (127, False), (137, False)]
)
def test_silent_about_icmpv6_errors(type_: int, answered: bool) -> None:
    packet = ip_packet(A6, B6, ICMPV6, bytes([type_]) + bytes(40))
    assert (ip.unreachable(packet, Unreachable.NO_ROUTE) is not None) is answered
    assert ip.unreachable(packet[:40], Unreachable.NO_ROUTE) is None
    behind_options = ip_packet(A6, B6, 60, bytes([ICMPV6, 1]) + bytes(14) + packet[40:])
    assert (ip.unreachable(behind_options, Unreachable.NO_ROUTE) is not None) is answered


def test_silent_about_later_fragments() -> None:
    packet = bytearray(udp_packet(A4, B4, b"x" * 100))
    packet[6:8] = b"\x20\x00"
    assert ip.unreachable(packet, Unreachable.NO_ROUTE) is not None
    packet[6:8] = b"\x20\x01"
    assert ip.unreachable(packet, Unreachable.NO_ROUTE) is None

    first, later = (bytes([17, 0, 0, offset, 0, 0, 0, 1]) + bytes(40) for offset in (1, 8))
    assert ip.unreachable(ip_packet(A6, B6, 44, first), Unreachable.NO_ROUTE) is not None
    assert ip.unreachable(ip_packet(A6, B6, 44, later), Unreachable.NO_ROUTE) is None


def test_unreachable_looks_through_extension_headers() -> None:
    chain = bytes([43, 0]) + bytes(6) + bytes([51, 1]) + bytes(14) + bytes([50, 1]) + bytes(10) + bytes(20)
    assert ip.unreachable(ip_packet(A6, B6, 0, chain), Unreachable.NO_ROUTE) is not None
    assert ip.unreachable(ip_packet(A6, B6, 0, chain[:20]), Unreachable.NO_ROUTE) is None
    assert ip.unreachable(ip_packet(A6, B6, 0, bytes(8) * 1000), Unreachable.NO_ROUTE) is None


def test_silent_about_what_is_no_packet() -> None:
    bad_header = bytearray(udp_packet(A4, B4))
    bad_header[0] = 0x44
    for packet in (b"", b"\x45" * 19, b"\x60" * 39, bytes(60), bytes(bad_header)):
        assert ip.unreachable(packet, Unreachable.NO_ROUTE) is None


def test_connections_are_told_apart_by_addresses_protocol_and_ports() -> None:
    packets = [
        make(source, destination, b"x")
        for make in (tcp_packet, udp_packet)
        for source, destination in ((A4, B4), (B4, A4), (A6, B6), (B6, A6))
    ]
    packets += [ip_packet(A4, B4, ICMP, bytes(8)), ip_packet(A6, B6, ICMPV6, bytes(8))]
    other_port = bytearray(packets[0])
    other_port[20] ^= 1
    packets.append(bytes(other_port))
    assert len({ip.connection_key(packet, 0) for packet in packets}) == len(packets)
    for packet in packets:
        assert ip.connection_key(b"???" + packet, 3) == ip.connection_key(packet, 0)


def test_later_fragments_and_icmp_have_no_ports() -> None:
    packet = bytearray(udp_packet(A4, B4, b"x" * 100))
    packet[6:8] = b"\x20\x01"
    key = ip.connection_key(packet, 0)
    packet[20:24] = b"abcd"
    assert ip.connection_key(packet, 0) == key
    echo = ip_packet(A4, B4, ICMP, bytes(8))
    assert len(ip.connection_key(echo, 0)) == 9


@pytest.mark.parametrize("make", [tcp_packet, udp_packet])
@pytest.mark.parametrize(("source", "destination"), [(A4, B4), (A6, B6)])
def test_congestion_is_marked_where_ecn_is_known(
    make: Callable[[str, str, bytes], bytes], source: str, destination: str
) -> None:
    for ecn, marked in ((0, False), (1, True), (2, True), (3, True)):
        packet = bytearray(make(source, destination, b"data"))
        if ":" in source:
            packet[1] |= ecn << 4
        else:
            packet[1] |= ecn
            packet[10:12] = bytes(2)
            packet[10:12] = ip.checksum(packet[:20]).to_bytes(2)
        before = bytes(packet)
        assert ip.mark_congestion(packet) is marked
        assert is_valid(bytes(packet))
        assert (packet == before) is (ecn in (0, 3))
        shift = 4 if ":" in source else 0
        assert packet[1] >> shift & 3 == (3 if marked else 0)


def test_a_marked_header_has_the_checksum_of_a_new_one() -> None:
    for number in range(0x10000):
        packet = bytearray(b"\x45\x02" + bytes(2) + number.to_bytes(2) + bytes(14))
        packet[10:12] = ip.checksum(packet).to_bytes(2)
        ip.mark_congestion(packet)
        seen, packet[10:12] = bytes(packet[10:12]), bytes(2)
        assert seen == ip.checksum(packet).to_bytes(2)
