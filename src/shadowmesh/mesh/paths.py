"""Which of several relay links leads to a peer (docs/protocol.md, 4, Several relays).

A link is an object that means nothing here; it is there between `opened` and `closed`. With one relay nobody
calls these, every peer's link is None, and there is nothing to choose. Only what has been authenticated, a
relay's own `gone` and the loss of a link change a path.

Of two peers the one with the smaller static key chooses by round trips, the other follows; each of them
leaves a path that fails.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from shadowmesh.mesh.context import Context
from shadowmesh.mesh.lru import Lru
from shadowmesh.mesh.peer import Path, Peer, Round, Session

PROBE_EVERY = (48.0, 72.0)  # seconds between measurements of one peer's paths
PROBE_SOON = (0.2, 0.5)  # after a change of links
PROBE_AGAIN = (4.0, 6.0)  # and once more, so that a nearer relay need not wait for a minute
ROUND = (0.5, 2.0)  # seconds to wait for answers: 4 round trips within these bounds
ROUND_TRIPS = 4
BETTER_RATIO, BETTER_BY, BETTER_TIMES = 0.8, 0.005, 2  # a path must be so much nearer, so often in a row
LOADED = 64 * 1024  # bytes per second above which a path's queue is measured, not its length
SUSPECT_AFTER = 1.0  # seconds since a packet was sent and nothing was heard
VOUCHED_FOR = 5.0  # seconds for which a probe that was answered amid silence ends the suspicion
SETTLE = 2.0  # seconds that the other side has for noticing that a path has changed
BAR, MAX_BAR = 60.0, 3600.0  # seconds for which a path that failed is chosen last, doubling
GOOD_AFTER = 600.0  # seconds of use after which earlier failures are forgotten
SAID_FOR = 2.5  # seconds for which a relay's `gone` counts
MAX_REMEMBERED = 4096
MAX_PATHS = 16  # of one peer, with those by links that are not there at the moment
_ID_BYTES = 6
_UNKNOWN = 1.0  # seconds; the rank of a path that has not been measured


class Owner(Protocol):
    """What the mesh engine does for its paths."""

    peers: dict[bytes, Peer]

    def keepalive(self, session: Session, source: bytes | None = None) -> None:
        """Say nothing, by the peer's path."""

    def probe(self, session: Session, number: int, via: object = None) -> None:
        """Ask for an answer on one path."""


