"""WebSocket peers for tests: one of raw bytes, to send what no library would, and one that keeps a record."""

from __future__ import annotations

import asyncio
import fcntl
import gc
import socket
import struct
import termios
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from ssl import SSLContext
from typing import Any, Protocol

from websockets.utils import accept_key

from shadowmesh.net.client import connect
from shadowmesh.net.protocol import READ_BUFFER
from shadowmesh.net.server import Reject, Request, Server, serve
from shadowmesh.net.websocket import WebSocket


class Drive(Protocol):
    """What `drive` is, in one event loop or another."""

    def __call__(
        self,
        main: Callable[[], Coroutine[Any, Any, None]],
        *,
        errors: int | None = 0,
        seconds: float = 20.0,
    ) -> list[str]: ...


TEXT, BINARY, CONTINUATION, CLOSE, PING, PONG = 1, 2, 0, 8, 9, 10

UPGRADE = (
    "GET {path} HTTP/1.1\r\nHost: relay\r\nUpgrade: websocket\r\nConnection: keep-alive, Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n{more}\r\n"
)


def frame(opcode: int, payload: bytes = b"", *, fin: bool = True, rsv: int = 0, masked: bool = True) -> bytes:
    """One frame with any header; masked with the key 1, 2, 3, 4."""
    head = bytes([fin << 7 | rsv << 4 | opcode])
    size, bit = len(payload), masked << 7
    if size < 126:
        head += bytes([bit | size])
    elif size < 65536:
        head += bytes([bit | 126]) + size.to_bytes(2)
    else:
        head += bytes([bit | 127]) + size.to_bytes(8)
    if masked:
        head += b"\1\2\3\4"
        mask = (b"\1\2\3\4" * (size // 4 + 1))[:size]
        payload = (int.from_bytes(payload) ^ int.from_bytes(mask)).to_bytes(size)
    return head + payload


def reset(peer: socket.socket) -> None:
    """Close a connection with RST, once the other kernel has what was sent: RST throws away the rest."""
    ends = time.monotonic() + 1.0
    while int.from_bytes(fcntl.ioctl(peer, termios.TIOCOUTQ, bytes(4)), "little"):
        assert time.monotonic() < ends, "what was sent before a reset is not acknowledged"
        time.sleep(0.001)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


class RawPeer:
    """A TCP connection with just enough WebSocket to read what the other side says."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def dial(cls, port: int, ssl: SSLContext | None = None, source: str = "") -> RawPeer:
        local = (source, 0) if source else None
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=2**22, ssl=ssl, local_addr=local))

    @classmethod
    async def upgraded(
        cls,
        port: int,
        path: str = "/relay",
        more: str = "",
        ssl: SSLContext | None = None,
        source: str = "",
    ) -> RawPeer:
        peer = await cls.dial(port, ssl, source)
        peer.send(UPGRADE.format(path=path, more=more).encode())
        head = await peer.head()
        assert head.startswith("HTTP/1.1 101"), head
        return peer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> str:
        """The head of an HTTP response."""
        return (await self.reader.readuntil(b"\r\n\r\n")).decode()

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        first, second = await self.reader.readexactly(2)
        assert first & 0xF0 == 0x80
        size = second & 127
        if size > 125:
            size = int.from_bytes(await self.reader.readexactly(2 if size == 126 else 8))
        mask = await self.reader.readexactly(4) if second & 128 else b""
        payload = await self.reader.readexactly(size)
        if not mask:
            return first & 15, payload
        return first & 15, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))

    async def close_code(self) -> int:
        """The code of the close frame; other frames before it are skipped."""
        while True:
            opcode, payload = await self.frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2])

    async def eof(self) -> None:
        """Read until the connection ends, in order or not."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    async def close(self) -> None:
        self.writer.close()
        try:
            await self.writer.wait_closed()
        except ConnectionError:
            pass


class Recorder(WebSocket):
    """Writes down what its hooks are called with."""

    def __init__(self, *, joined: bool = True) -> None:
        super().__init__()
        self.joined = joined
        self.opened = 0
        self.messages: list[bytes | str] = []
        self.pongs: list[bytes] = []
        self.closed: list[tuple[int | None, str]] = []
        self.paused = False

    def on_open(self) -> None:
        self.opened += 1
        if self.joined:
            self.raise_limit()

    def on_binary(self, data: memoryview) -> None:
        self.messages.append(bytes(data))

    def on_text(self, text: str) -> None:
        self.messages.append(text)

    def on_pong(self, payload: bytes) -> None:
        self.pongs.append(payload)

    def on_closed(self, code: int | None, reason: str) -> None:
        self.closed.append((code, reason))

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False


class Lines:
    """A log: (level, event, facts) of each line."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, str, dict[str, Any]]] = []

    def info(self, event: str, **facts: Any) -> None:
        self.lines.append(("info", event, facts))

    def warning(self, event: str, **facts: Any) -> None:
        self.lines.append(("warning", event, facts))


class Echo(Recorder):
    """Sends back what comes."""

    def on_binary(self, data: memoryview) -> None:
        self.send_binary(data)


@asynccontextmanager
async def accepting(
    handler: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
    listener: socket.socket | None = None,
    *,
    limit: int = 2**16,
) -> AsyncIterator[int]:
    """A TCP server on `listener`, or on 127.0.0.1: its port. `limit` is that of each StreamReader.

    When left, it cuts each connection it has accepted, also one of the last moment, and waits until their
    handlers end. `asyncio.start_server` does not: what it leaves, the garbage collector reports in a later
    test. An error of a handler is raised here, unless the other side's end of the connection explains it.
    """
    loop = asyncio.get_running_loop()
    listener = listener or socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    connections: list[asyncio.Task[None]] = []
    writers: list[asyncio.StreamWriter] = []

    async def serve(connection: socket.socket) -> None:
        reader, writer = await asyncio.open_connection(sock=connection, limit=limit)
        writers.append(writer)
        with suppress(ConnectionError, EOFError):
            await handler(reader, writer)

    def accept() -> None:
        with suppress(BlockingIOError, ConnectionAbortedError):
            connections.append(loop.create_task(serve(listener.accept()[0])))

    loop.add_reader(listener, accept)
    try:
        yield listener.getsockname()[1]
    finally:
        loop.remove_reader(listener)
        listener.close()
        await until(lambda: len(writers) == len(connections))
        for writer in writers:
            writer.transport.abort()
        ended = await asyncio.gather(*connections, return_exceptions=True)
        for writer in writers:
            with suppress(ConnectionError):
                await writer.wait_closed()
    for error in filter(None, ended):
        raise error


def accept_all(request: Request) -> WebSocket:
    """An upgrade handler."""
    return Recorder()


@asynccontextmanager
async def serving(
    upgrade: Callable[[Request], WebSocket | Reject],
    ssl: SSLContext | None = None,
    read_buffer_size: int = READ_BUFFER,
) -> AsyncIterator[Server]:
    """A server on 127.0.0.1 for messages up to 128 KiB; when left, all its connections are cut."""
    server = await serve(
        "127.0.0.1", 0, upgrade, max_frame=131072, ssl=ssl, read_buffer_size=read_buffer_size
    )
    try:
        yield server
    finally:
        server.close()
        for ws in list(server.connections):
            ws.abort()
        await server.wait_closed()


@asynccontextmanager
async def raw(ws: WebSocket) -> AsyncIterator[RawPeer]:
    """A raw client connected to `ws` on our server."""
    async with serving(lambda request: ws) as server:
        peer = await RawPeer.upgraded(server.port)
        try:
            yield peer
        finally:
            await peer.close()


@asynccontextmanager
async def raw_server(ws: WebSocket) -> AsyncIterator[RawPeer]:
    """A raw server that our client `ws` is connected to."""
    peers: asyncio.Queue[RawPeer] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        head = await peer.head()
        key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
        accepted = accept_key(key)
        peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accepted.encode() + b"\r\n\r\n"
        )
        peers.put_nowait(peer)

    async with accepting(accept) as port:
        await connect(f"ws://127.0.0.1:{port}/", ws, max_frame=131072)
        try:
            yield await peers.get()
        finally:
            ws.abort()


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until `condition` holds; AssertionError after `seconds`."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "condition does not hold in time"
        await asyncio.sleep(0.002)


def drive(
    main: Callable[[], Coroutine[Any, Any, None]],
    *,
    errors: int | None = 0,
    seconds: float = 20.0,
    new_loop: Callable[[], asyncio.AbstractEventLoop] | None = None,
) -> list[str]:
    """Run `main` in a new event loop (asyncio's unless `new_loop` makes another) and return the exceptions
    nobody handled.

    There must be `errors` of them; None: any number.
    """
    unhandled: list[str] = []

    async def watched() -> None:
        asyncio.get_running_loop().set_exception_handler(
            lambda loop, context: unhandled.append(f"{context['message']}: {context.get('exception')!r}")
        )
        async with asyncio.timeout(seconds):
            await main()
        gc.collect()  # exceptions in futures nobody asked are reported when these are collected
        await asyncio.sleep(0)

    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(watched())
    assert errors is None or len(unhandled) == errors, unhandled
    return unhandled
