"""Hostile clients of `bench soak` as a program: strangers and members that keep to no rule.

Each attack is one function, from one source address of many, so that what the relay holds against a source
does not end the attacks. Whether the relay answers each as it should is what tests/net has; here they only go
on.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, nullcontext, suppress
from random import Random
from typing import TypeAlias

from bench.soak_client import Client, Ended, Place, Tally, serve
from shadowmesh.testing.light_client import join_message
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.relay_client import frame as data_frame
from shadowmesh.testing.websocket import BINARY, CLOSE, CONTINUATION, PING, PONG, TEXT, UPGRADE, frame

LONGEST = 12.0
"""Units of the place's pace, seconds, that one attack may take."""
SOURCES = 60
"""Addresses that they come from: enough for most attacks to be let in, too few for none to be punished."""
_STALLED_BUFFER = 4096
_TLS_HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"


class Enemy:
    """Whoever makes one attack: its dice, and how it connects."""

    def __init__(self, place: Place, tally: Tally, chance: Random, number: int) -> None:
        self.place = place
        self.tally = tally
        self.chance = chance
        self.pace = place.pace
        self.name = f"enemy {number}"
        self._source = place.source(chance.randrange(SOURCES))
        self._clients: list[Client] = []

    async def dial(self, receive: int = 0) -> Client:
        """A TCP connection."""
        client = await Client.dial(self.tally, self.place, self._source, receive=receive)
        self._clients.append(client)
        return client

    async def challenged(self) -> tuple[Client, bytes]:
        """A WebSocket, and the challenge on it."""
        client = await self.dial()
        if not await client.upgraded():
            raise Ended
        _, challenge = await client.read()
        return client, challenge

    async def joined(self, name: str = "", receive: int = 0) -> Client:
        """A member."""
        client = await self.dial(receive)
        if not await client.upgraded():
            raise Ended
        name = name or self.name
        await client.join(name, addresses=[address(name).hex()])
        return client

    async def sleep(self, units: float) -> None:
        await asyncio.sleep(units * self.pace)

    def garbage(self, most: int) -> bytes:
        return self.chance.randbytes(self.chance.randrange(1, most))

    def go(self) -> None:
        """Leave without a word."""
        for client in self._clients:
            client.reset()


@asynccontextmanager
async def _reading(client: Client) -> AsyncIterator[None]:
    """Read what the relay says, meanwhile."""
    task = asyncio.create_task(client.listen())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


Attack: TypeAlias = Callable[[Enemy], Awaitable[None]]


# -- before the upgrade


async def silence(enemy: Enemy) -> None:
    """Say nothing."""
    client = await enemy.dial()
    await client.drain()


async def slow_loris(enemy: Enemy) -> None:
    """A request that never ends, a few bytes at a time."""
    client = await enemy.dial()
    for byte in UPGRADE.format(path="/relay?peer_id=slow", more="X-Slow: 1\r\n" * 50).encode():
        client.writer.write(bytes([byte]))
        await enemy.sleep(0.1)
        if client.reader.at_eof():
            return


async def header_bomb(enemy: Enemy) -> None:
    """Headers without end."""
    client = await enemy.dial()
    client.writer.write(
        b"GET /relay HTTP/1.1\r\n" + b"X-Bomb: " + b"x" * enemy.chance.randrange(10_000, 200_000)
    )
    await client.status()


async def tls_garbage(enemy: Enemy) -> None:
    """What looks like TLS, on a port without."""
    client = await enemy.dial()
    client.writer.write(_TLS_HELLO + enemy.garbage(500))
    await client.drain()


async def garbage(enemy: Enemy) -> None:
    """Bytes without a meaning."""
    client = await enemy.dial()
    client.writer.write(enemy.garbage(4000) + b"\r\n\r\n")
    await client.drain()


async def wrong_request(enemy: Enemy) -> None:
    """HTTP that is no upgrade to this relay."""
    request = UPGRADE.format(path="/relay?peer_id=wrong", more="")
    client = await enemy.dial()
    wrong = enemy.chance.choice(
        (
            request.replace("/relay", "/else"),
            request.replace("peer_id=wrong", "peer_id=%00%0a"),
            request.replace("Version: 13", "Version: 8"),
            request.replace("AAAAAAAAAAAAAAAAAAAAAA==", "short"),
            request.replace("Upgrade: websocket", "Upgrade: h2c"),
            "GET / HTTP/1.0\r\n\r\n",
            "POST /relay HTTP/1.1\r\nHost: relay\r\nContent-Length: 1000000\r\n\r\n",
        )
    )
    client.writer.write(wrong.encode())
    await client.status()


