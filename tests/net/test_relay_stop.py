"""SIGTERM and SIGINT: everybody is sent away in good order and in bounded time, and comes back."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.crypto.keys import DeviceKeys
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_program import RelayProgram
from shadowmesh.testing.scripted_relay import NETWORK, Engine
from shadowmesh.testing.websocket import until

STOP_SECONDS = 8.0
LARGE = bytes(16 * 1024)


async def slow(relay: RelayProgram) -> RelayClient:
    """A client whose kernel takes little for it, so that frames soon wait in the relay when it pauses."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32 * 1024)
    connection.setblocking(False)
    await asyncio.get_running_loop().sock_connect(connection, ("127.0.0.1", relay.relay_port))
    return RelayClient(relay.url, sock=connection)


async def make_frames_wait(relay: RelayProgram, sender: RelayClient, destination: bytes) -> None:
    """Send to somebody who does not read until the relay queues."""
    while relay.metric("frames_queued") < 50:
        for _ in range(100):
            await sender.send(frame(destination, address("s"), LARGE))


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProgram]:
    with RelayProgram(tmp_path, {"drain_window": 1}) as program:
        yield program.ready()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_clients_and_ends_with_status_0(
    relay: RelayProgram, number: signal.Signals
) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url) as client:
            await client.join(address("a"))
            relay.signal(number)
            assert 0 <= (await client.next_control("drain"))["reconnect_after_ms"] <= 1000
            assert (await client.closed())[0] == 1012

    asyncio.run(scenario())
    assert relay.wait(3.0) == 0
    assert "relay is stopping [relay] connections=1" in relay.text()
    assert "relay has stopped" in relay.text()
    assert "Traceback" not in relay.text()


def test_a_client_that_never_reads_cannot_hold_up_the_end(relay: RelayProgram) -> None:
    """One that has not joined, and one that has joined and for which frames wait."""

    async def scenario() -> None:
        async with (
            RelayClient(relay.url) as sender,
            await slow(relay) as joined,
            RelayClient(relay.url, reading=False, max_queue=1) as other,
        ):
            await other.ws.recv()
            other.ws.transport.pause_reading()
            await sender.join(address("s"), device="s")
            await joined.join(address("j"), device="j")
            joined.ws.transport.pause_reading()
            await make_frames_wait(relay, sender, address("j"))
            before = time.monotonic()
            relay.signal(signal.SIGTERM)
            assert (await sender.closed())[0] == 1012
            assert await asyncio.to_thread(relay.wait, STOP_SECONDS) == 0
            assert time.monotonic() - before < STOP_SECONDS
            joined.ws.transport.abort()

    asyncio.run(scenario())
    assert "Traceback" not in relay.text()


def test_health_answers_to_the_end(relay: RelayProgram) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url) as sender, await slow(relay) as reader:
            await sender.join(address("s"), device="s")
            await reader.join(address("r"), device="r")
            reader.ws.transport.pause_reading()
            await make_frames_wait(relay, sender, address("r"))
            relay.signal(signal.SIGTERM)
            relay.wait_for_text("relay is stopping")
            health = relay.get("/health")
            assert (health.status_code, health.json()["status"]) == (200, "draining")
            assert relay.get("/ready").status_code == 503
            reader.ws.transport.resume_reading()
            await reader.closed()

    asyncio.run(scenario())
    assert relay.wait(3.0) == 0


@pytest.mark.parametrize("numbers", [(signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM)])
def test_a_second_signal_ends_it_at_once(
    relay: RelayProgram, numbers: tuple[signal.Signals, signal.Signals]
) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url, reading=False, max_queue=1) as client:
            await client.ws.recv()
            client.ws.transport.pause_reading()
            relay.signal(numbers[0])
            relay.wait_for_text("relay is stopping")
            relay.signal(numbers[1])
            assert relay.wait(1.0) == 128 + numbers[1]

    asyncio.run(scenario())
    assert f"a second signal ends the relay at once [relay] signal={numbers[1].name}" in relay.text()


