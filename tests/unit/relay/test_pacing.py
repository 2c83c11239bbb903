from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import count
from math import inf
from pathlib import Path

import pytest

from shadowmesh.relay import pacing as module
from shadowmesh.relay.pacing import (
    LEAST_BURST,
    LONG_DEBT,
    PER_TURN,
    Pace,
    Paces,
    Pacing,
    receive_buffer,
)

READ = 93_000


def test_a_burst_is_free_and_what_is_beyond_it_has_to_be_paid() -> None:
    pace = Pace(1_000_000, 0.0)
    pace.spend(500_000, 0.0)
    assert pace.debt(0.0) == 0.0
    pace.spend(250_000, 0.0)
    assert (pace.debt(0.0), pace.debt(0.25)) == (0.25, 0.0)
    pace.spend(100_000, 0.25)
    assert pace.debt(0.25) == pytest.approx(0.1)


def test_nobody_saves_up_more_than_a_burst() -> None:
    pace = Pace(1_000_000, 0.0)
    pace.spend(500_000, 0.0)
    pace.spend(0, 100.0)
    pace.spend(600_000, 200.0)
    assert pace.debt(200.0) == pytest.approx(0.1)


def test_the_largest_frame_is_no_debt_however_low_the_rate() -> None:
    pace = Pace(10_000, 0.0)
    pace.spend(LEAST_BURST, 0.0)
    assert pace.debt(0.0) == 0.0
    pace.spend(1, 0.0)
    assert pace.debt(0.0) > 0.0


@pytest.mark.parametrize("late", [0.0, 0.05])
def test_the_rate_is_kept_however_late_the_timers_are(late: float) -> None:
    chance, pace, now, total = random.Random(1), Pace(1_000_000, 0.0), 0.0, 0
    while now < 100.0:
        size = chance.randrange(1, 140_000)
        total += size
        pace.spend(size, now)
        now += pace.debt(now) + chance.random() * late + 1e-6
    assert total <= 1_000_000 * now + pace.burst + 140_000
    assert total >= 0.97 * 1_000_000 * now


def test_who_keeps_below_the_rate_never_pays() -> None:
    pace = Pace(1_000_000, 0.0)
    for number in range(10_000):
        pace.spend(9_999, number / 100)
        assert pace.debt(number / 100) == 0.0


def test_no_debt_is_remitted() -> None:
    pace = Pace(10_000, 0.0)
    pace.spend(LEAST_BURST + 10**9, 0.0)
    assert pace.debt(0.0) == 100_000
    assert pace.debt(1000.0) == 99_000


def test_a_pace_is_shared_by_those_with_its_key() -> None:
    paces = Paces()
    (device, network) = paces.take([(b"device", 1000), (b"network", 2000)], 0.0)
    (other,) = paces.take([(b"else", 0), (b"network", 3000)], 0.0)
    assert other is network
    assert (device.rate, network.rate, network.users) == (1000, 3000, 2)
    assert paces.take([(b"device", 0)], 0.0) == ()


def test_nobody_leaves_a_debt_behind_by_coming_back() -> None:
    paces = Paces()
    (pace,) = paces.take([(b"device", 1_000_000)], 0.0)
    pace.spend(1_000_000, 0.0)
    paces.release([pace])
    paces.expire(0.9)
    assert paces.take([(b"device", 1_000_000)], 0.9) == (pace,)
    paces.release([pace])
    paces.expire(1.0)
    assert len(paces) == 0


def test_who_is_here_is_not_forgotten() -> None:
    paces = Paces()
    paces.take([(b"device", 1_000_000)], 0.0)
    paces.expire(1000.0)
    assert len(paces) == 1


class World:
    """A clock and timers; those who read. total: bytes of all, turns: who was read from, in order."""

    def __init__(self) -> None:
        self.now = 0.0
        self.total = 0
        self.turns: list[Reader] = []
        self.readers: list[Reader] = []
        self._timers: list[tuple[float, int, Timer]] = []
        self._number = count()

    def call_later(self, delay: float, callback: Callable[[], None]) -> Timer:
        timer = Timer(callback)
        heapq.heappush(self._timers, (self.now + delay, next(self._number), timer))
        return timer

    def run(self, until: float) -> None:
        """Turns of a millisecond, in each of which everybody is read from who may be."""
        while self.now < until:
            while self._timers and self._timers[0][0] <= self.now:
                timer = heapq.heappop(self._timers)[2]
                if not timer.cancelled:
                    timer.callback()
            reading = [each for each in self.readers if each.reading and each.busy]
            for each in reading:
                each.sent += READ
                self.total += READ
                self.turns.append(each)
            for each in reading:
                each.pacing.pay(each.sent, self.now)
            self.now += 0.001

    def reader(self, *paces: Pace, busy: bool = True) -> Reader:
        reader = Reader(paces, busy)
        self.readers.append(reader)
        reader.pacing.start(self.now)
        return reader


class Timer:
    def __init__(self, callback: Callable[[], None]) -> None:
        self.callback = callback
        self.cancelled = False

    def cancel(self) -> None:
        self.cancelled = True


class Reader:
    def __init__(self, paces: tuple[Pace, ...], busy: bool) -> None:
        self.busy = busy
        self.reading = True
        self.sent = 0
        self.pacing = Pacing(self, paces, 0)

    def hold(self) -> None:
        assert self.reading
        self.reading = False

    def go_on(self) -> None:
        assert not self.reading
        self.reading = True

    def has_input(self) -> bool:
        return self.busy


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()
    monkeypatch.setattr(module, "get_running_loop", lambda: found)
    monkeypatch.setattr(module, "monotonic", lambda: found.now)
    return found


