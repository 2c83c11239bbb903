"""Small UDP packets of one message joined to one with segmentation offload, which costs one write.

As a kernel does on receipt (GRO), for what comes in numbers: datagrams one behind the other as a host with
checksum offload sends them, of one flow and one size, but that the last may be shorter. The kernel cuts them
apart again, as `wire.offload.segment` does. Of IPv4 only those which are never fragmented (DF): their
identification means nothing (RFC 6864), and after the cut it counts on from the first one's.
"""

from __future__ import annotations

from functools import lru_cache
from struct import Struct

from shadowmesh.wire import ip
from shadowmesh.wire.offload import GSO_UDP_L4, HEADER_SIZE, NEEDS_CSUM
from shadowmesh.wire.record import HEADER_SIZE as _RECORD
from shadowmesh.wire.record import OFFLOAD

MAX_COUNT = 64  # UDP_MAX_SEGMENTS of Linux before 6.9, which drops what has more
MIN_COUNT = 4  # below it, looking at them costs more than it saves

Records = list[tuple[int, int, int]]

_UDP = 8
_HEADERS4 = HEADER_SIZE + ip.IPV4_HEADER + _UDP
_HEADERS6 = HEADER_SIZE + ip.IPV6_HEADER + _UDP
_MAX_PAYLOAD = 0xFFFF - ip.IPV4_HEADER - _UDP
_DF = b"\x40\x00"

_gso = Struct("<BBHHHH")
_ports = Struct("I")
_end = Struct(">HH")  # of a UDP header: length and checksum


def coalesce(plain: memoryview, records: Records) -> tuple[Records, dict[int, int]]:
    """Join records of a message `plain` (see `record.split`), in place.

    Returns (kind, start, end of the body) of those that are left, in their order, and by `start` of how many
    packets the joined ones are made. No byte of another one changes.
    """
    left: Records = []
    counts: dict[int, int] = {}
    index = again = 0
    last = len(records) - MIN_COUNT
    while index <= last:
        each = records[index]
        if each[0] == OFFLOAD and index >= again:
            _, start, end = each
            size = end - start
            _, next_start, next_end = records[index + 1]
            _, far_start, far_end = records[index + MIN_COUNT - 1]
            if next_end - next_start == size == far_end - far_start:
                count, end = _join(plain, records, index)
                if count > 1:
                    counts[start] = count
                    left.append((OFFLOAD, start, end))
                    index += count
                    continue
                again = index + MIN_COUNT  # so that looking in vain costs little
        left.append(each)
        index += 1
    return left + records[index:], counts


def _join(plain: memoryview, records: Records, index: int) -> tuple[int, int]:
    """(how many, end) of what is joined from `index` on; nothing is changed if that is one."""
    _, start, end = records[index]
    size = end - start
    alone = 1, end
    if size <= _HEADERS4:
        return alone
    ipv4 = plain[start + 10] == 0x45
    headers = _HEADERS4 if ipv4 else _HEADERS6
    if plain[start + (19 if ipv4 else 16)] != ip.UDP or size <= headers:
        return alone
    ports = start + headers - _UDP
    if _ports.unpack_from(plain, ports) != _ports.unpack_from(plain, ports + size + _RECORD):
        return alone
    first = bytes(plain[start : start + headers])
    if first[0] != NEEDS_CSUM or first[1] or (first[16:18] != _DF if ipv4 else first[10] >> 4 != 6):
        return alone
    payload = size - headers
    if _fit(first, payload, ipv4) != first:
        return alone  # a wrong length or checksum is to stay wrong

    step = size + _RECORD
    here = start - _RECORD
    most = min(MAX_COUNT, (records[-1][2] - here) // step, _MAX_PAYLOAD // payload)
    packets = _layout(ipv4, payload).iter_unpack(plain[here : here + most * step])
    payloads: list[bytes] = []
    if ipv4:
        head, number, middle, check, tail, data = next(packets)
        total = number + check
        for a, number, b, check, c, data in packets:
            # The header's checksum falls by what the identification has grown (RFC 1624).
            if a != head or b != middle or c != tail or (number + check - total) % 0xFFFF:
                break
            payloads.append(data)
    else:
        head, data = next(packets)
        for a, data in packets:
            if a != head:
                break
            payloads.append(data)
    count = len(payloads) + 1
    if count == 1:
        return alone
    if count < MAX_COUNT and index + count < len(records):
        kind, begin, behind = records[index + count]
        shorter = behind - begin - headers
        if kind == OFFLOAD and 0 < shorter < payload and count * payload + shorter <= _MAX_PAYLOAD:
            its = bytes(plain[begin : begin + headers])
            wanted = _fit(first[:14] + its[14:16] + first[16:] if ipv4 else first, shorter, ipv4)
            if its == wanted:
                payloads.append(bytes(plain[begin + headers : behind]))
                count += 1
    data = b"".join(payloads)
    plain[end : end + len(data)] = data
    plain[start : start + headers] = _fit(first, payload + len(data), ipv4)
    _gso.pack_into(plain, start, NEEDS_CSUM, GSO_UDP_L4, headers - HEADER_SIZE, payload, 0, 0)
    return count, end + len(data)


@lru_cache(maxsize=64)
def _layout(ipv4: bool, payload: int) -> Struct:
    """A record with such a packet; of IPv4, identification and header checksum by themselves."""
    return Struct(f">18sH4sH16s{payload}s" if ipv4 else f">62s{payload}s")


def _fit(header: bytes, payload: int, ipv4: bool) -> bytes:
    """The header of a packet of the same flow with so many bytes of payload."""
    size = payload + _UDP
    if ipv4:
        front = header[10:12] + (size + ip.IPV4_HEADER).to_bytes(2, "big") + header[14:20]
        addresses = header[22:30]
        head = header[:10] + front + ip.checksum(front + addresses).to_bytes(2, "big") + header[22:34]
    else:
        addresses = header[18:50]
        head = header[:14] + size.to_bytes(2, "big") + header[16:54]
    return head + _end.pack(size, ip.ones_sum(addresses, ip.UDP + size))
