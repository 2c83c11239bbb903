"""Latency quantiles over the last one to two minutes, in constant memory.

A log-linear histogram in the manner of HdrHistogram (G. Tene): values below 64 µs have a bucket each, every
further power of two is cut into 32, so a quantile is off by at most 1/64 of itself. Two half windows take
turns: one is written, the one before is still read, and nothing is ever sorted or averaged.
"""

from __future__ import annotations

_LINEAR_BITS = 6
_SUB_BUCKETS = 1 << (_LINEAR_BITS - 1)
_MAX_BITS = 27  # up to 2^27 µs = 134 s; whatever is longer counts as that
_BUCKETS = (_MAX_BITS - _LINEAR_BITS + 2) * _SUB_BUCKETS
_MAX_MICROSECONDS = (1 << _MAX_BITS) - 1


def _middle(bucket: int) -> float:
    """The value in µs that stands for everything counted in `bucket`."""
    shift = max(0, (bucket >> (_LINEAR_BITS - 1)) - 1)
    return (((bucket - shift * _SUB_BUCKETS) << shift) + ((1 << shift) - 1) / 2.0) if shift else float(bucket)


class LatencyHistogram:
    """Sliding latency histogram: `record` seconds, read quantiles in seconds. Not thread-safe."""

    def __init__(self, now: float = 0.0, half_window: float = 60.0) -> None:
        self.half_window = half_window
        self._turned_at = now
        self._counts = [0] * _BUCKETS
        self._before = [0] * _BUCKETS

    def record(self, seconds: float, now: float, weight: int = 1) -> None:
        """Count a latency (clamped to 0 … 134 s), measured at `now` (monotonic seconds), `weight` times."""
        if now - self._turned_at >= self.half_window:
            self._turn(now)
        micros = int(seconds * 1e6)
        if micros < 0:
            micros = 0
        elif micros > _MAX_MICROSECONDS:
            micros = _MAX_MICROSECONDS
        shift = micros.bit_length() - _LINEAR_BITS
        self._counts[shift * _SUB_BUCKETS + (micros >> shift) if shift > 0 else micros] += weight

    def quantiles(self, wanted: tuple[float, ...], now: float) -> list[float]:
        """The `wanted` quantiles (0 … 1) in seconds; all 0.0 while nothing was recorded in the window."""
        if now - self._turned_at >= self.half_window:
            self._turn(now)
        counts = [a + b for a, b in zip(self._counts, self._before, strict=True)]
        total = sum(counts)
        return [_quantile(counts, total, q) if total else 0.0 for q in wanted]

    def _turn(self, now: float) -> None:
        missed = now - self._turned_at >= 2 * self.half_window
        self._before = [0] * _BUCKETS if missed else self._counts
        self._counts = [0] * _BUCKETS
        self._turned_at = now


def _quantile(counts: list[int], total: int, q: float) -> float:
    rank = max(1.0, q * total)
    seen = 0
    for bucket, count in enumerate(counts):
        seen += count
        if seen >= rank:
            return _middle(bucket) / 1e6
    raise AssertionError("a quantile is at most 1")
