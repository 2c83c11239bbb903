"""A relay with its ports, its certificate and what looks after it; `relay.program` makes a program of it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from shadowmesh.errors import StartError
from shadowmesh.net.http import HttpServer, serve_http
from shadowmesh.net.server import serve
from shadowmesh.net.tls import Certificate
from shadowmesh.observe.lag import LoopLag
from shadowmesh.observe.logging import get_logger
from shadowmesh.relay.admin import health_app, metrics_app
from shadowmesh.relay.keyfile import KeysFile
from shadowmesh.relay.server import Server
from shadowmesh.relay.timing import Timing
from shadowmesh.wire.frame import MAX_FRAME

if TYPE_CHECKING:
    from shadowmesh.config.relay import RelayConfig
    from shadowmesh.net.server import Server as Listener

CERTIFICATE_SECONDS = 10.0
"""How often the certificate's files are looked at, for a renewal that nobody tells us about."""
KEYS_SECONDS = 2.0
"""How often the file of API keys is looked at, and whether one has expired."""

log = get_logger("relay")


class Relay:
    """A running relay; made by `start`."""

    def __init__(
        self,
        server: Server,
        listener: Listener,
        health: HttpServer,
        metrics: HttpServer | None,
        keys: KeysFile | None,
    ) -> None:
        self.server = server
        self.listener = listener
        self.health = health
        self.metrics = metrics
        self.keys = keys
        assert server.lag is not None
        self.tasks = [
            asyncio.create_task(server.watch(), name="relay deadlines"),
            asyncio.create_task(server.lag.run(), name="event loop lag"),
            asyncio.create_task(self._watch_certificate(), name="certificate"),
            asyncio.create_task(self._watch_keys(), name="API keys"),
        ]
        """They run to the end; one that fails is a bug, and the relay cannot go on without it."""

    async def reconfigure(self, config: RelayConfig) -> None:
        """Take over a configuration that moves no port. Raises StartError, and then nothing has changed."""
        certificate, old = _certificate(config), self.server.certificate
        renewed = certificate is not None and old is not None and certificate.differs(old)
        keys = await asyncio.to_thread(_keys, config)
        if config.metrics_enabled and self.metrics is None:
            self.metrics = await _serve_metrics(self.server, config)
        elif self.metrics is not None and not config.metrics_enabled:
            closing, self.metrics = self.metrics, None
            await closing.close()
        self._use(certificate)
        if certificate is not None and renewed:
            _say_renewed(certificate)
        of_networks = await self.server.reconfigure(config)
        self.keys = keys
        of_keys = await self.server.use_keys(keys.keys if keys else None)
        if of_networks or of_keys:
            log.info("clients sent away by the configuration", by_network=of_networks, by_key=of_keys)

    async def stop(self) -> None:
        """Send the clients away and close all ports; within 8 seconds, whatever the clients do."""
        self.listener.close()
        await self.server.drain()
        for task in self.tasks:
            task.cancel()
        await _close(self.health, self.metrics)

    def _use(self, certificate: Certificate | None) -> None:
        self.server.certificate = certificate
        self.listener.ssl = certificate.context if certificate else None

    async def _watch_certificate(self) -> None:
        while True:
            await asyncio.sleep(CERTIFICATE_SECONDS)
            certificate = self.server.certificate
            if certificate is not None and certificate.changed():
                self._renew(certificate)

    def _renew(self, certificate: Certificate) -> None:
        try:
            certificate.reload()
        except StartError as error:
            log.error("certificate not renewed, the one in use stays", why=str(error))
        else:
            _warn_of(certificate)
            self._use(certificate)
            _say_renewed(certificate)

    async def _watch_keys(self) -> None:
        while True:
            await asyncio.sleep(KEYS_SECONDS)
            file = self.keys
            if file is None:
                continue
            if file.changed():
                await self._reload_keys(file)
            await self.server.expire_keys()

    async def _reload_keys(self, file: KeysFile) -> None:
        try:
            # Thousands of keys take longer to read than frames should wait.
            await asyncio.to_thread(file.reload)
        except StartError as error:
            log.error("API keys not reloaded, those in use stay", why=str(error))
            return
        if file is self.keys:
            withdrawn = await self.server.use_keys(file.keys)
            log.info("API keys reloaded", keys=len(file.keys), connections_ended=withdrawn)


async def start(config: RelayConfig, timing: Timing | None = None) -> Relay:
    """Start a relay in the running loop. Raises StartError, with all ports closed again."""
    certificate = _certificate(config)
    keys = _keys(config)
    server = Server(config, timing)
    await server.use_keys(keys.keys if keys else None)
    server.certificate, server.lag = certificate, LoopLag()
    health = metrics = None
    try:
        health = await serve_http(health_app(server), config.health_bind, config.health_port, "health_port")
        if config.metrics_enabled:
            metrics = await _serve_metrics(server, config)
        # Last, so that no client meets a relay that cannot stay.
        server.listener = listener = await serve(
            config.bind_address,
            config.relay_port,
            server.upgrade,
            max_frame=MAX_FRAME,
            ssl=certificate.context if certificate else None,
            read_buffer_size=config.read_buffer_size,
            what="relay_port",
        )
    except BaseException:
        await _close(health, metrics)
        raise
    return Relay(server, listener, health, metrics, keys)


def _certificate(config: RelayConfig) -> Certificate | None:
    if config.tls is None:
        return None
    certificate = Certificate(config.tls.cert_file, config.tls.key_file)
    _warn_of(certificate)
    return certificate


def _keys(config: RelayConfig) -> KeysFile | None:
    return KeysFile(config.auth.keys_file) if config.auth.mode == "api_key" else None


def last_day(certificate: Certificate) -> str:
    """The day on which it expires."""
    return f"{datetime.fromtimestamp(certificate.not_after, UTC):%Y-%m-%d}"


def _say_renewed(certificate: Certificate) -> None:
    log.info("certificate renewed", valid_until=last_day(certificate))


def _warn_of(certificate: Certificate) -> None:
    for warning in certificate.warnings:
        log.warning(warning)


async def _serve_metrics(server: Server, config: RelayConfig) -> HttpServer:
    return await serve_http(metrics_app(server), config.metrics_bind, config.metrics_port, "metrics_port")


async def _close(*servers: HttpServer | None) -> None:
    await asyncio.gather(*(server.close() for server in servers if server is not None))
