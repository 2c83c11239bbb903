"""What the targets share: input read as a program, time and randomness that repeat, TCP in memory.

Within `Frozen` a manual clock and a seeded random stand in the place of the real ones, in every module of
ours that was imported by then, and an event loop without sockets is the running one: what a target finds,
it finds again from the input alone.
"""

from __future__ import annotations

import asyncio
import heapq
import random
import secrets
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Coroutine, Iterable
from fcntl import ioctl
from functools import partial
from itertools import count, pairwise
from random import Random
from types import SimpleNamespace
from typing import Any, TypeVar, cast

import aiofastnet

from shadowmesh.net import server
from shadowmesh.net.listen import listen
from shadowmesh.net.server import Reject, Request
from shadowmesh.net.websocket import WebSocket
from shadowmesh.observe.logging import get_logger

T = TypeVar("T")

START = 1000.0
TCP_INFO = struct.Struct("=120xQ16xI52xQQ")  # bytes acknowledged, not sent, sent, sent again
REMOTE, LOCAL = ("203.0.113.7", 50_000), ("198.51.100.1", 9545)


class Input:
    """Fuzzed bytes, read from the front. When they are used up, every number is 0 and every chunk empty."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        return self._at < len(self._data)

    def take(self, size: int) -> bytes:
        """The next `size` bytes, or what is left of them."""
        self._at += size
        return self._data[self._at - size : self._at]

    def byte(self) -> int:
        """A number up to 255."""
        return int.from_bytes(self.take(1))

    def chunk(self) -> bytes:
        """Bytes behind their length in two bytes."""
        return self.take(int.from_bytes(self.take(2)))


class Program:
    """The other way round: writes what `Input` reads."""

    def __init__(self, *numbers: int) -> None:
        self.data = bytes(numbers)

    def chunk(self, data: bytes) -> Program:
        """Append a chunk."""
        self.data += len(data).to_bytes(2) + data
        return self

    def byte(self, *numbers: int) -> Program:
        """Append numbers."""
        self.data += bytes(numbers)
        return self


class Loop:
    """An event loop whose time passes in `run` only. errors: what was reported to its exception handler.

    It has as much of asyncio's as our modules and picows use.
    """

    def __init__(self) -> None:
        self.now = START
        self.errors: list[dict[str, Any]] = []
        self.readers: dict[object, Callable[[], object]] = {}
        self._heap: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._order = count()

    def run(self, seconds: float = 0.0) -> None:
        """Let time pass and call what is due on the way."""
        end = self.now + seconds
        while self._heap and self._heap[0][0] <= end:
            when, _, handle = heapq.heappop(self._heap)
            self.now = max(self.now, when)
            if not handle.cancelled():
                handle._run()
        self.now = end

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=cast(asyncio.AbstractEventLoop, self))

    def create_task(self, coroutine: Coroutine[Any, Any, T]) -> asyncio.Future[T]:
        """Nothing here waits for anything, so a task is done at once."""
        future = self.create_future()
        future.set_result(finished(coroutine))
        return future

    def call_at(self, when: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, cast(asyncio.AbstractEventLoop, self), context)
        heapq.heappush(self._heap, (when, next(self._order), handle))
        return handle

    def call_later(self, delay: float, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now + delay, callback, *args, context=context)

    def call_soon(self, callback: Any, *args: Any, context: Any = None) -> asyncio.TimerHandle:
        return self.call_at(self.now, callback, *args, context=context)

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        pass

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context)

    def add_reader(self, file: object, callback: Any, *args: Any) -> None:
        self.readers[file] = partial(callback, *args)

    def remove_reader(self, file: object) -> bool:
        return self.readers.pop(file, None) is not None


def finished(coroutine: Coroutine[Any, Any, T]) -> T:
    """The result of a coroutine that waits for nothing."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return cast(T, end.value)
    raise AssertionError("it waits")


class Log:
    """Takes the place of a logger: no fact may be long. What is not printable, observe.logging escapes."""

    def info(self, event: str, /, **facts: object) -> None:
        for value in facts.values():
            assert len(str(value)) <= 200, (event, facts)

    debug = warning = error = info


class Frozen:
    """Time, randomness, log and event loop of our modules, replaced for the length of a `with`.

    more: other (real, fake) objects that have a name in our modules.
    """

    def __init__(self, *more: tuple[object, object]) -> None:
        self.loop = Loop()
        self._random = Random(0)

        def clock() -> float:
            return self.loop.now

        fakes: list[tuple[object, object]] = [
            (time.monotonic, clock),
            (time, SimpleNamespace(**vars(time) | {"monotonic": clock})),
            (secrets, SimpleNamespace(token_bytes=self._random.randbytes)),
            (random, self._random),
            (get_logger, lambda name: Log()),
            (listen, lambda *where: _ports.pop()),
            (ioctl, lambda *question: bytes(4)),  # FIONREAD: nothing waits for a relay that does not read
            (aiofastnet, SimpleNamespace(connect_accepted_socket=_start)),
            *more,
        ]
        ours = [vars(module) for name, module in sys.modules.items() if name.startswith("shadowmesh.")]
        self._swaps = [
            (names, name, real, fake)
            for names in ours
            for name, value in list(names.items())
            for real, fake in fakes
            if value is real
        ]

    def __enter__(self) -> Loop:
        self.loop = Loop()
        self._random.seed(0)
        for names, name, _, fake in self._swaps:
            names[name] = fake
        asyncio._set_running_loop(cast(asyncio.AbstractEventLoop, self.loop))
        return self.loop

    def __exit__(self, *exc: object) -> None:
        asyncio._set_running_loop(None)
        for names, name, real, _ in self._swaps:
            names[name] = real


