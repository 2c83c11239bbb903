"""A relay tells whose frames pile up there to pause, and to resume: a hint, within bounds, to nobody else."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any
from unittest.mock import Mock

import pytest

from shadowmesh.relay import delivery
from shadowmesh.relay.delivery import CONTROL_ROOM, PAUSE_ABOVE
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import TestRelay, with_relay
from shadowmesh.wire.control import Pause
from shadowmesh.wire.frame import MAX_FRAME

A, B, C = address("a"), address("b"), address("c")
SIZE = 60_000


async def stalled(relay: TestRelay, stack: AsyncExitStack) -> tuple[RelayClient, RelayClient]:
    """Clients A, who sends, and B, who does not read although frames wait for it in its outbox."""
    a = await stack.enter_async_context(relay.client())
    b = await stack.enter_async_context(relay.client())
    await a.join(A, device="a")
    await b.join(B, C, device="b")
    b.ws.transport.pause_reading()
    while not relay.server.memory.frames:
        await a.send(frame(B, A, bytes(SIZE)))
        await relay.until(lambda: True, "a turn of the loop")
    return a, b


async def fill(relay: TestRelay, a: RelayClient, to: bytes = B) -> None:
    """Send until the relay has more waiting than it likes."""
    while relay.server.memory.used <= PAUSE_ABOVE:
        await a.send(frame(to, A, bytes(SIZE)))
    await relay.until(lambda: relay.server.memory.used > PAUSE_ABOVE, "a full outbox")


def hint(kind: str, to: bytes = B) -> dict[str, Any]:
    return {"type": kind, "address": to.hex()}


def is_quiet(client: RelayClient) -> bool:
    return client.control.empty()


@with_relay()
async def test_whoever_sends_too_much_is_told_once_and_when_it_is_less(relay: TestRelay) -> None:
    async with AsyncExitStack() as stack:
        a, b = await stalled(relay, stack)
        assert is_quiet(a)
        await fill(relay, a)
        assert await a.next_control("pause") == hint("pause")
        for _ in range(5):
            await a.send(frame(B, A, bytes(SIZE)))
        assert is_quiet(a)
        b.ws.transport.resume_reading()
        assert await a.next_control("resume") == hint("resume")
        await relay.until(lambda: not relay.server.memory.frames, "an empty outbox")
        relay.check_account()
        assert is_quiet(a)
        assert is_quiet(b)


@with_relay()
async def test_each_sender_is_told_of_the_addresses_it_sends_to(relay: TestRelay) -> None:
    async with AsyncExitStack() as stack:
        a, b = await stalled(relay, stack)
        other = await stack.enter_async_context(relay.client())
        idle = await stack.enter_async_context(relay.client())
        await other.join(address("other"), device="other")
        await idle.join(address("idle"), device="idle")
        await fill(relay, a)
        await a.send(frame(C, A, bytes(SIZE)))
        await other.send(frame(C, address("other"), bytes(SIZE)))
        assert await a.next_control("pause") == hint("pause")
        assert await a.next_control("pause") == hint("pause", C)
        assert await other.next_control("pause") == hint("pause", C)
        b.ws.transport.resume_reading()
        assert await a.next_control("resume") == hint("resume")
        assert await a.next_control("resume") == hint("resume", C)
        assert await other.next_control("resume") == hint("resume", C)
        assert is_quiet(idle)


@with_relay()
async def test_whoever_goes_on_is_told_again(relay: TestRelay) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(delivery, "PAUSE_EVERY", 0.0)
        async with AsyncExitStack() as stack:
            a, _ = await stalled(relay, stack)
            await fill(relay, a)
            for _ in range(3):
                await a.next_control("pause")
                await a.send(frame(B, A, bytes(SIZE)))


@with_relay()
async def test_a_receiver_that_leaves_keeps_nobody_waiting(relay: TestRelay) -> None:
    async with AsyncExitStack() as stack:
        a, b = await stalled(relay, stack)
        await fill(relay, a)
        await a.next_control("pause")
        b.ws.transport.abort()
        assert await a.next_control("resume") == hint("resume")
        relay.check_account()


@with_relay()
async def test_a_sender_that_leaves_is_told_nothing(relay: TestRelay) -> None:
    async with AsyncExitStack() as stack:
        a, b = await stalled(relay, stack)
        await fill(relay, a)
        await a.next_control("pause")
        await a.ws.close()
        await relay.until(lambda: len(relay.server.connections) == 1, "the end of the sender")
        b.ws.transport.resume_reading()
        await relay.until(lambda: not relay.server.memory.frames, "an empty outbox")
        relay.check_account()
        assert len(relay.server.connections) == 1


@with_relay()
async def test_hints_are_no_memory_without_bounds(relay: TestRelay) -> None:
    async with relay.client() as a:
        await a.join(A)
        (connection,) = relay.server.connections
        memory, limit = relay.server.memory, relay.server.memory.limit
        waiting = relay.server.config.write_buffer_size + MAX_FRAME + CONTROL_ROOM
        connection._blocked = True
        for size, room, told in ((waiting, limit, 1), (waiting + 1, limit, 0), (0, memory.used, 0)):
            connection.write_buffer_size = Mock(return_value=size)
            memory.limit, before = room, memory.used
            connection.advise(Pause(B))
            assert (memory.used > before) is bool(told)
            for _ in range(told):
                await a.next_control("pause")
            assert is_quiet(a)
        connection.resume_writing()
        assert memory.used == 0
