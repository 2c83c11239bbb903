"""The choice between two links to one peer, call by call; tests/mesh/test_paths.py has the whole of it."""

from __future__ import annotations

from math import inf
from types import SimpleNamespace
from typing import cast

from shadowmesh.mesh.context import Context
from shadowmesh.mesh.paths import BAR, BETTER_TIMES, GOOD_AFTER, Paths
from shadowmesh.mesh.peer import Peer, Session
from shadowmesh.mesh.timers import Timers


class Bench:
    """A device that leads, one peer, and the links a and b, of which a is in use."""

    def __init__(self) -> None:
        self.peer = Peer(b"\xff" * 32)
        self.peer.sending = cast(Session, SimpleNamespace(expires=inf))
        self.peers = {self.peer.static: self.peer}
        self.probes: dict[object, int] = {}
        numbers = iter(range(1, 1000))
        context = SimpleNamespace(
            device=SimpleNamespace(static_public=bytes(32)),
            random=lambda size: next(numbers).to_bytes(size),
            uniform=lambda least, most: most,
            timers=Timers(),
            output=SimpleNamespace(event=lambda *_, **__: None),
        )
        self.paths = Paths(cast(Context, context), self)
        self.paths.opened("a", 0.0)
        self.paths.opened("b", 0.0)

    def keepalive(self, session: Session, source: bytes | None = None) -> None:
        """See Owner."""

    def probe(self, session: Session, number: int, via: object = None) -> None:
        """See Owner."""
        self.probes[via] = number

    def suspect(self, now: float) -> None:
        """Nothing was heard for a second, nor was a probe answered."""
        self.peer.awaiting = now - 1.0
        self.paths.suspect(self.peer, now)

    def answered(self, probe: object, via: object, now: float) -> bool:
        return self.paths.answered(self.peer, self.probes[probe], via, now)


def test_an_answer_by_another_link_than_its_probe_counts_for_none() -> None:
    bench = Bench()
    bench.suspect(10.0)
    assert not bench.answered("a", "b", 10.1)
    assert bench.peer.round is not None
    assert not bench.peer.round.took
    assert bench.answered("a", "a", 10.2)
    assert not bench.answered("a", "a", 10.2)
    assert bench.peer.round.took.keys() == {"a"}


def test_a_path_that_has_just_answered_amid_silence_is_not_suspected() -> None:
    bench = Bench()
    bench.peer.vouched = 9.5
    bench.suspect(10.0)
    assert not bench.probes
    bench.suspect(10.5)
    assert bench.probes.keys() == {"a", "b"}


def test_a_relay_that_gives_us_more_addresses_is_taken_though_it_is_no_nearer() -> None:
    bench = Bench()
    bench.paths.refused({bytes(16)}, "a")
    for turn in range(BETTER_TIMES):
        assert bench.peer.via == "a"
        now = 10.0 * (turn + 1)
        bench.suspect(now)
        assert bench.answered("a", "a", now + 0.02)
        assert bench.answered("b", "b", now + 0.02)
    assert bench.peer.via == "b"


def failed_again(after: float) -> float:
    """Seconds for which link a is barred that failed, was used for so long again and failed."""
    bench = Bench()
    bench.paths.closed("a", 1.0)
    bench.paths.opened("a", 2.0)
    bench.paths.closed("b", 3.0)
    bench.paths.opened("b", 4.0)
    bench.paths.closed("a", 3.0 + after)
    assert bench.peer.via == "b"
    return bench.peer.paths["a"].barred - (3.0 + after)


def test_earlier_failures_are_forgotten_after_good_use_only() -> None:
    assert failed_again(GOOD_AFTER - 1.0) == 2 * BAR
    assert failed_again(GOOD_AFTER) == BAR


def test_our_own_outage_is_no_path_s_failure() -> None:
    bench = Bench()
    bench.paths.closed("a", 1.0)
    assert bench.peer.paths["a"].barred > 1.0
    bench.paths.closed("b", 2.0)
    assert [path.barred for path in bench.peer.paths.values()] == [0.0, 0.0]
