"""Probes: what they measure, what is said when they cannot, and that they keep nobody awake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shadowmesh.daemon import ping as ping_module
from shadowmesh.daemon.ping import MAX_UNDER_WAY, NO_RELAY, NO_SESSION, UnknownPeer
from shadowmesh.mesh.peer import REKEY_AFTER
from shadowmesh.testing.memory import Link, MemoryMesh, Node, dropping
from shadowmesh.testing.reports import Reported
from shadowmesh.wire.message import SEALED


class Bench:
    """Two nodes; what waits for an answer waits while the mesh's time goes on."""

    def __init__(self) -> None:
        self.world = MemoryMesh(2, link=Link(delay=(0.03, 0.03)))
        self.a, self.b = self.world.nodes
        self.reported = Reported(self.world, self.a)
        self.pinger = self.reported.pinger

    def ask(self, who: str, count: int = 1) -> dict[str, Any]:
        return self._while_time_goes(lambda: self.pinger.ping(who, count))

    def _while_time_goes(self, ask: Callable[[], Coroutine[Any, Any, dict[str, Any]]]) -> dict[str, Any]:
        async def main() -> dict[str, Any]:
            asking = asyncio.ensure_future(ask())
            while not asking.done():
                self.world.run(0.005)
                await asyncio.sleep(0.001)
            return asking.result()

        return asyncio.run(main())


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    monkeypatch.setattr(ping_module, "ANSWER_SECONDS", 0.3)
    monkeypatch.setattr(ping_module, "BETWEEN", 0.0)
    return Bench()


@pytest.mark.parametrize("who", ["b", "B", "10.10.10.2", "fd00::2"])
def test_by_name_or_ip_with_a_session(bench: Bench, who: str) -> None:
    bench.world.meet(bench.a, bench.b)
    answer = bench.ask(who, 3)
    assert answer["rtt_ms"] == pytest.approx([60.0] * 3, abs=6)
    assert (answer["name"], answer["ips"], answer["waiting_for"]) == ("b", ["10.10.10.2", "fd00::2"], "")
    assert bench.pinger.rtt(bench.a.peer(bench.b)) == pytest.approx(0.06, abs=0.006)


def test_a_session_is_renewed_for_who_asks_only(bench: Bench) -> None:
    bench.world.meet(bench.a, bench.b)
    bench.world.run(REKEY_AFTER)
    bench.pinger.look()
    bench.world.run(1.0)
    assert bench.a.peer(bench.b).handshakes == 1
    bench.ask("b")
    bench.world.run(1.0)
    assert bench.a.peer(bench.b).handshakes == 2


@pytest.mark.parametrize("who", ["b", "10.10.10.2", "fd00::2"])
def test_a_session_is_made_when_there_is_none(bench: Bench, who: str) -> None:
    answer = bench.ask(who)
    assert len(answer["rtt_ms"]) == 1
    assert answer["rtt_ms"][0] == pytest.approx(60.0, abs=6)
    assert bench.a.confirmed(bench.b)


def test_what_is_waited_for(bench: Bench) -> None:
    assert bench.ask("10.10.10.77")["waiting_for"] == NO_SESSION
    assert bench.ask("nobody")["rtt_ms"] == [None]
    bench.reported.links[0].lose("the connection was lost")
    assert bench.ask("b")["waiting_for"] == NO_RELAY
    bench.reported.links[0].state = "connected"
    bench.world.meet(bench.a, bench.b)
    bench.world.relay.forward = dropping(SEALED, bench.b)
    answer = bench.ask("b", 2)
    assert (answer["rtt_ms"], answer["waiting_for"]) == ([None, None], "an answer to the probe")
    assert answer["name"] == "b"


@pytest.mark.parametrize(
    ("who", "why"),
    [
        ("192.0.2.1", "none of this device's overlay networks"),
        ("10.10.10.1", "is this device itself"),
        ("a", "is this device itself"),
        ("not a name", "cannot be the name of a peer"),
    ],
)
def test_who_can_be_nobody(bench: Bench, who: str, why: str) -> None:
    with pytest.raises(UnknownPeer, match=why):
        bench.ask(who)


def probes(world: MemoryMesh, node: Node, since: float) -> int:
    return len(world.sent(SEALED, node, since))


def test_peers_with_traffic_are_probed_and_idle_ones_are_not(bench: Bench) -> None:
    """Both sides do this, so a probe that counted as traffic would never end."""
    other = Reported(bench.world, bench.b)
    bench.world.meet(bench.a, bench.b)
    bench.world.run(30.0)
    for reported in (bench.reported, other):
        reported.pinger.look()
    bench.world.run(30.0)
    for _ in range(3):
        since = bench.world.now
        for reported in (bench.reported, other):
            reported.pinger.look()
        bench.world.run(30.0)
        assert probes(bench.world, bench.a, since) == probes(bench.world, bench.b, since) == 0
    bench.a.ping(bench.b)
    bench.pinger.look()
    bench.world.run(1.0)
    assert bench.pinger.rtt(bench.a.peer(bench.b)) == pytest.approx(0.06)


def test_only_what_was_asked_counts_as_an_answer(bench: Bench) -> None:
    bench.world.meet(bench.a, bench.b)
    peer = bench.a.peer(bench.b)
    for number in (0, 1, 2**53 - 1):
        bench.pinger.note("probe_ack", {"peer": peer, "id": number})
    assert bench.pinger.rtt(peer) is None


def test_an_answer_of_another_peer_does_not_count(bench: Bench) -> None:
    third = bench.world.add("c", "10.10.10.3/24")
    bench.world.meet(bench.a, bench.b)
    bench.world.meet(bench.a, third)
    bench.a.ping(bench.b)
    bench.pinger.look()
    (number,) = [
        each for each, probe in bench.pinger._under_way.items() if probe.peer is bench.a.peer(bench.b)
    ]
    bench.pinger.note("probe_ack", {"peer": bench.a.peer(third), "id": number})
    assert bench.pinger.rtt(bench.a.peer(third)) is None
    bench.world.run(0.1)
    assert bench.pinger.rtt(bench.a.peer(bench.b)) is not None


def test_what_a_peer_has_not_answered_is_forgotten_with_it(bench: Bench) -> None:
    bench.world.meet(bench.a, bench.b)
    bench.b.disconnect()
    for _ in range(200):
        bench.a.ping(bench.b)
        bench.pinger.look()
        bench.world.run(1.0)
    assert bench.reported.events["peer_gone"] == 1
    assert not bench.pinger._under_way  # each of which would keep the peer's object


def test_what_is_kept_has_bounds(bench: Bench) -> None:
    bench.world.meet(bench.a, bench.b)
    bench.world.relay.forward = lambda frame: ()
    for _ in range(2 * MAX_UNDER_WAY):
        bench.a.ping(bench.b)
        bench.pinger.look()
    assert len(bench.pinger._under_way) == MAX_UNDER_WAY
    bench.a.mesh.bye()
    assert not bench.pinger._sent_before
