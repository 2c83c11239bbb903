"""The relay as a program: ports, signals, start and end."""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import signal
from typing import TYPE_CHECKING

from shadowmesh import __version__
from shadowmesh.net.http import HttpServer, serve_http
from shadowmesh.net.loop import run_loop
from shadowmesh.net.server import serve
from shadowmesh.observe.logging import get_logger
from shadowmesh.relay.admin import health_app, metrics_app
from shadowmesh.relay.server import Server
from shadowmesh.relay.timing import Timing
from shadowmesh.wire.frame import MAX_FRAME

if TYPE_CHECKING:
    from shadowmesh.config.loader import Loaded
    from shadowmesh.config.relay import RelayConfig
    from shadowmesh.net.server import Server as Listener

FILES_BESIDE_CLIENTS = 256
"""Open files that the relay needs besides one for each joined client."""


class Relay:
    """A running relay with its ports; made by `start`."""

    def __init__(
        self, server: Server, listener: Listener, health: HttpServer, metrics: HttpServer | None
    ) -> None:
        self.server = server
        self.listener = listener
        self.health = health
        self.metrics = metrics
        self._watch = asyncio.create_task(server.watch(), name="relay deadlines")

    async def stop(self) -> None:
        """Send the clients away and close all ports; takes less than three seconds."""
        self.listener.close()
        await self.server.drain()
        self._watch.cancel()
        await _close(self.health, self.metrics)


async def start(config: RelayConfig, timing: Timing | None = None) -> Relay:
    """Start a relay in the running loop. Raises StartError, with all ports closed again."""
    server = Server(config, timing)
    health = metrics = None
    try:
        health = await serve_http(health_app(server), config.health_bind, config.health_port, "health_port")
        if config.metrics_enabled:
            metrics = await serve_http(
                metrics_app(server), config.metrics_bind, config.metrics_port, "metrics_port"
            )
        # Last, so that no client meets a relay that cannot stay.
        server.listener = await serve(
            config.bind_address, config.relay_port, server.upgrade, max_frame=MAX_FRAME, what="relay_port"
        )
    except BaseException:
        await _close(health, metrics)
        raise
    return Relay(server, server.listener, health, metrics)


def run(loaded: Loaded[RelayConfig]) -> None:
    """Run a relay until SIGTERM or SIGINT; a second one ends it at once. Raises StartError."""
    run_loop(_run(loaded))


async def _run(loaded: Loaded[RelayConfig]) -> None:
    config, log = loaded.config, get_logger("relay")
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _on_signal, number, stop)
    files = _raise_file_limit()
    relay = await start(config)
    # What exists now stays: the collector need not look at it again.
    gc.collect()
    gc.freeze()
    log.info(
        "relay is ready",
        version=__version__,
        region=config.region,
        server_name=config.server_name,
        relay_port=relay.listener.port,
        health_port=relay.health.port,
        metrics_port=relay.metrics.port if relay.metrics else "off",
        max_connections=config.max_connections,
        processes=1,
        config=loaded.source,
    )
    if config.without_effect:
        log.info("settings that have no effect in this version", keys=", ".join(config.without_effect))
    if files < config.max_connections + FILES_BESIDE_CLIENTS:
        log.warning(
            "too few open files for max_connections; raise LimitNOFILE of the service",
            allowed=files,
            needed=config.max_connections + FILES_BESIDE_CLIENTS,
        )
    await stop.wait()
    log.info("relay is stopping", connections=relay.server.admission.joined)
    await relay.stop()
    log.info("relay has stopped")


def _on_signal(number: int, stop: asyncio.Event) -> None:
    if stop.is_set():
        os._exit(128 + number)
    stop.set()


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets us; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


async def _close(*servers: HttpServer | None) -> None:
    await asyncio.gather(*(server.close() for server in servers if server is not None))
