"""Relays to test the client's link with: one plays a script, one is made of bytes."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import time
from base64 import b64encode
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol
from websockets.utils import accept_key

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon import backoff
from shadowmesh.daemon import link as link_module
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.testing.websocket import PING, PONG, TEXT, RawPeer, accepting, drive, frame, until

NETWORK = NetworkKeys(bytes(range(32)))
DEVICE = DeviceKeys(bytes(range(32, 64)), NETWORK.network_id)
ADDRESSES = (b"A" * 16, b"B" * 16)
IDENTITY = Identity(NETWORK, DEVICE, b"I" * 16, ADDRESSES)
SUBPROTOCOLS = [Subprotocol("shadowmesh.v1")]

Script = Callable[[ServerConnection], Awaitable[None]]


def quicken(monkeypatch: pytest.MonkeyPatch) -> None:
    """The protocol's times, shortened; every jitter gives its most. They stop while the machine does."""
    real, shown = time.monotonic(), 0.0

    def steady(loop: asyncio.BaseEventLoop) -> float:
        nonlocal real, shown
        now = time.monotonic()
        shown += min(now - real, 0.03)
        real = now
        return shown

    monkeypatch.setattr(asyncio.BaseEventLoop, "time", steady)
    monkeypatch.setattr(link_module, "random", SimpleNamespace(uniform=lambda low, high: high))
    for name, value in {
        "SWEEP": 0.01,
        "JOIN_SECONDS": 0.2,
        "ASK_AFTER": 0.05,
        "DEAD_AFTER": 0.15,
        "DEAD_ROUND_TRIPS": 0,
        "GOODBYE_SECONDS": 0.1,
        "KEEPALIVE_GRACE": 0.1,
        "REASK_ADDRESSES": (0.05, 0.05),
        "ASLEEP_AFTER": 1e9,
    }.items():
        monkeypatch.setattr(link_module, name, value)
    monkeypatch.setattr(backoff, "USUAL", (0.02, 0.1))


class Engine:
    """Whom the link calls, and its events."""

    def __init__(self) -> None:
        self.frames: list[bytes] = []
        self.absent: list[bytes] = []
        self.joins = self.losses = 0
        self.paused = self.drained = False
        self.unheld: set[bytes] = set()
        self.hints: list[tuple[str, bytes]] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def on_frame(self, data: memoryview) -> None:
        self.frames.append(bytes(data))

    def joined(self) -> None:
        self.joins += 1

    def gone(self, address: bytes) -> None:
        self.absent.append(address)

    def lost(self) -> None:
        self.losses += 1

    def draining(self) -> None:
        self.drained = True

    def refused(self, addresses: set[bytes]) -> None:
        self.unheld = addresses

    def hold(self, address: bytes) -> None:
        self.hints.append(("hold", address))

    def release(self, address: bytes) -> None:
        self.hints.append(("release", address))

    def pause(self) -> None:
        self.paused = True

    def resume(self) -> None:
        self.paused = False

    def event(self, name: str, /, **facts: object) -> None:
        self.events.append((name, facts))

    def happened(self, name: str) -> list[dict[str, Any]]:
        return [facts for event, facts in self.events if event == name]


class Linked:
    """A running link and what it says."""

    def __init__(self, port: int, peer_id: str = "p") -> None:
        self.engine = Engine()
        self.link = RelayLink(
            f"ws://127.0.0.1:{port}/relay", "127.0.0.1", IDENTITY, peer_id, self.engine.event
        )
        self.link.listener = self.engine
        self.task = asyncio.create_task(self.link.run())

    async def joined(self, times: int = 1) -> None:
        await until(lambda: self.engine.joins >= times)

    async def lost(self) -> dict[str, Any]:
        """Wait for the first loss: its facts."""
        await until(lambda: self.engine.happened("relay_lost"))
        return self.engine.happened("relay_lost")[0]

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})


@contextlib.asynccontextmanager
async def linked(port: int) -> AsyncIterator[Linked]:
    running = Linked(port)
    try:
        yield running
    finally:
        await running.stop()


