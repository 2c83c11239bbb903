"""`shadowmesh-relay` as a program: the guide's file with other ports, signals, exit statuses, messages."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shadowmesh import __version__
from shadowmesh.testing.guide import RELAY_CONFIG, merged
from shadowmesh.testing.program import Program
from shadowmesh.testing.relay_client import RelayClient, address

COMMAND = [sys.executable, "-c", "from shadowmesh.cli.relay import main; main()"]


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


class RunningRelay(Program):
    """The program with the guide's file, but for ports."""

    def __init__(self, directory: Path, option: str = "-config") -> None:
        self.relay_port, self.health_port, self.metrics_port = free_ports(3)
        self.config = directory / "relay-config.yaml"
        self.config.write_text(
            merged(
                RELAY_CONFIG,
                {
                    "relay_port": self.relay_port,
                    "health_port": self.health_port,
                    "metrics_port": self.metrics_port,
                },
            )
        )
        log = directory / "relay.log"
        with log.open("wb") as output:
            process = subprocess.Popen([*COMMAND, option, str(self.config)], stderr=output)
        super().__init__("relay", process, log)
        self.url = f"ws://127.0.0.1:{self.relay_port}/relay?peer_id=test"


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RunningRelay]:
    program = RunningRelay(tmp_path)
    try:
        program.wait_for_text("relay is ready")
        yield program
    finally:
        program.kill()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=20)


def test_start_up_lines_name_ports_and_what_has_no_effect(relay: RunningRelay) -> None:
    ready, without_effect = relay.wait_for(
        lambda: lines if len(lines := relay.text().splitlines()) > 1 else None, "two lines"
    )
    assert f"relay_port={relay.relay_port} health_port={relay.health_port}" in ready
    assert f"metrics_port={relay.metrics_port}" in ready
    assert "processes=1" in ready
    for key in ("worker_threads", "read_buffer_size", "write_buffer_size", "allowed_origins"):
        assert key in without_effect
    assert "\x1b" not in relay.text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_drains_the_clients_and_ends_with_status_0(
    relay: RunningRelay, number: signal.Signals
) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url) as client:
            await client.join(address("a"))
            relay.signal(number)
            assert (await client.next_control("drain"))["reconnect_after_ms"] > 0
            assert (await client.closed())[0] == 1012

    asyncio.run(scenario())
    assert relay.wait(3.0) == 0
    assert "relay has stopped" in relay.text()
    assert "Traceback" not in relay.text()


def test_a_client_that_does_not_answer_cannot_hold_up_the_end(relay: RunningRelay) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url, reading=False, max_queue=1) as client:
            await client.ws.recv()
            client.ws.transport.pause_reading()
            before = time.monotonic()
            assert await asyncio.to_thread(relay.stop) == 0
            assert time.monotonic() - before < 3

    asyncio.run(scenario())


def test_a_second_signal_ends_it_at_once(relay: RunningRelay) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url, reading=False, max_queue=1) as client:
            await client.ws.recv()
            client.ws.transport.pause_reading()
            relay.signal(signal.SIGTERM)
            relay.wait_for_text("relay is stopping")
            relay.signal(signal.SIGTERM)
            assert relay.wait(1.0) == 128 + signal.SIGTERM

    asyncio.run(scenario())


def test_logs_hold_no_address_of_a_client_and_only_short_ids(relay: RunningRelay) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url) as client, RelayClient(relay.url) as bad:
            await client.join(address("a"))
            await bad.send("nonsense")
            await bad.closed()

    asyncio.run(scenario())
    relay.wait_for_text("client left")
    text = relay.text()
    assert re.search(r"client joined \[relay\] device=[0-9a-f]{8} network=[0-9a-f]{8} peer_id=test ", text)
    assert "client refused [relay] why=protocol detail='not JSON' source=" in text
    assert "127.0.0.1" not in text
    assert not re.search(r"[0-9a-f]{16}", text)


def test_open_files_are_raised_and_health_answers(relay: RunningRelay) -> None:
    limits = Path(f"/proc/{relay.pid}/limits").read_text()
    match = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert match is not None
    assert match[1] == match[2]
    health = httpx.get(f"http://127.0.0.1:{relay.health_port}/health", trust_env=False)
    assert health.json()["status"] == "healthy"


def test_a_taken_port_is_said_in_words_with_status_1(relay: RunningRelay) -> None:
    second = run("--config", str(relay.config))
    assert second.returncode == 1
    assert "another program has this port" in second.stderr
    assert "Traceback" not in second.stderr


def test_all_configuration_errors_at_once_with_status_2(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text('relay_port: "x"\nmax_connection: 5\n')
    result = run("-config", str(config))
    assert result.returncode == 2
    assert f"{config}:1:" in result.stderr
    assert f"{config}:2:" in result.stderr
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert run("--version").stdout == f"shadowmesh-relay {__version__}\n"


def test_start_is_quick_and_small(relay: RunningRelay) -> None:
    status = Path(f"/proc/{relay.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    assert int(match[1]) < 64 * 1024
    ticks = os.sysconf("SC_CLK_TCK")
    user, system = (int(n) for n in Path(f"/proc/{relay.pid}/stat").read_text().rsplit(")")[1].split()[11:13])
    assert (user + system) / ticks < 1.0
