"""Frames that a member should not send: each costs its sender the connection or the frame, nobody else."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable

from shadowmesh.testing.hostile_clients import Siege, source, under_attack
from shadowmesh.testing.light_client import LightClient, join_message
from shadowmesh.testing.relay_client import address, frame
from shadowmesh.testing.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT
from shadowmesh.testing.websocket import frame as websocket_frame
from shadowmesh.wire.frame import HEADER_SIZE, MAX_FRAME

TIMES = 4
"""How many attackers do the same at once."""


def data(name: str, size: int = 100) -> bytes:
    """A data frame of that member to its friend, `size` bytes in all."""
    return frame(address("friend"), address(name), bytes(size - HEADER_SIZE))


def fragments(message: bytes, *sizes: int, opcode: int = BINARY) -> bytes:
    """The message in pieces of these sizes, and the rest."""
    sent, at = b"", 0
    for size in sizes:
        sent += websocket_frame(CONTINUATION if at else opcode, message[at : at + size], fin=False)
        at += size
    return sent + websocket_frame(CONTINUATION, message[at:])


def in_empty_pieces(message: bytes, count: int) -> bytes:
    """All of the message, `count` pieces of nothing, and a last one."""
    first = websocket_frame(TEXT, message, fin=False)
    return first + websocket_frame(CONTINUATION, fin=False) * count + websocket_frame(CONTINUATION)


def compressed(message: bytes) -> bytes:
    """As permessage-deflate has it (RFC 7692)."""
    deflate = zlib.compressobj(wbits=-15)
    return (deflate.compress(message) + deflate.flush(zlib.Z_SYNC_FLUSH))[:-4]


def headed(first: int, length: bytes, payload: bytes = b"") -> bytes:
    """A masked frame whose length is written as it should not be."""
    return bytes((first,)) + length + bytes(4) + payload


ARRIVES, DROPPED = "arrives", "dropped"
# What a member of this name sends → what becomes of it: a close code, or how its frame fares.
FRAMES: dict[str, tuple[Callable[[str], bytes], int | str]] = {
    "max_frame": (lambda name: websocket_frame(BINARY, data(name, MAX_FRAME)), ARRIVES),
    "a byte more": (lambda name: websocket_frame(BINARY, data(name, MAX_FRAME + 1)), 1009),
    "max_frame in two": (lambda name: fragments(data(name, MAX_FRAME), 1), ARRIVES),
    "max_frame in 2000": (lambda name: fragments(data(name, MAX_FRAME), *[64] * 2000), ARRIVES),
    "a byte more in two": (lambda name: fragments(data(name, MAX_FRAME + 1), 1), 1009),
    "a byte more at the end": (lambda name: fragments(data(name, MAX_FRAME + 1), MAX_FRAME), 1009),
    "2^31 bytes to come": (lambda name: b"\x82\xff" + (2**31).to_bytes(8) + bytes(200_000), 1009),
    "2^63 bytes to come": (lambda name: b"\x82\xff" + (2**63).to_bytes(8) + bytes(200_000), 1002),
    "a short frame": (lambda name: websocket_frame(BINARY, data(name, HEADER_SIZE)), DROPPED),
    "the shortest": (lambda name: websocket_frame(BINARY, data(name, HEADER_SIZE + 1)), ARRIVES),
    "not masked": (lambda name: websocket_frame(BINARY, data(name), masked=False), 1002),
    "masked with zeros": (lambda name: headed(0x82, bytes((0x80 | 100,)), data(name)), ARRIVES),
    "compressed": (lambda name: websocket_frame(BINARY, compressed(data(name)), rsv=4), 1002),
    "RSV2": (lambda name: websocket_frame(BINARY, data(name), rsv=2), 1002),
    "RSV3 in text": (lambda name: websocket_frame(TEXT, b"{}", rsv=1), 1002),
    "RSV1 in a fragment": (
        lambda name: websocket_frame(BINARY, b"", fin=False) + websocket_frame(CONTINUATION, b"", rsv=4),
        1002,
    ),
    "RSV1 in a ping": (lambda name: websocket_frame(PING, b"", rsv=4), 1002),
    "opcode 3": (lambda name: websocket_frame(3, data(name)), 1002),
    "opcode 15": (lambda name: websocket_frame(15), 1002),
    "a fragment of nothing": (lambda name: websocket_frame(CONTINUATION, data(name)), 1002),
    "a frame within fragments": (
        lambda name: websocket_frame(BINARY, b"", fin=False) + websocket_frame(BINARY, data(name)),
        1002,
    ),
    "a long ping": (lambda name: websocket_frame(PING, bytes(126)), 1002),
    "half a ping": (lambda name: websocket_frame(PING, fin=False), 1002),
    "data as text": (lambda name: websocket_frame(TEXT, data(name)[:1] + b"\xff" * 40), 1007),
    "data as text in ASCII": (lambda name: websocket_frame(TEXT, b"\x10" + b"a" * 40), 4003),
    "control as data": (lambda name: websocket_frame(BINARY, b'{"type":"addresses"}'), DROPPED),
    "control that looks like data": (lambda name: websocket_frame(BINARY, b"\x10" + b"{" * 40), DROPPED),
    "another kind of data": (lambda name: websocket_frame(BINARY, b"\x11" + data(name)[1:]), DROPPED),
    "HTTP again": (lambda name: b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n" * 10, 1002),
    "TLS": (lambda name: b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512), 1002),
}


@under_attack(max_connections=1000)
async def test_each_kind_of_bad_frame_from_both_sides(siege: Siege) -> None:
    """All at once; whose frame is good, or only dropped, is still there afterwards."""
    friend = await siege.joined("friend")
    good: list[LightClient] = []
    closed = 0
    for number, row in enumerate([*FRAMES] * TIMES):
        name = f"{row} {number}"
        attacker = await siege.joined(name, source(number))
        make, outcome = FRAMES[row]
        attacker.peer.send(make(name))
        if isinstance(outcome, int):
            assert (await attacker.closed())[0] == outcome, row
            closed += 1
            continue
        if outcome == ARRIVES:
            came, payload = await friend.receive()
            assert came == address(name), row
            assert not payload.strip(b"\0"), row
        good.append(attacker)
    for attacker in good:
        attacker.send("friend", b"still here")
        assert await friend.receive() == (address(attacker.name), b"still here")
    siege.abort()
    counters = siege.relay.counters
    await siege.relay.until(lambda: counters.closes.total() == closed, "the last close")
    bad = counters.drops["bad_frame"] + counters.drops["foreign_source"]
    assert counters.drops.total() == bad == sum(fate == DROPPED for _, fate in FRAMES.values()) * TIMES


BEFORE: dict[str, tuple[Callable[[bytes], bytes], int]] = {
    "a join as data": (lambda join: websocket_frame(BINARY, join), 4003),
    "a join in 64 pieces": (lambda join: fragments(join, *[1] * 63, opcode=TEXT), 0),
    "a join in 65 pieces": (lambda join: fragments(join, *[1] * 64, opcode=TEXT), 4003),
    "64 pieces, most of nothing": (lambda join: in_empty_pieces(join, 62), 0),
    "65 pieces, most of nothing": (lambda join: in_empty_pieces(join, 63), 4003),
    "8 KiB in pieces": (lambda join: fragments(join.ljust(8192), 8000, opcode=TEXT), 0),
    "a byte more": (lambda join: fragments(join.ljust(8193), 8000, opcode=TEXT), 4003),
    "a byte more, whole": (lambda join: websocket_frame(TEXT, join.ljust(8193)), 4003),
    "compressed": (lambda join: websocket_frame(TEXT, compressed(join), rsv=4), 1002),
    "not masked": (lambda join: websocket_frame(TEXT, join, masked=False), 1002),
    "100 pings and the join": (lambda join: websocket_frame(PING) * 100 + websocket_frame(TEXT, join), 0),
    "101 pings": (lambda join: websocket_frame(PING) * 101 + websocket_frame(TEXT, join), 1008),
    "pongs to nothing": (lambda join: websocket_frame(PONG) * 101 + websocket_frame(TEXT, join), 1008),
    "a close in the midst": (
        lambda join: websocket_frame(TEXT, join[:9], fin=False) + websocket_frame(CLOSE, b"\x03\xe8"),
        1000,
    ),
}


@under_attack(max_connections=1000)
async def test_before_the_join_from_both_sides(siege: Siege) -> None:
    """Extensions are asked for and not agreed to."""
    offer = "Sec-WebSocket-Extensions: permessage-deflate; server_no_context_takeover\r\n"
    for number, row in enumerate([*BEFORE] * TIMES):
        peer = await siege.upgraded(source(number), offer)
        _, challenge = await peer.frame()
        make, code = BEFORE[row]
        peer.send(make(json.dumps(join_message(challenge, f"{row} {number}")).encode()))
        if code:
            assert await peer.close_code() == code, row
            continue
        opcode, answer = await peer.frame()
        while opcode == PONG:
            opcode, answer = await peer.frame()
        assert opcode == TEXT, (row, answer)
        assert json.loads(answer)["type"] == "joined", row
