from __future__ import annotations

import asyncio
import socket
from typing import Any

from shadowmesh.net.sendbuffer import (
    DIP_EVERY,
    FIRST_DIP,
    LEAST,
    LEAST_UNSENT,
    MOST,
    MOST_POLL,
    MOST_UNSENT,
    POLL,
    QUEUE,
    Bound,
    Sample,
    SendBuffer,
)

MBIT = 125_000.0


class Line:
    """A line of `rate` bytes/s and `delay` seconds both ways, which TCP fills up to `window` or the limit."""

    def __init__(self, rate: float, delay: float, window: float = 1 << 20) -> None:
        self.rate, self.delay, self.window = rate, delay, window
        self.bound = Bound()
        self.now = 0.0
        self.acked = 0.0
        self.least = delay

    def run(self, seconds: float) -> tuple[list[float], list[float]]:
        """Let time pass. Returns round trips and rates of every step."""
        end = self.now + seconds
        trips, rates = [], []
        while self.now < end:
            held = min(self.window, self.bound.limit or self.window)
            rate = min(self.rate, held / self.delay)
            trip = max(self.delay, held / self.rate)
            self.least = min(self.least, trip)
            self.now += self.bound.poll
            self.acked += rate * self.bound.poll
            self.bound.update(Sample(int(self.acked), int(held), trip, self.least), self.now)
            trips.append(trip)
            rates.append(rate)
        return trips, rates


def test_a_line_that_shows_no_queue_is_not_bounded() -> None:
    line = Line(20 * MBIT, 0.1, window=20 * MBIT * 0.1)
    line.run(60)
    assert line.bound.limit is None


def test_a_long_queue_is_kept_out_and_the_line_stays_full() -> None:
    for rate, delay in ((2 * MBIT, 0.04), (20 * MBIT, 0.001), (20 * MBIT, 0.05), (100 * MBIT, 0.02)):
        line = Line(rate, delay)
        line.run(3.0)
        trips, rates = line.run(60.0)
        assert max(trips) - delay < 3 * QUEUE + LEAST / rate, (rate, delay)
        assert sum(rates) / len(rates) > 0.97 * rate, (rate, delay)


def test_the_limit_follows_a_faster_and_a_slower_line() -> None:
    line = Line(20 * MBIT, 0.03)
    line.run(5.0)
    line.rate *= 4
    line.run(3.0)
    _, rates = line.run(1.0)
    assert min(rates) > 0.7 * line.rate
    line.rate /= 8
    line.run(3.0)
    trips, _ = line.run(5.0)
    assert max(trips) < line.delay + 3 * QUEUE


def test_a_longer_way_does_not_starve_it() -> None:
    line = Line(20 * MBIT, 0.005)
    line.run(5.0)
    line.delay = 0.15  # the system still remembers the 5 ms
    line.run(2 * FIRST_DIP + 3.0)
    _, rates = line.run(DIP_EVERY)
    assert sum(rates) / len(rates) > 0.85 * line.rate


def test_after_a_pause_on_a_long_way_it_is_soon_as_fast_as_before() -> None:
    line = Line(20 * MBIT, 0.3, window=2 << 20)
    line.run(5.0)
    assert line.bound.limit is not None
    line.window = 30_000
    line.run(10.0)
    line.window = 2 << 20
    line.run(3.0)
    _, rates = line.run(10.0)
    assert sum(rates) / len(rates) > 0.85 * line.rate


def test_a_connection_that_needs_much_is_not_bounded() -> None:
    line = Line(1000 * MBIT, 0.05, window=16 << 20)
    line.run(20.0)
    assert line.bound.limit is None or line.bound.limit > MOST // 2


def test_what_is_not_sent_yet_follows_the_rate() -> None:
    slow, fast = Line(MBIT, 0.02, window=4000), Line(2000 * MBIT, 0.001, window=8 << 20)
    for line in (slow, fast):
        assert line.bound.unsent == MOST_UNSENT
        line.run(3.0)
    assert slow.bound.unsent == LEAST_UNSENT
    assert fast.bound.unsent == MOST_UNSENT


def test_it_is_looked_at_often_only_while_there_is_a_queue() -> None:
    line = Line(20 * MBIT, 0.1, window=100_000)
    line.run(1.0)
    assert line.bound.poll == MOST_POLL
    line.window = 1 << 20
    line.run(2.0)
    assert POLL <= line.bound.poll < 2 * POLL


def test_old_samples_count_for_nothing() -> None:
    line = Line(20 * MBIT, 0.02)
    line.run(3.0)
    line.now += 60.0
    line.bound.update(Sample(int(line.acked), 0, 0.02, 0.02), line.now)
    rate = line.bound.rate
    line.bound.update(Sample(int(line.acked) + 1, 0, 0.02, 0.02), line.now + 1.0)
    assert rate > 19 * MBIT
    assert line.bound.rate == 1.0


def test_a_socket_is_bounded_and_released() -> None:
    asyncio.run(bounded_and_released())


async def bounded_and_released() -> None:
    listener = socket.create_server(("127.0.0.1", 0))
    with listener, socket.create_connection(listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            buffer = SendBuffer(near, asyncio.get_running_loop())
            assert near.getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT) == MOST_UNSENT
            before = near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)
            buffer.bound.limit = 20_000
            buffer.blocked()
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) < 45_000
            buffer.unblocked()
            buffer.bound.limit = None
            buffer._regulate(0.0)
            assert near.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) >= min(before, 400_000)
            buffer.close()
            buffer.close()


def test_a_closed_socket_is_left_alone() -> None:
    asyncio.run(closed())


async def closed() -> None:
    with socket.socket() as connection:
        buffer = SendBuffer(connection, asyncio.get_running_loop())
    buffer.blocked()
    assert buffer._timer is None


def test_a_longer_way_is_measured_before_the_next_dip_is_due() -> None:
    line = Line(20 * MBIT, 0.005)
    line.run(FIRST_DIP + DIP_EVERY + 2.0)
    line.delay = 0.15
    line.run(5.0)
    _, rates = line.run(2.0)
    assert sum(rates) / len(rates) > 0.85 * line.rate


class Refusing(socket.socket):
    """A socket of a system that allows no send buffer as large as asked for (net.core.wmem_max)."""

    locks = 0

    def setsockopt(self, *option: Any) -> None:
        """See socket.socket."""
        if option[:2] == (socket.SOL_SOCKET, 72):  # SO_BUF_LOCK
            self.locks += 1
        elif option[0] != socket.SOL_SOCKET:
            super().setsockopt(*option)

    def getsockopt(self, *option: Any) -> Any:
        """See socket.socket."""
        return 4096 if option == (socket.SOL_SOCKET, socket.SO_SNDBUF) else super().getsockopt(*option)


def test_a_socket_that_cannot_be_bounded_so_is_released() -> None:
    asyncio.run(released())


async def released() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener, Refusing() as near:
        near.connect(listener.getsockname())
        buffer = SendBuffer(near, asyncio.get_running_loop())
        buffer.bound.limit = 20_000
        buffer._regulate(0.0)
        assert buffer.bound.limit is None
        assert near.locks == 2  # and given back to the system
