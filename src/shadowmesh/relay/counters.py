"""What the relay counts: plain numbers that the data path increments.

The account of data frames: received = relayed + dropped (by reason) + queued at this moment.
"""

from __future__ import annotations

from collections import Counter

from shadowmesh.observe.histogram import LatencyHistogram

DROP_REASONS = (
    "bad_frame",
    "foreign_source",
    "own_destination",
    "not_here",
    "disconnected",
    "queue_full",
    "relay_memory",
    "receiver_left",
)
REFUSALS = (
    "join_refused",
    "join_timeout",
    "protocol",
    "full",
    "too_many_from_source",
    "draining",
)


class Counters:
    """One per relay."""

    __slots__ = ("bytes_out", "closes", "drops", "frames_in", "frames_out", "latency", "refused")

    def __init__(self, now: float) -> None:
        self.frames_in = 0
        self.frames_out = 0
        self.bytes_out = 0
        # From the start with a zero for each reason: a rate needs a value before the first event.
        self.drops = Counter(dict.fromkeys(DROP_REASONS, 0))
        self.refused = Counter(dict.fromkeys(REFUSALS, 0))
        """Connections that did not get to join, by reason."""
        self.closes: Counter[int] = Counter()
        """Close codes that this relay has sent."""
        self.latency = LatencyHistogram(now)
