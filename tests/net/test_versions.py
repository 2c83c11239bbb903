"""An older client with a newer relay, and the reverse: works or is refused in words (docs/versioning.md)."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode

import pytest
from websockets.asyncio.server import ServerConnection

from shadowmesh.crypto.join import verify_join
from shadowmesh.daemon import backoff
from shadowmesh.relay import connection
from shadowmesh.testing.relay_client import address, frame
from shadowmesh.testing.relay_server import TestRelay, running_relay
from shadowmesh.testing.relay_server import with_relay as with_real_relay
from shadowmesh.testing.scripted_relay import (
    ADDRESSES,
    Linked,
    challenge,
    joined_message,
    linked,
    quicken,
    with_relay,
)
from shadowmesh.testing.websocket import until

A, B = address("a"), address("b")


def test_a_newer_relay_that_no_longer_speaks_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """The real client and the real relay, which says that it is of version 2 only."""
    monkeypatch.setattr(connection, "VERSION", 2)
    monkeypatch.setattr(backoff, "USUAL", (60.0, 60.0))

    async def scenario() -> None:
        async with asyncio.timeout(10), running_relay() as relay, linked(relay.port) as running:
            reason = (await running.lost())["reason"]
            assert reason == "the relay speaks version 2 of the protocol, this client 1: upgrade this client"

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("relays", "clients", "words"),
    [
        (1, 2, "protocol version 2; this relay speaks 1: upgrade the relay"),
        (2, 1, "protocol version 1; this relay speaks 2: upgrade the client"),
    ],
)
def test_a_join_of_another_version(
    monkeypatch: pytest.MonkeyPatch, relays: int, clients: int, words: str
) -> None:
    monkeypatch.setattr(connection, "VERSION", relays)

    @with_real_relay()
    async def test(relay: TestRelay) -> None:
        async with relay.client() as client:
            await client.send_join(client.claims([A]) | {"version": clients})
            assert await client.closed() == (4001, words)

    test()


@with_real_relay()
async def test_a_newer_client_of_the_same_version(relay: TestRelay) -> None:
    """What it says that an older relay does not know is passed over."""
    async with relay.client() as new, relay.client() as old:
        await new.send({"type": "compress", "with": ["zstd"]})
        assert (await new.closed())[0] == 4003  # before the join nothing but the join
        async with relay.client() as new:
            await new.join(A, device="a", paths=["udp"], agent="shadowmesh/9.0.0")
            await old.join(B, device="b")
            await new.send({"type": "paths", "udp": ["203.0.113.7:9545"]})
            await new.send({"type": "addresses", "add": [], "remove": [], "why": "later"})
            assert (await new.next_control("addresses"))["held"] == [A.hex()]
            await new.send(frame(B, A, b"hello"))
            assert await asyncio.wait_for(old.data.get(), 5) == frame(B, A, b"hello")


def test_a_newer_relay_of_the_same_version(monkeypatch: pytest.MonkeyPatch) -> None:
    """It says more than an older client knows, and is understood all the same."""
    quicken(monkeypatch)

    async def script(ws: ServerConnection) -> None:
        nonce = await challenge(ws, server_time=1, features=["cluster"])
        join = json.loads(await ws.recv())
        claims = b64decode(join["claims"])
        keys = (bytes.fromhex(json.loads(claims)[name]) for name in ("network", "device"))
        signatures = (b64decode(join[f"{name}_signature"]) for name in ("network", "device"))
        verify_join(nonce, claims, *keys, *signatures)
        await ws.send(json.dumps({"type": "welcome", "cluster": 3}))
        await ws.send(json.dumps(json.loads(joined_message()) | {"cluster": {"relays": 3}}))
        await ws.send(json.dumps({"type": "neighbours", "relays": [b64encode(nonce).decode()]}))
        await ws.send(frame(ADDRESSES[0], A, b"hello"))
        await ws.wait_closed()

    @with_relay(script)
    async def test(running: Linked) -> None:
        await until(lambda: running.engine.frames == [frame(ADDRESSES[0], A, b"hello")])
        assert not running.engine.happened("relay_lost")
