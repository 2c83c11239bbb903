"""Two networks as one: what the engine is told when only one of them has trouble."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

from shadowmesh.config.secret import SecretKey
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.link import RelayLink
from shadowmesh.daemon.networks import Network, Networks
from shadowmesh.mesh.context import Local
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.trust import Trust
from shadowmesh.wire import record

PACKET = bytes.fromhex("45000014 00000000 40fd0000 0a0a0a01 0a0a0a02")


class Bench:
    """Two networks without relays; their meshes take what `takes` says."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.queued: list[tuple[int, bytes]] = []
        self.takes = True
        self.one, self.two = self._network(1), self._network(2)
        Networks([self.one, self.two])

    def _network(self, number: int) -> Network:
        local = Local((), "a", 1400, "test")
        network = Network(SecretKey(bytes([number]) * 32), bytes(32), local, lambda _: cast(Trust, None))
        network.link = cast(RelayLink, SimpleNamespace(ready=True))
        mesh = SimpleNamespace(flow=lambda key: key, enqueue=self._enqueue, joined=Mock(), lost=Mock())
        network.mesh = cast(Mesh, mesh)
        network.now = lambda: 1.0
        network._engine = cast(
            Engine,
            SimpleNamespace(
                pause=lambda via=None: self.told.append(f"pause {via}"),
                resume=lambda via=None: self.told.append(f"resume {via}"),
                opened=lambda via: self.told.append(f"opened {via}"),
                closed=lambda via: self.told.append(f"closed {via}"),
                arm=lambda: None,
                unreachable=lambda kind, body: self.told.append("unreachable"),
            ),
        )
        return network

    def _enqueue(self, flow: object, kind: int, body: bytes, now: float) -> bool:
        self.queued.append((kind, body))
        return self.takes


def test_what_one_network_gives_up_waits_in_the_next() -> None:
    bench = Bench()
    bench.one.unreachable(record.PACKET, PACKET)
    assert bench.queued == [(record.PACKET, PACKET)]
    assert bench.told == []
    bench.two.unreachable(record.PACKET, PACKET)  # the last one
    assert bench.told == ["unreachable"]


def test_what_no_network_takes_is_unreachable() -> None:
    bench = Bench()
    bench.takes = False
    bench.one.unreachable(record.PACKET, PACKET)
    assert (len(bench.queued), bench.told) == (1, ["unreachable"])


def test_the_engine_resumes_when_no_link_is_full_any_more() -> None:
    bench = Bench()
    bench.one.pause()
    bench.two.pause()
    bench.one.resume()
    assert "resume None" not in bench.told
    bench.two.resume()
    assert bench.told[-1] == "resume None"


def test_what_becomes_of_one_link_of_several_is_between_it_and_the_engine() -> None:
    bench = Bench()
    bench.one.pause()
    bench.told.clear()
    bench.two.joined("x")
    bench.two.pause("x")
    bench.two.resume("x")
    bench.two.lost("x")
    assert bench.told == ["opened x", "pause x", "resume x", "closed x"]
    assert bench.one.full
    assert not bench.two.full
