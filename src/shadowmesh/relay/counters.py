"""What the relay counts: plain numbers that the data path increments.

The account of data frames: received = relayed + dropped (by reason) + queued at this moment. The data path
counts frames and bytes once only, in its connection; what all have done together is added up for who asks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from typing import Protocol

from shadowmesh.observe.histogram import LatencyHistogram

DROP_REASONS = (
    "bad_frame",
    "foreign_source",
    "own_destination",
    "not_here",
    "disconnected",
    "queue_full",
    "queue_delay",
    "relay_memory",
    "receiver_left",
    "draining",
    "internal_error",
)
REFUSALS = (
    "join_refused",
    "join_timeout",
    "protocol",
    "bad_request",
    "full",
    "network_full",
    "too_many_from_source",
    "connect_rate",
    "penalty",
    "api_key",
    "origin",
    "draining",
    "internal_error",
)


MEASURED_EVERY = 16
"""On average, and at random: load that comes in a rhythm would be seen at its highs or lows only."""


class Traffic(Protocol):
    """A connection, as far as it counts: data frames and their bytes, from its client and to it."""

    frames_in: int
    bytes_in: int
    frames_out: int
    bytes_out: int


class Counters:
    """One per relay. `connections` are those that are there; `retire` those that are no more."""

    __slots__ = ("_connections", "_retired", "closes", "drops", "joins", "latency", "refused", "unmeasured")

    def __init__(self, now: float, connections: Collection[Traffic] = ()) -> None:
        self._connections = connections
        self._retired = [0, 0, 0, 0]
        self.joins = 0
        """Accepted joins."""
        # From the start with a zero for each reason: a rate needs a value before the first event.
        self.drops = Counter(dict.fromkeys(DROP_REASONS, 0))
        self.refused = Counter(dict.fromkeys(REFUSALS, 0))
        """Connections that did not get to join, by reason."""
        self.closes: Counter[int] = Counter()
        """Close codes that this relay has sent."""
        self.latency = LatencyHistogram(now)
        self.unmeasured = 0
        """Frames taken by the kernel at once until one is measured, for `MEASURED_EVERY` of them."""

    @property
    def frames_in(self) -> int:
        """Data frames received."""
        return self._retired[0] + sum(each.frames_in for each in self._connections)

    @property
    def bytes_in(self) -> int:
        """Their bytes."""
        return self._retired[1] + sum(each.bytes_in for each in self._connections)

    @property
    def frames_out(self) -> int:
        """Data frames given to the socket of a receiver."""
        return self._retired[2] + sum(each.frames_out for each in self._connections)

    @property
    def bytes_out(self) -> int:
        """Their bytes."""
        return self._retired[3] + sum(each.bytes_out for each in self._connections)

    def retire(self, connection: Traffic) -> None:
        """Keep the numbers of a connection that leaves `connections` now."""
        mine = (connection.frames_in, connection.bytes_in, connection.frames_out, connection.bytes_out)
        self._retired = [total + each for total, each in zip(self._retired, mine, strict=True)]
