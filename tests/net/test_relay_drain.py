"""The end of a relay: clients are told when to come back, and get what was queued for them."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from time import monotonic

import pytest

from shadowmesh.net import websocket
from shadowmesh.net.websocket import CLOSE_SECONDS
from shadowmesh.relay.connection import Connection
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import TestRelay, with_relay

A, B = address("a"), address("b")


@with_relay(drain_window=2)
async def test_clients_are_told_when_to_come_back(relay: TestRelay) -> None:
    joined, unjoined = relay.client(), relay.client()
    async with joined, unjoined:
        await joined.join(A)
        await unjoined.next_control("challenge")
        await relay.server.drain()
        assert 0 <= (await joined.next_control("drain"))["reconnect_after_ms"] <= 2000
        assert await joined.closed() == (1012, "the relay restarts")
        assert await unjoined.closed() == (1012, "the relay restarts")
        assert unjoined.control.empty()
    assert relay.counters.refused["draining"] == 1
    assert relay.counters.closes == {1012: 2}
    await relay.server.drain()  # once more does nothing


@pytest.mark.parametrize("window", [0, 600])
def test_the_window_is_that_of_the_configuration(window: int) -> None:
    """Clients that all came at once would be a second outage."""

    @with_relay(drain_window=window)
    async def scenario(relay: TestRelay) -> None:
        clients = [relay.client() for _ in range(10)]
        for number, client in enumerate(clients):
            await client.__aenter__()
            await client.join(address(str(number)), device=str(number))
        await relay.server.drain()
        waits = {(await client.next_control("drain"))["reconnect_after_ms"] for client in clients}
        assert min(waits) >= 0
        assert max(waits) <= 1000 * window
        assert len(waits) > 5 if window else waits == {0}
        for client in clients:
            await client.__aexit__(None, None, None)

    scenario()


@asynccontextmanager
async def slow_client(relay: TestRelay, name: str) -> AsyncIterator[RelayClient]:
    """One that does not read, and whose kernel takes little for it."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", relay.port))
    async with relay.client(sock=connection) as client:
        await client.join(address(name), device=name)
        client.ws.transport.pause_reading()
        try:
            yield client
        finally:
            client.ws.transport.abort()


def numbered(number: int, size: int = 16_000) -> bytes:
    return frame(B, A, number.to_bytes(4) + bytes(size))


async def received(relay: TestRelay, frames: int) -> None:
    await relay.until(lambda: relay.counters.frames_in == frames, "the last frame")


@pytest.mark.parametrize("told", [True, False], ids=["TCP is asked", "another system"])
@pytest.mark.parametrize("size", [4000, 60_000])
def test_no_queued_frame_of_a_reading_client_is_lost(
    monkeypatch: pytest.MonkeyPatch, size: int, told: bool
) -> None:
    """It reads late and sends all the time."""
    if not told:
        monkeypatch.setattr(Connection, "delivered", lambda self: None)

    @with_relay(queue_size=400)
    async def scenario(relay: TestRelay) -> None:
        async with slow_client(relay, "b") as slow, relay.client() as sender:
            await sender.join(A, device="a")
            sent = 0
            while relay.server.memory.frames < 50:
                for _ in range(20):
                    await sender.send(numbered(sent, size))
                    sent += 1
                await received(relay, sent)
            draining = asyncio.create_task(relay.server.drain())
            await sender.next_control("drain")
            for _ in range(50):
                await slow.send(frame(A, B, bytes(5000)))
                relay.check_account()
                await asyncio.sleep(0.002)
            assert not draining.done()
            slow.ws.transport.resume_reading()
            for number in range(sent):
                assert await slow.next_data() == numbered(number, size)
            assert (await slow.closed())[0] == 1012
            await draining
        relay.check_account()
        assert relay.counters.frames_out == sent
        assert relay.counters.drops["draining"] > 0
        assert relay.counters.drops["draining"] == relay.counters.drops.total()

    scenario()


@with_relay()
async def test_who_does_not_read_is_waited_for_in_bounded_time(relay: TestRelay) -> None:
    async with slow_client(relay, "b"), relay.client() as sender:
        await sender.join(A, device="a")
        while relay.server.memory.frames < 10:
            await sender.send(numbered(0))
        began = monotonic()
        await relay.server.drain(flush=0.2)
        assert 0.2 + CLOSE_SECONDS <= monotonic() - began < 0.2 + CLOSE_SECONDS + 1.0
        await relay.until(lambda: not relay.server.connections, "the end")
        assert (await sender.closed())[0] == 1012
    assert relay.counters.drops["receiver_left"] >= 10


@with_relay()
async def test_a_client_that_leaves_meanwhile_is_not_waited_for(relay: TestRelay) -> None:
    async with slow_client(relay, "b") as slow, relay.client() as sender:
        await sender.join(A, device="a")
        while relay.server.memory.frames < 10:
            await sender.send(numbered(0))
        began = monotonic()
        draining = asyncio.create_task(relay.server.drain())
        await asyncio.sleep(0.05)
        slow.ws.transport.abort()
        await draining
        assert monotonic() - began < 1.0


def test_what_the_kernel_has_is_not_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames that only TCP still has for a client are waited for too.

    To close then would end the connection soon, and what the client goes on sending would reset it.
    """
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.1)

    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with slow_client(relay, "b") as slow, relay.client() as sender:
            await sender.join(A, device="a")
            for number in range(10):
                await sender.send(numbered(number))
            await received(relay, 10)
            assert relay.counters.frames_out == 10
            draining = asyncio.create_task(relay.server.drain())
            for _ in range(30):
                await slow.send(frame(A, B, bytes(3000)))
                await asyncio.sleep(0.01)
            slow.ws.transport.resume_reading()
            for number in range(10):
                assert await slow.next_data() == numbered(number)
            assert await slow.closed() == (1012, "the relay restarts")
            await draining

    scenario()
