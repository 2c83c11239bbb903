"""Bytes per second of devices, networks and API keys: token buckets that may be in debt, and turns to read.

A relay hands on whatever it has read; so a bucket may be in debt then, and nobody of it is read from until
that is paid. TCP slows the senders down meanwhile, and nothing is dropped for it. Debt counts on and is never
remitted, so the rate is kept over any time longer than the burst, however late a timer comes, however many
share it and however often they come back. Those who wait go on in turn, a read each: what these go beyond the
rate is paid before the next one's turn.
"""

from __future__ import annotations

from asyncio import Handle, TimerHandle, get_running_loop
from collections.abc import Iterable
from itertools import islice
from math import inf
from pathlib import Path
from time import monotonic
from typing import Protocol

from shadowmesh.net import READ_PER_TURN

BURST_SECONDS = 0.5
LEAST_BURST = 128 * 1024
"""Bytes: a frame of the largest size is no debt by itself."""
SHORTEST_PAUSE = 0.002
"""Seconds: to pause for less costs more than it holds back, and the debt stays."""
LONG_DEBT = 1.0
"""Seconds of debt from which on those are paused, too, who have nothing to do with it; for less, that would
cost more than the one read that each of them may have takes."""
PER_TURN = 256
"""Connections that are paused, or go on, in one turn of the event loop."""


_MOST_BUFFER = Path("/proc/sys/net/core/rmem_max")


def receive_buffer(rate: float) -> int:
    """What to ask the kernel for (SO_RCVBUF) so that it holds about a second's worth of `rate`.

    It takes twice as much, for its own needs too. All that it allows for no rate (inf), and nothing, 0, where
    that is too little for a quarter of a second: a long way needs more.
    """
    try:
        most = int(_MOST_BUFFER.read_text())
    except OSError:  # not Linux
        return 0
    size = min(most, max(rate, LEAST_BURST) / 2)
    return int(size) if rate == inf or 2 * size >= rate / 4 else 0


class Reader(Protocol):
    """Who is read from, and pays."""

    def hold(self) -> None:
        """Be read from no more."""

    def go_on(self) -> None:
        """Be read from again."""

    def has_input(self) -> bool:
        """Whether something is there to be read, as far as the system says."""


