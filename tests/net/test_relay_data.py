"""A real relay and independent clients: data frames, hints about absent addresses, slow readers."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from time import monotonic

import pytest

from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import QUICK, TestRelay, with_relay

A, B, C, NOBODY = address("a"), address("b"), address("c"), address("nobody")


@with_relay()
async def test_frames_pass_unchanged_in_both_directions(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, C, device="b")
        sizes = [1, 92, 93, 4096, 65_536, 65_632, 131_072 - 33]
        for size in sizes:
            await a.send(frame(B, A, bytes(index % 251 for index in range(size))))
        for size in sizes:
            assert await b.next_data() == frame(B, A, bytes(index % 251 for index in range(size)))
        await b.send(frame(A, C, b"x"))
        assert await a.next_data() == frame(A, C, b"x")
    assert relay.counters.frames_in == relay.counters.frames_out == len(sizes) + 1
    assert relay.counters.bytes_out == sum(sizes) + 33 * len(sizes) + 34


@with_relay()
async def test_a_fragmented_frame_arrives_whole(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        whole = frame(B, A, bytes(1000))
        await a.ws.send(whole[i : i + 100] for i in range(0, len(whole), 100))
        assert await b.next_data() == whole


@with_relay()
async def test_a_message_over_max_frame_closes(relay: TestRelay) -> None:
    async with relay.client() as a:
        await a.join(A)
        await a.send(frame(B, A, bytes(131_072 - 33 + 1)))
        assert (await a.closed())[0] == 1009
    assert relay.counters.frames_in == 0


@pytest.mark.parametrize(
    ("bad", "code"),
    [
        (b"", "bad_frame"),
        (frame(B, A, b""), "bad_frame"),
        (b"\x11" + frame(B, A)[1:], "bad_frame"),
        (frame(B, NOBODY), "foreign_source"),
        (frame(B, B), "foreign_source"),
        (frame(A, A), "own_destination"),
        (frame(C, A), "own_destination"),
    ],
)
def test_bad_frames_are_dropped_and_told_once_in_ten_seconds(bad: bytes, code: str) -> None:
    @with_relay(Timing(problem_every=0.3, tick=0.01))
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as a, relay.client() as b:
            await a.join(A, C, device="a")
            await b.join(B, device="b")
            for _ in range(5):
                await a.send(bad)
            await a.send(frame(B, A))
            assert await b.next_data() == frame(B, A)
            assert b.data.empty()
            assert await a.next_control("problem") == {"type": "problem", "code": code, "detail": ""}
            assert a.control.empty()
            await asyncio.sleep(0.3)
            await a.send(bad)
            await a.next_control("problem")
        assert relay.counters.drops[code] == relay.counters.drops.total() == 6

    scenario()


@with_relay()
async def test_networks_cannot_reach_each_other(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, network="one")
        await b.join(B, A, network="two")
        await a.send(frame(B, A))
        assert await a.next_control("gone") == {"type": "gone", "address": B.hex(), "reason": "not_here"}
        assert b.data.empty()


@with_relay()
async def test_gone_says_whether_the_holder_was_here_a_moment_ago(relay: TestRelay) -> None:
    async with relay.client() as a:
        await a.join(A, device="a")
        async with relay.client() as b:
            await b.join(B, device="b")
        await relay.until(lambda: relay.server.admission.joined == 1, "leaving")
        await a.send(frame(B, A))
        await a.send(frame(NOBODY, A))
        assert (await a.next_control("gone"))["reason"] == "disconnected"
        assert await a.next_control("gone") == {"type": "gone", "address": NOBODY.hex(), "reason": "not_here"}


@with_relay()
async def test_gone_is_limited(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        begin = monotonic()
        for number in range(100):
            await a.send(frame(address(str(number)), A))
            await a.send(frame(address(str(number)), A))
        await a.send(frame(B, A))
        await b.next_data()
        allowed = 32 + 10 * (monotonic() - begin)
        await relay.until(lambda: a.control.qsize() >= 32, "a burst of hints")
        gone = Counter(a.control.get_nowait()["address"] for _ in range(a.control.qsize()))
        assert 32 <= len(gone) <= allowed
        assert set(gone.values()) == {1}


async def join_without_reading(client: RelayClient, name: str, *addresses: bytes) -> None:
    """A client that stops taking anything from its socket once it has joined."""
    client.control.put_nowait(json.loads(await client.ws.recv()))
    await client.send_join(client.claims(addresses, device=name), device=name)
    assert json.loads(await client.ws.recv())["type"] == "joined"
    client.ws.transport.pause_reading()


@with_relay(queue_size=20)
async def test_a_slow_reader_loses_its_oldest_frames_and_delays_nobody(relay: TestRelay) -> None:
    async with (
        relay.client(reading=False, max_queue=1000) as slow,
        relay.client() as a,
        relay.client() as quick,
    ):
        await join_without_reading(slow, "slow", B)
        await a.join(A, device="a")
        await quick.join(C, device="quick")
        sent = 0
        while not relay.counters.drops["queue_full"]:
            for _ in range(20):
                await a.send(frame(B, A, sent.to_bytes(4, "big") + bytes(60_000)))
                sent += 1
            await a.send(frame(C, A, b"between"))
            assert await quick.next_data() == frame(C, A, b"between")
        memory = relay.server.memory
        assert memory.frames <= 20
        relay.check_account()

        slow.ws.transport.resume_reading()
        received: list[int] = []
        while not received or received[-1] != sent - 1:
            message = await asyncio.wait_for(slow.ws.recv(), 5)
            assert isinstance(message, bytes)
            received.append(int.from_bytes(message[33:37], "big"))
        lost = sorted(set(range(sent)) - set(received))
        assert received == sorted(received)
        assert len(lost) == relay.counters.drops["queue_full"]
        assert lost == list(range(lost[0], lost[0] + len(lost))), "the oldest that waited, in one stretch"
        assert (memory.used, memory.frames) == (0, 0)
        assert relay.counters.latency.quantiles((1.0,), 0.0)[0] > 0


@with_relay(Timing(keepalive=30, dead=0.3, tick=0.01))
async def test_a_client_that_sends_but_never_reads_is_given_up(relay: TestRelay) -> None:
    async with relay.client(reading=False) as slow, relay.client() as a:
        await join_without_reading(slow, "slow", B)
        await a.join(A, device="a")

        async def keep_sending(client: RelayClient, data: bytes) -> None:
            while client.ws.close_code is None and not relay.counters.closes:
                await client.send(data)
                await asyncio.sleep(0.001)

        await asyncio.gather(
            keep_sending(a, frame(B, A, bytes(100_000))), keep_sending(slow, frame(A, B, b"x"))
        )
        assert relay.counters.closes == {1008: 1}
        assert relay.counters.drops["receiver_left"] > 0
        await relay.until(lambda: len(relay.server.connections) == 1, "abort within 2 s")


@with_relay(QUICK)
async def test_latency_is_sampled(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        for _ in range(32):
            await a.send(frame(B, A))
        for _ in range(32):
            await b.next_data()
        assert 0 < relay.counters.latency.quantiles((0.5,), 0.0)[0] < 1
