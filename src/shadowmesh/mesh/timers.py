"""Deadlines of a sans-I/O engine: call `run` whenever `next` has passed.

A timer cannot be cancelled; what it calls looks whether there is still something to do. So the hot path
never touches the heap: it sets a field, and the timer reads it.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count
from typing import Any


class Timers:
    """A heap of (time, callback, argument)."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Callable[[Any, float], None], Any]] = []
        self._order = count()

    @property
    def next(self) -> float | None:
        """When `run` is due next, None if nothing is waiting."""
        return self._heap[0][0] if self._heap else None

    def at(self, when: float, callback: Callable[[Any, float], None], argument: object) -> None:
        """Call callback(argument, now) in the first `run` at or after `when`."""
        heapq.heappush(self._heap, (when, next(self._order), callback, argument))

    def run(self, now: float) -> None:
        """Call all that is due, in the order of its times."""
        heap = self._heap
        while heap and heap[0][0] <= now:
            _, _, callback, argument = heapq.heappop(heap)
            callback(argument, now)
