"""IP packets for tests: finished or not, and judged by slow code that shares nothing with `wire`."""

from __future__ import annotations

import struct
from ipaddress import ip_address

TCP, UDP, ICMP, ICMPV6 = 6, 17, 1, 58
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMPV6: 2}


def ip_packet(source: str, destination: str, protocol: int, body: bytes, *, options: bytes = b"") -> bytes:
    """A finished packet: IP lengths and checksum, and the checksum of TCP, UDP, ICMP or ICMPv6 in `body`.

    `options` are those of IPv4, padded by the caller to a multiple of four bytes.
    """
    addresses = ip_address(source).packed + ip_address(destination).packed
    at = _CHECKSUM_AT.get(protocol)
    if at is not None:
        pseudo = b"" if protocol == ICMP else _pseudo(addresses, protocol, len(body))
        body = body[:at] + bytes(2) + body[at + 2 :]
        value = 0xFFFF - slow_sum(pseudo + body)
        if protocol == UDP and not value:
            value = 0xFFFF
        body = body[:at] + struct.pack(">H", value) + body[at + 2 :]
    if len(addresses) == 32:
        return struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + addresses + body
    words = 5 + len(options) // 4
    header = struct.pack(
        ">BBHHHBBH8s", 0x40 | words, 0, words * 4 + len(body), 0x1234, 0x4000, 64, protocol, 0, addresses
    )
    header += options
    return header[:10] + struct.pack(">H", 0xFFFF - slow_sum(header)) + header[12:] + body


def tcp_packet(
    source: str,
    destination: str,
    payload: bytes = b"",
    *,
    flags: int = 0x10,
    sequence: int = 1,
    options: bytes = b"",
) -> bytes:
    """A finished TCP segment between the ports 40000 and 80; `flags` is the ACK bit unless said otherwise."""
    words = 5 + len(options) // 4
    header = struct.pack(">HHIIBBHHH", 40000, 80, sequence, 7, words << 4, flags, 512, 0, 0)
    return ip_packet(source, destination, TCP, header + options + payload)


def udp_packet(source: str, destination: str, payload: bytes = b"", port: int = 40000) -> bytes:
    """A finished UDP datagram from this port to port 53."""
    header = struct.pack(">HHHH", port, 53, 8 + len(payload), 0)
    return ip_packet(source, destination, UDP, header + payload)


def unfinished(packet: bytes, gso_size: int = 0, *, ecn: bool = False) -> bytearray:
    """The record in which a kernel with offload hands over this TCP or UDP packet without extension headers.

    Its checksum is left to do, and with `gso_size` its cutting too.
    """
    version = packet[0] >> 4
    start = (packet[0] & 15) * 4 if version == 4 else 40
    protocol = packet[9] if version == 4 else packet[6]
    addresses = packet[12:20] if version == 4 else packet[8:40]
    offset = _CHECKSUM_AT[protocol]
    headers = start + ((packet[start + 12] >> 4) * 4 if protocol == TCP else 8)
    gso = 0 if not gso_size else 5 if protocol == UDP else 1 if version == 4 else 4
    record = bytearray(
        struct.pack("<BBHHHH", 1, gso | (0x80 if ecn else 0), headers, gso_size, start, offset)
    )
    record += packet
    pseudo = slow_sum(_pseudo(addresses, protocol, len(packet) - start))
    struct.pack_into(">H", record, 10 + start + offset, pseudo)
    return record


def is_valid(packet: bytes) -> bool:
    """Whether lengths and checksums of this TCP, UDP, ICMP or ICMPv6 packet are right, and none absent."""
    if packet[0] >> 4 == 4:
        start, protocol, addresses = (packet[0] & 15) * 4, packet[9], packet[12:20]
        if struct.unpack(">H", packet[2:4])[0] != len(packet) or slow_sum(packet[:start]) != 0xFFFF:
            return False
    else:
        start, protocol, addresses = 40, packet[6], packet[8:40]
        if struct.unpack(">H", packet[4:6])[0] != len(packet) - 40:
            return False
    body = packet[start:]
    if protocol == UDP and (body[6:8] == bytes(2) or struct.unpack(">H", body[4:6])[0] != len(body)):
        return False
    return slow_sum((b"" if protocol == ICMP else _pseudo(addresses, protocol, len(body))) + body) == 0xFFFF


def slow_sum(data: bytes) -> int:
    """The one's complement sum of RFC 1071, word by word as it is written there."""
    total = 0
    for at in range(0, len(data), 2):
        total += data[at] << 8 | (data[at + 1] if at + 1 < len(data) else 0)
        if total > 0xFFFF:
            total -= 0xFFFF
    return total


def _pseudo(addresses: bytes, protocol: int, length: int) -> bytes:
    if len(addresses) == 8:
        return addresses + struct.pack(">BBH", 0, protocol, length)
    return addresses + struct.pack(">IxxxB", length, protocol)
