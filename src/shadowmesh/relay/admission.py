"""Who may connect: bounds on joined and unjoined connections, and on hints to one client. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Generic, Literal, Protocol, TypeVar

from shadowmesh.crowd import Crowd
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.relay.source import crowd_of

MAX_UNJOINED_PER_SOURCE = 16
SOON = 1.0
"""Seconds within which a client that means to join has done so."""
GONE_RATE, GONE_BURST = 10.0, 32.0
GONE_EVERY = 1.0
# Within a second at most rate + burst hints leave, so a longer memory would hold nothing that still counts.
_GONE_REMEMBERED = 64

Refusal = Literal["too_many_from_source", "too_many_unjoined", "full"]


class Unjoined(Protocol):
    """A connection that has not joined. opened_at: monotonic seconds; source: of `relay.source.source_of`."""

    opened_at: float
    source: str


C = TypeVar("C", bound=Unjoined)


class Admission(Generic[C]):
    """Counts connections. `max_connections` bounds the joined ones; the unjoined have bounds of their own."""

    def __init__(self, max_connections: int) -> None:
        self.joined = 0
        self.unjoined = 0
        self._sources: Counter[str] = Counter()
        self._crowd: Crowd[str, C] = Crowd()
        self.resize(max_connections)

    def resize(self, max_connections: int) -> None:
        """Set the bounds. Nobody who is here has to go."""
        self.max_connections = max_connections
        self.max_unjoined = max(64, max_connections // 4)

    @property
    def utilization_percent(self) -> float:
        """Joined connections in percent of `max_connections`."""
        return 100.0 * self.joined / self.max_connections

    @property
    def full(self) -> bool:
        """Whether nobody else may join."""
        return self.joined >= self.max_connections

    def refuses(
        self, source: str, now: float, *, rejoin: bool = False, shared: bool = False
    ) -> Refusal | None:
        """Why one more connection of this source is refused, if it is.

        rejoin: it says that it was here before, and may show that it still has a place. shared: its source
        may be many.
        """
        if not shared and self._sources.get(source, 0) >= MAX_UNJOINED_PER_SOURCE:
            return "too_many_from_source"
        if self.unjoined >= self.max_unjoined and not self._one_may_go(source, now):
            return "too_many_unjoined"
        return "full" if self.full and not rejoin else None

    def _one_may_go(self, source: str, now: float) -> bool:
        """Whether somebody else has waited long enough, or has more than a newcomer from here would have.

        Only then, or in a crowd of honest ones each would push out another that is about to join.
        """
        crowd = self._crowd
        if crowd.count(crowd_of(source)) + 1 < crowd.most:
            return True
        return crowd.most > 0 and now - crowd.oldest_of_most().opened_at >= SOON

    def open(self, connection: C) -> C | None:
        """A new connection, not joined yet; the one that has to go for it, if there are too many."""
        gone = self._crowd.oldest_of_most() if self.unjoined >= self.max_unjoined else None
        self._sources[connection.source] += 1
        self._crowd.add(crowd_of(connection.source), connection)
        self.unjoined += 1
        return gone

    def leave_unjoined(self, connection: C) -> None:
        """A connection of `open` has joined or ended."""
        source = connection.source
        self.unjoined -= 1
        self._crowd.remove(crowd_of(source), connection)
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]


class GoneLimiter:
    """Decides whether one connection is told again that a destination is absent."""

    __slots__ = ("_bucket", "_last")

    def __init__(self) -> None:
        self._bucket = TokenBucket(GONE_RATE, GONE_BURST)
        self._last: OrderedDict[bytes, float] = OrderedDict()

    def allows(self, destination: bytes, now: float) -> bool:
        """True at most once a second per destination, and 10 times a second (burst 32) in all."""
        last = self._last.get(destination)
        if (last is not None and now - last < GONE_EVERY) or not self._bucket.take(now):
            return False
        self._last[destination] = now
        self._last.move_to_end(destination)
        if len(self._last) > _GONE_REMEMBERED:
            self._last.popitem(last=False)
        return True