def with_relay(*scripts: Script, **options: Any) -> Callable[[Callable[[Linked], Awaitable[None]]], None]:
    """Run a test against a relay that plays these scripts, one per connection, the last for all after."""

    def run(test: Callable[[Linked], Awaitable[None]]) -> None:
        async def main() -> None:
            left = list(scripts)

            async def handler(ws: ServerConnection) -> None:
                script = left.pop(0) if len(left) > 1 else left[0]
                with contextlib.suppress(ConnectionClosed):
                    await script(ws)

            settings = {"subprotocols": SUBPROTOCOLS, "ping_interval": None, "close_timeout": 0.1} | options
            async with (
                serve(handler, "127.0.0.1", 0, **settings) as server,
                linked(server.sockets[0].getsockname()[1]) as running,
            ):
                await test(running)

        drive(main)

    return run


async def challenge(ws: ServerConnection, **changes: Any) -> bytes:
    nonce = os.urandom(32)
    message = {
        "type": "challenge",
        "version": 1,
        "nonce": b64encode(nonce).decode(),
        "server_name": "relay-1",
        "region": "here",
        "max_frame": 131072,
        "keepalive_s": 20,
    }
    await ws.send(json.dumps(message | changes))
    return nonce


def joined_message(refused: tuple[bytes, ...] = (), code: str = "address_in_use") -> str:
    message = {
        "type": "joined",
        "remote": "203.0.113.9:51234",
        "held": [each.hex() for each in ADDRESSES if each not in refused],
        "refused": [{"address": each.hex(), "code": code} for each in refused],
        "limits": {"addresses": 64, "max_frame": 131072},
    }
    return json.dumps(message)


async def admit(ws: ServerConnection, *refused: bytes, **changes: Any) -> dict[str, Any]:
    """Challenge, join, joined; returns the join."""
    await challenge(ws, **changes)
    join: dict[str, Any] = json.loads(await ws.recv())
    await ws.send(joined_message(refused))
    return join


async def stay(ws: ServerConnection) -> None:
    await admit(ws)
    await ws.wait_closed()


async def silent(ws: ServerConnection) -> None:
    await ws.wait_closed()


def then(*messages: str | bytes) -> Script:
    """A relay that joins a client, then says this."""

    async def script(ws: ServerConnection) -> None:
        await admit(ws)
        for message in messages:
            await ws.send(message)
        await ws.wait_closed()

    return script


def closing(code: int, reason: str = "", *before: str) -> Script:
    async def script(ws: ServerConnection) -> None:
        await admit(ws)
        for message in before:
            await ws.send(message)
        await ws.close(code, reason)

    return script


class RawRelay:
    """A relay made of bytes: it answers pings, reads and speaks when told to only."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.peer = RawPeer(reader, writer)

    def send(self, opcode: int, payload: bytes) -> None:
        self.peer.send(frame(opcode, payload, masked=False))

    async def join(self, keepalive: float, away: float) -> None:
        """Upgrade, challenge, joined, and the pong for the first ping after so many seconds."""
        head = await self.peer.head()
        key = next(line[19:] for line in head.splitlines() if line.lower().startswith("sec-websocket-key: "))
        self.peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Protocol: shadowmesh.v1\r\nSec-WebSocket-Accept: "
            + accept_key(key).encode()
            + b"\r\n\r\n"
        )
        message = {
            "type": "challenge",
            "version": 1,
            "nonce": b64encode(bytes(32)).decode(),
            "server_name": "",
            "region": "",
            "max_frame": 131072,
            "keepalive_s": keepalive,
        }
        self.send(TEXT, json.dumps(message).encode())
        assert (await self.peer.frame())[0] == TEXT
        self.send(TEXT, joined_message().encode())
        opcode, payload = await self.peer.frame()
        assert opcode == PING
        await asyncio.sleep(away)
        self.send(PONG, payload)


def with_raw_relay(
    test: Callable[[Linked, RawRelay], Awaitable[None]], *, keepalive: float = 20.0, away: float = 0.0
) -> None:
    """Run a test with the first connection to such a relay; all others get no answer."""

    async def main() -> None:
        accepted: asyncio.Queue[RawRelay] = asyncio.Queue()

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            accepted.put_nowait(RawRelay(reader, writer))

        listener = socket.create_server(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
        async with accepting(accept, listener, limit=32 * 1024) as port, linked(port) as running:
            relay = await accepted.get()
            await relay.join(keepalive, away)
            await running.joined()
            await until(lambda: running.link.rtt is not None)
            await test(running, relay)

    drive(main)
