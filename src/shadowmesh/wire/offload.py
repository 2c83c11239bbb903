"""virtio_net_hdr: IP packets as a kernel with offload hands them over, unfinished and up to 64 KiB long.

A record is header ‖ IP packet. The header, little-endian (virtio 1.2 section 5.1.6, linux/virtio_net.h):

    flags 1 ‖ gso_type 1 ‖ hdr_len 2 ‖ gso_size 2 ‖ csum_start 2 ‖ csum_offset 2

With NEEDS_CSUM the 16 bits at csum_start + csum_offset of the packet hold the sum of the pseudo header, and
the checksum over all from csum_start on is still to be put there. With a gso_type, the packet is to be cut
into segments of gso_size payload bytes. What comes from a peer is hostile: the kernel acts on these offsets.
"""

from __future__ import annotations

from struct import Struct

from shadowmesh.errors import OffloadError
from shadowmesh.wire import ip
from shadowmesh.wire.ip import TCP, UDP
from shadowmesh.wire.record import OFFLOAD, PACKET

NEEDS_CSUM = 1
DATA_VALID = 2

GSO_NONE = 0
GSO_TCPV4 = 1
GSO_UDP = 3  # UFO: fragments one datagram; obsolete, never used here
GSO_TCPV6 = 4
GSO_UDP_L4 = 5
GSO_ECN = 0x80  # or-ed to a TCP type: the packet has CWR set

HEADER_SIZE = 10
MAX_RECORD = HEADER_SIZE + ip.IPV6_HEADER + 0xFFFF  # an IPv6 header does not count itself
MAX_SEGMENTS = 128

KIND_SPLIT = 0
KIND_PACKET = PACKET
KIND_OFFLOAD = OFFLOAD

PLAIN = bytes(HEADER_SIZE)
"""Header of a finished packet."""

_FIN, _SYN, _PSH, _CWR = 0x01, 0x02, 0x08, 0x80
_Layout = tuple[int, int, int, int, int, int]  # the fields of the header, in their order
_PLAIN_LAYOUT: _Layout = (0, 0, 0, 0, 0, 0)

_header = Struct("<BBHHHH")
# Of a record: version and IHL, total length, fragment bits, protocol; payload length, next header.
_ipv4 = Struct(">10xBxH2xHxB")
_ipv6 = Struct(">14xHB")
_u16 = Struct(">H")
_u32 = Struct(">I")


def sanitize(record: memoryview) -> None:
    """Check a peer's record and overwrite its header, in place, by what the packet itself says.

    Afterwards it is safe for the kernel and for `segment`. Raises OffloadError: drop the record.
    """
    _header.pack_into(record, 0, *_layout(record))


def from_tun(record: memoryview) -> int:
    """How the record of our own kernel is to travel to a peer.

    KIND_PACKET: `record[HEADER_SIZE:]`, a finished packet now (its checksum is completed in place; all
    fragments and extension headers go so). KIND_OFFLOAD: the whole record. KIND_SPLIT: the pieces that
    `split` makes of it. Raises OffloadError for a header that no kernel gives.
    """
    flags, gso, _, _, start, offset = _header.unpack_from(record)
    if not flags & NEEDS_CSUM and not gso:
        return KIND_PACKET
    record[0] = flags & NEEDS_CSUM  # DATA_VALID is for the receiving kernel alone
    try:
        layout = _layout(record)
        # They differ for a packet within a packet, where the inner one is unfinished.
        if layout[4] == start and layout[5] == offset:
            return KIND_OFFLOAD
    except OffloadError:
        pass
    if gso:
        return KIND_SPLIT
    _complete(record[HEADER_SIZE:], start, offset)
    return KIND_PACKET


