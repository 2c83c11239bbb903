"""Token bucket: the one rate limiter of the package."""

from __future__ import annotations

import math

LEAST_RATE = 10_000
"""Bytes per second of the slowest limit to be had: below, one large frame takes longer than a ping may."""


class TokenBucket:
    """Allows `rate` events per second on average and `burst` at once; starts full."""

    __slots__ = ("_last", "_tokens", "burst", "rate")

    def __init__(self, rate: float, burst: float) -> None:
        if rate <= 0 or burst <= 0:
            raise ValueError("rate and burst are positive")
        self.rate = rate
        self.burst = burst
        self._tokens = burst
        self._last = -math.inf

    def take(self, now: float, n: float = 1) -> bool:
        """Take `n` tokens at monotonic time `now` (seconds); False, and nothing taken, when there are too
        few.
        """
        tokens = min(self.burst, self._tokens + (now - self._last) * self.rate)
        self._last = now
        self._tokens = tokens - n if tokens >= n else tokens
        return tokens >= n
