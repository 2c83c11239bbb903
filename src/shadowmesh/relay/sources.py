"""What a relay knows of each source: its connections, how fast it connects, how often it fails to join. Pure.

A source is what `relay.source.source_of` makes of a client's address. The connections of all are counted,
however many sources there are. The rest is remembered of the `REMEMBERED` that were seen last: who comes from
more sources than that has his penalties forgotten, and needs none of them any more anyway.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from math import inf

REMEMBERED = 16384
"""Sources; each costs some 300 bytes."""
BURST_SECONDS = 10.0
"""A source may connect as often at once as it may in that time."""
FAILURES, FAILURE_WINDOW = 10, 60.0
FIRST_PENALTY, LONGEST_PENALTY = 60.0, 600.0
FORGIVEN_AFTER = 600.0
"""Seconds from the end of a penalty until the next is a first one again."""


class _Source:
    __slots__ = ("at", "failures", "penalty", "tokens", "until")

    def __init__(self) -> None:
        self.tokens = inf  # cut down to the burst when it is looked at
        self.at = 0.0
        self.failures: tuple[float, ...] = ()
        self.penalty = 0.0
        self.until = -inf


class Sources:
    """rate: new connections per second of one source; most: its connections at a time. 0: no limit."""

    def __init__(self, rate: float, most: int) -> None:
        self.rate = rate
        self.most = most
        self._connections: Counter[str] = Counter()
        self._known: OrderedDict[str, _Source] = OrderedDict()

    def connects(self, source: str, now: float) -> bool:
        """Count a new connection; False, and not counted, when they come too fast."""
        if not self.rate:
            return True
        known = self._remember(source)
        known.tokens = min(self.rate * BURST_SECONDS, known.tokens + (now - known.at) * self.rate)
        known.at = now
        if known.tokens < 1:
            return False
        known.tokens -= 1
        return True

    def failed(self, source: str, now: float) -> None:
        """Somebody from there was refused for what it showed; the tenth within a minute has a penalty.

        What is tried during a penalty does not count: it was begun before, by whoever.
        """
        known = self._remember(source)
        if now < known.until:
            return
        recent = (*(at for at in known.failures if now - at < FAILURE_WINDOW), now)
        if len(recent) < FAILURES:
            known.failures = recent
            return
        known.failures = ()
        doubled = 2 * known.penalty if now - known.until < FORGIVEN_AFTER else 0.0
        known.penalty = min(LONGEST_PENALTY, doubled or FIRST_PENALTY)
        known.until = now + known.penalty

    def barred(self, source: str, now: float) -> float:
        """For how many seconds nobody else is let in from there; 0.0: at once."""
        known = self._known.get(source)
        return max(0.0, known.until - now) if known else 0.0

    def open(self, source: str) -> None:
        """A connection is there."""
        self._connections[source] += 1

    def close(self, source: str) -> None:
        """A connection of `open` has ended."""
        self._connections[source] -= 1
        if not self._connections[source]:
            del self._connections[source]

    def is_full(self, source: str) -> bool:
        """Whether this source has all the connections that it may have."""
        return 0 < self.most <= self._connections.get(source, 0)

    def exceeds(self, source: str) -> bool:
        """Whether it has more than that."""
        return 0 < self.most < self._connections.get(source, 0)

    def _remember(self, source: str) -> _Source:
        known = self._known.get(source)
        if known is None:
            known = self._known[source] = _Source()
            if len(self._known) > REMEMBERED:
                self._known.popitem(last=False)
        else:
            self._known.move_to_end(source)
        return known
