"""How late the event loop comes to what is due: what a health check must know, and no other metric shows."""

from __future__ import annotations

import asyncio
from collections import deque
from time import monotonic

from shadowmesh.observe.histogram import LatencyHistogram

INTERVAL = 0.02
"""Seconds. A stall that begins just after a measurement is understated by as much."""
WINDOW = 10.0


class LoopLag:
    """Sleeps again and again for INTERVAL seconds in the running loop and notes how much too late it wakes.

    A loop that is held up for longer than INTERVAL is always seen. All times are in seconds.
    """

    def __init__(self) -> None:
        self.latest = 0.0
        self.histogram = LatencyHistogram(monotonic())
        self._due: float | None = None
        self._worst: deque[tuple[float, float]] = deque()
        """(time, lag) of the window's samples that no later one exceeds: the first is the worst."""

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            self._due = monotonic() + INTERVAL
            await asyncio.sleep(INTERVAL)
            now = monotonic()
            self.record(now - self._due, now)

    def record(self, lag: float, now: float) -> None:
        """Note a lag measured at `now` (monotonic)."""
        self.latest = max(0.0, lag)
        self.histogram.record(self.latest, now)
        while self._worst and self._worst[-1][1] <= self.latest:
            self._worst.pop()
        self._worst.append((now, self.latest))

    def worst(self, now: float) -> float:
        """The longest lag of the last 10 seconds, with that which has not ended yet."""
        while self._worst and self._worst[0][0] < now - WINDOW:
            self._worst.popleft()
        seen = self._worst[0][1] if self._worst else 0.0
        return max(seen, now - self._due) if self._due is not None else seen
