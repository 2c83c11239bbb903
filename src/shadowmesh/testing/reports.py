"""What a daemon would say of itself: report and pinger for a node of a mesh in memory, with made-up links."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from pathlib import Path
from typing import Any

from shadowmesh.config.address import HostPort
from shadowmesh.config.client import DaemonConfig
from shadowmesh.daemon.api import serve_api
from shadowmesh.daemon.control import Control
from shadowmesh.daemon.ping import Pinger
from shadowmesh.daemon.report import Report
from shadowmesh.errors import ConfigError
from shadowmesh.testing.memory import MemoryMesh, Node
from shadowmesh.wire.control import Challenge


class FakeLink:
    """A connection to a relay in a state made up by a test; connected at first."""

    def __init__(self, name: str = "relay-a") -> None:
        self.url = f"ws://{name}.example:9545/relay"
        self.pinned = ""
        self.address = "192.0.2.9"
        self.state = "connected"
        self.reason = ""
        self.since = 0.0
        self.connects = 1
        self.relay: Challenge | None = Challenge(1, bytes(32), name, "eu-west-2", 131072, 20)
        self.remote = "192.0.2.1:1234"
        self.dropped = 0
        self.refused: dict[bytes, str] = {}
        self.rtt: float | None = None

    def lose(self, reason: str) -> None:
        """Be what a link is after it was lost."""
        self.state, self.reason = "waiting", reason


class FakeTun:
    """A device as far as it is told of."""

    name = "shadowmesh0"
    mtu = 1400
    offload = ("tso4", "tso6")


class FakeTraffic:
    """The data path's counters."""

    packets_in = 0
    packets_out = 0


class Reported:
    """A node's report and pinger, which hear of its events as in a daemon."""

    def __init__(self, world: MemoryMesh, node: Node, *links: FakeLink) -> None:
        self.links = list(links) or [FakeLink()]
        self.events: Counter[str] = Counter()
        self.traffic = FakeTraffic()

        def now() -> float:
            return world.now

        def ready() -> bool:
            return any(link.state == "connected" for link in self.links)

        self.pinger = Pinger(node.context, node.mesh, now, ready)
        self.report = Report(
            node.context,
            node.mesh,
            self.traffic,
            FakeTun(),  # type: ignore[arg-type]
            self.links,
            self.events,
            now,
            self.pinger.rtt,
        )
        setattr(node, "event", self.event)  # noqa: B010

    def event(self, name: str, /, **facts: object) -> None:
        """Something has happened."""
        self.events[name] += 1
        self.report.note(name, facts)
        self.pinger.note(name, facts)


class Served:
    """Node a of a mesh in memory behind a real API, in a thread; its link is joined a moment after `up`."""

    def __init__(self, directory: Path) -> None:
        self.token_file = directory / "api.token"
        self.link = FakeLink()
        self.trusted: list[tuple[str, str]] = []
        self.before = ""
        self.reloaded: dict[str, Any] = {"applied": ["relay.server"], "refused": [], "warnings": []}
        self.port = 0
        self._ready, self._end = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()))
        self._thread.start()
        assert self._ready.wait(10)

    def close(self) -> None:
        """Stop it all."""
        self._end.set()
        self._thread.join()

    async def _main(self) -> None:
        world = MemoryMesh(2)
        a, b = world.nodes
        reported = self.reported = Reported(world, a, self.link)
        world.meet(a, b)
        control = Control(a.mesh, reported.report, reported.pinger, self._run_link, self._reload, self._trust)
        config = DaemonConfig.model_construct(
            listen_address=HostPort("127.0.0.1", 0), token_file=str(self.token_file)
        )
        api = await serve_api(control, config)
        self.port = api.server.port
        running = asyncio.create_task(control.run())
        await asyncio.sleep(0.02)
        self._ready.set()
        while not self._end.is_set():
            world.run(0.005)
            await asyncio.sleep(0.005)
        running.cancel()
        await asyncio.wait({running})
        await api.close()

    async def _run_link(self) -> None:
        await asyncio.sleep(0.01)
        self.link.state = "connected"
        try:
            await asyncio.Future()
        finally:
            self.link.lose("")

    async def _reload(self) -> dict[str, Any]:
        if not self.reloaded:
            raise ConfigError(["f.yaml:3:1: relay: is missing"])
        return self.reloaded

    def _trust(self, ip: str, fingerprint: str) -> dict[str, Any]:
        self.trusted.append((ip, fingerprint))
        return {"ip": ip, "fingerprint": fingerprint, "before": self.before}
