"""A relay client that shares no code with ours: `websockets`, `json`, Ed25519 and the protocol page.

Tests use it as the independent peer of the relay. It keeps what the relay sends in two queues.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

PATIENCE = 5.0
"""Seconds after which something that was waited for counts as not happening."""


def key(name: str) -> Ed25519PrivateKey:
    """The signing key that tests know by this name."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(name.encode()).digest())


def public(private: Ed25519PrivateKey) -> bytes:
    """The 32 bytes that are the id of a network or device."""
    return private.public_key().public_bytes_raw()


def address(name: str) -> bytes:
    """The blind address that tests know by this name."""
    return hashlib.sha256(b"address " + name.encode()).digest()[:16]


def frame(destination: bytes, source: bytes, payload: bytes = b"payload") -> bytes:
    """A data frame."""
    return b"\x10" + destination + source + payload


class RelayClient:
    """One WebSocket connection to a relay, usable as an async context manager.

    Without `reading` nothing is taken from the socket: a slow client. Without `pongs` it does not answer
    pings.
    """

    def __init__(self, url: str, *, subprotocol: bool = True, reading: bool = True, **options: Any) -> None:
        self._url = url
        self._options = {
            "compression": None,
            "ping_interval": None,
            "max_size": None,
            "proxy": None,
        } | options
        if subprotocol:
            self._options["subprotocols"] = [Subprotocol("shadowmesh.v1")]
        self._reading = reading
        self._reader: asyncio.Task[None] | None = None
        self.control: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.data: asyncio.Queue[bytes] = asyncio.Queue()
        self.ws: ClientConnection

    async def __aenter__(self) -> Self:
        self.ws = await connect(self._url, **self._options)
        if self._reading:
            self._reader = asyncio.create_task(self._read())
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._reading:
            self.ws.transport.abort()
        await self.ws.close()
        if self._reader:
            await self._reader

    async def _read(self) -> None:
        try:
            async for message in self.ws:
                if isinstance(message, str):
                    self.control.put_nowait(json.loads(message))
                else:
                    self.data.put_nowait(message)
        except ConnectionClosed:
            pass

    async def next_control(self, kind: str) -> dict[str, Any]:
        """The next control message, which must be of this type, but for hints that nobody waits for."""
        async with asyncio.timeout(PATIENCE):
            while (message := await self.control.get())["type"] in {"pause", "resume"} - {kind}:
                pass
        assert message["type"] == kind, message
        return message

    async def next_data(self) -> bytes:
        """The next data frame."""
        async with asyncio.timeout(PATIENCE):
            return await self.data.get()

    async def closed(self) -> tuple[int | None, str | None]:
        """Wait until the connection is closed; (close code, reason) as received."""
        async with asyncio.timeout(PATIENCE):
            await self.ws.wait_closed()
        return self.ws.close_code, self.ws.close_reason

    async def send(self, message: dict[str, Any] | bytes | str) -> None:
        """Send control (a dict or raw text) or a data frame (bytes)."""
        await self.ws.send(json.dumps(message) if isinstance(message, dict) else message)

    def claims(
        self, addresses: Iterable[bytes], network: str = "network", device: str = "device", **changes: Any
    ) -> dict[str, Any]:
        """Claims of a join; `changes` replaces single fields."""
        claims = {
            "version": 1,
            "network": public(key(network)).hex(),
            "device": public(key(device)).hex(),
            "instance": hashlib.sha256(b"instance " + device.encode()).hexdigest()[:32],
            "relay": "127.0.0.1",
            "addresses": [each.hex() for each in addresses],
            "agent": "test/1",
        }
        return claims | changes

    async def send_join(
        self, claims: dict[str, Any] | bytes, network: str = "network", device: str = "device"
    ) -> None:
        """Answer the challenge with these claims, signed by the keys of these names."""
        nonce = b64decode((await self.next_control("challenge"))["nonce"])
        raw = claims if isinstance(claims, bytes) else json.dumps(claims).encode()
        bound = nonce + hashlib.sha256(raw).digest()
        await self.send(
            {
                "type": "join",
                "claims": b64encode(raw).decode(),
                "network_signature": b64encode(
                    key(network).sign(b"shadowmesh/v1 join network\0" + bound)
                ).decode(),
                "device_signature": b64encode(
                    key(device).sign(b"shadowmesh/v1 join device\0" + bound)
                ).decode(),
            }
        )

    async def join(
        self, *addresses: bytes, network: str = "network", device: str = "device", **changes: Any
    ) -> dict[str, Any]:
        """Join and return the relay's answer."""
        await self.send_join(self.claims(addresses, network, device, **changes), network, device)
        return await self.next_control("joined")


@asynccontextmanager
async def numbered_frames(url: str, **options: Any) -> AsyncIterator[None]:
    """Two clients, one of which sends frames to the other as long as this lasts: each arrives, in order."""
    async with RelayClient(url, **options) as a, RelayClient(url, **options) as b:
        await a.join(address("a"), device="a")
        await b.join(address("b"), device="b")
        sent, going = 0, True

        async def talk() -> None:
            nonlocal sent
            while going:
                await a.send(frame(address("b"), address("a"), sent.to_bytes(4)))
                sent += 1
                await asyncio.sleep(0.001)

        talking = asyncio.create_task(talk())
        try:
            yield
        finally:
            going = False
            await talking
        assert sent > 20
        assert [int.from_bytes((await b.next_data())[33:]) for _ in range(sent)] == list(range(sent))
