"""What the operator may ask of a running daemon: connect, disconnect, reload, trust a peer, ping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any

from shadowmesh.daemon.diagnosis import DOWN
from shadowmesh.daemon.ping import Pinger, UnknownPeer
from shadowmesh.daemon.report import Report
from shadowmesh.errors import RequestError
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.observe.logging import get_logger

log = get_logger("daemon")


class Control:
    """Keeps `link` (what connects to the relays, until cancelled) running, but while the operator says down.

    reload: reads the configuration again and returns what came of it. trust: from now on believe the key that
    answers for an overlay IP, whose fingerprint is the second argument if that is given. Both raise
    ShadowMeshError in words.
    """

    def __init__(
        self,
        mesh: Mesh,
        report: Report,
        pinger: Pinger,
        link: Callable[[], Awaitable[None]],
        reload: Callable[[], Awaitable[dict[str, Any]]],
        trust: Callable[[str, str], dict[str, Any]],
    ) -> None:
        self.report = report
        self.reload = reload
        self._trust = trust
        self._mesh = mesh
        self._pinger = pinger
        self._link = link
        self._wanted = asyncio.Event()
        self._wanted.set()
        self._linking: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Until cancelled. Raises what `link` raises."""
        probing = asyncio.create_task(self._pinger.run(), name="probes")
        try:
            while True:
                await self._wanted.wait()
                self._linking = asyncio.create_task(self._run_link(), name="relay link")
                await asyncio.wait({self._linking})
                if not self._linking.cancelled():
                    self._linking.result()
        finally:
            await _end(probing)
            if self._linking is not None:
                await _end(self._linking)

    async def _run_link(self) -> None:
        await self._link()

    async def ping(self, who: str, count: int = 1) -> dict[str, Any]:
        """See Pinger.ping. Raises RequestError while there is to be no relay."""
        if words := self._nobody(who):
            raise UnknownPeer(words)
        if self.report.down:
            raise RequestError(DOWN)
        return await self._pinger.ping(who, count)

    def trust(self, ip: str, expected: str = "") -> dict[str, Any]:
        """Believe the key that answers for an overlay IP. Raises ShadowMeshError."""
        if words := self._nobody(ip):
            raise RequestError(words)
        return self._trust(ip, expected)

    def _nobody(self, text: str) -> str:
        """Why no peer can have this IP; "" if one can, or if it is none."""
        try:
            ip = ip_address(text)
        except ValueError:
            return ""
        own = [interface for interface in self.report.interfaces if ip in interface.network]
        if not own:
            return f"{ip} is in none of this device's overlay networks"
        if any(ip == interface.ip for interface in own):
            return f"{ip} is this device itself"
        for net in (interface.network for interface in own):
            if net.version == 4 and net.prefixlen < 31 and ip in (net[0], net[-1]):
                return f"{ip} is no device's: it is an address of the network {net} itself"
        return ""

    def connect(self) -> None:
        """Connect to the relay again after `disconnect`; nothing if that was not asked for."""
        if self.report.down:
            log.info("switched on by the local API")
        self.report.down = False
        self._wanted.set()

    def use(self, mesh: Mesh) -> None:
        """Say goodbye to the peers of this one from now on."""
        self._mesh = mesh

    async def disconnect(self) -> None:
        """Say goodbye to peers and relay, and stay away until `connect` or a restart."""
        if not self.report.down:
            log.info("switched off by the local API")
        self._wanted.clear()
        self.report.down = True
        self._mesh.bye()
        if self._linking is not None:
            await _end(self._linking)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
