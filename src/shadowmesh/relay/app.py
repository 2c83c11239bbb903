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

_Place = tuple[str | None, int]  # address to bind, port
_APPS = {"health_port": health_app, "metrics_port": metrics_app}


class Relay:
    """A running relay; made by `start`."""

    def __init__(
        self,
        server: Server,
        listener: Listener,
        http: dict[str, tuple[_Place, HttpServer]],
        keys: KeysFile | None,
    ) -> None:
        self.server = server
        self.listener = listener
        self._http = http
        self.keys = keys
        assert server.lag is not None
        self.tasks = [
            asyncio.create_task(server.watch(), name="relay deadlines"),
            asyncio.create_task(server.lag.run(), name="event loop lag"),
            asyncio.create_task(self._watch_certificate(), name="certificate"),
            asyncio.create_task(self._watch_keys(), name="API keys"),
        ]
        """They run to the end; one that fails is a bug, and the relay cannot go on without it."""

    @property
    def health(self) -> HttpServer:
        """The health port."""
        return self._http["health_port"][1]

    @property
    def metrics(self) -> HttpServer | None:
        """The metrics port, while it is open."""
        return self._http["metrics_port"][1] if "metrics_port" in self._http else None

    async def reconfigure(self, config: RelayConfig) -> None:
        """Take over a configuration that leaves the relay port where it is.

        Raises StartError, and then nothing has changed.
        """
        certificate, old = _certificate(config), self.server.certificate
        renewed = certificate is not None and old is not None and certificate.differs(old)
        keys = await asyncio.to_thread(_keys, config)
        await self._move(_places(config))  # the last that can fail
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
        await _close(self._http)

    async def _move(self, new: dict[str, _Place]) -> None:
        """Have HTTP ports at these places. Raises StartError, with the old ones open.

        An old port is closed once the new ones answer, unless one of those has its number: the kernel does
        not give a port to two sockets whose addresses overlap.
        """
        old = {what: port for what, port in self._http.items() if port[0] != new.get(what)}
        moved = {what: place for what, place in new.items() if what not in self._http or what in old}
        numbers = {number for _, number in moved.values()}
        in_the_way = {what: port for what, port in old.items() if port[0][1] in numbers}
        others = {what: port for what, port in old.items() if what not in in_the_way}
        for what in in_the_way:
            del self._http[what]
        await _close(in_the_way)
        try:
            opened = await _open(self.server, moved)
        except StartError as error:
            raise await self._put_back(in_the_way, error) from None
        for what in others:
            del self._http[what]
        self._http |= opened
        await _close(others)

    async def _put_back(self, closed: dict[str, tuple[_Place, HttpServer]], error: StartError) -> StartError:
        """Open these again; what to say of `error` and of those that were taken meanwhile."""
        for what, (place, _) in closed.items():
            try:
                self._http |= await _open(self.server, {what: place})
            except StartError as lost:
                error = StartError(f"{error}; and the old port is lost until the next reload: {lost}")
        return error

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
    http = await _open(server, _places(config))
    try:
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
        await _close(http)
        raise
    return Relay(server, listener, http, keys)


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


def _places(config: RelayConfig) -> dict[str, _Place]:
    places: dict[str, _Place] = {"health_port": (config.health_bind, config.health_port)}
    if config.metrics_enabled:
        places["metrics_port"] = (config.metrics_bind, config.metrics_port)
    return places


async def _open(server: Server, places: dict[str, _Place]) -> dict[str, tuple[_Place, HttpServer]]:
    """Serve HTTP at all these places, or at none."""
    opened: dict[str, tuple[_Place, HttpServer]] = {}
    try:
        for what, place in places.items():
            opened[what] = place, await serve_http(_APPS[what](server), *place, what)
    except BaseException:
        await _close(opened)
        raise
    return opened


async def _close(ports: dict[str, tuple[_Place, HttpServer]]) -> None:
    await asyncio.gather(*(server.close() for _, server in ports.values()))
