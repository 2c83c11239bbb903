"""A relay under attack, and honest clients who talk meanwhile: nothing of theirs may be lost or changed.

    @under_attack(max_connections=100)
    async def test_nonsense(siege: Siege) -> None:
        attacker = await siege.joined("mallory")
        attacker.peer.send(b"nonsense")
        await siege.talk()

The honest clients and the attackers are of one network, which gives these the most power.
"""

from __future__ import annotations

import asyncio
import re
import resource
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import contextmanager
from pathlib import Path
from ssl import SSLContext
from types import TracebackType
from typing import Any, Self

from shadowmesh.net.loop import new_loop
from shadowmesh.testing.light_client import LightClient
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.relay_server import QUICK, TestRelay, named, running_relay
from shadowmesh.testing.websocket import RawPeer, drive

HONEST = ("honest a", "honest b")
_WINDOW = 4
_SIZES = (1, 60, 1400, 300)


class Conversation:
    """Two honest clients who never stop talking: each numbered frame of the one is answered by the other.

    rounds: how many came there and back, in order and unchanged. Leaving it waits for those on their way.
    """

    def __init__(self, port: int, ssl: SSLContext | None = None) -> None:
        self.rounds = 0
        self._port = port
        self._ssl = ssl
        self._ending = False
        self._waiting: deque[bytes] = deque()
        self._speaking = asyncio.Event()
        self._speaking.set()

    async def __aenter__(self) -> Self:
        self._a, self._b = [await LightClient.join(self._port, name, ssl=self._ssl) for name in HONEST]
        self._asking = asyncio.create_task(self._ask())
        self._answering = asyncio.create_task(self._answer())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._speaking.set()
        if kind is None:
            await asyncio.wait({self._asking, self._answering}, return_when=asyncio.FIRST_COMPLETED)
        for task in (self._asking, self._answering):
            if not task.done():
                task.cancel()
        await asyncio.wait({self._asking, self._answering})
        for client in (self._a, self._b):
            await client.peer.close()
        if kind is None:
            self._check()

    async def talk(self, rounds: int = 20) -> None:
        """Wait until they have got so many more frames there and back."""
        goal = self.rounds + rounds
        while self.rounds < goal:
            self._check()
            await asyncio.sleep(0)

    async def pause(self) -> None:
        """Say nothing more once what is on its way is there."""
        self._speaking.clear()
        while self._waiting:
            self._check()
            await asyncio.sleep(0.001)

    def resume(self) -> None:
        """Go on after `pause`."""
        self._speaking.set()

    def _check(self) -> None:
        for task in (self._asking, self._answering):
            if task.done() and not task.cancelled():
                task.result()

    async def _ask(self) -> None:
        waiting, number = self._waiting, 0
        while not self._ending:
            await self._speaking.wait()
            while len(waiting) < _WINDOW:
                waiting.append(number.to_bytes(8) * _SIZES[number % len(_SIZES)])
                self._a.send(HONEST[1], waiting[-1])
                number += 1
            while waiting and (len(waiting) == _WINDOW or self._ending or not self._speaking.is_set()):
                assert await self._a.receive() == (address(HONEST[1]), waiting[0])
                waiting.popleft()
                self.rounds += 1

    async def _answer(self) -> None:
        while True:
            source, payload = await self._b.receive()
            assert source == address(HONEST[0])
            self._b.send(HONEST[0], payload)


class Siege:
    """Attackers of a relay that two honest clients use; as a context manager it ends them all.

    relay: what there is to see of it if it is of this process (`under_attack`).
    """

    relay: TestRelay

    def __init__(self, port: int, ssl: SSLContext | None = None) -> None:
        self.port = port
        self.ssl = ssl
        self.honest = Conversation(port, ssl)
        self.talk = self.honest.talk
        self.attackers: list[RawPeer] = []

    async def __aenter__(self) -> Self:
        await self.honest.__aenter__()
        await self.talk()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.abort()
        try:
            if kind is None:
                await self.talk()
        finally:
            await self.honest.__aexit__(kind, exc, trace)

    async def dial(self, source: str = "", *, plain: bool = False) -> RawPeer:
        """A TCP connection, with TLS if the relay has it and this is not to be plain."""
        self.attackers.append(await RawPeer.dial(self.port, None if plain else self.ssl, source))
        return self.attackers[-1]

    async def upgraded(self, source: str = "", more: str = "") -> RawPeer:
        """A connection that has not joined; its challenge has not been read."""
        peer = await RawPeer.upgraded(self.port, "/relay?peer_id=x", more, self.ssl, source)
        self.attackers.append(peer)
        return peer

    async def joined(self, name: str, source: str = "", **claims: Any) -> LightClient:
        """A member of the network of the honest ones."""
        client = await LightClient.join(self.port, name, ssl=self.ssl, source=source, **claims)
        self.attackers.append(client.peer)
        return client

    async def crowd(self, count: int) -> list[LightClient]:
        """So many members of that network, `crowd 0`, `crowd 1` …, each from a source of its own."""
        members: list[LightClient] = []
        while len(members) < count:
            numbers = range(len(members), min(len(members) + 16, count))
            members += await asyncio.gather(*(self.joined(f"crowd {n}", source(n)) for n in numbers))
        return members

    def abort(self) -> None:
        """Cut all connections of attackers."""
        for peer in self.attackers:
            peer.writer.transport.abort()


def under_attack(
    *, ssl: tuple[SSLContext, SSLContext] | None = None, **settings: Any
) -> Callable[[Callable[[Siege], Awaitable[None]]], Callable[[], None]]:
    """Decorator: run an async test against a relay of its own in the programs' event loop.

    The honest talk before, meanwhile and after it; the account adds up, and no exception is unhandled.
    ssl: of the relay and of its clients.
    """
    ours, theirs = ssl or (None, None)

    def decorate(attack: Callable[[Siege], Awaitable[None]]) -> Callable[[], None]:
        async def scenario() -> None:
            async with running_relay(QUICK, ours, **settings) as relay, Siege(relay.port, theirs) as siege:
                siege.relay = relay
                await attack(siege)
                siege.abort()
                await relay.until(lambda: len(relay.server.connections) == 2, "the end of the attackers")

        return named(lambda: run_attack(scenario), attack)

    return decorate


def run_attack(scenario: Callable[[], Coroutine[Any, Any, None]], seconds: float = 30.0) -> None:
    """Run it in the programs' event loop, with as many open files as this process may have."""
    with many_files():
        drive(scenario, seconds=seconds, new_loop=new_loop)


@contextmanager
def many_files() -> Iterator[None]:
    """Allow this process as many open files as it may have: both ends of all connections are in it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def source(number: int) -> str:
    """An address that an attacker can come from: each number from 0 to 65,535 is another source."""
    return f"127.66.{number >> 8}.{number & 255}"


def scraped(text: str) -> dict[str, float]:
    """The relay's metrics that have no label but `region`, by name without the prefix."""
    pattern = r'^shadowmesh_relay_(\w+){region="[^"]*"} (\S+)$'
    return {name: float(value) for name, value in re.findall(pattern, text, re.MULTILINE)}


def resident(pid: int) -> int:
    """Bytes of memory that a process has."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()
