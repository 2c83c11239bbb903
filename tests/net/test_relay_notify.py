"""What systemd hears from `shadowmesh-relay`, on a real socket of its own."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.testing.relay_client import RelayClient, address
from shadowmesh.testing.relay_program import NotifySocket, RelayProgram, free_ports

QUICK_STATUS = "from shadowmesh.relay import program; program.STATUS_SECONDS = 0.05"
# Whoever gets SIGUSR1 does nothing else for a second: an event loop that hangs.
HANGING = "import signal, time; signal.signal(signal.SIGUSR1, lambda *_: time.sleep(1))"


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as receiver:
        yield receiver


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_ready_is_said_when_all_ports_are_open(tmp_path: Path, kind: str) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@shadowmesh-test-{secrets.token_hex(4)}"
    with (
        NotifySocket(name) as systemd,
        RelayProgram(tmp_path, environment={"NOTIFY_SOCKET": name}) as relay,
    ):
        ready = systemd.expect("READY=1")
        for port in (relay.relay_port, relay.health_port, relay.metrics_port):
            socket.create_connection(("127.0.0.1", port), timeout=1).close()
        assert ready == "READY=1\nSTATUS=Serving 0 of 1000 connections (0.0 %)"


def test_a_relay_that_cannot_open_its_last_port_is_never_ready(tmp_path: Path, systemd: NotifySocket) -> None:
    with socket.create_server(("127.0.0.1", free_ports(1)[0])) as taken:
        settings = {"relay_port": taken.getsockname()[1], "bind_address": "127.0.0.1"}
        with RelayProgram(tmp_path, settings, environment={"NOTIFY_SOCKET": systemd.name}) as relay:
            assert relay.wait() == 1
    assert systemd.poll() == []


def test_the_status_line_follows_the_connections(tmp_path: Path, systemd: NotifySocket) -> None:
    async def scenario(relay: RelayProgram) -> None:
        async with RelayClient(relay.url) as client:
            await client.join(address("a"))
            await asyncio.to_thread(systemd.expect, "STATUS=Serving 1 of 1000 connections (0.1 %)")

    environment = {"NOTIFY_SOCKET": systemd.name}
    with RelayProgram(tmp_path, before=QUICK_STATUS, environment=environment) as relay:
        systemd.expect("READY=1")
        asyncio.run(scenario(relay))
        systemd.expect("STATUS=Serving 0 of 1000")
        time.sleep(0.3)  # six more looks at a status that stays the same
        assert systemd.poll() == []


def test_the_watchdog_hears_nothing_while_the_event_loop_hangs(tmp_path: Path, systemd: NotifySocket) -> None:
    environment = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "100000"}
    with RelayProgram(tmp_path, before=HANGING, environment=environment) as relay:
        systemd.expect("READY=1")
        for _ in range(5):
            systemd.expect("WATCHDOG=1", timeout=2)
        relay.signal(signal.SIGUSR1)
        deadline, silent = time.monotonic() + 10, 0.0
        while silent < 0.5:  # ten times as long as between two
            assert time.monotonic() < deadline
            began = time.monotonic()
            systemd.expect("WATCHDOG=1")
            silent = time.monotonic() - began


def test_a_reload_begins_and_ends_whether_the_file_is_good_or_not(
    tmp_path: Path, systemd: NotifySocket
) -> None:
    with RelayProgram(tmp_path, environment={"NOTIFY_SOCKET": systemd.name}) as relay:
        systemd.expect("READY=1")
        good, bad = relay.config.read_text(), "relay_port: nonsense\n"
        for text, refused in ((good, False), (bad, True), (good, False)):
            relay.config.write_text(text)
            before = time.monotonic_ns() // 1000
            relay.signal(signal.SIGHUP)
            reloading = systemd.expect("RELOADING=1\nMONOTONIC_USEC=")
            assert before <= int(reloading.rpartition("=")[2]) <= time.monotonic_ns() // 1000
            told = systemd.expect("READY=1\nSTATUS=Serving")
            assert told.endswith("%); the last reload was refused, see the log") == refused
            assert told.endswith("%)") != refused


def test_the_end_is_announced_and_the_watchdog_fed_until_it_comes(
    tmp_path: Path, systemd: NotifySocket
) -> None:
    async def scenario(relay: RelayProgram) -> None:
        async with RelayClient(relay.url, reading=False, max_queue=1) as client:
            await client.ws.recv()
            client.ws.transport.pause_reading()
            relay.signal(signal.SIGTERM)
            await asyncio.to_thread(systemd.expect, "STOPPING=1\nSTATUS=Stopping: ")
            for _ in range(3):
                await asyncio.to_thread(systemd.expect, "WATCHDOG=1", 1.0)

    environment = {"NOTIFY_SOCKET": systemd.name, "WATCHDOG_USEC": "100000"}
    with RelayProgram(tmp_path, environment=environment) as relay:
        systemd.expect("READY=1")
        asyncio.run(scenario(relay))
        assert relay.wait() == 0
        assert not [message for message in systemd.poll() if message.startswith("READY")]
