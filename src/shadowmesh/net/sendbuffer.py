"""How much a slow TCP connection holds: little that is not sent yet, and little that waits on the way.

What TCP has taken cannot be overtaken or dropped any more. On a fast connection that is no matter, on a slow
one it is the delay of everything behind it. Two bounds, for as long as the socket is what we wait for:

- what is not sent yet, by TCP_NOTSENT_LOWAT: a few milliseconds at the rate at which data is acknowledged;
- what is sent and not acknowledged, by SO_SNDBUF: a congestion control that goes by loss (cubic) fills the
  queue of the slowest line on the way, however long it is. Once the round trip shows such a queue, no more is
  let out than the line takes in the round trip without a queue and `QUEUE` seconds beside. Where there is no
  queue, the bound grows until there is one or nobody needs it.

The round trip without a queue shows only when there is none. So every now and then, and when the rate falls,
less is let out for a moment, as BBR does (draft-ietf-ccwg-bbr, ProbeRTT), and what is seen then counts.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections import deque
from contextlib import suppress
from time import monotonic
from typing import NamedTuple

POLL, MOST_POLL = 0.025, 0.25
"""Seconds between looks at a busy connection: each `POLL_BYTES`, so that many cost no more than few."""
POLL_BYTES = 64 * 1024
QUEUE = 0.014
"""Seconds that data may wait on the way before the connection is bounded, and when it is."""
UNSENT_SECONDS = 0.004
LEAST_UNSENT = 8 * 1024
MOST_UNSENT = 256 * 1024
"""Bytes not sent yet: on fast connections what the programs need to keep TCP busy."""
LEAST = 12 * 1024
MOST = 2 << 20
"""Bytes under way; a connection that needs more is not bounded."""
FRESH = 1.0
"""Seconds after which what was measured is forgotten when the connection was not busy in between."""
FIRST_DIP, DIP_EVERY, DIP = 1.0, 10.0, 0.15
"""Seconds until the round trip without a queue is measured, the first time and later, and for how long."""
GROWTH = 1.5
"""By what the limit grows in each round trip that shows no queue."""
_DIP_SHARE = 0.75
_RATE_OVER = 0.1
_PEAK_OVER = 0.5

_UNSENT: int | None = getattr(socket, "TCP_NOTSENT_LOWAT", None)
_SO_SNDBUFFORCE, _SO_MEMINFO, _SO_BUF_LOCK = 32, 55, 72  # asm-generic/socket.h
SEND_LOCK, RECEIVE_LOCK = 1, 2
"""SOCK_SNDBUF_LOCK, SOCK_RCVBUF_LOCK of linux/socket.h."""
# bytes_acked, notsent_bytes, min_rtt, bytes_sent, bytes_retrans; rtt: struct tcp_info of linux/tcp.h.
_info = struct.Struct("=68xI48xQ16xII48xQQ")
_meminfo = struct.Struct("=20xI12x")


class Sample(NamedTuple):
    """Of one moment: bytes acknowledged so far and held, round trip now and the least of late, in seconds."""

    acked: int
    held: int
    round_trip: float
    least_round_trip: float


class Bound:
    """The law, without I/O. unsent: bytes; limit: bytes under way, None for what TCP likes; rate: bytes/s."""

    def __init__(self) -> None:
        self.unsent = MOST_UNSENT
        self.limit: int | None = None
        self.rate = 0.0
        self._acked: deque[tuple[float, int]] = deque()
        self._peaks: deque[tuple[float, float]] = deque()
        self._rate = 0.0  # now
        self._queued = False  # the last round trip showed a queue, or there is a limit
        self._base = 0.0  # round trip without a queue, while there is a limit
        self._full = 0.0  # the best rate since that was measured
        self._grown = 0.0  # when the limit was last raised for want of a queue
        self._dip_at = 0.0
        self._dip_ends: float | None = None
        self._seen = 0.0  # least round trip of this dip

    def update(self, sample: Sample, now: float) -> None:
        """Take the sample of a connection that is busy."""
        trip = sample.round_trip
        queue = trip - (sample.least_round_trip if self.limit is None else self._base)
        self._queued = self.limit is not None or (sample.held >= LEAST and queue > QUEUE / 2)
        if not self._measure(sample.acked, trip, now):
            return
        unsent = int(self.rate * UNSENT_SECONDS)
        self.unsent = min(max(unsent, LEAST_UNSENT), MOST_UNSENT)
        if self.limit is None:
            if sample.held < LEAST or queue <= QUEUE:
                return
            self._measured(sample.least_round_trip, now + FIRST_DIP)
        if self._dip_ends is not None:
            self._seen = min(self._seen, trip)
            if now < self._dip_ends:
                return self._dip()
            self._measured(self._seen, now + DIP_EVERY)
        elif now >= self._dip_at or (queue > QUEUE and self._has_fallen(now)):
            self._dip_ends, self._seen = now + max(DIP, 2 * trip), trip
            return self._dip()
        elif queue <= QUEUE / 2 and self.limit is not None:
            if now - self._grown >= trip:
                self._let(self.limit * GROWTH)
                self._grown = now
            return
        self._full = max(self._full, self.rate)
        self._let(self.rate * (self._base + QUEUE))

    def _measured(self, base: float, next_at: float) -> None:
        self._base, self._full = base, self.rate
        self._dip_at, self._dip_ends = next_at, None

    def _has_fallen(self, now: float) -> bool:
        """The line is slower, or the way longer: only a dip can tell."""
        return self.rate < self._full / 2 and now >= self._dip_at - DIP_EVERY + FIRST_DIP

    def _dip(self) -> None:
        limit = max(int(self._rate * self._base * _DIP_SHARE), LEAST)
        self.limit = min(limit, self.limit or limit)

    def _let(self, limit: float) -> None:
        self.limit = None if limit > MOST else max(int(limit), LEAST)

    @property
    def poll(self) -> float:
        """Seconds until the next sample."""
        if not self._queued:
            return MOST_POLL
        return min(max(POLL_BYTES / max(self.rate, 1.0), POLL), MOST_POLL)

    def _measure(self, acked: int, round_trip: float, now: float) -> bool:
        """Set `rate`, the best of late; False as long as there is none."""
        times, peaks = self._acked, self._peaks
        if times and now - times[-1][0] > FRESH:
            times.clear()
            peaks.clear()
        times.append((now, acked))
        over = max(_RATE_OVER, round_trip)
        while len(times) > 2 and now - times[1][0] >= over:
            times.popleft()
        since, before = times[0]
        if now - since < _RATE_OVER:
            return False
        self._rate = rate = (acked - before) / (now - since)
        while peaks and (peaks[0][0] < now - max(_PEAK_OVER, 2 * round_trip)):
            peaks.popleft()
        while peaks and peaks[-1][1] <= rate:
            peaks.pop()
        peaks.append((now, rate))
        self.rate = peaks[0][1]
        return True


def unlock(connection: socket.socket, which: int) -> None:
    """Leave the size of the send or the receive buffer to the system again.

    Raises OSError where it cannot be left to it (Linux before 5.14), so call this before setting one, too.
    """
    locks = connection.getsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK)
    connection.setsockopt(socket.SOL_SOCKET, _SO_BUF_LOCK, locks & ~which)


class SendBuffer:
    """Keeps one TCP socket's send buffer as `Bound` says. Does nothing where the system has no such thing.

    bound: what it goes by.
    """

    __slots__ = ("_blocked", "_bounded", "_busy_at", "_connection", "_loop", "_timer", "_unsent", "bound")

    def __init__(self, connection: socket.socket, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._timer: asyncio.TimerHandle | None = None
        self._blocked = False
        self._busy_at = 0.0
        self._bounded = False
        self._unsent = MOST_UNSENT
        self.bound = Bound()
        if _UNSENT is not None:
            with suppress(OSError):  # reset already
                connection.setsockopt(socket.IPPROTO_TCP, _UNSENT, MOST_UNSENT)

    def blocked(self) -> None:
        """The socket takes no more."""
        self._blocked = True
        if self._timer is None:
            self.watch()

    def watch(self) -> None:
        """Something was sent. To be called now and then: a queue on the way may grow without blocking us."""
        if self._timer is None and sys.platform == "linux":
            self._busy_at = monotonic()
            self._look()

    def unblocked(self) -> None:
        """It has taken everything."""
        self._blocked = False

    def close(self) -> None:
        """The socket is about to be closed."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        self._timer = None
        now = monotonic()
        with suppress(OSError, struct.error):  # a kernel before 4.19, or a socket that is gone
            if self._regulate(now) or self._blocked:
                self._busy_at = now
            elif now - self._busy_at >= FRESH:
                self._release()
                return
            self._timer = self._loop.call_later(self.bound.poll, self._look)

    def _regulate(self, now: float) -> bool:
        """Look and set the bounds; whether there is enough under way to look again soon."""
        connection, bound = self._connection, self.bound
        info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _info.size)
        round_trip, acked, unsent, least, sent, again = _info.unpack(info)
        held = sent - again - acked + unsent
        bound.update(Sample(acked, held, round_trip / 1e6, least / 1e6), now)
        if _UNSENT is not None and (unsent or self._blocked) and bound.unsent != self._unsent:
            self._unsent = bound.unsent
            connection.setsockopt(socket.IPPROTO_TCP, _UNSENT, bound.unsent)
        if bound.limit is None:
            self._release()
        else:
            if not self._bounded:
                self._unlock()  # a kernel before 5.14 cannot, and so must not be bounded
                self._bounded = True
            (memory,) = _meminfo.unpack(connection.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _meminfo.size))
            # The kernel counts its own bookkeeping, too, and doubles what it is told to account for that.
            if not self._set(int(bound.limit * min(max(memory / max(held, 1), 1.0), 2.0)) // 2):
                self._release()
        return bool(held >= LEAST)

    def _release(self) -> None:
        if self._bounded:
            self._bounded, self.bound.limit = False, None
            self._set(MOST)
            self._unlock()

    def _unlock(self) -> None:
        unlock(self._connection, SEND_LOCK)

    def _set(self, size: int) -> bool:
        """Set the send buffer; False if the system allows no such one (net.core.wmem_max)."""
        connection = self._connection
        try:
            connection.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, size)
        except PermissionError:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, size)
        return connection.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= 2 * size
