"""What the configuration decides at the start: where the relay listens, its timers, tables and open files."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from shadowmesh.config import RelayConfig
from shadowmesh.relay.app import start
from shadowmesh.relay.server import AWAY_PER_CONNECTION, Server
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_program import RelayProgram

BINDS = {"bind_address": "relay_port", "health_bind": "health_port", "metrics_bind": "metrics_port"}


async def listens(host: str, port: int) -> bool:
    with suppress(ConnectionRefusedError):
        _, writer = await asyncio.open_connection(host, port)
        writer.close()
        await writer.wait_closed()
        return True
    return False


@pytest.mark.parametrize("key", [*BINDS, None])
def test_each_port_listens_on_its_own_address_only(key: str | None) -> None:
    """On another one of this host, where it is set, and on every one where it is not."""

    async def scenario() -> None:
        settings = {**dict.fromkeys(BINDS.values(), 0), **({key: "127.0.0.2"} if key else {})}
        relay = await start(RelayConfig().model_copy(update=settings))
        try:
            assert relay.metrics is not None
            ports = (relay.listener.port, relay.health.port, relay.metrics.port)
            for each, port in zip(BINDS, ports, strict=True):
                assert await listens("127.0.0.2", port)
                assert await listens("127.0.0.1", port) == (each != key)
                if socket.has_dualstack_ipv6():
                    assert await listens("::1", port) == (each != key)
        finally:
            await relay.stop()

    asyncio.run(scenario())


def test_the_start_line_says_where(tmp_path: Path) -> None:
    with RelayProgram(tmp_path, {"bind_address": "127.0.0.2", "health_bind": "::1"}) as relay:
        text = relay.ready().text()
        assert f"relay_port=127.0.0.2:{relay.relay_port} health_port=[::1]:{relay.health_port}" in text
        assert f"metrics_port=*:{relay.metrics_port} " in text


def test_connection_timeout() -> None:
    assert Server(RelayConfig(connection_timeout=30)).timing == Timing(keepalive=10, dead=25)
    assert Server(RelayConfig(connection_timeout=6)).timing == Timing(keepalive=2, dead=6)


def test_max_connections_bounds_the_addresses_that_are_kept() -> None:
    server = Server(RelayConfig(max_connections=3))
    assert server.router._max_away == 3 * AWAY_PER_CONNECTION
    assert server.admission.max_connections == 3


@pytest.mark.parametrize(("connections", "warned"), [(1000, True), (100, False)])
def test_too_few_open_files(tmp_path: Path, connections: int, warned: bool) -> None:
    """systemd's LimitNOFILE is the hard limit, too; here it is 2000."""
    limit = "import resource; resource.setrlimit(resource.RLIMIT_NOFILE, (2000, 2000))"
    with RelayProgram(tmp_path, {"max_connections": connections}, before=limit) as relay:
        relay.ready().wait_for_text("keys=worker_threads")
        assert relay.stop() == 0
        words = "too few open files for max_connections; raise LimitNOFILE of the service [relay] "
        words += "allowed=2000 "
        assert (words + "needed=2530" in relay.text()) == (words in relay.text()) == warned