async def comes_and_goes(enemy: Enemy) -> None:
    """Connections that are reset at once, or with something said that nobody has read yet."""
    for number in range(20):
        client = await enemy.dial()
        client.writer.write(b"GET /relay"[: number // 2])
        await asyncio.sleep(enemy.chance.choice((0.0, 0.01)))
        client.writer.write(b"?"[: number % 2])
        client.reset()


# -- before the join


async def never_joins(enemy: Enemy) -> None:
    """Take the challenge and wait."""
    client, _ = await enemy.challenged()
    await client.listen()


async def bad_joins(enemy: Enemy) -> None:
    """Signatures that are wrong, as fast as they are refused."""
    for number in range(6):
        client, challenge = await enemy.challenged()
        join = join_message(challenge, f"{enemy.name} {number}")
        role = enemy.chance.choice(("network_signature", "device_signature"))
        join[role] = join[role][:10] + ("A" if join[role][10] != "A" else "B") + join[role][11:]
        client.send(TEXT, json.dumps(join).encode())
        await client.listen()


async def replayed_join(enemy: Enemy) -> None:
    """A join that was meant for another challenge."""
    _, old = await enemy.challenged()
    client, _ = await enemy.challenged()
    client.send(TEXT, json.dumps(join_message(old, enemy.name)).encode())
    await client.listen()


async def nonsense_join(enemy: Enemy) -> None:
    """Anything but a join."""
    client, _ = await enemy.challenged()
    text = enemy.chance.choice(
        (
            b"{",
            b"[" * 5000,
            b'{"type":"join"}',
            b"\xff\xfe",
            b'{"type":"x","type":"y"}',
            b"1e999",
            b"{}" * 4000,
        )
    )
    client.send(enemy.chance.choice((TEXT, TEXT, BINARY)), text)
    await client.listen()


async def too_large_join(enemy: Enemy) -> None:
    """More than may come before a join, in one frame or in many."""
    client, _ = await enemy.challenged()
    if enemy.chance.random() < 0.5:
        client.send(TEXT, b"x" * 100_000)
    else:
        client.send(TEXT, b"x" * 4000, fin=False)
        for _ in range(20):
            client.send(CONTINUATION, b"x" * 4000, fin=False)
    await client.listen()


# -- members


async def malformed_frames(enemy: Enemy) -> None:
    """What no WebSocket peer may send."""
    client = await enemy.joined()
    data = data_frame(address("nobody"), address(enemy.name))
    client.writer.write(
        enemy.chance.choice(
            (
                frame(BINARY, data, masked=False),
                frame(BINARY, data, rsv=4),
                frame(3, data),
                frame(11),
                frame(PING, bytes(126)),
                frame(PING, fin=False),
                frame(CONTINUATION, data),
                frame(BINARY, data, fin=False) * 2,
                frame(TEXT, b"\xff\xfe\xfd"),
                frame(CLOSE, b"\x03"),
                frame(CLOSE, b"\x03\xed"),
                b"\x82\xff\x7f" + b"\xff" * 7 + bytes(4),
                b"\x82\xfe\x00\x05" + bytes(9),
                frame(BINARY, bytes(131_073)),
                b"".join(frame(0 if n else BINARY, bytes(60_000), fin=False) for n in range(4)),
            )
        )
        + enemy.garbage(100)
    )
    await client.listen()


async def bad_data_frames(enemy: Enemy) -> None:
    """Frames too short, of another type, from others' addresses, to oneself, to nobody."""
    client = await enemy.joined()
    mine, other = address(enemy.name), enemy.chance.randbytes(16)
    bad = (
        b"\x10" + other,
        b"\x11" + other + mine + b"x",
        data_frame(mine, other),
        data_frame(mine, mine),
        data_frame(other, mine, bytes(1000)),
        b"",
    )
    async with _reading(client):
        for _ in range(300):
            client.send(BINARY, enemy.chance.choice(bad))
        await enemy.sleep(1.0)
    await client.leave()


async def absent_destinations(enemy: Enemy) -> None:
    """A flood to addresses that nobody has: each answer to it would cost the relay as much."""
    client = await enemy.joined()
    mine = address(enemy.name)
    async with _reading(client):
        for _ in range(50):
            many = (data_frame(enemy.chance.randbytes(16), mine) for _ in range(64))
            client.writer.write(b"".join(frame(BINARY, each) for each in many))
            await client.writer.drain()
    await client.leave()


async def ping_flood(enemy: Enemy) -> None:
    """Pings and pongs, whose answers are read, or not."""
    reads = enemy.chance.random() < 0.5
    client = await enemy.joined(receive=0 if reads else _STALLED_BUFFER)
    kinds = frame(PING, bytes(125)) * 50 + frame(PONG) * 50
    async with _reading(client) if reads else nullcontext():
        for _ in range(100):
            client.writer.write(kinds)
            await client.writer.drain()
        await enemy.sleep(1.0)


async def control_flood(enemy: Enemy) -> None:
    """Questions faster than a client may ask."""
    client = await enemy.joined()
    for _ in range(100):
        client.send(TEXT, b'{"type":"addresses","add":[],"remove":[]}')
    await client.listen()


async def address_flood(enemy: Enemy) -> None:
    """Claims of thousands of addresses."""
    client = await enemy.joined()
    for _ in range(8):
        add = [enemy.chance.randbytes(16).hex() for _ in range(enemy.chance.choice((64, 64, 1000)))]
        client.send(TEXT, json.dumps({"type": "addresses", "add": add, "remove": []}).encode())
    await client.listen()


async def stalled_reader(enemy: Enemy) -> None:
    """A member that reads nothing of the flood another sends it."""
    await enemy.joined(f"{enemy.name} stalled", receive=_STALLED_BUFFER)
    sender = await enemy.joined()
    size = enemy.chance.choice((1400, 16_000, 65_536))
    data = frame(BINARY, data_frame(address(f"{enemy.name} stalled"), address(enemy.name), bytes(size)))
    async with _reading(sender):
        for _ in range(16_000_000 // size):
            sender.writer.write(data)
            await sender.writer.drain()
            await enemy.sleep(size / 4e6)  # the flood has its share of the cores, not all of them


async def unfinished_message(enemy: Enemy) -> None:
    """The begin of large frames, byte by byte, that never come to an end."""
    client = await enemy.joined()
    data = frame(BINARY, data_frame(address("nobody"), address(enemy.name), bytes(65_000)))
    async with _reading(client):
        client.writer.write(data[: enemy.chance.randrange(2, 60_000)])
        for _ in range(50):
            client.writer.write(b"x")
            await enemy.sleep(0.1)


async def half_closed(enemy: Enemy) -> None:
    """End the own stream and go on reading."""
    client = await enemy.joined()
    client.writer.write_eof()
    await client.listen()


ATTACKS: tuple[Attack, ...] = (
    *(silence, slow_loris, header_bomb, tls_garbage, garbage, wrong_request, comes_and_goes),
    *(never_joins, bad_joins, replayed_join, nonsense_join, too_large_join),
    *(malformed_frames, bad_data_frames, absent_destinations, ping_flood, control_flood, address_flood),
    *(stalled_reader, unfinished_message, half_closed),
)


def title(attack: Attack) -> str:
    """Its name in words."""
    return attack.__name__.replace("_", " ")


async def play(place: Place, tally: Tally, stop: asyncio.Event) -> None:
    """`place.count` enemies attack, one attack after the other, until `stop`."""
    chance = Random(place.seed)
    lives = [
        asyncio.create_task(_attack(place, tally, Random(chance.random()), n)) for n in range(place.count)
    ]
    await stop.wait()
    for life in lives:
        life.cancel()
    for end in await asyncio.gather(*lives, return_exceptions=True):
        if not isinstance(end, asyncio.CancelledError):
            raise RuntimeError("an attack failed by itself") from end


async def _attack(place: Place, tally: Tally, chance: Random, number: int) -> None:
    order = list(ATTACKS)
    while True:
        chance.shuffle(order)  # each as often as the others
        for attack in order:
            enemy = Enemy(place, tally, chance, number)
            tally[f"attack {title(attack)}"] += 1
            try:
                with suppress(Ended, TimeoutError, OSError):
                    async with asyncio.timeout(LONGEST * place.pace):
                        await attack(enemy)
            finally:
                enemy.go()
            await asyncio.sleep(chance.random() * place.pace)


def main() -> None:
    """Argument: a Place as JSON. Prints the tally."""
    serve(play)
