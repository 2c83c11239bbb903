"""Bytes per second of a device, a network, a key: who sends more is read more slowly, and loses nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from contextlib import AsyncExitStack
from math import inf
from pathlib import Path
from ssl import create_default_context
from time import monotonic
from typing import Any

import pytest
from structlog.testing import capture_logs

from shadowmesh.net import READ_PER_TURN
from shadowmesh.net.loop import new_loop
from shadowmesh.net.tls import Certificate
from shadowmesh.relay.connection import Connection, Draining
from shadowmesh.relay.keys import Grant
from shadowmesh.relay.kinds import Logged, Paced, PacedLogged
from shadowmesh.relay.pacing import LEAST_BURST, receive_buffer
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import QUICK, TestRelay, running_relay, with_relay
from shadowmesh.testing.websocket import drive

A, B, C = address("a"), address("b"), address("c")
RATE = 1_000_000
SIZE = 10_000
FREE = 50  # frames of that size that may come at once
SLOW = 20_000
MORE = 60
ONE_READ = READ_PER_TURN + 65 * 1024
LEAST = (MORE * SIZE - 2 * READ_PER_TURN) / RATE  # seconds that these take besides, but for the last read
PAUSE = LEAST_BURST + SLOW // 2  # bytes that make half a second's pause at that rate


def device(rate: int = SLOW) -> dict[str, int]:
    return {"device_bytes_per_second": rate}


def connection_of(relay: TestRelay, held: bytes) -> Connection:
    (connection,) = (c for c in relay.server.connections if c.member and held in c.member.held)
    return connection


def is_paused(connection: Connection) -> bool:
    return connection._pacing is not None and connection._pacing.paused


async def pause(relay: TestRelay, sender: RelayClient, size: int = PAUSE) -> Connection:
    """Let A send so many bytes to B that it is not read from any more; return its connection."""
    connection = connection_of(relay, A)
    for _ in range(size // SIZE):
        await sender.send(frame(B, A, bytes(SIZE - 33)))
    await sender.send(frame(B, A, bytes(max(1, size % SIZE - 33))))
    await relay.until(lambda: is_paused(connection), "a pause")
    return connection


async def pass_on(sender: RelayClient, receiver: RelayClient, frames: int, to: bytes = B) -> float:
    """Send frames from A, which all arrive, in order and whole; return how many seconds that took."""
    begin = monotonic()

    async def send() -> None:
        for number in range(frames):
            await sender.send(frame(to, A, number.to_bytes(4) + bytes(SIZE - 37)))

    sending = asyncio.create_task(send())
    for number in range(frames):
        assert await receiver.next_data() == frame(to, A, number.to_bytes(4) + bytes(SIZE - 37))
    await sending
    return monotonic() - begin


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("new_loop", [None, new_loop])
def test_a_device_beyond_its_rate(secure: bool, new_loop: Callable[[], Any] | None, tmp_path: Path) -> None:
    """It gets all through, in its time; the others do not notice."""
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    certificate = Certificate(str(paths.cert), str(paths.key)) if secure else None
    options: dict[str, Any] = {"ssl": create_default_context(cafile=str(paths.ca))} if secure else {}

    async def main() -> None:
        ssl = certificate.context if certificate else None
        async with running_relay(QUICK, ssl, limits=device(RATE)) as relay:
            url = relay.url.replace("ws://", "wss://") if secure else relay.url
            async with (
                RelayClient(url, **options) as a,
                RelayClient(url, **options) as b,
                RelayClient(url, **options) as c,
            ):
                await a.join(A, device="a")
                await b.join(B, device="b")
                await c.join(C, device="c")
                sending = asyncio.create_task(pass_on(a, b, FREE + MORE))
                await relay.until(lambda: is_paused(connection_of(relay, A)), "a pause")
                while not sending.done():
                    await b.send(frame(C, B, b"between"))
                    assert await c.next_data() == frame(C, B, b"between")
                    await asyncio.sleep(0.01)
                assert sending.result() > LEAST
                assert not relay.counters.drops.total()

    drive(main, new_loop=new_loop)


def test_a_device_within_its_rate_is_never_paused(monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[Connection] = []
    monkeypatch.setattr(Paced, "pause_reading", lambda self: pauses.append(self))

    @with_relay(limits=device(RATE))
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as a, relay.client() as b:
            await a.join(A, device="a")
            await b.join(B, device="b")
            await pass_on(a, b, FREE - 1)
            for _ in range(50):
                await asyncio.sleep(SIZE / RATE)
                await pass_on(a, b, 1)
            assert not pauses
            await pass_on(a, b, FREE + 5)
            assert pauses, "it was looked at"

    scenario()


@with_relay(limits={"network_bytes_per_second": RATE})
async def test_devices_of_a_network_share_its_rate(relay: TestRelay) -> None:
    async with (
        relay.client() as a,
        relay.client() as b,
        relay.client() as other,
        relay.client() as neighbour,
    ):
        await a.join(A, device="a")
        await b.join(B, device="b")
        await other.join(A, network="another", device="a")
        await neighbour.join(B, network="another", device="b")
        begin = monotonic()
        await pass_on(a, b, FREE)
        for _ in range(MORE):
            await b.send(frame(A, B, bytes(SIZE - 33)))
        await relay.until(lambda: any(map(is_paused, relay.server.connections)), "a pause")
        await pass_on(other, neighbour, FREE - 1)
        for _ in range(MORE):
            await a.next_data()
        assert monotonic() - begin > LEAST
        assert not relay.counters.drops.total()


@with_relay(limits=device(10**9))
async def test_the_rate_of_an_api_key_is_that_of_all_its_devices(relay: TestRelay) -> None:
    grant = Grant("key", "name", None, 0, RATE, None, b"")
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        for connection in relay.server.connections:
            connection.grant = grant
            relay.server.dress(connection)
        begin = monotonic()
        await pass_on(a, b, FREE)
        await b.send(frame(A, B, bytes(10 * SIZE - 33)))
        await relay.until(lambda: is_paused(connection_of(relay, B)), "a pause")
        await pass_on(a, b, MORE - 10)
        assert monotonic() - begin > LEAST


@with_relay(Timing(keepalive=0.05, dead=0.2, tick=0.01), limits=device())
async def test_who_is_paused_is_not_silent(relay: TestRelay) -> None:
    """It hears from the relay meanwhile, and what it has said is read in the end."""
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await pause(relay, a)
        await a.send({"type": "addresses", "add": [C.hex()]})
        pong = await a.ws.ping()
        seen, connection = set[bytes](), connection_of(relay, A)
        while is_paused(connection):
            seen.add(connection._ping.to_bytes(8))
            await asyncio.sleep(0.01)
        assert len(seen) >= 5, "pings while it was paused"
        assert C.hex() in (await a.next_control("addresses"))["held"]
        await asyncio.wait_for(pong, 5)
        await asyncio.sleep(0.3)
        assert not relay.counters.closes
        assert not relay.counters.drops.total()


@with_relay(Timing(keepalive=0.05, dead=0.2, tick=0.01), limits=device())
async def test_who_is_gone_after_its_pause_is_noticed(relay: TestRelay) -> None:
    async with relay.client() as b, relay.client() as a:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await pause(relay, a)
        a.ws.transport.pause_reading()
        await relay.until(lambda: relay.counters.closes, "the end")
        assert relay.counters.closes == {1008: 1}
        a.ws.transport.abort()


@with_relay(Timing(probe=0.1, tick=0.01), limits=device())
async def test_a_paused_holder_keeps_its_address(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        connection = await pause(relay, a)
        while is_paused(connection):
            await b.send({"type": "addresses", "add": [A.hex()]})
            assert (await b.next_control("addresses"))["refused"]
            await asyncio.sleep(0.11)
        assert not relay.counters.closes


@with_relay(limits=device())
async def test_nobody_leaves_its_debt_behind(relay: TestRelay) -> None:
    """Who comes back in debt is not read from at all, not even with what is right behind its join."""
    async with relay.client() as b:
        await b.join(B, device="b")
        async with relay.client() as a:
            await a.join(A, device="a")
            await pause(relay, a, LEAST_BURST + 5 * SLOW)
        begin, before = monotonic(), relay.counters.bytes_in
        for _ in range(10):
            client = relay.client()
            await client.__aenter__()
            await client.join(A, device="a")
            assert is_paused(connection_of(relay, A))
            await client.send(frame(B, A, bytes(60_000)))
            client.ws.transport.abort()
        assert monotonic() - begin < 4, "all within the debt"
        assert relay.counters.bytes_in == before


@with_relay(limits=device())
async def test_what_is_sent_right_behind_a_join_is_not_read(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as again:
        await a.join(A, device="a")
        await pause_own(relay, a)
        before = relay.counters.bytes_in
        tcp = again.ws.transport
        corked, write = bytearray(), tcp.write
        tcp.write = corked.extend  # type: ignore[method-assign, assignment]
        await again.send_join(again.claims([A], device="a"), device="a")
        await again.send(frame(B, A, bytes(5000)))
        tcp.write = write  # type: ignore[method-assign]
        tcp.write(bytes(corked))
        assert await again.closed() == (4003, "nothing may follow a join unanswered")
        assert relay.counters.bytes_in == before
        a.ws.transport.abort()


async def pause_own(relay: TestRelay, client: RelayClient) -> None:
    """Let A send itself, which costs as much, until it is not read from any more."""
    await client.send(frame(A, A, bytes(120_000)))
    await client.send(frame(A, A, bytes(100_000)))
    await relay.until(lambda: is_paused(connection_of(relay, A)), "a pause")


@with_relay(limits={"network_bytes_per_second": 100_000})
async def test_a_crowd_gets_no_more_than_its_network(relay: TestRelay) -> None:
    """However many they are; and those of another network get what is theirs."""
    async with AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(relay.client()) for _ in range(20)]
        for number, client in enumerate(crowd):
            await client.join(address(str(number)), device=str(number))

        async def flood(number: int) -> None:
            while True:
                await crowd[number].send(frame(B, address(str(number)), bytes(SIZE)))

        floods = [asyncio.create_task(flood(number)) for number in range(len(crowd))]
        await relay.until(lambda: sum(map(is_paused, relay.server.connections)) == 20, "a pause of all")
        begin, before = monotonic(), relay.counters.bytes_in
        assert before <= LEAST_BURST + 20 * ONE_READ + 100_000
        debt = connection_of(relay, address("0"))._pacing
        assert debt is not None
        left = debt.paces[0].debt(begin)
        await asyncio.sleep(2)
        assert relay.counters.bytes_in - before <= max(0.0, monotonic() - begin - left) * 100_000 + ONE_READ
        for task in floods:
            task.cancel()
        for client in crowd:
            client.ws.transport.abort()


@with_relay(limits=device(RATE))
async def test_the_kernel_keeps_a_second_of_it(relay: TestRelay) -> None:
    async with relay.client() as a:
        await a.join(A, device="a")
        connection = connection_of(relay, A)

        def size() -> int:
            return connection.tcp_socket().getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF)

        assert size() == 2 * receive_buffer(RATE)
        relay.reconfigure(limits=device(SLOW))
        assert size() == LEAST_BURST
        relay.reconfigure(limits={})
        assert size() == 2 * receive_buffer(inf)


@with_relay(limits=device(RATE))
async def test_a_device_is_one_of_its_network_only(relay: TestRelay) -> None:
    """Neither do others of the network share its rate, nor the same device elsewhere."""
    async with relay.client() as a, relay.client() as b, relay.client() as elsewhere:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await elsewhere.join(A, network="another", device="a")
        paces = {c._pacing.paces[0] for c in relay.server.connections if c._pacing is not None}
        assert len(paces) == 3


@pytest.mark.parametrize("end", ["replaced", "drained", "lost"])
def test_the_end_of_a_paused_connection(end: str) -> None:
    """It is in order: the client gets its close frame, and nothing is left."""

    @with_relay(limits=device())
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as a, relay.client() as b, relay.client() as again:
            await a.join(A, device="a")
            await b.join(B, device="b")
            connection = await pause(relay, a, LEAST_BURST + 5 * SLOW)
            if end == "replaced":
                await again.join(A, device="a")
                assert (await a.closed())[0] == 4004
            elif end == "drained":
                await relay.server.drain()
                await a.next_control("drain")
                assert (await a.closed())[0] == 1012
            else:
                a.ws.transport.abort()
                connection.abort()
            await relay.until(lambda: connection not in relay.server.connections, "the end")
            assert connection._pacing is None

    scenario()


@with_relay()
async def test_rates_come_and_go_with_the_configuration(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        connection = connection_of(relay, A)
        assert type(connection) is Connection
        await pass_on(a, b, 100)
        relay.reconfigure(limits=device())
        assert type(connection) is Paced
        await pause(relay, a, LEAST_BURST + 9 * SLOW)
        assert is_paused(connection)
        relay.reconfigure(limits={})
        assert type(connection) is Connection
        assert not is_paused(connection)
        for _ in range(-(-(LEAST_BURST + 9 * SLOW) // SIZE)):
            await b.next_data()
        await pass_on(a, b, 100)
        assert not relay.counters.drops.total()


@with_relay(limits=device(RATE), frame_logging=True, log_connections=False)
async def test_what_is_paced_is_logged_too(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        connection = connection_of(relay, A)
        assert type(connection) is PacedLogged
        with capture_logs() as lines:
            await pass_on(a, b, 10)
        assert [line["event"] for line in lines] == ["data frame"] * 10
        await pause(relay, a, FREE * SIZE)
        relay.reconfigure(frame_logging=False)
        assert type(connection) is Paced
        relay.reconfigure(limits={})
        assert type(connection) is Logged
        connection.drain(0)
        relay.reconfigure()
        assert isinstance(connection, Draining)