def split(record: memoryview, most: int = 0xFFFF * MAX_SEGMENTS) -> list[tuple[int, bytes]]:
    """(kind, body) of the records to send instead of one that `from_tun` calls KIND_SPLIT, or a GSO one.

    Pieces of at most MAX_SEGMENTS segments and, as far as one segment allows, `most` payload bytes; finished
    packets if no peer may accept it in the form of offload. Raises OffloadError as `segment` does.
    """
    _, _, _, gso_size, start, offset = _header.unpack_from(record)
    segments = min(max(1, most // gso_size), MAX_SEGMENTS) if gso_size else 0
    pieces = _cut(record, segments * gso_size, finished=False)
    try:
        # A peer cuts where the outer header says, which for a packet within a packet is another place.
        as_peers_cut = all(_layout(memoryview(piece))[4:] == (start, offset) for piece in pieces)
    except OffloadError:
        as_peers_cut = False
    if as_peers_cut:
        return [(KIND_OFFLOAD, piece) for piece in pieces]
    return [(KIND_PACKET, packet) for packet in segment(record)]


def segment(record: memoryview) -> list[bytes]:
    """The finished IP packets that a kernel would make of this record, checksums included.

    The header must come from `sanitize` or from our own kernel. Raises OffloadError where it does not fit.
    """
    flags, gso, _, gso_size, start, offset = _header.unpack_from(record)
    if gso:
        return _cut(record, gso_size, finished=True)
    packet = bytearray(record[HEADER_SIZE:])
    if flags & NEEDS_CSUM:
        _complete(memoryview(packet), start, offset)
    return [bytes(packet)]


def _layout(record: memoryview) -> _Layout:
    """Every rule for a peer's record (protocol.md, section 4); the header that follows from its packet."""
    size = len(record)
    if size < HEADER_SIZE + ip.IPV4_HEADER:
        raise OffloadError("shorter than an IP header")
    flags, gso, _, gso_size, _, _ = _header.unpack_from(record)
    first, length, fragment, protocol = _ipv4.unpack_from(record)
    if first >> 4 == 4:
        l4 = (first & 15) * 4
        tcp_type = GSO_TCPV4
        if l4 < ip.IPV4_HEADER:
            raise OffloadError("IPv4 header shorter than 20 bytes")
        if fragment & 0x3FFF:
            raise OffloadError("a fragment")
    elif first >> 4 == 6:
        if size < HEADER_SIZE + ip.IPV6_HEADER:
            raise OffloadError("shorter than an IPv6 header")
        l4 = ip.IPV6_HEADER
        length, protocol = _ipv6.unpack_from(record)
        length += l4
        tcp_type = GSO_TCPV6
        if protocol in ip.IPV6_EXTENSIONS:
            raise OffloadError("an IPv6 extension header")
    else:
        raise OffloadError("not an IP packet")
    if length != size - HEADER_SIZE:
        raise OffloadError("IP length is not the record's")

    if protocol == TCP:
        if length < l4 + 20:
            raise OffloadError("TCP header outside the packet")
        tcp_header = (record[HEADER_SIZE + l4 + 12] >> 4) * 4
        headers = l4 + tcp_header
        if tcp_header < 20 or headers > length:
            raise OffloadError("TCP data offset outside the packet")
        offset = 16
        if gso:
            if gso & ~GSO_ECN != tcp_type:
                raise OffloadError("gso type does not fit the packet")
            if record[HEADER_SIZE + l4 + 13] & _SYN:
                raise OffloadError("gso with SYN")
    elif protocol == UDP:
        headers = l4 + 8
        if headers > length:
            raise OffloadError("UDP header outside the packet")
        offset = 6
        if gso and gso != GSO_UDP_L4:
            raise OffloadError("gso type does not fit the packet")
    else:
        if flags or gso:
            raise OffloadError("offload of neither TCP nor UDP")
        if l4 > length:
            raise OffloadError("IPv4 header outside the packet")
        return _PLAIN_LAYOUT

    if flags != NEEDS_CSUM:
        if flags or gso:
            raise OffloadError("gso without NEEDS_CSUM" if gso else "unknown flags")
        return _PLAIN_LAYOUT
    if not gso:
        return NEEDS_CSUM, 0, headers, 0, l4, offset
    if not gso_size:
        raise OffloadError("gso size 0")
    if length - headers > MAX_SEGMENTS * gso_size:
        raise OffloadError("more than 128 segments")
    return NEEDS_CSUM, gso, headers, gso_size, l4, offset


def _complete(packet: memoryview, start: int, offset: int) -> None:
    """Put the checksum in its place, as skb_checksum_help of Linux: never 0, which says "none" in UDP."""
    at = start + offset
    if at + 2 > len(packet):
        raise OffloadError("checksum outside the packet")
    value = ip.checksum(packet[start:]) or 0xFFFF
    packet[at] = value >> 8
    packet[at + 1] = value & 0xFF


def _cut(record: memoryview, step: int, *, finished: bool) -> list[bytes]:
    """Cut into packets of `step` payload bytes: finished, or as records that are still to be cut.

    As inet_gso_segment, tcp_gso_segment and __udp_gso_segment of Linux. The sum of the pseudo header is taken
    from the packet and corrected by the length, so routing headers need no understanding.
    """
    gso, gso_size, start, offset, headers = _gso_header(record)
    packet = record[HEADER_SIZE:]
    template, payload = bytearray(packet[:headers]), packet[headers:]
    check = start + offset
    pseudo = int.from_bytes(packet[check : check + 2], "big") + 2 * 0xFFFF - (len(packet) - start)
    template[check : check + 2] = bytes(2)
    ipv4_header = (packet[0] & 15) * 4 if packet[0] >> 4 == 4 else 0
    identification = int.from_bytes(packet[4:6], "big")
    if ipv4_header:
        template[10:12] = bytes(2)
    sequence = int.from_bytes(packet[start + 4 : start + 8], "big")
    single = len(payload) <= step

    pieces = []
    for at in range(0, len(payload) or 1, step):
        piece = template + payload[at : at + step]
        size = len(piece)
        if ipv4_header:
            _u16.pack_into(piece, 2, size)
            _u16.pack_into(piece, 4, identification + at // gso_size & 0xFFFF)
            _u16.pack_into(piece, 10, ip.checksum(piece[:ipv4_header]))
        else:
            _u16.pack_into(piece, 4, size - ip.IPV6_HEADER)
        if gso == GSO_UDP_L4:
            _u16.pack_into(piece, start + 4, size - start)
        else:
            _u32.pack_into(piece, start + 4, sequence + at & 0xFFFFFFFF)
            if at + step < len(payload):
                piece[start + 13] &= ~(_FIN | _PSH)
            if at:
                piece[start + 13] &= ~_CWR
        partial = pseudo + size - start
        if finished:
            value = ip.checksum(memoryview(piece)[start:], partial)
            # Only UDP has no checksum 0; the kernel avoids it for all that it does not cut, and so do we.
            if not value and (gso == GSO_UDP_L4 or single):
                value = 0xFFFF
            _u16.pack_into(piece, check, value)
            pieces.append(bytes(piece))
        else:
            _u16.pack_into(piece, check, partial % 0xFFFF or 0xFFFF)
            kind = 0 if size - headers <= gso_size else gso & ~GSO_ECN if at else gso
            head = _header.pack(NEEDS_CSUM, kind, headers, gso_size if kind else 0, start, offset)
            pieces.append(head + piece)
    return pieces


def _gso_header(record: memoryview) -> tuple[int, int, int, int, int]:
    """(gso_type, gso_size, csum_start, csum_offset, length of all headers), all inside the packet."""
    flags, gso, _, gso_size, start, offset = _header.unpack_from(record)
    packet = record[HEADER_SIZE:]
    size = len(packet)
    tcp = gso & ~GSO_ECN in (GSO_TCPV4, GSO_TCPV6)
    if (
        not flags & NEEDS_CSUM
        or not gso_size
        or not (tcp or gso == GSO_UDP_L4)
        or offset != (16 if tcp else 6)
    ):
        raise OffloadError("gso header that no kernel gives")
    version = packet[0] >> 4 if size else 0
    ip_header = (packet[0] & 15) * 4 if version == 4 else ip.IPV6_HEADER
    if version not in (4, 6) or not ip.IPV4_HEADER <= ip_header <= start <= size - (20 if tcp else 8):
        raise OffloadError("gso header outside the packet")
    headers = start + ((packet[start + 12] >> 4) * 4 if tcp else 8)
    if headers > size or headers < start + (20 if tcp else 8):
        raise OffloadError("TCP data offset outside the packet")
    return gso, gso_size, start, offset, headers
