"""Latency quantiles over the last one to two minutes, and counts since the start, in constant memory.

A log-linear histogram in the manner of HdrHistogram (G. Tene): values below 64 µs have a bucket each, every
further power of two is cut into 32, so a quantile is off by at most 1/64 of itself. Two half windows take
turns: one is written, the one before is still read, and what leaves the window is added up for `cumulative`.
Nothing is ever sorted or averaged, and `record` pays for one list entry and one sum.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

_LINEAR_BITS = 6
_SUB_BUCKETS = 1 << (_LINEAR_BITS - 1)
_MAX_BITS = 27  # up to 2^27 µs = 134 s; whatever is longer counts as that
_BUCKETS = (_MAX_BITS - _LINEAR_BITS + 2) * _SUB_BUCKETS
_MAX_MICROSECONDS = (1 << _MAX_BITS) - 1


def _start(bucket: int) -> tuple[int, int]:
    """(first value in µs that is counted in `bucket`, how many µs it spans)."""
    shift = max(0, (bucket >> (_LINEAR_BITS - 1)) - 1)
    return (bucket - shift * _SUB_BUCKETS) << shift, 1 << shift


def _bucket(micros: int) -> int:
    shift = micros.bit_length() - _LINEAR_BITS
    return shift * _SUB_BUCKETS + (micros >> shift) if shift > 0 else micros


class LatencyHistogram:
    """Sliding latency histogram: `record` seconds, read quantiles in seconds. Not thread-safe."""

    __slots__ = ("_before", "_counts", "_older", "_turned_at", "half_window", "sum")

    def __init__(self, now: float = 0.0, half_window: float = 60.0) -> None:
        self.half_window = half_window
        self.sum = 0.0
        """Seconds of all values since the start."""
        self._turned_at = now
        self._counts = [0] * _BUCKETS
        self._before = [0] * _BUCKETS
        self._older = [0] * _BUCKETS
        """What has left the window."""

    def record(self, seconds: float, now: float, weight: int = 1) -> None:
        """Count a latency (clamped to 0 … 134 s), measured at `now` (monotonic seconds), `weight` times."""
        if now - self._turned_at >= self.half_window:
            self._turn(now)
        micros = int(seconds * 1e6)
        if micros < 0:
            micros, seconds = 0, 0.0
        elif micros > _MAX_MICROSECONDS:
            micros = _MAX_MICROSECONDS
        self.sum += seconds * weight
        shift = micros.bit_length() - _LINEAR_BITS
        self._counts[shift * _SUB_BUCKETS + (micros >> shift) if shift > 0 else micros] += weight

    def quantiles(self, wanted: tuple[float, ...], now: float) -> list[float]:
        """The `wanted` quantiles (0 … 1) in seconds; all 0.0 while nothing was recorded in the window."""
        if now - self._turned_at >= self.half_window:
            self._turn(now)
        counts = [a + b for a, b in zip(self._counts, self._before, strict=True)]
        total = sum(counts)
        return [_quantile(counts, total, q) if total else 0.0 for q in wanted]

    def cumulative(self, bounds: Sequence[float]) -> list[int]:
        """How many values since the start lie below each of `bounds` (seconds), and in the end all of them.

        A bound between two buckets counts as the nearer edge, which is off by at most 1/64 of it.
        """
        counts = zip(self._older, self._before, self._counts, strict=True)
        below = [0, *accumulate(a + b + c for a, b, c in counts)]
        return [below[_nearest_edge(bound)] for bound in bounds] + below[-1:]

    def _turn(self, now: float) -> None:
        self._leave_window(self._before)
        missed = now - self._turned_at >= 2 * self.half_window
        if missed:
            self._leave_window(self._counts)
        self._before = [0] * _BUCKETS if missed else self._counts
        self._counts = [0] * _BUCKETS
        self._turned_at = now

    def _leave_window(self, counts: list[int]) -> None:
        self._older = [a + b for a, b in zip(self._older, counts, strict=True)]


def _nearest_edge(seconds: float) -> int:
    """The bucket that starts nearest to `seconds`."""
    micros = min(round(seconds * 1e6), _MAX_MICROSECONDS)
    bucket = _bucket(micros)
    start, width = _start(bucket)
    return bucket + (2 * (micros - start) >= width if width > 1 else 0)


def _quantile(counts: list[int], total: int, q: float) -> float:
    rank = max(1.0, q * total)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= rank:
            start, width = _start(bucket)
            return (start + (width - 1) / 2) / 1e6
    raise AssertionError("a quantile is at most 1")
