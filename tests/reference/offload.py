"""Section 4, "offload header of a peer is hostile input": which kind 2 records may reach the kernel."""

from __future__ import annotations

import struct
from dataclasses import dataclass

HEADER = struct.Struct("<BBHHHH")  # flags, gso_type, hdr_len, gso_size, csum_start, csum_offset
NEEDS_CSUM = 1
NONE, TCPV4, TCPV6, UDP_L4, ECN = 0, 1, 4, 5, 0x80
TCP, UDP = 6, 17
CSUM_OFFSET = {TCP: 16, UDP: 6}
SYN = 0x02
MAX_SEGMENTS = 128
IPV6_EXTENSIONS = {0, 43, 44, 50, 51, 60, 135, 139, 140, 253, 254}


class Refused(ValueError):
    """Why the record is dropped."""


@dataclass
class Packet:
    """What the checks need of an IP packet."""

    version: int
    protocol: int
    l4: int  # where the TCP or UDP header starts
    headers: int  # length of all headers


def check(condition: bool, why: str) -> None:
    if not condition:
        raise Refused(why)


def parse(ip: bytes) -> Packet:
    """The packet, whole, unfragmented, without IPv6 extension headers."""
    check(len(ip) >= 20, "shorter than an IP header")
    version = ip[0] >> 4
    check(version in (4, 6), "IP version")
    if version == 4:
        l4, length, protocol = (ip[0] & 15) * 4, int.from_bytes(ip[2:4]), ip[9]
        check(l4 >= 20, "IPv4 header length")
        check(int.from_bytes(ip[6:8]) & 0x3FFF == 0, "fragment")
    else:
        check(len(ip) >= 40, "shorter than an IPv6 header")
        l4, length, protocol = 40, 40 + int.from_bytes(ip[4:6]), ip[6]
        check(protocol not in IPV6_EXTENSIONS, "IPv6 extension header")
    check(length == len(ip), "IP length is not the body's")
    check(l4 <= len(ip), "IP header outside the body")
    headers = l4
    if protocol == TCP:
        check(len(ip) >= l4 + 20, "TCP header outside the body")
        check(ip[l4 + 12] >> 4 >= 5, "TCP header length")
        headers += (ip[l4 + 12] >> 4) * 4
    elif protocol == UDP:
        headers += 8
    check(headers <= len(ip), "header outside the body")
    return Packet(version, protocol, l4, headers)


def sanitise(body: bytes) -> bytes:
    """The header that may go to the kernel, made from the parsed packet; raises Refused."""
    check(len(body) >= HEADER.size, "shorter than a virtio_net_hdr")
    flags, gso, _, gso_size, _, _ = HEADER.unpack(body[: HEADER.size])
    ip = body[HEADER.size :]
    check(flags in (0, NEEDS_CSUM), "flags")
    check(gso in (NONE, TCPV4, TCPV6, UDP_L4, TCPV4 | ECN, TCPV6 | ECN), "gso type")
    packet = parse(ip)
    kind = gso & ~ECN
    if flags or gso:
        check(packet.protocol in CSUM_OFFSET, "neither TCP nor UDP")
    if kind:
        check(flags == NEEDS_CSUM, "gso without NEEDS_CSUM")
        check(packet.protocol == (UDP if kind == UDP_L4 else TCP), "gso type and protocol")
        check(kind == UDP_L4 or packet.version == (4 if kind == TCPV4 else 6), "gso type and IP version")
        check(gso_size >= 1, "gso size")
        check(-(-(len(ip) - packet.headers) // gso_size) <= MAX_SEGMENTS, "segments")
        check(packet.protocol == UDP or not ip[packet.l4 + 13] & SYN, "SYN")
    if not flags:
        return bytes(HEADER.size)
    size = gso_size if kind else 0
    return HEADER.pack(flags, gso, packet.headers, size, packet.l4, CSUM_OFFSET[packet.protocol])