class Wire:
    """One TCP connection: for the relay the accepted socket, then what aiofastnet makes of it.

    The peer's bytes go in by `feed`, what it gets is in `sent`. room: bytes that it still takes, None: all.
    picows finds no descriptor, so that it sends by `write`.
    """

    def __init__(self, loop: Loop) -> None:
        self.sent = bytearray()
        self.room: int | None = None
        self.waiting = 0
        self.closing = self.lost = False
        self._loop = loop
        self._protocol: Any = None
        self._unread = b""
        self._ended = self._paused = False
        self.deaf = False
        """The relay does not read."""
        self._high, self._low = 65536, 16384

    # What the peer does

    def feed(self, pieces: Iterable[bytes], end: bool = False) -> None:
        """Send bytes, each piece in a wake-up of its own, and perhaps end the stream."""
        for piece in pieces:
            self._unread += piece
            self._readable()
            self._loop.run()
        self._ended |= end
        self._readable()
        self._loop.run()

    def take(self) -> None:
        """Take all that waits, and whatever comes."""
        self.room = None
        self.waiting = 0
        if self._paused:
            self._paused = False
            self._protocol.resume_writing()

    def lose(self) -> None:
        """Be gone."""
        self.close()
        self._loop.run()

    def _readable(self) -> None:
        if self._protocol is None and (self._unread or self._ended):
            self._loop.readers.get(self, bool)()
        while self._protocol is not None and self._unread and not (self.closing or self.deaf):
            view = self._protocol.get_buffer(-1)
            size = min(len(view), len(self._unread))
            assert size, "no room to read into"
            view[:size] = self._unread[:size]
            self._unread = self._unread[size:]
            self._protocol.buffer_updated(size)
        if self._protocol is not None and self._ended and not (self.closing or self.deaf):
            self._protocol.get_buffer(-1)  # a socket hears of an end by reading
            if not self._protocol.eof_received():
                self.close()

    # The accepted socket

    def start(self, protocol: Any) -> None:
        self._protocol = protocol
        protocol.connection_made(self)

    def setblocking(self, flag: bool) -> None:
        pass

    def recv(self, size: int, flags: int = 0) -> bytes:
        assert flags == socket.MSG_PEEK
        if not self._unread and not self._ended:
            raise BlockingIOError
        return self._unread[:size]

    def shutdown(self, how: int) -> None:
        self._unread, self._ended = b"", True
        self._loop.call_soon(self._readable)

    # The transport

    def pause_reading(self) -> None:
        self.deaf = True

    def resume_reading(self) -> None:
        self.deaf = False
        self._loop.call_soon(self._readable)

    def is_closing(self) -> bool:
        return self.closing

    def fileno(self) -> int:
        return -1

    def get_extra_info(self, name: str, default: object = None) -> object:
        return {"socket": self, "peername": REMOTE, "sockname": LOCAL}.get(name, default)

    def setsockopt(self, *options: int) -> None:
        pass

    def getsockopt(self, level: int, option: int, size: int = 0) -> int | bytes:
        taken = len(self.sent) - self.waiting
        return TCP_INFO.pack(taken, 0, taken, 0) if size else 0

    def get_write_buffer_size(self) -> int:
        return self.waiting

    def set_write_buffer_limits(self, high: int, low: int) -> None:
        self._high, self._low = high, low

    def write(self, data: bytes | bytearray | memoryview) -> None:
        if self.lost:
            return
        self.sent += data
        if self.room is not None:
            self.room -= len(data)
            if self.room < 0:
                self.waiting -= self.room
                self.room = 0
                if self.waiting > self._high and not self._paused:
                    self._paused = True
                    self._protocol.pause_writing()

    def writelines(self, parts: Iterable[bytes | memoryview]) -> None:
        self.write(b"".join(parts))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        pass

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            self._loop.call_soon(self._lose)

    abort = close

    def _lose(self) -> None:
        self.lost = True
        if self._protocol is not None:
            self._protocol.connection_lost(None)


class Port:
    """A listening socket, and the server behind it; `dial` connects to it."""

    def __init__(self, loop: Loop, upgrade: Callable[[Request], WebSocket | Reject], max_frame: int) -> None:
        self.dialled: list[Wire] = []
        self._loop = loop
        _ports.append(self)
        self.server = finished(server.serve("", 0, upgrade, max_frame=max_frame))

    def dial(self) -> Wire:
        """A new connection, that the server has accepted."""
        wire = Wire(self._loop)
        self.dialled.append(wire)
        self._loop.readers[self]()
        return wire

    def end(self) -> None:
        """Stop listening; every connection must be gone."""
        self.server.close()
        finished(self.server.wait_closed())

    def accept(self) -> tuple[Wire, tuple[str, int]]:
        if not self.dialled:
            raise BlockingIOError
        return self.dialled.pop(), REMOTE

    def getsockname(self) -> tuple[str, int]:
        return LOCAL

    def setblocking(self, flag: bool) -> None:
        pass

    def close(self) -> None:
        pass


_ports: list[Port] = []


async def _start(loop: object, factory: Callable[[], object], wire: Wire, **options: object) -> None:
    wire.start(factory())


def pieces(data: bytes) -> list[bytes]:
    """The same bytes as they might arrive: byte by byte, or cut where a checksum of them says."""
    if len(data) <= 24:
        return [data[at : at + 1] for at in range(len(data))]
    cuts = Random(zlib.crc32(data))
    ends = sorted(cuts.randrange(len(data)) for _ in range(12))
    return [data[start:end] for start, end in pairwise([0, *ends, len(data)])]
