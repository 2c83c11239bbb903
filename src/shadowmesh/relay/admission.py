"""Who may connect: bounds on joined and unjoined connections, and on hints to one client. Pure."""

from __future__ import annotations

from collections import Counter, OrderedDict
from typing import Literal

from shadowmesh.ratelimit import TokenBucket

MAX_UNJOINED_PER_SOURCE = 16
GONE_RATE, GONE_BURST = 10.0, 32.0
GONE_EVERY = 1.0
# Within a second at most rate + burst hints leave, so a longer memory would hold nothing that still counts.
_GONE_REMEMBERED = 64

Refusal = Literal["too_many_from_source", "too_many_unjoined", "full"]


class Admission:
    """Counts connections. `max_connections` bounds the joined ones; the unjoined have bounds of their own."""

    def __init__(self, max_connections: int) -> None:
        self.joined = 0
        self.unjoined = 0
        self._sources: Counter[str] = Counter()
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

    def refuses(self, source: str, rejoin: bool = False) -> Refusal | None:
        """Why one more connection of this source is refused, if it is.

        Who says that it was here before (`rejoin`) may show that it still has a place.
        """
        if self._sources.get(source, 0) >= MAX_UNJOINED_PER_SOURCE:
            return "too_many_from_source"
        if self.unjoined >= self.max_unjoined:
            return "too_many_unjoined"
        return "full" if self.full and not rejoin else None

    def open(self, source: str) -> None:
        """A new connection, not joined yet."""
        self._sources[source] += 1
        self.unjoined += 1

    def leave_unjoined(self, source: str) -> None:
        """A connection of `open` has joined or ended."""
        self.unjoined -= 1
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
