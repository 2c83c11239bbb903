"""Up and down: the relay is left at once, stays left, and comes back when asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from shadowmesh.daemon.control import Control
from shadowmesh.testing.memory import MemoryMesh
from shadowmesh.testing.reports import Reported
from shadowmesh.testing.websocket import drive, until


class Bench:
    """A control whose link notes its runs."""

    def __init__(self) -> None:
        self.world = MemoryMesh(2)
        self.a, self.b = self.world.nodes
        self.reported = Reported(self.world, self.a)
        self.runs = self.ends = 0
        self.fails = False

        async def reload() -> dict[str, Any]:
            return {}

        def trust(*_: str) -> dict[str, Any]:
            return {}

        self.control = Control(
            self.a.mesh, self.reported.report, self.reported.pinger, self.link, reload, trust
        )

    async def link(self) -> None:
        self.runs += 1
        if self.fails:
            raise ValueError("a bug")
        try:
            await asyncio.Future()
        finally:
            self.ends += 1


def driven(test: Callable[[Bench], Awaitable[None]]) -> None:
    async def main() -> None:
        bench = Bench()
        running = asyncio.create_task(bench.control.run())
        await until(lambda: bench.runs == 1)
        await test(bench)
        running.cancel()
        await asyncio.wait({running})
        assert bench.ends == bench.runs

    drive(main)


def test_down_and_up() -> None:
    async def test(bench: Bench) -> None:
        bench.world.meet(bench.a, bench.b)
        await bench.control.disconnect()
        assert (bench.ends, bench.reported.report.state) == (1, "down")
        assert not bench.a.mesh.peers
        bench.world.run(0.1)
        assert not bench.b.mesh.peers
        for _ in range(20):
            await asyncio.sleep(0)
        await bench.control.disconnect()
        assert bench.runs == 1
        bench.control.connect()
        await until(lambda: bench.runs == 2)
        assert bench.reported.report.state == "connected"
        bench.world.meet(bench.a, bench.b)

    driven(test)


def test_up_without_down_changes_nothing() -> None:
    async def test(bench: Bench) -> None:
        bench.control.connect()
        await asyncio.sleep(0.01)
        assert (bench.runs, bench.ends) == (1, 0)

    driven(test)


def test_a_bug_in_the_link_is_not_hidden() -> None:
    async def main() -> None:
        bench = Bench()
        bench.fails = True
        with pytest.raises(ValueError, match="a bug"):
            await bench.control.run()

    drive(main)


def test_the_probes_end_with_it() -> None:
    async def main() -> None:
        bench = Bench()
        running = asyncio.create_task(bench.control.run())
        await until(lambda: bench.runs == 1)
        running.cancel()
        await asyncio.wait({running})
        assert asyncio.all_tasks() == {asyncio.current_task()}

    drive(main)
