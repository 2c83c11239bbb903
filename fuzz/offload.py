"""No header that the kernel acts on points outside its packet, whatever a peer sends; cutting loses nothing.

The only exception allowed is OffloadError, and it leaves the record as it was. What is let through is
exactly what the second implementation lets through, with the header that it makes. An ICMP error about any
bytes at all is a valid packet, or none.
"""

from __future__ import annotations

import json
import struct
from pathlib import Path

from reference.offload import Refused, sanitise
from shadowmesh.errors import OffloadError
from shadowmesh.testing.packets import is_valid, tcp_packet, udp_packet, unfinished
from shadowmesh.wire import ip, offload

MAX_SIZE = 3000
VECTORS = Path(__file__).parents[1] / "tests/vectors"
HEADER = struct.Struct("<BBHHHH")
WORDS = [
    HEADER.pack(1, kind, headers, size, start, offset)
    for kind, headers, size, start, offset in (
        (0, 0, 0, 20, 16),
        (1, 40, 1, 20, 16),
        (4, 60, 9, 40, 16),
        (5, 28, 2, 20, 6),
    )
]


def one(data: bytes) -> object:
    """A record as a peer may send it, and as our own kernel may give it. Returns what becomes of both."""
    errors(data[offload.HEADER_SIZE :])
    return from_peer(data), from_kernel(data)


def from_peer(data: bytes) -> object:
    """The header that the kernel gets, None if the record is dropped."""
    try:
        expected: bytes | None = sanitise(data)
    except Refused:
        expected = None
    record = bytearray(data)
    try:
        offload.sanitize(memoryview(record))
    except OffloadError:
        assert record == data
        assert expected is None
        return None
    made, packet = bytes(record[: offload.HEADER_SIZE]), data[offload.HEADER_SIZE :]
    assert made == expected
    assert record[offload.HEADER_SIZE :] == packet
    assert ip.flow_key(packet, 0, len(packet))
    flags, gso, headers, _, start, offset = HEADER.unpack(made)
    if flags:
        assert start + offset + 2 <= headers <= len(packet)
    segments = offload.segment(memoryview(record))
    assert len(segments) <= offload.MAX_SEGMENTS
    if gso:
        assert b"".join(segment[headers:] for segment in segments) == packet[headers:]
        assert all(ip.flow_key(segment, 0, len(segment)) for segment in segments)
    return made


def from_kernel(data: bytes) -> object:
    """The records in which it travels to a peer, who must take them; None if no kernel gives such a thing."""
    if len(data) < offload.HEADER_SIZE + ip.IPV4_HEADER:
        return None
    record = bytearray(data)
    try:
        kind = offload.from_tun(memoryview(record))
        pieces = offload.split(memoryview(record)) if kind == offload.KIND_SPLIT else []
        whole = offload.segment(memoryview(record)) if kind == offload.KIND_SPLIT else []
    except OffloadError:
        return None
    if kind == offload.KIND_PACKET:
        assert len(record) == len(data)
    elif kind == offload.KIND_OFFLOAD:
        offload.sanitize(memoryview(record))
    else:
        travelled = []
        for piece_kind, piece in pieces:
            if piece_kind == offload.KIND_OFFLOAD:
                copy = bytearray(piece)
                offload.sanitize(memoryview(copy))
                assert copy == piece
                travelled += offload.segment(memoryview(copy))
            else:
                travelled.append(piece)
        assert travelled == whole
    return kind


def errors(packet: bytes) -> None:
    """What the host is told of a packet that cannot be delivered."""
    kind = list(ip.Unreachable)[len(packet) % 3]
    error = ip.unreachable(packet, kind, mtu=1400)
    if error is not None:
        assert is_valid(error)
        assert ip.unreachable(error, kind) is None


def seeds() -> dict[str, bytes]:
    """The records of the vectors, and what kernels give: more segments than peers take."""
    found = {}
    vectors = json.loads((VECTORS / "offload.json").read_text())
    for case in vectors["accepted"] + vectors["refused"]:
        if len(case["body"]) < 1200:
            found[f"vector, {case['what']}"] = bytes.fromhex(case["body"])
    for four, (a, b) in {"IPv4": ("10.0.0.1", "10.0.0.2"), "IPv6": ("fd00::1", "fd00::2")}.items():
        tcp, udp = (
            tcp_packet(a, b, bytes(range(200)), flags=0x99, options=b"\1" * 12),
            udp_packet(a, b, bytes(range(200))),
        )
        found |= {
            f"{four}, small TCP segments": bytes(unfinished(tcp, 7)),
            f"{four}, too many TCP segments": bytes(unfinished(tcp, 1, ecn=True)),
            f"{four}, small UDP segments": bytes(unfinished(udp, 50)),
            f"{four}, too many UDP segments": bytes(unfinished(udp, 1)),
            f"{four}, checksum of TCP": bytes(unfinished(tcp)),
            f"{four}, checksum of UDP": bytes(unfinished(udp)),
        }
    return found
