"""IP headers: what routing needs of a packet, Internet checksums, and the ICMP errors of a router.

RFC 791 (IPv4), RFC 8200 (IPv6), RFC 1071 (checksum), RFC 792 and RFC 4443 (ICMP errors), RFC 1122 section
3.2.2 and RFC 1812 section 4.3.2.7 (when to keep silent).
"""

from __future__ import annotations

from enum import Enum
from struct import Struct

Bytes = bytes | bytearray | memoryview

TCP = 6
UDP = 17
IPV4_HEADER = 20
IPV6_HEADER = 40

HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, DESTINATION = 0, 43, 44, 50, 51, 60
IPV6_EXTENSIONS = frozenset({HOP_BY_HOP, ROUTING, FRAGMENT, ESP, AH, DESTINATION, 135, 139, 140, 253, 254})
"""Next-header values that IANA lists as IPv6 extension headers."""

_ICMP, _ICMPV6 = 1, 58
# All other ICMP types are errors, or unknown and so perhaps errors. ICMPv6 has its errors below 128.
_ICMP_QUERIES = frozenset({0, 8, 9, 10, 13, 14, 15, 16, 17, 18})
_ICMPV6_REDIRECT = 137
_MAX_EXTENSIONS = 16  # in one packet; real ones have two or three, a packet may hold thousands

# An error quotes as much of its packet as fits what every host must be able to receive.
_ICMP_SIZE, _ICMPV6_SIZE = 576, 1280
_TTL = 64
_INTERNETWORK_CONTROL = 0xC0  # precedence of ICMP errors, RFC 1812 section 4.3.2.5

_MAPPED_IP4 = bytes(10) + b"\xff\xff"

_ipv4 = Struct(">BxH8x8s")  # version and IHL, total length, source ‖ destination
_ipv6 = Struct(">4xH2x32s")  # payload length, source ‖ destination
_ipv4_error = Struct(">BBHHHBBH4s4sBBHHH")
_ipv6_error = Struct(">IHBB16s16sBBHI")


class Unreachable(Enum):
    """Why a packet cannot be delivered: its ICMP (type, code) and its ICMPv6 (type, code)."""

    NO_ROUTE = ((3, 0), (1, 0))
    HELD_BACK = ((3, 1), (1, 3))
    TOO_BIG = ((3, 4), (2, 0))


def flow_key(buffer: Bytes, start: int, end: int) -> bytes:
    """Source ‖ destination (8 or 32 bytes) of the IP packet `buffer[start:end]`.

    Empty if that is no IP packet, or not one of exactly this length by its own header: no stray byte before
    or after a packet gets through. `end` must not lie behind the buffer.
    """
    size = end - start
    if size < IPV4_HEADER:
        return b""
    first, length, key = _ipv4.unpack_from(buffer, start)
    version = first >> 4
    if version == 4:
        return key if length == size and IPV4_HEADER <= (first & 15) * 4 <= size else b""
    if version == 6 and size >= IPV6_HEADER:
        length, key = _ipv6.unpack_from(buffer, start)
        return key if length + IPV6_HEADER == size else b""
    return b""


def connection_key(packet: Bytes, start: int) -> bytes:
    """What tells the connections apart whose packets share a queue: addresses, protocol and ports.

    `packet[start:]` is one that `flow_key` has taken. Fragments but the first, and packets with extension
    headers, have no ports.
    """
    if packet[start] >> 4 == 4:
        protocol, at = packet[start + 9], start + (packet[start] & 15) * 4
        addresses = packet[start + 12 : start + 20]
        whole = not (packet[start + 6] & 0x1F or packet[start + 7])
    else:
        protocol, at, addresses, whole = packet[start + 6], start + 40, packet[start + 8 : start + 40], True
    ports = packet[at : at + 4] if whole and protocol in (TCP, UDP) else b""
    return bytes((protocol, *addresses, *ports))


def mark_congestion(packet: bytearray | memoryview) -> bool:
    """Put "congestion experienced" into a packet whose sender knows ECN (RFC 3168); False for all others."""
    if packet[0] >> 4 == 4:
        ecn = packet[1] & 3
        if 0 < ecn < 3:
            packet[1] |= 3
            # RFC 1624: the header's checksum falls by what its first word has grown.
            packet[10:12] = ((int.from_bytes(packet[10:12], "big") - 3 + ecn) % 0xFFFF).to_bytes(2, "big")
        return ecn > 0
    ecn = packet[1] >> 4 & 3
    if ecn:
        packet[1] |= 0x30
    return ecn > 0


def is_unroutable(address: bytes) -> bool:
    """Whether no peer can ever have this address (4 or 16 bytes).

    Multicast, limited broadcast and reserved, link-local, loopback, unspecified, IPv4-mapped: mostly what the
    kernel sends unasked. A subnet's broadcast address looks like any other: its prefix must be known.
    """
    first = address[0]
    if len(address) == 4:
        return first >= 224 or first in (0, 127) or address[:2] == b"\xa9\xfe"
    if first == 0:
        return (address[:15] == bytes(15) and address[15] <= 1) or address[:12] == _MAPPED_IP4
    return first == 0xFF or (first == 0xFE and address[1] & 0xC0 == 0x80)


