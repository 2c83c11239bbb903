"""SIGHUP: the file is read again while clients stay connected."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.program import wait_for
from shadowmesh.testing.relay_client import RelayClient, address, frame, numbered_frames
from shadowmesh.testing.relay_program import RelayProgram, free_ports


@pytest.fixture
def relay(tmp_path: Path) -> Iterator[RelayProgram]:
    with RelayProgram(tmp_path) as program:
        yield program.ready()


def test_reloads_under_traffic_lose_no_frame(relay: RelayProgram) -> None:
    async def scenario() -> None:
        async with numbered_frames(relay.url):
            for limit in range(101, 106):
                relay.configure({"max_connections": limit, "queue_size": limit, "write_buffer_size": limit})
                said = await asyncio.to_thread(relay.hang_up)
                assert "changed='queue_size" in said or "changed='max_connections" in said
                assert relay.get("/status").json()["max_connections"] == limit
            assert "client left" not in relay.text()

    asyncio.run(scenario())


def test_an_invalid_file_changes_nothing_and_says_every_mistake(relay: RelayProgram) -> None:
    relay.config.write_text("max_connections: 7\nrelay_prot: 1\nqueue_size: -1\n")
    said = relay.hang_up()
    lines = said.splitlines()
    assert f"[error] {relay.config}:2:1: relay_prot: unknown key; did you mean relay_port?" in lines[0]
    assert f"[error] {relay.config}:3:13: queue_size: " in lines[1]
    assert "[error] configuration not reloaded [relay] problems=2" in lines[2]
    assert relay.get("/status").json()["max_connections"] == 1000


def test_a_file_that_is_gone_changes_nothing(relay: RelayProgram) -> None:
    relay.config.unlink()
    said = relay.hang_up()
    assert f"[error] {relay.config}: no such file" in said
    assert "configuration not reloaded" in said
    assert relay.get("/health").json()["max_connections"] == 1000


def test_what_needs_a_restart_is_refused_key_by_key_and_the_rest_applies(relay: RelayProgram) -> None:
    elsewhere = free_ports(1)[0]
    relay.configure({"relay_port": elsewhere, "worker_threads": 2, "region": "eu-west-2"})
    for _ in range(2):
        said = relay.hang_up()
        assert f"[warning] needs a restart: relay_port {relay.relay_port} -> {elsewhere}" in said
        assert "[warning] needs a restart: worker_threads 4 -> 2" in said
        assert relay.get("/status").json()["region"] == "eu-west-2"
        socket.create_connection(("127.0.0.1", relay.relay_port)).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", elsewhere))
    assert relay.text().count("changed=region") == 1
    assert "changed=nothing" in said


def test_warnings_are_about_what_is_in_force(relay: RelayProgram) -> None:
    """A relay that stays open to everybody until it is restarted goes on being called so."""
    relay.configure({"bind_address": "127.0.0.1"})
    said = relay.hang_up()
    assert "needs a restart: bind_address (every address) -> 127.0.0.1" in said
    assert re.search(r'\[warning\] \S+: auth\.mode: is not in the file; its default "open" lets', said)


def test_built_in_values_are_said_and_a_file_that_appears_is_read(tmp_path: Path) -> None:
    file = tmp_path / "default.yaml"
    ports = dict(zip(("relay_port", "health_port", "metrics_port"), free_ports(3), strict=True))
    before = f"""
