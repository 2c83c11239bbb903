"""What a new configuration changes for connections that exist, and for those to come."""

from __future__ import annotations

import asyncio
import socket

import pytest
from structlog.testing import capture_logs

from shadowmesh.relay.connection import Connection
from shadowmesh.relay.kinds import Logged
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import RelayClient, address, frame, key, public
from shadowmesh.testing.relay_server import TestRelay, with_relay
from shadowmesh.wire.frame import MAX_FRAME

A, B, C = address("a"), address("b"), address("c")
LARGE = 60_000


class Latencies:
    """Takes the place of the histogram."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.weight = 0

    def record(self, seconds: float, now: float, weight: int = 1) -> None:
        self.seconds.append(seconds)
        self.weight += weight


async def stopped(relay: TestRelay, *, clocked: bool = False) -> tuple[RelayClient, Connection]:
    """A client that holds B and does not read, and its connection at the relay."""
    raw = socket.socket()
    raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16 * 1024)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", relay.port))
    client = await relay.client(sock=raw, max_queue=1000).__aenter__()
    await client.join(B, device="slow")
    client.ws.transport.pause_reading()
    (connection,) = (c for c in relay.server.connections if c.member and B in c.member.held)
    return client, connection


async def fill(relay: TestRelay, sender: RelayClient, frames: int) -> None:
    for number in range(frames):
        await sender.send(frame(B, A, number.to_bytes(4) + bytes(LARGE)))
    before = relay.counters.frames_in
    await sender.send(frame(A, A))
    await relay.until(lambda: relay.counters.frames_in > before, "the last frame")


@pytest.mark.parametrize(("mark", "waiting"), [(1, 1), (2_000_000, 2_000_000)])
def test_write_buffer_size_is_what_waits_before_the_outbox_is_used(mark: int, waiting: int) -> None:
    @with_relay(write_buffer_size=mark, queue_size=1000)
    async def scenario(relay: TestRelay) -> None:
        relay.server.memory.limit = 1 << 30
        slow, connection = await stopped(relay)
        async with relay.client() as sender:
            await sender.join(A, device="a")
            while not relay.server.memory.frames:
                await fill(relay, sender, 5)
            waits = connection.write_buffer_size()
            assert waiting - 1 <= waits <= waiting + MAX_FRAME
            relay.check_account()
            slow.ws.transport.resume_reading()
            await relay.until(lambda: not relay.server.memory.frames, "an empty outbox")
            numbers = [
                int.from_bytes((await slow.next_data())[33:37]) for _ in range(relay.counters.frames_out)
            ]
            assert len(numbers) == relay.counters.frames_in - relay.counters.drops.total()
        slow.ws.transport.abort()
        await slow.__aexit__(None, None, None)

    scenario()


@pytest.mark.parametrize("mark", [1, 200_000])
def test_a_frame_is_measured_when_the_kernel_has_all_of_it(mark: int) -> None:
    """Neither one that was taken in part nor one that waits behind it is said to be sent."""

    @with_relay(write_buffer_size=mark)
    async def scenario(relay: TestRelay) -> None:
        relay.counters.latency = latencies = Latencies()  # type: ignore[assignment]
        slow, connection = await stopped(relay)
        async with relay.client() as sender:
            await sender.join(A, device="a")
            relay.counters.unmeasured = 1 << 30  # none of those that the kernel takes at once
            while not relay.server.memory.frames:
                await fill(relay, sender, 1)
            assert not latencies.seconds
            waits = -(-connection.write_buffer_size() // (LARGE + 41)) + relay.server.memory.frames
            await asyncio.sleep(0.1)
            slow.ws.transport.resume_reading()
            await relay.until(lambda: len(latencies.seconds) == waits, "all are taken")
            assert all(seconds >= 0.1 for seconds in latencies.seconds)
            assert latencies.weight == waits > 1
        slow.ws.transport.abort()
        await slow.__aexit__(None, None, None)

    scenario()


@with_relay(Timing(keepalive=30, dead=0.3, tick=0.01))
async def test_a_slow_reader_is_not_taken_for_a_dead_one(relay: TestRelay) -> None:
    """Its socket never empties, but TCP takes something for it now and then."""
    slow, connection = await stopped(relay)
    async with relay.client() as sender:
        await sender.join(A, device="a")
        while not relay.server.memory.frames:
            await fill(relay, sender, 5)
        for _ in range(20):
            slow.ws.transport.resume_reading()
            await slow.next_data()
            slow.ws.transport.pause_reading()
            if not relay.server.memory.frames:
                await fill(relay, sender, 5)
            await sender.ws.ping()
            await slow.ws.ping()
            await asyncio.sleep(0.05)
        assert not connection.done
        assert relay.counters.closes == {}
        relay.check_account()
    slow.ws.transport.abort()
    await slow.__aexit__(None, None, None)


@with_relay(queue_size=100)
async def test_queue_size_of_connections_that_exist(relay: TestRelay) -> None:
    slow, _ = await stopped(relay)
    async with relay.client() as sender:
        await sender.join(A, device="a")
        while relay.server.memory.frames < 20:
            await fill(relay, sender, 5)
        relay.reconfigure(queue_size=3)
        await fill(relay, sender, 1)
        assert relay.server.memory.frames == 3
        assert relay.counters.drops["queue_full"] > 15
        relay.check_account()
    slow.ws.transport.abort()
    await slow.__aexit__(None, None, None)


@with_relay(max_connections=3)
async def test_a_lower_max_connections_drops_nobody(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        relay.reconfigure(max_connections=1)
        assert relay.server.admission.full
        await a.send(frame(B, A))
        assert await b.next_data() == frame(B, A)
        relay.reconfigure(max_connections=3)
        async with relay.client() as c:
            await c.join(C, device="c")


@with_relay()
async def test_names_change_for_joins_to_come(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as late:
        await a.join(A, device="a")
        relay.reconfigure(public_names=["relay.example"])
        await late.send_join(late.claims([B], device="b"), device="b")
        assert (await late.closed())[0] == 4001
        await a.send(frame(A, A))
        await a.next_control("problem")


@with_relay()
async def test_members_of_a_network_that_is_taken_out_have_to_go(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b, relay.client() as other, relay.client() as late:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await other.join(A, network="another")
        assert (
            relay.reconfigure(allowed_networks=[public(key(name)).hex() for name in ("network", "another")])
            == 0
        )
        assert relay.reconfigure(allowed_networks=[public(key("another")).hex()]) == 2
        for client in (a, b):
            assert await client.closed() == (4005, "this relay serves this network no more")
        await late.send_join(late.claims([B], device="b"), device="b")
        assert (await late.closed())[0] == 4001
        await other.send(frame(A, A))
        await other.next_control("problem")
        assert relay.server.admission.joined == 1
        assert relay.counters.closes == {4005: 2, 4001: 1}


@with_relay(region="one", server_name="first", connection_timeout=300)
async def test_the_challenge_shows_what_holds_now(relay: TestRelay) -> None:
    relay.server.timing = Timing.for_idle_timeout(300)
    relay.reconfigure(region="two", server_name="second", connection_timeout=30)
    async with relay.client() as client:
        challenge = await client.next_control("challenge")
    shown = {name: challenge[name] for name in ("region", "server_name", "keepalive_s")}
    assert shown == {"region": "two", "server_name": "second", "keepalive_s": 10}


@with_relay(Timing(tick=0.01))
async def test_connection_timeout_of_connections_that_exist(relay: TestRelay) -> None:
    async with relay.client() as client:
        await client.join(A)
        (connection,) = relay.server.connections
        relay.reconfigure(connection_timeout=6)
        connection.heard_at -= 6
        connection.heard = False
        assert await client.closed() == (1008, "no answer to pings")


@with_relay()
async def test_the_listener_gets_its_settings(relay: TestRelay) -> None:
    listener = relay.server.listener
    assert listener is not None
    assert listener.read_buffer_size == 4096
    relay.reconfigure(read_buffer_size=9000)
    assert listener.read_buffer_size == 9000


@with_relay()
async def test_logs_are_switched_on_and_off_for_connections_that_exist(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        for settings, kind, lines in (
            ({"frame_logging": True}, Logged, ["data frame"]),
            ({"log_routing": True}, Logged, ["frame dropped"]),
            ({}, Connection, []),
        ):
            relay.reconfigure(**settings)
            assert {type(connection) for connection in relay.server.connections} == {kind}
            with capture_logs() as logs:
                await a.send(frame(B, A))
                await b.next_data()
                await a.send(frame(A, A)[:33])
                await relay.until(lambda: not relay.counters.frames_in % 2, "the second frame")
            assert [line["event"] for line in logs] == lines


@with_relay()
async def test_whole_ids_in_place_of_short_ones(relay: TestRelay) -> None:
    relay.reconfigure(zero_knowledge=False)
    with capture_logs() as logs:
        async with relay.client() as client:
            await client.join(A)
    assert logs[0]["source"] == "127.0.0.1"
    assert logs[0]["device"] == public(key("device")).hex()