class Paths:
    """The choice for all peers. ready: the links that are joined → own addresses that each relay refuses.

    changes: how often a peer's path has changed while there was another.
    """

    def __init__(self, context: Context, owner: Owner) -> None:
        self.ready: dict[object, frozenset[bytes]] = {}
        self.changes = 0
        self._context = context
        self._owner = owner
        self._said: Lru[bytes, dict[object, float]] = Lru(MAX_REMEMBERED)  # address → link → when

    @property
    def several(self) -> bool:
        """Whether there is a choice."""
        return len(self.ready) > 1

    # -- links come and go

    def opened(self, via: object, now: float) -> None:
        """A link has joined its relay: take it where there is none, measure it where there is."""
        self.ready[via] = frozenset()
        self._said.clear()
        for peer in self._owner.peers.values():
            self._path(peer, via).absent = False
            if peer.via not in self.ready or self._path(peer, peer.via).absent:
                self._take(peer, via, now)
            self._soon(peer, now)

    def closed(self, via: object, now: float) -> None:
        """A link is lost, or its relay is about to leave."""
        if self.ready.pop(via, None) is None:
            return
        for peer in self._owner.peers.values():
            if not self.ready:  # that was our own way out: no path is worse than another for it
                for path in peer.paths.values():
                    path.barred = 0.0
            elif peer.via is via:
                self._bar(peer, via, now)
                self._leave(peer, now)

    def refused(self, addresses: set[bytes], via: object) -> set[bytes]:
        """A relay gives us all own addresses but these. Returns those that some relay does not give us."""
        if via in self.ready:
            self.ready[via] = frozenset(addresses)
        return set().union(*self.ready.values())

    def gone(self, address: bytes, via: object, now: float) -> bool:
        """A relay has nobody at this address; whether all of them have said so."""
        said = self._said.get(address)
        if said is None:
            said = self._said[address] = {}
        said[via] = now
        for peer in self._at(address):
            path = self._path(peer, via)
            path.absent = True
            path.failed = now
            if peer.via is via:
                self._leave(peer, now)
            if all(self._path(peer, each).absent for each in self.ready):
                self._ask(peer, now)  # it may have come back to any of them
        return all(now - said.get(each, -SAID_FOR) < SAID_FOR for each in self.ready)

    # -- what peers send

    def established(self, session: Session, via: object, now: float) -> None:
        """A handshake has verified by this link."""
        peer = session.peer
        first = len(peer.sessions) == 1
        self._path(peer, via).absent = False
        if first or peer.via not in self.ready or self._path(peer, peer.via).absent:
            peer.via, peer.moved = via, now
        if first:
            self._soon(peer, now)

    def heard(self, session: Session, counter: int, via: object, now: float) -> None:
        """An authenticated message, not just a probe, has come by another link than we use.

        Only the newest of a peer's messages tells where it is: an older one has been delayed.
        """
        peer = session.peer
        path = self._path(peer, via)
        path.absent = False
        if via not in self.ready or not _newest(session, counter):
            return
        if peer.via in self.ready:
            if self._leads(peer):
                if now - peer.moved < SETTLE:
                    return
                self._bar(peer, peer.via, now)  # the other side does not choose, so it had to leave that
            elif now - path.failed < SETTLE:
                return  # sent before it noticed, too
            self._changed(peer, via)
        peer.via, peer.moved = via, now

    def answered(self, peer: Peer, number: int, via: object, now: float) -> bool:
        """A peer answers a probe; whether it was one of ours, on the path that it was sent by."""
        asked = peer.round
        if asked is None or number not in asked.sent or asked.sent[number] is not via:
            return False
        del asked.sent[number]
        asked.took[via] = now - asked.began
        if not asked.sent:
            self._conclude(peer, asked, now)
        return True

    # -- silence

    def suspect(self, peer: Peer, now: float) -> None:
        """Packets were sent and nothing was heard: does another path do better?"""
        if self.several and not max(peer.awaiting, now - VOUCHED_FOR) < peer.vouched:
            self._ask(peer, now, suspect=True)

    def silent(self, peer: Peer, since: float, now: float) -> None:
        """Nothing but probes has come through for long: that path is not for packets."""
        if self.several and peer.vouched > since:
            self._bar(peer, peer.via, now)
            self._leave(peer, now)

    # -- measuring

    def _soon(self, peer: Peer, now: float) -> None:
        peer.hurry = True
        self._schedule(peer, now + self._context.uniform(*PROBE_SOON))

    def _schedule(self, peer: Peer, when: float) -> None:
        peer.next_round = when
        self._context.timers.at(when, self._due, peer)

    def _due(self, peer: Peer, now: float) -> None:
        if now < peer.next_round or self._owner.peers.get(peer.static) is not peer:
            return
        if self.several:
            self._ask(peer, now)
        wait = PROBE_AGAIN if peer.hurry else PROBE_EVERY
        peer.hurry = False
        self._schedule(peer, now + self._context.uniform(*wait))

    def _ask(self, peer: Peer, now: float, *, suspect: bool = False) -> None:
        """Probe a peer on all links at once."""
        session = peer.sending
        if peer.round is not None or session is None or now >= session.expires:
            return
        asked = peer.round = Round(now, suspect=suspect)
        for via in self.ready:
            number = int.from_bytes(self._context.random(_ID_BYTES))
            asked.sent[number] = via
            self._owner.probe(session, number, via)
        rtt = self._path(peer, peer.via).rtt
        least, most = ROUND
        wait = most if rtt is None else min(most, max(least, ROUND_TRIPS * rtt))
        self._context.timers.at(now + wait, self._late, (peer, asked))

    def _late(self, each: tuple[Peer, Round], now: float) -> None:
        peer, asked = each
        if peer.round is asked:
            self._conclude(peer, asked, now)

    def _conclude(self, peer: Peer, asked: Round, now: float) -> None:
        peer.round = None
        carried = peer.bytes_in + peer.bytes_out
        loaded = carried - peer.carried > LOADED * max(1.0, now - peer.measured)
        peer.carried, peer.measured = carried, now
        for via, took in asked.took.items():
            path = self._path(peer, via)
            path.absent = False
            if path.rtt is None or took < path.rtt or via is not peer.via or not loaded:
                path.rtt = took
        if peer.via in asked.took:
            peer.vouched = now
            if self._leads(peer):
                self._compare(peer, asked.took, now)
        elif not any(via in self.ready for via in asked.took):
            return  # the peer itself is away, or we are
        elif asked.suspect or peer.via not in self.ready:
            self._bar(peer, peer.via, now)
            self._leave(peer, now, asked.took)
        else:
            self._ask(peer, now, suspect=True)  # one probe may be lost

    def _compare(self, peer: Peer, took: Iterable[object], now: float) -> None:
        """Take a path that is nearer by a good deal, and not by chance."""
        current = self._path(peer, peer.via)
        best = min(took, key=lambda via: self._rank(peer, via, now))
        path = self._path(peer, best)
        assert current.rtt is not None
        assert path.rtt is not None
        nearer = path.rtt <= BETTER_RATIO * current.rtt and path.rtt <= current.rtt - BETTER_BY
        fuller = len(self.ready.get(best, ())) < len(self.ready.get(peer.via, ()))
        wins = path.wins + 1 if best is not peer.via and (nearer or fuller) else 0
        for each in peer.paths.values():
            each.wins = 0
        path.wins = wins
        if wins >= BETTER_TIMES:
            self._take(peer, best, now)

    # -- the choice

    def _leave(self, peer: Peer, now: float, among: Iterable[object] | None = None) -> None:
        """Take the best of the other links, unless the peer is known not to be there."""
        others = [via for via in (among or self.ready) if via is not peer.via and via in self.ready]
        best = min(others, key=lambda via: self._rank(peer, via, now), default=None)
        if best is not None and not (self._path(peer, best).absent and peer.via in self.ready):
            self._take(peer, best, now)

    def _rank(self, peer: Peer, via: object, now: float) -> tuple[bool, bool, int, float]:
        path = self._path(peer, via)
        rtt = _UNKNOWN if path.rtt is None else path.rtt
        return path.absent, now < path.barred, len(self.ready.get(via, ())), rtt

    def _take(self, peer: Peer, via: object, now: float) -> None:
        """Use this path from now on, and show the peer."""
        self._changed(peer, via)
        peer.via, peer.moved = via, now
        session = peer.sending
        if session is not None and now < session.expires:
            self._owner.keepalive(session)

    def _changed(self, peer: Peer, via: object) -> None:
        for path in peer.paths.values():
            path.wins = 0
        if peer.via is not None and peer.via is not via:
            self.changes += 1
            self._context.output.event("path_changed", peer=peer, relay=via, before=peer.via)

    def _bar(self, peer: Peer, via: object, now: float) -> None:
        path = self._path(peer, via)
        if now - peer.moved >= GOOD_AFTER:
            path.failures = 0
        path.failed = now
        path.barred = now + min(MAX_BAR, BAR * 2.0 ** min(path.failures, 16))
        path.failures += 1

    def _leads(self, peer: Peer) -> bool:
        return self._context.device.static_public < peer.static

    def _path(self, peer: Peer, via: object) -> Path:
        path = peer.paths.get(via)
        if path is None:
            if len(peer.paths) >= MAX_PATHS:  # links come and go with the addresses of a relay's name
                for old in [old for old in peer.paths if old not in self.ready]:
                    del peer.paths[old]
            path = peer.paths[via] = Path()
        return path

    def _at(self, address: bytes) -> list[Peer]:
        return [
            peer
            for peer in self._owner.peers.values()
            if any(address == each.remote or address in each.sources for each in peer.sessions)
        ]


def _newest(session: Session, counter: int) -> bool:
    later = (each for each in session.peer.sessions if each.created > session.created)
    return counter == session.opener.highest and not any(each.heard > each.created for each in later)