def ones_sum(data: Bytes, initial: int = 0) -> int:
    """The one's complement sum of big-endian 16-bit words (RFC 1071), folded to 16 bits, not complemented.

    `initial` is added first, a number of any size. An odd byte at the end counts as a high one.
    """
    # One division of one big number: 2^16 is 1 modulo 0xFFFF, so the remainder is the folded sum, but for the
    # two zeros: the sum is +0 for nothing but zeros only. 1400 bytes take about 2 µs, a loop over words 50.
    total = int.from_bytes(data, "big")
    if len(data) & 1:
        total <<= 8
    total += initial
    return total % 0xFFFF or (0xFFFF if total else 0)


def checksum(data: Bytes, initial: int = 0) -> int:
    """The Internet checksum of `data` (RFC 1071): 0 over data that holds its own one.

    `initial` as for `ones_sum`.
    """
    return 0xFFFF - ones_sum(data, initial)


def pseudo_header(addresses: Bytes, protocol: int, length: int) -> int:
    """What the pseudo header adds to a TCP, UDP or ICMPv6 checksum, as `initial` for `checksum`.

    `addresses` is source ‖ destination, 8 or 32 bytes; `length` that of the upper-layer packet.
    """
    return int.from_bytes(addresses, "big") + protocol + length


def unreachable(packet: Bytes, kind: Unreachable, source: bytes | None = None, mtu: int = 0) -> bytes | None:
    """The ICMP or ICMPv6 error to the sender of `packet`, or None if none may be sent.

    `packet` may be cut short and its checksums unfinished. `source` sends the error, 4 or 16 bytes; without
    it the packet's own destination does: Linux refuses an error from one of its own addresses, and its
    reverse path filter one from an address that is routed elsewhere. `mtu` is for TOO_BIG.

    Silent about ICMP errors and unknown ICMP types, fragments but the first, and packets from or to what
    `is_unroutable` knows; also if the headers are too short or too many to tell.
    """
    version = packet[0] >> 4 if len(packet) >= IPV4_HEADER else 0
    if version == 4:
        return _unreachable_ipv4(packet, kind, source, mtu)
    if version == 6 and len(packet) >= IPV6_HEADER:
        return _unreachable_ipv6(packet, kind, source, mtu)
    return None


def _unreachable_ipv4(packet: Bytes, kind: Unreachable, source: bytes | None, mtu: int) -> bytes | None:
    sender, destination = bytes(packet[12:16]), bytes(packet[16:20])
    header = (packet[0] & 15) * 4
    later_fragment = int.from_bytes(packet[6:8], "big") & 0x1FFF
    if is_unroutable(sender) or is_unroutable(destination) or header < IPV4_HEADER or later_fragment:
        return None
    if packet[9] == _ICMP and (len(packet) <= header or packet[header] not in _ICMP_QUERIES):
        return None
    quote = packet[: _ICMP_SIZE - _ipv4_error.size]
    size = _ipv4_error.size + len(quote)
    code, mtu = kind.value[0], min(mtu, 0xFFFF)
    from_ = source or destination
    head = _ipv4_error.pack(
        0x45, _INTERNETWORK_CONTROL, size, 0, 0, _TTL, _ICMP, 0, from_, sender, *code, 0, 0, mtu
    )
    error = bytearray(head) + quote
    error[10:12] = checksum(error[:IPV4_HEADER]).to_bytes(2, "big")
    error[22:24] = checksum(error[IPV4_HEADER:]).to_bytes(2, "big")
    return bytes(error)


def _unreachable_ipv6(packet: Bytes, kind: Unreachable, source: bytes | None, mtu: int) -> bytes | None:
    sender, destination = bytes(packet[8:24]), bytes(packet[24:40])
    if is_unroutable(sender) or is_unroutable(destination) or not _may_answer_ipv6(packet):
        return None
    quote = packet[: _ICMPV6_SIZE - _ipv6_error.size]
    size = _ipv6_error.size - IPV6_HEADER + len(quote)
    head = _ipv6_error.pack(
        6 << 28, size, _ICMPV6, _TTL, source or destination, sender, *kind.value[1], 0, mtu
    )
    error = bytearray(head) + quote
    initial = pseudo_header(error[8:40], _ICMPV6, size)
    error[42:44] = checksum(error[IPV6_HEADER:], initial).to_bytes(2, "big")
    return bytes(error)


def _may_answer_ipv6(packet: Bytes) -> bool:
    """Whether the headers show that this is neither an ICMPv6 error nor a later fragment."""
    protocol, at = packet[6], IPV6_HEADER
    for _ in range(_MAX_EXTENSIONS):
        if protocol == _ICMPV6:
            return len(packet) > at and packet[at] >= 128 and packet[at] != _ICMPV6_REDIRECT
        if protocol == ESP or protocol not in IPV6_EXTENSIONS:
            return True
        if len(packet) < at + 8:
            return False
        if protocol == FRAGMENT and int.from_bytes(packet[at + 2 : at + 4], "big") >> 3:
            return False
        length = packet[at + 1]
        size = 8 if protocol == FRAGMENT else (length + 2) * 4 if protocol == AH else (length + 1) * 8
        protocol, at = packet[at], at + size
    return False