class Pace:
    """One bucket; connections share it. rate: bytes per second; awake, waiting: those who may be read from
    and those who wait for their turn here, the first to come first; users: how many it has in all."""

    __slots__ = ("_at", "_left", "_timer", "awake", "key", "rate", "users", "waiting")

    def __init__(self, rate: float, now: float, key: object = None) -> None:
        self.key = key
        self.rate = rate
        self.users = 0
        self.awake: dict[Pacing, None] = {}
        self.waiting: dict[Pacing, None] = {}
        self._left = self.burst
        self._at = now
        self._timer: TimerHandle | None = None

    @property
    def burst(self) -> float:
        """Bytes that may come at once."""
        return max(self.rate * BURST_SECONDS, LEAST_BURST)

    def spend(self, size: int, now: float) -> None:
        """Take `size` bytes."""
        self._left = min(self.burst, self._left + (now - self._at) * self.rate) - size
        self._at = now

    def debt(self, now: float) -> float:
        """Seconds until it is paid, 0.0 within the rate."""
        return max(0.0, self._at - now - self._left / self.rate)

    def is_full(self, now: float) -> bool:
        """Whether it is as good as new."""
        return self._left + (now - self._at) * self.rate >= self.burst

    def change(self, rate: float, now: float) -> None:
        """Let another rate hold, from now on."""
        if rate != self.rate:
            self.spend(0, now)
            self.rate = rate
            self.arm(now)

    def arm(self, now: float, least: float = 0.0) -> None:
        """See to it that `turn` comes in time, after `least` seconds at the earliest."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        delay = self.debt(now)
        if delay >= LONG_DEBT and self.awake:
            delay = 0.0
        elif not self.waiting:
            return
        self._timer = get_running_loop().call_later(max(delay, least), self._on_timer)

    def _on_timer(self) -> None:
        self._timer = None
        self.turn(monotonic())

    def turn(self, now: float) -> None:
        """Pause those who are still read from amid a long debt, or let the next ones go on after it."""
        debt = self.debt(now)
        if debt >= LONG_DEBT:
            for pacing in list(islice(self.awake, PER_TURN)):
                pacing.wait(self)
        elif debt < SHORTEST_PAUSE:
            # As many as the rate pays for before they are seen to have paid. Who has nothing to say does not
            # count, or a crowd of the silent would have those wait who do.
            readers = 1 + int(self.rate * SHORTEST_PAUSE / READ_PER_TURN)
            for pacing in list(islice(self.waiting, PER_TURN)):
                if pacing.go_on(now) and pacing.reader.has_input():
                    readers -= 1
                    if not readers:
                        break
        self.arm(now, SHORTEST_PAUSE)


class Paces:
    """All that have a rate, by what they are of: a network's id, that and a device's, the id of an API key.

    One that nobody uses is kept until it is full again, or a client could leave its debt behind by coming
    back. Their number is bounded by that of joins in the seconds which that takes.
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
                pace.change(rate, now)
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
    """Of a connection with rates. due: what pays for a turn's bytes; paid: so many; at: where it waits."""

    __slots__ = ("at", "due", "paces", "paid", "reader")

    def __init__(self, reader: Reader, paces: tuple[Pace, ...], paid: int) -> None:
        self.reader = reader
        self.paces = paces
        self.paid = paid
        self.due: Handle | None = None
        self.at: Pace | None = None

    @property
    def paused(self) -> bool:
        """Whether it is not read from."""
        return self.at is not None

    def start(self, now: float) -> None:
        """Go behind those who wait, before the first read if there are any or there is a debt."""
        for pace in self.paces:
            pace.awake[self] = None
        worst = self._worst(now)
        busy = next((pace for pace in self.paces if pace.waiting), None)
        if worst.debt(now) >= SHORTEST_PAUSE:
            self.wait(worst)
            worst.arm(now)
        elif busy is not None:
            self.wait(busy)  # its turns are on their way

    def stop(self) -> bool:
        """Take no more part; whether it was paused."""
        if self.due is not None:
            self.due.cancel()
        for pace in self.paces:
            pace.awake.pop(self, None)
            pace.waiting.pop(self, None)
        return self.at is not None

    def spend(self, total: int, now: float) -> None:
        """Pay for what has come up to `total`."""
        size, self.paid = total - self.paid, total
        for pace in self.paces:
            pace.spend(size, now)

    def pay(self, total: int, now: float) -> None:
        """Pay for what has come up to `total`, and wait if that makes a debt."""
        self.spend(total, now)
        worst = self._worst(now)
        if self.at is None and worst.debt(now) >= SHORTEST_PAUSE:
            self.wait(worst)
            worst.arm(now)
        for pace in self.paces:
            if pace.awake and pace.debt(now) >= LONG_DEBT:
                pace.arm(now)

    def wait(self, pace: Pace) -> None:
        """Be read from no more until it is one's turn there; `Pace.arm` is the caller's."""
        for each in self.paces:
            each.awake.pop(self, None)
        self.at = pace
        pace.waiting[self] = None
        self.reader.hold()

    def go_on(self, now: float) -> bool:
        """Its turn has come: be read from, or wait on where a debt is left. Whether it is read from."""
        worst = self._worst(now)
        if self.at is not None:
            del self.at.waiting[self]
        if worst.debt(now) >= SHORTEST_PAUSE:
            self.at = worst
            worst.waiting[self] = None
            worst.arm(now)
            return False
        self.at = None
        for pace in self.paces:
            pace.awake[self] = None
        self.reader.go_on()
        return True

    def _worst(self, now: float) -> Pace:
        return max(self.paces, key=lambda pace: pace.debt(now))
