"""Bytes per second of devices, networks and API keys: token buckets that may be in debt. Pure.

A relay hands on whatever it has read; who is beyond its rate is in debt then, and is not read from until the
debt is paid. So TCP slows the sender down and nothing is dropped for it. Debt counts on, so that the rate is
kept exactly over any time longer than its burst, however late a timer comes.
"""

from __future__ import annotations

from asyncio import Handle
from collections.abc import Iterable

BURST_SECONDS = 0.5
LEAST_BURST = 128 * 1024
"""Bytes: a frame of the largest size is no debt by itself."""
LONGEST_DEBT = 10.0
"""Seconds to pay at most; more is remitted. A client that is not read from cannot show that it lives, nor ask
for an address, so each is read from at least so often, however many share one rate."""


class Pace:
    """One bucket; connections share it. rate: bytes per second, and may be changed at any time."""

    __slots__ = ("_at", "_left", "key", "rate", "users")

    def __init__(self, rate: float, now: float, key: object = None) -> None:
        self.key = key
        self.rate = rate
        self.users = 0
        self._left = self.burst
        self._at = now

    @property
    def burst(self) -> float:
        """Bytes that may come at once."""
        return max(self.rate * BURST_SECONDS, LEAST_BURST)

    def spend(self, size: int, now: float) -> float:
        """Take `size` bytes; return for how many seconds nothing more is to be read, 0.0 within the rate."""
        left = min(self.burst, self._left + (now - self._at) * self.rate) - size
        self._at, self._left = now, max(left, -self.rate * LONGEST_DEBT)
        return max(0.0, -self._left / self.rate)

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        return self._left + (now - self._at) * self.rate >= self.burst


class Paces:
    """All that have a rate, by what they are of: a network's id, that and a device's, the id of an API key.

    One that nobody uses is kept until it is full again, or a client could leave its debt behind by coming
    back. Their number is bounded: each was used by somebody who had joined, and in debt for 10 s at most.
    """

    def __init__(self) -> None:
        self._paces: dict[object, Pace] = {}
        self._unused: dict[object, Pace] = {}

    def __len__(self) -> int:
        return len(self._paces)

    def take(self, wanted: Iterable[tuple[object, float]], now: float) -> tuple[Pace, ...]:
        """For one more user, the pace of each key that has a rate; that rate now holds for all its users."""
        taken = []
        for key, rate in wanted:
            if rate:
                pace = self._paces.get(key)
                if pace is None:
                    pace = self._paces[key] = Pace(rate, now, key)
                pace.rate = rate
                pace.users += 1
                self._unused.pop(key, None)
                taken.append(pace)
        return tuple(taken)

    def release(self, paces: Iterable[Pace]) -> None:
        """The user of these is gone."""
        for pace in paces:
            pace.users -= 1
            if not pace.users:
                self._unused[pace.key] = pace

    def expire(self, now: float) -> None:
        """Forget those that nobody uses or misses. Call it every second or so."""
        for key in [key for key, pace in self._unused.items() if pace.is_full(now)]:
            del self._paces[key], self._unused[key]


class Pacing:
    """Of a connection with rates. due: what pays for a turn's bytes, or reads on; paid: so many bytes."""

    __slots__ = ("due", "paces", "paid", "paused")

    def __init__(self, paces: tuple[Pace, ...], paid: int) -> None:
        self.paces = paces
        self.paid = paid
        self.due: Handle | None = None
        self.paused = False

    def spend(self, total: int, now: float) -> float:
        """Pay for what has come up to `total`; for how many seconds nothing more is to be read."""
        size, self.paid = total - self.paid, total
        return max(pace.spend(size, now) for pace in self.paces)
