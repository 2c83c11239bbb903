"""What ends or changes many connections at once does so a few in a turn of the event loop."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest

from shadowmesh.apikey import key_text
from shadowmesh.config import RelayConfig
from shadowmesh.relay import server as server_module
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.keys import Key, Keys
from shadowmesh.relay.router import Router
from shadowmesh.relay.server import Server
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import RelayClient, address, key, public
from shadowmesh.testing.relay_server import TestRelay, with_relay

MANY, FEW = 10, 3
TEXT = key_text("aaaaaaaa", b"a" * 32)
KEY = Key("aaaaaaaa", "name", sha256(TEXT.encode()).digest(), created=0)
NOW = 1_800_000_000.0


def by_turn(monkeypatch: pytest.MonkeyPatch, method: str) -> Counter[int]:
    """Calls of a method of connections, by turn of the event loop."""
    turn, calls, original = 0, Counter[int](), getattr(Connection, method)
    run_once = asyncio.BaseEventLoop._run_once  # type: ignore[attr-defined]

    def counted(self: Connection, *args: Any) -> None:
        calls[turn] += 1
        original(self, *args)

    def next_turn(loop: Any) -> None:
        nonlocal turn
        turn += 1
        run_once(loop)

    monkeypatch.setattr(Connection, method, counted)
    monkeypatch.setattr(asyncio.BaseEventLoop, "_run_once", next_turn)
    return calls


@asynccontextmanager
async def crowd(relay: TestRelay) -> AsyncIterator[list[RelayClient]]:
    relay.server.gate.clock = lambda: NOW
    await relay.server.use_keys(Keys([replace(KEY, expires=int(NOW) + 10)]))
    async with AsyncExitStack() as stack:
        headers = {"Authorization": f"Bearer {TEXT}"}
        found = [
            await stack.enter_async_context(relay.client(additional_headers=headers)) for _ in range(MANY)
        ]
        for number, client in enumerate(found):
            await client.join(address(str(number)), device=str(number))
        yield found


async def revoked(server: Server) -> None:
    assert await server.use_keys(Keys([replace(KEY, revoked=1)])) == MANY


async def expired(server: Server) -> None:
    server.gate.clock = lambda: NOW + 11
    await server.expire_keys()


async def not_served(server: Server) -> None:
    config = RelayConfig(allowed_networks=[public(key("another")).hex()])  # type: ignore[arg-type]
    assert await server.reconfigure(config) == MANY


@pytest.mark.parametrize("withdraw", [revoked, expired, not_served])
def test_connections_end_a_few_in_a_turn(
    withdraw: Callable[[Server], Awaitable[None]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_module, "CHECKS_PER_TURN", FEW)
    turns = by_turn(monkeypatch, "end")

    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with crowd(relay) as clients:
            turns.clear()
            await withdraw(relay.server)
            assert max(turns.values()) == FEW
            for client in clients:
                assert (await client.closed())[0] == 4005

    scenario()


@with_relay()
async def test_a_changed_key_reaches_who_stays(relay: TestRelay) -> None:
    async with crowd(relay):
        await relay.server.use_keys(Keys([replace(KEY, bytes_per_second=20_000)]))
        paces = {pace for c in relay.server.connections for pace in (c._pacing.paces if c._pacing else ())}
        (pace,) = paces
        assert (pace.key, pace.rate, pace.users) == (KEY.id, 20_000, MANY)
        await relay.server.use_keys(Keys([replace(KEY, bytes_per_second=30_000)]))
        assert (pace.rate, pace.users) == (30_000, MANY)


@with_relay()
async def test_without_keys_nobody_has_one(relay: TestRelay) -> None:
    async with crowd(relay):
        await relay.server.use_keys(None)
        assert not any(connection.grant for connection in relay.server.connections)
        assert not relay.server.gate._joined


def test_the_end_of_graces_is_a_few_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def expire(self: Any, now: float, most: int = 0) -> bool:
        asked.append(most)
        return len(asked) % 3 != 0

    monkeypatch.setattr(Router, "expire", expire)

    @with_relay(Timing(tick=0.01))
    async def scenario(relay: TestRelay) -> None:
        await relay.until(lambda: len(asked) >= 6, "two looks")

    scenario()
    assert set(asked) == {server_module.EXPIRED_PER_TURN}
