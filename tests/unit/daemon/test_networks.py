"""Two networks as one: what the engine is told when only one of them has trouble."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from shadowmesh.config.secret import SecretKey
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.link import RelayLink
from shadowmesh.daemon.networks import Network, Networks
from shadowmesh.mesh.context import Local
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Flow
from shadowmesh.mesh.trust import Trust
from shadowmesh.wire import record

PACKET = bytes.fromhex("45000014 00000000 40fd0000 0a0a0a01 0a0a0a02")


class Bench:
    """Two networks without relays; their meshes take what `takes` says."""

    def __init__(self) -> None:
        self.told: list[tuple[str, object]] = []
        self.queued: list[tuple[int, bytes]] = []
        self.takes = True
        self.one, self.two = self._network(1), self._network(2)
        self.both = Networks([self.one, self.two])

    def _network(self, number: int) -> Network:
        local = Local((), "a", 1400, "test")
        network = Network(SecretKey(bytes([number]) * 32), bytes(32), local, lambda _: cast(Trust, None))
        network.link = cast(RelayLink, SimpleNamespace(ready=True))
        mesh = SimpleNamespace(
            flow=lambda key: key,
            enqueue=self._enqueue,
            joined=Mock(),
            lost=Mock(),
            session=lambda flow, now: f"session of {number}",
        )
        network.mesh = cast(Mesh, mesh)
        network.now = lambda: 1.0
        network._engine = cast(
            Engine,
            SimpleNamespace(
                pause=lambda via=None: self.told.append(("pause", via)),
                resume=lambda via=None: self.told.append(("resume", via)),
                hold=lambda address, via=None: self.told.append(("hold", via)),
                release=lambda address, via=None: self.told.append(("release", via)),
                opened=lambda via: self.told.append(("opened", via)),
                closed=lambda via: self.told.append(("closed", via)),
                arm=lambda: None,
                unreachable=lambda kind, body: self.told.append(("unreachable", kind)),
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
    assert bench.told == [("unreachable", record.PACKET)]


def test_what_no_network_takes_is_unreachable() -> None:
    bench = Bench()
    bench.takes = False
    bench.one.unreachable(record.PACKET, PACKET)
    assert (len(bench.queued), bench.told) == (1, [("unreachable", record.PACKET)])


@pytest.mark.parametrize("event", ["pause", "resume"])
def test_a_link_that_is_alone_in_its_network_has_a_name_beside_another_network(event: str) -> None:
    bench = Bench()
    for network in (bench.one, bench.two):
        getattr(network, event)()
    bench.one.together = None
    getattr(bench.one, event)()
    assert bench.told == [(event, bench.one), (event, bench.two), (event, None)]


@pytest.mark.parametrize("event", ["hold", "release"])
def test_what_a_relay_has_waiting_is_told_with_the_name_of_its_link(event: str) -> None:
    bench = Bench()
    getattr(bench.one, event)(bytes(16))
    getattr(bench.two, event)(bytes(16), "x")
    assert bench.told == [(event, bench.one), (event, "x")]


def test_what_becomes_of_one_link_of_several_is_between_it_and_the_engine() -> None:
    bench = Bench()
    bench.two.joined("x")
    bench.two.pause("x")
    bench.two.resume("x")
    bench.two.lost("x")
    assert bench.told == [(event, "x") for event in ("opened", "pause", "resume", "closed")]


def test_full_is_a_link_that_is_alone() -> None:
    network = Bench().one
    full, free = SimpleNamespace(full=True), SimpleNamespace(full=False)
    found = []
    for links in ((full,), (free,), (full, full)):
        network.link = cast(RelayLink, SimpleNamespace(links=links))
        found.append(network.full)
    assert found == [True, False, False]


def test_there_is_no_session_where_there_is_no_relay() -> None:
    """Also while the other network has one: what is sent in this one would be lost without a word."""
    bench = Bench()
    flow = cast(Flow, SimpleNamespace(source=bench.one.identity.addresses[0]))
    assert str(bench.both.session(flow, 1.0)) == "session of 1"
    bench.one.link.ready = False
    assert bench.both.ready
    assert bench.both.session(flow, 1.0) is None
