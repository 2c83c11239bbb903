"""`shadowmesh-relay` as a program: the guide's file with other ports, exit statuses, messages."""

from __future__ import annotations

import asyncio
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh import __version__
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.relay_client import RelayClient, address
from shadowmesh.testing.relay_program import START, RelayProgram

COMMAND = [sys.executable, "-c", START]


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProgram]:
    with RelayProgram(tmp_path) as program:
        yield program.ready()


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=20)


def test_start_up_lines_name_ports_and_what_has_no_effect(relay: RelayProgram) -> None:
    auth, origins, ready, without_effect = relay.wait_for(
        lambda: lines if len(lines := relay.text().splitlines()) > 3 else None, "four lines"
    )
    assert re.search(r"\[warning\] .*: auth\.mode: ", auth)
    assert re.search(r"\[warning\] .*: allowed_origins: ", origins)
    assert f"relay_port=*:{relay.relay_port} health_port=*:{relay.health_port}" in ready
    assert f"metrics_port=*:{relay.metrics_port} tls=off" in ready
    assert "processes=1" in ready
    for fact in (
        "tls=off",
        "auth=open",
        "origins=*",
        "trusted_proxies=none",
        "max_connections=1000",
        "connection_timeout=300 silent_after=45.0",
        "drain_window=3",
    ):
        assert fact in ready
    assert without_effect.endswith(" keys=worker_threads")
    assert "\x1b" not in relay.text()


def test_logs_hold_no_address_of_a_client_and_only_short_ids(relay: RelayProgram) -> None:
    async def scenario() -> None:
        async with RelayClient(relay.url) as client, RelayClient(relay.url) as bad:
            await client.join(address("a"))
            await bad.send("nonsense")
            await bad.closed()

    asyncio.run(scenario())
    relay.wait_for_text("client left")
    text = relay.text()
    shown = r"device=[0-9a-f]{8} network=[0-9a-f]{8} peer_id=[0-9a-f]{8}"
    assert re.search(rf"client joined \[relay\] {shown} ", text)
    assert "peer_id=test" not in text
    assert "client refused [relay] why=protocol detail='not JSON' source=" in text
    assert "127.0.0.1" not in text
    assert not re.search(r"[0-9a-f]{16}", text)


def test_open_files_are_raised_and_health_answers(relay: RelayProgram) -> None:
    limits = Path(f"/proc/{relay.pid}/limits").read_text()
    match = re.search(r"Max open files +(\d+) +(\d+)", limits)
    assert match is not None
    assert match[1] == match[2]
    assert relay.get("/health").json()["status"] == "healthy"


def test_a_taken_port_is_said_in_words_with_status_1(relay: RelayProgram) -> None:
    second = run("--config", str(relay.config))
    assert second.returncode == 1
    assert "[error] relay cannot start [relay] why='health_port " in second.stderr.splitlines()[-1]
    assert "another program has this port" in second.stderr
    assert "Traceback" not in second.stderr


def test_all_configuration_errors_at_once_with_status_2(tmp_path: Path) -> None:
    config = tmp_path / "bad.yaml"
    config.write_text('relay_port: "x"\nmax_connection: 5\n')
    result = run("-config", str(config))
    assert result.returncode == 2
    assert f"{config}:1:" in result.stderr
    assert f"[error] {config}:2:" in result.stderr
    assert "[error] relay cannot start [relay] problems=2" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr


def test_version() -> None:
    assert run("--version").stdout == f"shadowmesh-relay {__version__}\n"


def test_start_is_quick_and_small(relay: RelayProgram) -> None:
    status = Path(f"/proc/{relay.pid}/status").read_text()
    match = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert match is not None
    assert int(match[1]) < 64 * 1024
    ticks = os.sysconf("SC_CLK_TCK")
    user, system = (int(n) for n in Path(f"/proc/{relay.pid}/stat").read_text().rsplit(")")[1].split()[11:13])
    assert (user + system) / ticks < 1.0


def test_nobody_can_fill_the_log(tmp_path: Path) -> None:
    """Garbage on every port, hundreds of times: bytes, HTTP, a TLS hello, half a request."""
    garbage = (
        b"\0\1\2 nonsense\r\n\r\n",
        b"GET /\0 HTTP/1.1\r\n\r\n",
        b"POST /metrics HTTP/9\r\nHost: x\r\nTransfer-Encoding: what\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(512),
        b"GET /relay?peer_id=x HTTP/1.1\r\nUpgrade: websocket\r\nConnection: upgrade\r\n",
        b"GET /relay HTTP/1.1\r\nHost: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n\r\n",
    )
    certificate = make_certificate(tmp_path, ["127.0.0.1"])
    tls = {"cert_file": str(certificate.cert), "key_file": str(certificate.key)}
    for settings in ({}, {"tls": tls}):
        with RelayProgram(tmp_path, settings) as relay:
            relay.ready()
            before = len(relay.text().splitlines())
            for _ in range(50):
                for port in (relay.relay_port, relay.health_port, relay.metrics_port):
                    for data in garbage:
                        with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
                            connection.sendall(data)
            assert relay.stop() == 0
            lines = relay.text().splitlines()[before:]
            assert len(lines) < 80
            assert not any("Traceback" in line for line in lines)
