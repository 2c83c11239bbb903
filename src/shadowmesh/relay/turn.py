"""Which frames have their latency measured: those of every sixteenth turn of the event loop, or so.

The latency of a frame begins with the turn that reads it, for the frames before it make it wait, too. To know
where a turn ends takes a callback, which costs more than a small frame does otherwise; so only some turns are
clocked, in which each frame counts for `WEIGHT`. Most frames cost one subtraction:

    turn.left = left = turn.left - 1
    read_at = turn.clock() if left <= 0 else 0.0

The turn to be clocked is the next one after `left` has come to 0, whole, and then `left` is set so that its
frames are a sixteenth of all.
"""

from __future__ import annotations

from asyncio import get_running_loop
from time import monotonic

WEIGHT = 16


class Turn:
    """left: frames until a turn is to be clocked; not above 0 from then to the end of that turn."""

    __slots__ = ("_at", "_due", "_next", "left")

    def __init__(self) -> None:
        self.left = 0
        self._at = 0.0
        self._next = True  # the very first turn with a frame is clocked
        self._due = False

    def clock(self) -> float:
        """Monotonic seconds at which this turn read its first frame, 0.0 if it is not clocked."""
        if self._next:
            self._next = False
            # Not loop.time(): uvloop's goes in milliseconds.
            self._at = monotonic()
            get_running_loop().call_soon(self._end)
        elif not (self._at or self._due):
            self._due = True
            get_running_loop().call_soon(self._begin)
        return self._at

    def _begin(self) -> None:
        self._next, self._due, self.left = True, False, 0

    def _end(self) -> None:
        self._at = 0.0
        self.left *= 1 - WEIGHT
