"""A relay that falls silent, is far away, or does not read: what the link makes of it."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from unittest.mock import MagicMock

import pytest

from shadowmesh.daemon import link as link_module
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.scripted_relay import Linked, RawRelay, quicken, with_raw_relay
from shadowmesh.testing.websocket import BINARY, PING, PONG, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


def test_an_idle_connection_is_kept_by_pings() -> None:
    async def test(running: Linked, relay: RawRelay) -> None:
        for _ in range(3):
            opcode, payload = await relay.peer.frame()
            assert opcode == PING
            relay.send(PONG, payload)
        assert running.link.ready
        assert (await running.lost())["reason"].startswith("the relay does not answer any more")

    with_raw_relay(test, keepalive=0.1)


def test_a_relay_that_falls_silent_while_we_send() -> None:
    """Long before the keepalive would show it."""

    async def test(running: Linked, relay: RawRelay) -> None:
        running.link.send_frame(b"\x10" + bytes(40))
        assert (await running.lost())["reason"].startswith("the relay does not answer any more")

    with_raw_relay(test)


def test_a_long_way_takes_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "DEAD_ROUND_TRIPS", 4)

    async def test(running: Linked, relay: RawRelay) -> None:
        assert running.link.rtt is not None
        assert running.link.rtt >= 0.1
        running.link.send_frame(b"\x10" + bytes(40))
        began = asyncio.get_running_loop().time()
        await running.lost()
        assert asyncio.get_running_loop().time() - began >= 0.4

    with_raw_relay(test, away=0.1)


def test_whatever_is_heard_counts_as_life() -> None:
    async def test(running: Linked, relay: RawRelay) -> None:
        for _ in range(12):
            running.link.send_frame(b"\x10" + bytes(40))
            relay.send(BINARY, b"\x10" + bytes(40))
            await asyncio.sleep(0.03)
        assert not running.engine.happened("relay_lost")

    with_raw_relay(test)


async def fill(running: Linked) -> None:
    """Send until the socket takes no more."""
    for _ in range(1000):
        if running.engine.paused:
            return
        running.link.send_frame(b"\x10" + bytes(60_000))
    raise AssertionError("the socket took 60 MB")


def test_a_full_socket_and_then_silence() -> None:
    """Nothing can be sent any more, so only what waits shows that we would."""

    async def test(running: Linked, relay: RawRelay) -> None:
        await fill(running)
        relay.send(BINARY, b"\x10" + bytes(40))
        await until(lambda: running.engine.frames)
        assert running.engine.paused
        assert (await running.lost())["reason"].startswith("the relay does not answer any more")
        assert not running.engine.paused

    with_raw_relay(test)


@pytest.mark.parametrize("known", [True, False], ids=["with TCP_INFO", "without"])
def test_a_slow_uplink_is_not_a_dead_one(known: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The ping waits behind megabytes; what gets through shows that it is on its way."""
    if not known:
        monkeypatch.setattr(WebSocket, "delivered", lambda ws: None)
    elif not hasattr(socket, "TCP_INFO"):
        pytest.skip("this system does not tell what was acknowledged")
    monkeypatch.setattr(link_module, "SendBuffer", MagicMock())  # megabytes must wait before the ping

    async def test(running: Linked, relay: RawRelay) -> None:
        await fill(running)
        loop = asyncio.get_running_loop()
        began = loop.time()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while loop.time() - began < 0.7:  # several times as long as silence may last
                await relay.peer.reader.readexactly(20_000)
                await asyncio.sleep(0.02)
        assert bool(running.engine.happened("relay_lost")) is not known
        assert (await running.lost())["reason"].startswith("the relay does not answer any more")

    with_raw_relay(test)


def test_a_relay_that_speaks_but_does_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the mesh itself goes on sending is bounded, and the connection is given up."""
    monkeypatch.setattr(link_module, "MAX_WAITING", 100_000)

    async def test(running: Linked, relay: RawRelay) -> None:
        await fill(running)
        while not running.engine.happened("relay_lost"):
            for _ in range(20):
                running.link.send_frame(b"\x10" + bytes(1500))
            relay.send(BINARY, b"\x10" + bytes(40))
            await asyncio.sleep(0.005)
        assert running.link.dropped
        assert (await running.lost())["reason"] == "the relay takes no data"

    with_raw_relay(test, keepalive=0.1)