def test_the_slowest_pace_counts(world: World) -> None:
    quick, slow = Pace(2_000_000, 0.0), Pace(1_000_000, 0.0)
    reader = world.reader(quick, slow)
    reader.pacing.pay(1_500_000, 0.0)
    assert (reader.reading, reader.pacing.at) == (False, slow)
    reader.busy = False
    world.run(0.99)
    assert not reader.reading
    world.run(1.01)
    assert reader.reading


@pytest.mark.parametrize("rate", [10_000, 1_000_000, 100_000_000])
@pytest.mark.parametrize("readers", [1, 40])
def test_those_who_share_a_rate_keep_it_and_all_get_some(rate: int, readers: int, world: World) -> None:
    pace, seconds = Pace(rate, 0.0), max(1.0, 30 * READ / rate)
    crowd = [world.reader(pace) for _ in range(readers)]
    world.run(seconds)
    begin = world.now
    assert world.total <= rate * begin + pace.burst + readers * READ
    world.run(max(begin + seconds, 3 * readers * READ / rate))
    assert world.total <= rate * world.now + pace.burst + readers * READ
    assert world.total >= 0.9 * rate * world.now
    shares = [each.sent for each in crowd]
    assert min(shares) > 0.5 * max(shares) - 2 * READ


def test_who_comes_back_all_the_time_gets_no_more(world: World) -> None:
    pace = Pace(100_000, 0.0)
    stays = world.reader(pace)
    while world.now < 100.0:
        comes = world.reader(pace)
        world.run(world.now + 0.05)
        comes.pacing.stop()
        world.readers.remove(comes)
    assert world.total <= 100_000 * world.now + pace.burst + 3 * READ
    assert stays.sent > 0.8 * world.total


def test_who_comes_is_behind_those_who_wait(world: World) -> None:
    pace = Pace(100_000, 0.0)
    first = world.reader(pace)
    first.sent = LEAST_BURST + 10_000
    first.pacing.pay(first.sent, 0.0)
    world.now = 0.1
    newcomer = world.reader(pace)
    assert pace.debt(world.now) == 0.0
    assert not newcomer.reading
    world.run(0.2)
    assert world.turns == [first]


def test_amid_a_long_debt_nobody_is_read_from(world: World) -> None:
    pace = Pace(10_000, 0.0)
    crowd = [world.reader(pace, busy=False) for _ in range(PER_TURN + 10)]
    crowd[0].pacing.pay(LEAST_BURST + int(10_000 * LONG_DEBT) + 100, 0.0)
    world.run(0.01)
    assert not any(each.reading for each in crowd)
    world.run(LONG_DEBT + 0.1)
    assert all(each.reading for each in crowd), "the silent keep nobody waiting"


def test_the_silent_keep_nobody_waiting(world: World) -> None:
    pace = Pace(100_000, 0.0)
    silent = [world.reader(pace, busy=False) for _ in range(100)]
    busy = world.reader(pace)
    silent[0].pacing.pay(LEAST_BURST + 3 * READ, 0.0)
    world.run(20.0)
    assert busy.sent > 0.9 * (100_000 * 20 - 3 * READ)


def test_who_waits_for_one_and_then_for_another(world: World) -> None:
    """A key and two networks: everybody comes on, and no rate is exceeded."""
    key, networks = Pace(200_000, 0.0), [Pace(150_000, 0.0), Pace(150_000, 0.0)]
    crowd = [world.reader(key, networks[number % 2]) for number in range(10)]
    world.run(60.0)
    assert 0.9 * 200_000 * 60 < world.total <= 200_000 * world.now + key.burst + 10 * READ
    assert min(each.sent for each in crowd) > 0.5 * world.total / 10


def test_a_new_rate_holds_at_once_for_the_debt_too(world: World) -> None:
    paces = Paces()
    (pace,) = paces.take([(b"n", 10_000)], 0.0)
    reader = world.reader(pace, busy=False)
    reader.pacing.pay(LEAST_BURST + 1_000_000, 0.0)
    world.run(1.0)
    assert pace.debt(1.0) == pytest.approx(99.0)
    paces.take([(b"n", 1_000_000)], 1.0)
    world.run(1.9)
    assert not reader.reading
    world.run(2.1)
    assert reader.reading


@pytest.mark.parametrize("paused", [False, True])
def test_nothing_is_left_of_who_has_left(paused: bool, world: World) -> None:
    pace = Pace(10_000, 0.0)
    reader = world.reader(pace)
    if paused:
        reader.pacing.pay(LEAST_BURST + READ, 0.0)
    assert reader.pacing.stop() is paused
    assert not pace.awake
    assert not pace.waiting
    world.run(20.0)


def test_what_the_kernel_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "rmem_max"
    monkeypatch.setattr(module, "_MOST_BUFFER", file)
    assert receive_buffer(1_000_000) == 0
    file.write_text("212992\n")
    found = [receive_buffer(rate) for rate in (10_000, 300_000, 1_000_000, 1_703_936, 1_703_937, inf)]
    assert found == [65_536, 150_000, 212_992, 212_992, 0, 212_992]
