"""What the operator may ask of a running daemon: connect, disconnect, reload, trust a peer, ping."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from shadowmesh.daemon.ping import Pinger
from shadowmesh.daemon.report import Report
from shadowmesh.mesh.mesh import Mesh


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
        self.ping = pinger.ping
        self.reload = reload
        self.trust = trust
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

    def connect(self) -> None:
        """Connect to the relay again after `disconnect`; nothing if that was not asked for."""
        self.report.down = False
        self._wanted.set()

    def use(self, mesh: Mesh) -> None:
        """Say goodbye to the peers of this one from now on."""
        self._mesh = mesh

    async def disconnect(self) -> None:
        """Say goodbye to peers and relay, and stay away until `connect` or a restart."""
        self._wanted.clear()
        self.report.down = True
        self._mesh.bye()
        if self._linking is not None:
            await _end(self._linking)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait({task})
