"""Well-behaved clients of `bench soak` as a program: they come, talk, take and give back addresses, and go.

They go in every way there is: in order, with a RST, by the end of their stream, or as a host does that loses
its network. Now and then all of them are cut off at once and come back at once. What arrives is checked for
its sender, its order and every byte.
"""

from __future__ import annotations

import asyncio
import json
import struct
from contextlib import suppress
from hashlib import blake2b
from random import Random
from time import monotonic, monotonic_ns

from bench.soak_client import Client, Ended, Place, Tally, seconds, serve
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.websocket import BINARY, TEXT

LONGEST = 1400
"""Bytes of a payload."""
MOST_LOST = 16
"""Vanished clients that are kept; the oldest goes."""
STORM_EVERY = 15.0
CLONES_EVERY = 10.0
"""In units of the place's pace, seconds."""
_STAMP = struct.Struct("!Q16s")
_WAYS = {"leaves": 5, "resets": 3, "vanishes": 1, "hangs up": 1}


def payload(destination: bytes, source: bytes, now: int, size: int) -> bytes:
    """What a member sends: a time, a digest of it all, and `size` more bytes."""
    rest = now.to_bytes(8) * (size // 8)
    return _STAMP.pack(now, _digest(destination, source, now, rest)) + rest


def sent_at(destination: bytes, source: bytes, data: bytes) -> int:
    """The time in a payload, ns, or 0 when the frame is not as it was sent."""
    if len(data) < _STAMP.size:
        return 0
    now, digest = _STAMP.unpack_from(data)
    return now if digest == _digest(destination, source, now, data[_STAMP.size :]) else 0


def _digest(destination: bytes, source: bytes, now: int, rest: bytes) -> bytes:
    return blake2b(destination + source + now.to_bytes(8) + rest, digest_size=16).digest()


class Crowd:
    """All members, and who of them can be talked to."""

    def __init__(self, place: Place, tally: Tally, stop: asyncio.Event) -> None:
        self.place = place
        self.tally = tally
        self.stop = stop
        self.here: dict[bytes, Member] = {}
        """Who holds each address."""
        self.storm = asyncio.Event()
        self.lost: list[Client] = []

    async def run(self) -> None:
        chance = Random(self.place.seed)
        members = [Member(self, number, Random(chance.random())) for number in range(self.place.count)]
        others = [self._storms(), clones(self.place, self.tally, self.stop, chance)]
        await asyncio.gather(*(member.live() for member in members), *others)
        for client in self.lost:
            client.reset()

    async def _storms(self) -> None:
        while not await self.sleep(STORM_EVERY * self.place.pace):
            self.tally["storms"] += 1
            self.storm.set()
            self.storm = asyncio.Event()

    async def sleep(self, wait: float) -> bool:
        """Wait that long, or until the end of it all; whether that has come."""
        with suppress(TimeoutError):
            async with asyncio.timeout(wait):
                await self.stop.wait()
        return self.stop.is_set()

    def lose(self, client: Client) -> None:
        """Keep a client that has vanished: its socket must be there to take no packets."""
        client.vanish()
        self.lost.append(client)
        if len(self.lost) > MOST_LOST:
            self.lost.pop(0).reset()


class Member:
    """A device with one address of its own and, at times, more."""

    def __init__(self, crowd: Crowd, number: int, chance: Random) -> None:
        self._crowd = crowd
        self._chance = chance
        self._name = f"member {number}"
        self._source = crowd.place.source(number)
        self._tally = crowd.tally
        self._held: set[bytes] = set()
        self._newest: dict[bytes, int] = {}
        """When the last frame of each source was sent."""
        self._client: Client

    async def live(self) -> None:
        """Connect again and again until it all ends."""
        crowd, came_before = self._crowd, False
        while not crowd.stop.is_set():
            try:
                self._client = await Client.dial(self._tally, crowd.place, self._source)
                if await self._client.upgraded(rejoin=came_before):
                    came_before = True
                    await self._session()
                    continue
                self._client.reset()
            except Ended:
                self._client.reset()
            except OSError:
                self._tally["not dialled"] += 1
            await crowd.sleep(seconds(self._chance, crowd.place.pace))

    async def _session(self) -> None:
        crowd, pace = self._crowd, self._crowd.place.pace
        joined = await self._client.join(
            self._name, addresses=[address(self._name).hex()], instance=self._chance.randbytes(16).hex()
        )
        self._newest.clear()
        self._hold(joined["held"])
        reading = asyncio.create_task(self._client.listen(self._read))
        cut = asyncio.create_task(crowd.storm.wait())
        ending = asyncio.create_task(crowd.stop.wait())
        tasks = {reading, cut, ending}
        try:
            until = monotonic() + seconds(self._chance, 15 * pace)
            while monotonic() < until:
                wait = seconds(self._chance, pace / 2)
                done, _ = await asyncio.wait(tasks, timeout=wait, return_when=asyncio.FIRST_COMPLETED)
                if done:
                    break
                self._act()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._hold(())
        if cut.done() and not cut.cancelled():
            self._client.reset()
        else:
            await self._go()

    async def _go(self) -> None:
        (way,) = (
            ["leaves"] if self._crowd.stop.is_set() else self._chance.choices([*_WAYS], [*_WAYS.values()])
        )
        self._tally[way] += 1
        if way == "leaves":
            await self._client.leave()
        elif way == "resets":
            self._client.reset()
        elif way == "vanishes":
            self._crowd.lose(self._client)
        else:
            self._client.writer.close()

    def _act(self) -> None:
        """Talk, mostly."""
        chance, here = self._chance, self._crowd.here
        doing = chance.choices(("talk", "take", "give", "steal"), (12, 2, 1, 1))[0]
        if doing == "talk":
            for destination in chance.choices([*here], k=chance.randrange(1, 6)) if here else ():
                self._talk(destination)
        elif doing == "take":
            self._ask(add=[address(f"{self._name} {chance.randrange(8)}")])
        elif doing == "give" and self._held:
            self._ask(remove=[chance.choice([*self._held])])
        elif doing == "steal" and here:
            self._ask(add=[chance.choice([*here])])

    def _talk(self, destination: bytes) -> None:
        if self._held and destination not in self._held:
            source = self._chance.choice([*self._held])
            data = payload(destination, source, monotonic_ns(), self._chance.randrange(LONGEST))
            self._client.send(BINARY, b"\x10" + destination + source + data)
            self._tally["frames sent"] += 1

    def _ask(self, add: list[bytes] | None = None, remove: list[bytes] | None = None) -> None:
        message = {
            "type": "addresses",
            "add": [each.hex() for each in add or ()],
            "remove": [each.hex() for each in remove or ()],
        }
        self._client.send(TEXT, json.dumps(message).encode())

    def _read(self, opcode: int, data: bytes) -> None:
        if opcode == TEXT:
            message = json.loads(data)
            self._tally[f"told {message['type']}"] += 1
            if message["type"] == "addresses":
                self._hold(message["held"])
                for refused in message["refused"]:
                    self._tally[f"refused {refused['code']}"] += 1
        elif opcode == BINARY:
            destination, source = data[1:17], data[17:33]
            at = sent_at(destination, source, data[33:])
            self._tally["frames received"] += 1
            self._tally["frames corrupt"] += not at or data[0] != 0x10
            self._tally["frames late"] += at < self._newest.get(source, 0)
            self._newest[source] = at

    def _hold(self, held: list[str] | tuple[()]) -> None:
        here = self._crowd.here
        for gone in [each for each in self._held if here.get(each) is self]:
            del here[gone]
        self._held = {bytes.fromhex(each) for each in held}
        here.update(dict.fromkeys(self._held, self))


async def clones(place: Place, tally: Tally, stop: asyncio.Event, chance: Random) -> None:
    """A device that is there several times: each that comes drives the one before out, until none may."""
    number = 0
    while not stop.is_set():
        number += 1
        name = f"clone {number % 4}"
        with suppress(Ended, OSError, TimeoutError):
            async with asyncio.timeout(5 * place.pace + 1):
                await _fight(place, tally, name, chance)
        tally["clones"] += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(CLONES_EVERY * place.pace):
                await stop.wait()


async def _fight(place: Place, tally: Tally, name: str, chance: Random) -> None:
    several: list[Client] = []
    try:
        for _ in range(5):
            client = await Client.dial(tally, place, place.source(249))
            several.append(client)
            if not await client.upgraded():
                return
            instance = chance.randbytes(16).hex()
            await client.join(name, addresses=[address(name).hex()], instance=instance)
        await asyncio.gather(*(client.listen() for client in several[:-1]))
    finally:
        for client in several:
            client.reset()


async def play(place: Place, tally: Tally, stop: asyncio.Event) -> None:
    """All members until `stop`; then they leave in order."""
    await Crowd(place, tally, stop).run()


def main() -> None:
    """Argument: a Place as JSON. Prints the tally."""
    serve(play)
