"""Clients of `bench soak`, honest or not, that keep account of what they did and what was done to them."""

from __future__ import annotations

import asyncio
import ctypes
import json
import signal
import socket
import struct
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from random import Random
from time import monotonic
from typing import Any

from shadowmesh.testing.light_client import join_message
from shadowmesh.testing.websocket import CLOSE, PING, PONG, TEXT, UPGRADE, frame
from shadowmesh.wire.control import REJOIN_HEADER

PATIENCE = 20.0
"""Seconds that an answer may take while everything competes for the cores."""
_SO_ATTACH_FILTER = 26
_IN_ORDER = struct.pack("!H", 1000)

Tally = Counter[str]
"""What happened how often.

    dialled        TCP connections made; dialled?  given up when they may or may not have been made
    joined         joins accepted; joined?         sent, and the answer was not waited for or never came
    http CODE      answers to upgrade requests other than 101
    closed CODE    close frames received
"""


class Ended(Exception):
    """The connection is over: closed with `code`, or lost (None)."""

    def __init__(self, code: int | None = None) -> None:
        super().__init__(f"closed with {code}")
        self.code = code


@dataclass(frozen=True)
class Place:
    """From where clients dial, and what: `source` with a number in place of `{}` is an IP of this host."""

    relay: tuple[str, int]
    sources: str
    seed: int
    count: int
    pace: float = 1.0
    """Seconds that something in a client's life takes on average."""

    def source(self, number: int) -> str:
        return self.sources.format(1 + number % 250)

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        fields = json.loads(text)
        return cls(**fields | {"relay": tuple(fields["relay"])})


class Client:
    """One TCP connection to the relay; `dial` makes it."""

    def __init__(self, tally: Tally, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.tally = tally
        self.reader = reader
        self.writer = writer
        self._unsure = False

    @classmethod
    async def dial(cls, tally: Tally, place: Place, source: str, *, receive: int = 0) -> Client:
        """Connect from `source`; receive: size of the receive buffer, bytes."""
        made = socket.socket()
        try:
            made.setblocking(False)
            if receive:
                made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive)
            made.bind((source, 0))
            try:
                await asyncio.get_running_loop().sock_connect(made, place.relay)
            except asyncio.CancelledError:
                tally["dialled?"] += 1
                raise
            tally["dialled"] += 1
            reader, writer = await asyncio.open_connection(sock=made, limit=receive or 65536)
        except BaseException:
            made.close()
            raise
        return cls(tally, reader, writer)

    async def upgrade(self, path: str = "/relay?peer_id=soak", more: str = "") -> int:
        """Ask for a WebSocket; the HTTP status."""
        self.writer.write(UPGRADE.format(path=path, more=more).encode())
        return await self.status()

    async def status(self) -> int:
        """Of the HTTP answer. Raises Ended without one."""
        with _ending():
            head = await self.reader.readuntil(b"\r\n\r\n")
        code = int(head.split(None, 2)[1])
        if code != 101:
            self.tally[f"http {code}"] += 1
        return code

    async def upgraded(self, rejoin: bool = False) -> bool:
        """Whether the relay gives a WebSocket."""
        return await self.upgrade(more=f"{REJOIN_HEADER}: 1\r\n" if rejoin else "") == 101

    async def join(self, name: str, **claims: Any) -> dict[str, Any]:
        """Join as the device of that name (see `testing.light_client`); what the relay answers."""
        _, challenge = await self.read()
        self._unsure = True
        self.tally["joined?"] += 1
        self.send(TEXT, json.dumps(join_message(challenge, name, relay=self.remote, **claims)).encode())
        opcode, data = await self.read()
        if opcode != TEXT or (answer := json.loads(data))["type"] != "joined":
            raise Ended
        self._settle()
        self.tally["joined"] += 1
        joined: dict[str, Any] = answer
        return joined

    @property
    def remote(self) -> str:
        """The relay's IP."""
        host: str = self.writer.get_extra_info("peername")[0]
        return host

    def send(self, opcode: int, payload: bytes = b"", **header: Any) -> None:
        """Send one WebSocket frame; `header` as `testing.websocket.frame` has it."""
        self.writer.write(frame(opcode, payload, **header))

    async def read(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame. Raises Ended at the end."""
        with _ending():
            first, size = await self.reader.readexactly(2)
            if size > 125:
                size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
            payload = await self.reader.readexactly(size)
        opcode = first & 15
        if opcode == CLOSE:
            code = int.from_bytes(payload[:2])
            self._settle()
            self.tally[f"closed {code}"] += 1
            raise Ended(code)
        return opcode, payload

    async def listen(self, until: Callable[[int, bytes], object] = lambda *_: False) -> None:
        """Read frames and answer pings, until `until(opcode, payload)` or the end of the connection."""
        with suppress(Ended):
            while True:
                opcode, payload = await self.read()
                if opcode == PING:
                    self.send(PONG, payload)
                if until(opcode, payload):
                    return

    async def drain(self) -> None:
        """Read whatever comes until the end."""
        with _ending():
            while await self.reader.read(65536):
                pass

    async def leave(self) -> None:
        """Close in order."""
        with suppress(Ended, TimeoutError):
            self.send(CLOSE, _IN_ORDER)
            async with asyncio.timeout(PATIENCE):
                while True:
                    await self.read()
        self.writer.close()

    def reset(self) -> None:
        """End with a RST."""
        self.option(socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def vanish(self) -> None:
        """Let every packet from the relay be lost from now on, as those to a host that is gone are."""
        nothing = ctypes.create_string_buffer(struct.pack("HBBI", 6, 0, 0, 0))  # BPF: return 0
        self.option(_SO_ATTACH_FILTER, struct.pack("HP", 1, ctypes.addressof(nothing)))

    def option(self, name: int, value: bytes) -> None:
        """Set an option of the socket, if there still is one."""
        with suppress(OSError):
            self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, name, value)

    def _settle(self) -> None:
        if self._unsure:
            self._unsure = False
            self.tally["joined?"] -= 1


@contextmanager
def _ending() -> Iterator[None]:
    """Make Ended of what a stream raises at its end."""
    try:
        yield
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, OSError):
        raise Ended from None


def seconds(chance: Random, mean: float) -> float:
    """How long until something happens that happens at random."""
    return min(chance.expovariate(1 / mean), 5 * mean)


def serve(play: Callable[[Place, Tally, asyncio.Event], Awaitable[None]]) -> None:
    """Run `play` with the Place of the command line until SIGTERM sets the event; print its tally as JSON."""
    place, tally = Place.from_json(sys.argv[1]), Tally()

    async def run() -> None:
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        await play(place, tally, stop)

    began = monotonic()
    asyncio.run(run())
    print(json.dumps({"tally": tally, "seconds": round(monotonic() - began, 1)}), flush=True)
