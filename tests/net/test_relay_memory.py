"""What waits in connections beside their outboxes: it counts in `queue_memory`, and ends."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shadowmesh.relay.connection import Connection
from shadowmesh.relay.outbox import FRAME_COST
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import TestRelay, with_relay

A, B = address("a"), address("b")
BUDGET = 300_000
LIMITS = {"queue_memory": BUDGET}


def connection_of(relay: TestRelay, held: bytes) -> Connection:
    (connection,) = (c for c in relay.server.connections if c.member and held in c.member.held)
    return connection


class Part:
    """A first fragment that is not followed by any, until `rest` is set."""

    def __init__(self, message: bytes) -> None:
        self.message = message
        self.rest = asyncio.Event()

    async def __aiter__(self) -> AsyncIterator[bytes]:
        yield self.message[:-1]
        await self.rest.wait()
        yield self.message[-1:]


@with_relay(limits=LIMITS)
async def test_unfinished_fragments_count_until_they_are_whole(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        whole = frame(B, A, bytes(100_000))
        part, memory = Part(whole), relay.server.memory
        sending = asyncio.create_task(a.ws.send(part))
        await relay.until(lambda: memory.used == len(whole) - 1, "a fragment")
        part.rest.set()
        await sending
        assert await b.next_data() == whole
        assert memory.used == 0


@with_relay(limits=LIMITS)
async def test_fragments_beyond_the_budget_end_their_connection(relay: TestRelay) -> None:
    memory, clients = relay.server.memory, [relay.client() for _ in range(3)]
    sending = []
    for number, client in enumerate(clients):
        await client.__aenter__()
        await client.join(address(str(number)), device=str(number))
        sending.append(asyncio.create_task(client.ws.send(Part(bytes(120_000)))))
        await relay.until(lambda: memory.used or relay.counters.closes, "fragments")
    assert await clients[2].closed() == (1008, "no memory for a message in fragments")
    assert memory.used == 2 * 119_999
    for task, client in zip(sending, clients, strict=True):
        task.cancel()
        client.ws.transport.abort()
    await relay.until(lambda: not memory.used, "the end")


@with_relay(Timing(join=0.3, tick=0.01))
async def test_fragments_have_a_deadline(relay: TestRelay) -> None:
    async with relay.client() as a:
        await a.join(A)
        await asyncio.sleep(0.35)
        part = Part(frame(A, A, bytes(5000)))
        sending = asyncio.create_task(a.ws.send(part))
        await relay.until(lambda: relay.server.memory.used, "a fragment")
        assert await a.closed() == (1008, "the fragments of a message come too slowly")
        assert relay.server.memory.used == 0
        sending.cancel()


@with_relay(Timing(join=0.3, tick=0.01), limits={"device_bytes_per_second": 200_000})
async def test_who_is_paused_amid_a_message_has_time(relay: TestRelay) -> None:
    async with relay.client() as a:
        await a.join(A)
        for _ in range(3):
            await a.send(frame(A, A, bytes(100_000)))
        part = Part(frame(B, A, bytes(100)))
        sending = asyncio.create_task(a.ws.send(part))
        connection = connection_of(relay, A)
        await relay.until(lambda: connection._pacing and connection._pacing.paused, "a pause")
        await relay.until(lambda: not (connection._pacing and connection._pacing.paused), "its end")
        part.rest.set()
        await sending
        assert (await a.next_control("problem"))["code"] == "own_destination"
        assert (await a.next_control("gone"))["address"] == B.hex()


@asynccontextmanager
async def blocked(relay: TestRelay) -> AsyncIterator[tuple[RelayClient, RelayClient, Connection]]:
    """A reads nothing, and frames of B wait for it."""
    async with relay.client(reading=False, max_queue=1) as a, relay.client() as b:
        a.control.put_nowait(json.loads(await a.ws.recv()))
        await a.send_join(a.claims([A], device="a"), device="a")
        await a.ws.recv()
        a.ws.transport.pause_reading()
        await b.join(B, device="b")
        connection = connection_of(relay, A)
        while not connection._blocked:
            await b.send(frame(A, B, bytes(60_000)))
            await asyncio.sleep(0.001)
        yield a, b, connection


@with_relay(limits=LIMITS)
async def test_answers_that_wait_count(relay: TestRelay) -> None:
    async with blocked(relay) as (a, _, connection):
        memory = relay.server.memory
        before, waiting = memory.used, connection.write_buffer_size()
        await a.send({"type": "addresses"})
        await relay.until(lambda: memory.used > before, "an answer")
        size = connection.write_buffer_size() - waiting
        assert 0 <= before + size + FRAME_COST - memory.used <= 4, "but for the WebSocket header"
        memory.limit = memory.used + 10
        await a.send({"type": "addresses"})
        await relay.until(lambda: relay.counters.closes, "the end")
        assert relay.counters.closes == {1008: 1}
        assert memory.used == 0, "and nothing is left when it has ended"


@with_relay(write_buffer_size=200_000, limits=LIMITS)
async def test_what_is_sent_behind_counts_and_is_bounded(relay: TestRelay) -> None:
    """In the transport, too: beyond the budget frames go to the outbox, which loses some."""
    async with blocked(relay) as (_, b, connection):
        memory = relay.server.memory
        memory.limit = 70_000
        await b.send(frame(A, B, bytes(60_000)))
        await relay.until(lambda: connection._behind, "a frame behind")
        assert memory.used == connection._behind == 60_033 + FRAME_COST
        await b.send(frame(A, B, bytes(60_000)))
        await relay.until(lambda: relay.counters.drops["relay_memory"], "a loss")
        assert memory.used == connection._behind == 60_033 + FRAME_COST
        connection.abort()
        await relay.until(lambda: connection.done, "the end")
        assert memory.used == 0


@with_relay(limits=LIMITS)
async def test_hints_are_not_for_who_does_not_read(relay: TestRelay) -> None:
    async with blocked(relay) as (a, b, connection):
        waiting = connection.write_buffer_size()
        await a.send(frame(address("nobody"), A))
        await a.send(b"nonsense")
        await relay.until(lambda: relay.counters.drops["bad_frame"], "a bad frame")
        assert connection.write_buffer_size() == waiting
        await b.send(b"nonsense")
        await b.next_control("problem")


@with_relay()
async def test_a_device_with_many_addresses_is_one_sender(relay: TestRelay) -> None:
    async with blocked(relay) as (_, b, connection), relay.client() as c:
        more = [address(str(number)) for number in range(20)]
        await b.send({"type": "addresses", "add": [each.hex() for each in more]})
        await b.next_control("addresses")
        await c.join(address("c"), device="c")
        for source in more:
            await b.send(frame(A, source, bytes(60_000)))
        await relay.until(lambda: connection._outbox and len(connection._outbox) >= 10, "many frames")
        await c.send(frame(A, address("c"), bytes(60_000)))
        await relay.until(lambda: connection_of(relay, address("c")).frames_in, "one more")
        assert connection._outbox is not None
        first = [item[0] for _ in range(3) if (item := connection._outbox.pop(0.0))]
        assert address("c") in {each[17:33] for each in first}
        relay.counters.drops["receiver_left"] += len(first)  # that was us