from shadowmesh.config import loader
from shadowmesh.relay import program
program.DEFAULT_RELAY_PATH = loader.DEFAULT_RELAY_PATH = {str(file)!r}
Config = loader.RelayConfig
loader.RelayConfig = lambda: Config(**{ports})
import sys
del sys.argv[1:]
"""
    with RelayProgram(tmp_path, before=before) as relay:
        assert "config='built-in defaults'" in relay.ready().text()
        at_start, said = relay.text(), relay.hang_up()
        for text in (at_start, said):
            assert f"no -config given and no {file}: running with the deployment guide's values" in text
            assert '[warning] built-in defaults: auth.mode: "open" lets whoever reaches this relay' in text
            assert '[warning] built-in defaults: allowed_origins: "*" lets any web page connect' in text
        assert "configuration reloaded [relay] changed=nothing config='built-in defaults'" in said
        file.write_text(json.dumps({**ports, "max_connections": 7}))
        said = relay.hang_up()
        assert f"config={file}" in said
        assert "max_connections" in said
        file.unlink()
        assert "configuration not reloaded" in relay.hang_up()


def test_level_and_format_of_the_log(relay: RelayProgram) -> None:
    async def visit() -> None:
        async with RelayClient(relay.url) as client:
            await client.join(address("a"))

    def lines_of_a_visit() -> list[str]:
        before = len(relay.text())
        asyncio.run(visit())
        wait_for(lambda: relay.get("/health").json()["connections"] == 0, "the client's end")
        return relay.text()[before:].splitlines()

    assert len(lines_of_a_visit()) == 2
    relay.configure({"log_level": "error"})
    assert "configuration reloaded [relay] changed=log_level" in relay.hang_up()
    wait_for(lambda: not lines_of_a_visit(), "silence")
    before = len(relay.text())
    relay.signal(signal.SIGHUP)
    wait_for(lambda: not lines_of_a_visit(), "silence")
    assert "configuration reloaded" not in relay.text()[before:]
    relay.configure({"log_format": "json"})
    assert json.loads(relay.hang_up().splitlines()[-1])["changed"] == "log_format, log_level"
    events = [json.loads(line) for line in lines_of_a_visit()]
    assert [event["event"] for event in events] == ["client joined", "client left"]


def test_the_metrics_port_is_opened_and_closed(relay: RelayProgram) -> None:
    moved = free_ports(1)[0]
    assert relay.metric("max_connections") == 1000
    relay.configure({"metrics_enabled": False})
    assert "changed=metrics_enabled" in relay.hang_up()
    with pytest.raises(httpx.ConnectError):
        relay.get("/metrics", relay.metrics_port)
    relay.configure({"metrics_port": moved})
    assert "metrics_enabled" in relay.hang_up()
    assert relay.get("/metrics", moved).status_code == 200


def test_a_metrics_port_that_is_taken_changes_nothing(relay: RelayProgram) -> None:
    relay.configure({"metrics_enabled": False})
    relay.hang_up()
    with socket.create_server(("", relay.metrics_port)):
        relay.configure({"max_connections": 7})
        said = relay.hang_up()
    assert f"configuration not reloaded [relay] why='metrics_port {relay.metrics_port}: another " in said
    assert relay.get("/health").json()["max_connections"] == 1000
    assert "metrics_enabled" in relay.hang_up()
    assert relay.metric("max_connections") == 7


def test_health_and_metrics_ports_are_moved_under_traffic(relay: RelayProgram) -> None:
    """To other numbers, exchanged, and to another address with the same number."""
    health, metrics = relay.health_port, relay.metrics_port
    a, b = free_ports(2)
    local = {"health_bind": "127.0.0.1", "metrics_bind": "127.0.0.1"}

    async def scenario() -> None:
        async with numbered_frames(relay.url):
            for ports, binds in (((a, b), {}), ((b, a), {}), ((b, a), local), ((health, b), {})):
                relay.configure({"health_port": ports[0], "metrics_port": ports[1], **binds})
                said = await asyncio.to_thread(relay.hang_up)
                assert "needs a restart" not in said
                assert relay.get("/health", ports[0]).json()["status"] == "healthy"
                assert relay.get("/metrics", ports[1]).status_code == 200
                for closed in {health, metrics, a, b} - set(ports):
                    with pytest.raises(httpx.ConnectError):
                        relay.get("/health", closed)
            assert "client left" not in relay.text()

    asyncio.run(scenario())


def test_one_port_that_is_taken_moves_none(relay: RelayProgram) -> None:
    """The health port would take the number of the metrics port, which so is closed and opened again."""
    taken = free_ports(1)[0]
    with socket.create_server(("", taken)):
        relay.configure({"health_port": relay.metrics_port, "metrics_port": taken, "max_connections": 7})
        assert f"why='metrics_port {taken}: another program has this port" in relay.hang_up()
    assert relay.get("/health").json()["max_connections"] == 1000
    assert relay.metric("max_connections") == 1000


def test_tls_is_switched_on_and_off_for_new_connections(relay: RelayProgram, tmp_path: Path) -> None:
    certificate = make_certificate(tmp_path, ["127.0.0.1"])
    trust = ssl.create_default_context(cafile=certificate.ca)
    secure = relay.url.replace("ws:", "wss:")
    files = {"cert_file": str(certificate.cert), "key_file": str(certificate.key)}

    async def scenario() -> None:
        async with RelayClient(relay.url) as old:
            await old.join(address("old"), device="old")
            relay.configure({"tls": files})
            assert "changed=tls" in await asyncio.to_thread(relay.hang_up)
            assert relay.get("/status").json()["tls"] is True
            async with RelayClient(secure, ssl=trust) as new:
                await new.join(address("new"), device="new")
                await new.send(frame(address("old"), address("new"), b"over TLS"))
                assert (await old.next_data())[33:] == b"over TLS"
                relay.configure({})
                assert "changed=tls" in await asyncio.to_thread(relay.hang_up)
                async with RelayClient(relay.url) as plain:
                    await plain.join(address("plain"), device="plain")
                    await plain.send(frame(address("new"), address("plain"), b"without"))
                    assert (await new.next_data())[33:] == b"without"

    asyncio.run(scenario())


def test_a_certificate_that_does_not_work_changes_nothing(relay: RelayProgram, tmp_path: Path) -> None:
    missing = str(tmp_path / "missing.pem")
    relay.configure({"tls": {"cert_file": missing, "key_file": missing}, "max_connections": 7})
    said = relay.hang_up()
    assert "[error] configuration not reloaded [relay] why=" in said
    assert missing in said
    status = relay.get("/status").json()
    assert (status["tls"], status["max_connections"]) == (False, 1000)


def test_hang_ups_in_a_row_are_all_answered_by_the_latest_file(relay: RelayProgram) -> None:
    for limit in range(1, 30):
        relay.configure({"max_connections": limit})
        relay.signal(signal.SIGHUP)
    wait_for(lambda: relay.get("/health").json()["max_connections"] == 29, "the latest file")
    assert "Traceback" not in relay.text()