def test_sigterm_under_load_loses_no_queued_frame(relay: RelayProgram) -> None:
    """What the relay had taken before the signal comes, also to those who read late, in order and once."""
    count = 400

    async def scenario() -> None:
        async with (
            RelayClient(relay.url) as sender,
            await slow(relay) as r0,
            await slow(relay) as r1,
            await slow(relay) as r2,
        ):
            readers = [r0, r1, r2]
            await sender.join(address("s"), device="s")
            for i, reader in enumerate(readers):
                await reader.join(address(f"r{i}"), device=f"r{i}")
                reader.ws.transport.pause_reading()
            for n in range(count):
                for i in range(len(readers)):
                    await sender.send(frame(address(f"r{i}"), address("s"), n.to_bytes(4) + LARGE))
            all_of_them = count * len(readers)
            await until(lambda: relay.metric("frames_total") == all_of_them, 10)
            assert relay.metric("frames_queued") > 100
            relay.signal(signal.SIGTERM)
            await until(lambda: "relay is stopping" in relay.text())
            for reader in readers:
                reader.ws.transport.resume_reading()
            for reader in readers:
                numbers = [int.from_bytes((await reader.next_data())[33:37]) for _ in range(count)]
                assert numbers == list(range(count))
                assert (await reader.closed())[0] == 1012
                assert reader.data.empty()
            assert (await sender.closed())[0] == 1012

    asyncio.run(scenario())
    assert relay.wait(5.0) == 0
    assert relay.text().count("reason='closed with 1012") == 4


def test_every_client_comes_back_after_a_restart_under_load(tmp_path: Path) -> None:
    """Real links of daemons, which talk all the time in a ring: no gap in what was relayed, all back."""
    count = 20
    names = [f"client-{i}" for i in range(count)]

    async def scenario() -> None:
        first = RelayProgram(tmp_path, {"drain_window": 1}).ready()
        engines, links = [Engine() for _ in names], []
        for name, engine in zip(names, engines, strict=True):
            device = DeviceKeys(name.encode().ljust(32, b"\0"), NETWORK.network_id)
            identity = Identity(NETWORK, device, name.encode().ljust(16, b"\0"), (address(name),))
            url = first.url.partition("?")[0]
            link = RelayLink(url, "127.0.0.1", identity, name, engine.event)
            link.listener = engine
            links.append(link)
        running = [asyncio.create_task(link.run()) for link in links]
        sent = 0

        async def talk() -> None:
            nonlocal sent
            while True:
                for i, link in enumerate(links):
                    if link.ready:
                        there = address(names[(i + 1) % count])
                        link.send_frame(frame(there, address(names[i]), sent.to_bytes(4)))
                sent += 1
                await asyncio.sleep(0.002)

        try:
            await until(lambda: all(engine.joins == 1 for engine in engines), 10)
            talking = asyncio.create_task(talk())
            await until(lambda: all(len(engine.frames) > 50 for engine in engines), 10)
            first.signal(signal.SIGTERM)
            assert await asyncio.to_thread(first.wait, STOP_SECONDS) == 0
            for engine in engines:
                numbers = [int.from_bytes(data[33:]) for data in engine.frames]
                assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
            with first.again() as second:
                second.ready()
                before = [len(engine.frames) for engine in engines]
                await until(lambda: all(engine.joins == 2 for engine in engines), 15)
                await until(
                    lambda: all(
                        len(engine.frames) > n + 50 for engine, n in zip(engines, before, strict=True)
                    ),
                    10,
                )
                assert second.get("/status").json()["connections"] == count
                assert [engine.happened("relay_lost")[0]["code"] for engine in engines] == [1012] * count
            talking.cancel()
        finally:
            first.kill()
            for task in running:
                task.cancel()
            await asyncio.wait(running)

    asyncio.run(scenario())
