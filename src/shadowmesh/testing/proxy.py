"""A proxy for tests, HTTP CONNECT and SOCKS5 on one port, that remembers what it was asked for.

What it does wrong on request, no real proxy does when told to.
"""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from ipaddress import ip_address

from shadowmesh.testing.websocket import accepting


class TestProxy:
    """asked: each request as `METHOD TARGET`, e.g. `CONNECT relay.example:9545` or `SOCKS5 [::1]:80`.

    credentials: the only (user, password) it takes, None: it asks for none. answer: bytes instead of doing
    its work. hosts: where a name really is.
    """

    __test__ = False

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[str] = []
        self.heads: list[str] = []
        self.credentials: tuple[str, str] | None = None
        self.answer: bytes | None = None
        self.silent = False
        self.hosts: dict[str, str] = {}
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        try:
            with suppress(asyncio.IncompleteReadError, ConnectionError):
                first = await reader.readexactly(1)
                target = await (self._socks5 if first == b"\5" else self._http)(reader, writer)
                if target is not None:
                    await _carry(reader, writer, self.hosts.get(target[0], target[0]), target[1])
        finally:
            self.connections -= 1
            writer.close()
            with suppress(ConnectionError):
                await writer.wait_closed()

    async def _instead(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        if self.answer is None and not self.silent:
            return False
        writer.write(self.answer or b"")
        await writer.drain()
        if self.silent:
            await reader.read()
        return True

    async def _http(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int] | None:
        head = "C" + (await reader.readuntil(b"\r\n\r\n")).decode()
        self.heads.append(head)
        self.asked.append(" ".join(head.split(" ")[:2]))
        if await self._instead(reader, writer):
            return None
        wanted = b64encode(":".join(self.credentials or ()).encode()).decode()
        if self.credentials and f"Proxy-Authorization: Basic {wanted}\r\n" not in head:
            writer.write(b'HTTP/1.1 407 Who\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n')
            return None
        writer.write(b"HTTP/1.1 200 Connection established\r\nVia: test\r\n\r\n")
        host, _, port = head.split(" ")[1].rpartition(":")
        return host.strip("[]"), int(port)

    async def _socks5(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int] | None:
        methods = await reader.readexactly((await reader.readexactly(1))[0])
        if await self._instead(reader, writer):
            return None
        method = 2 if self.credentials else 0
        writer.write(bytes([5, method if method in methods else 255]))
        if method not in methods:
            return None
        if self.credentials:
            await reader.readexactly(1)
            given = tuple([(await _counted(reader)).decode() for _ in range(2)])
            writer.write(bytes([1, given != self.credentials]))
            if given != self.credentials:
                return None
        _, _, _, kind = await reader.readexactly(4)
        if kind == 3:
            host = (await _counted(reader)).decode()
        else:
            host = str(ip_address(await reader.readexactly(4 if kind == 1 else 16)))
        port = int.from_bytes(await reader.readexactly(2))
        self.asked.append(f"SOCKS5 {host}:{port} {kind}")
        # It says by name where it dials from, as it may.
        writer.write(b"\5\0\0\3\4here" + port.to_bytes(2))
        return host, port


async def _counted(reader: asyncio.StreamReader) -> bytes:
    return await reader.readexactly((await reader.readexactly(1))[0])


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int) -> None:
    there, back = await asyncio.open_connection(host, port)
    ways = [asyncio.create_task(_copy(reader, back)), asyncio.create_task(_copy(there, writer))]
    try:
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for way in ways:
            way.cancel()
        await asyncio.wait(ways)
        back.close()
        with suppress(ConnectionError):
            await back.wait_closed()


async def _copy(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await source.read(65536):
            target.write(data)
            await target.drain()


@asynccontextmanager
async def proxying() -> AsyncIterator[TestProxy]:
    """A proxy on 127.0.0.1."""
    proxy = TestProxy()
    async with accepting(proxy.serve) as proxy.port:
        yield proxy
