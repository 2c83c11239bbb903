"""Short frames that come with one read leave with one call for each receiver: none is lost or overtaken."""

from __future__ import annotations

from collections.abc import Iterable
from unittest.mock import patch

from shadowmesh.relay.connection import Connection
from shadowmesh.relay.delivery import SHORT
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import TestRelay, with_relay
from shadowmesh.testing.websocket import BINARY, CLOSE, PONG
from shadowmesh.testing.websocket import frame as websocket_frame

A, B, C = address("a"), address("b"), address("c")
LENGTHS = [1, 91, 92, 93, 126, 1400, SHORT - 33, SHORT - 32, 9000]
"""Around those at which a WebSocket header grows, and at which a frame is not short any more."""


def connection_of(relay: TestRelay, held: bytes) -> Connection:
    (connection,) = (c for c in relay.server.connections if c.member and held in c.member.held)
    return connection


def at_once(sender: RelayClient, *messages: tuple[int, bytes]) -> None:
    """Send WebSocket frames with one write, which arrive with one read."""
    sender.ws.transport.write(b"".join(websocket_frame(opcode, payload) for opcode, payload in messages))


def numbered(destination: bytes, numbers: Iterable[int], length: int = 10) -> list[tuple[int, bytes]]:
    return [(BINARY, frame(destination, A, bytes(length - 1) + bytes((number,)))) for number in numbers]


async def received(client: RelayClient, count: int) -> list[int]:
    return [(await client.next_data())[-1] for _ in range(count)]


@with_relay()
async def test_each_arrives_once_and_in_order(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b, relay.client() as c:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await c.join(C, device="c")
        calls: list[int] = []
        write = connection_of(relay, B).write_frames

        def counted(frames: list[bytes]) -> None:
            calls.append(len(frames))
            write(frames)

        connection_of(relay, B).write_frames = counted
        at_once(a, *numbered(B, range(5)), *numbered(C, range(5)), *numbered(B, range(5, 20)))
        assert await received(b, 20) == list(range(20))
        assert await received(c, 5) == list(range(5))
        assert calls == [20]


@with_relay()
async def test_lengths_and_mixtures_of_them(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        frames = [frame(B, A, bytes((n,)) * length) for n, length in enumerate(LENGTHS * 3)]
        at_once(a, *((BINARY, each) for each in frames))
        for each in frames:
            assert await b.next_data() == each
        assert relay.counters.frames_out == len(frames)
        assert relay.counters.bytes_out == sum(map(len, frames)) == relay.counters.bytes_in


@with_relay()
async def test_what_came_before_an_error_or_a_close_is_sent_on(relay: TestRelay) -> None:
    """Picows reads one frame ahead, and does not deliver the one before an error."""
    async with relay.client() as b:
        await b.join(B, device="b")
        for end, arrives in (((BINARY, b""), 4), ((CLOSE, (1000).to_bytes(2)), 4), ((15, b""), 3)):
            async with relay.client() as a:
                await a.join(A, device="a")
                at_once(a, *numbered(B, range(4)), end, *numbered(B, range(4)))
                assert await received(b, arrives) == list(range(arrives))


@with_relay()
async def test_for_a_receiver_that_leaves_meanwhile(relay: TestRelay) -> None:
    """Frames for it are counted as lost, those for others arrive."""
    async with relay.client() as a, relay.client() as b, relay.client() as c:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await c.join(C, device="c")
        leaving = connection_of(relay, B)
        with patch.object(
            Connection, "on_pong", lambda connection, payload: leaving.end(1011, "internal error")
        ):
            at_once(a, *numbered(B, range(3)), *numbered(C, range(1)), (PONG, b""), *numbered(C, range(1, 3)))
            assert await received(c, 3) == [0, 1, 2]
        assert relay.counters.drops["receiver_left"] == 3


@with_relay()
async def test_each_of_a_batch_that_blocks_is_measured(relay: TestRelay) -> None:
    """When the kernel has taken them, and no earlier."""
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        full = connection_of(relay, B)
        write = full.write_frames

        def fills(frames: list[bytes]) -> None:
            write(frames)
            full.pause_writing()

        relay.counters.unmeasured = 1 << 30  # none of those that the kernel takes at once
        with patch.object(full, "write_frames", fills):
            at_once(a, *numbered(B, range(5)))
            assert await received(b, 5) == list(range(5))
        latency = relay.counters.latency
        assert latency.cumulative(()) == [0]
        full.resume_writing()
        assert latency.cumulative(()) == [5]


@with_relay()
async def test_for_a_receiver_that_is_full_meanwhile(relay: TestRelay) -> None:
    """They wait, and what comes for it with the same read does not overtake them."""
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        full = connection_of(relay, B)

        def fills(connection: Connection, payload: bytes) -> None:
            full.pause_writing()
            full._room = 0

        with patch.object(Connection, "on_pong", fills):
            at_once(a, *numbered(B, range(4)), (PONG, b""), *numbered(B, range(4, 8), 9000))
            await relay.until(lambda: relay.counters.frames_in == 8, "a read")
            assert b.data.empty()
        full.resume_writing()
        assert await received(b, 8) == list(range(8))
        assert relay.server.memory.used == 0
