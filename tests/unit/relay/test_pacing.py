from __future__ import annotations

import random

import pytest

from shadowmesh.relay.pacing import LEAST_BURST, LONGEST_DEBT, Pace, Paces, Pacing


def test_a_burst_is_free_and_what_is_beyond_it_has_to_be_paid() -> None:
    pace = Pace(1_000_000, 0.0)
    assert pace.spend(500_000, 0.0) == 0.0
    assert pace.spend(250_000, 0.0) == 0.25
    assert pace.spend(0, 0.25) == 0.0
    assert pace.spend(100_000, 0.25) == pytest.approx(0.1)


def test_the_largest_frame_is_no_debt_however_low_the_rate() -> None:
    pace = Pace(10_000, 0.0)
    assert pace.spend(LEAST_BURST, 0.0) == 0.0
    assert pace.spend(1, 0.0) > 0.0


@pytest.mark.parametrize("late", [0.0, 0.05])
def test_the_rate_is_kept_however_late_the_timers_are(late: float) -> None:
    chance, pace, now, total = random.Random(1), Pace(1_000_000, 0.0), 0.0, 0
    while now < 100.0:
        size = chance.randrange(1, 140_000)
        total += size
        now += pace.spend(size, now) + chance.random() * late + 1e-6
    assert total <= 1_000_000 * now + pace.burst + 140_000
    assert total >= 0.97 * 1_000_000 * now


def test_who_keeps_below_the_rate_never_pays() -> None:
    pace = Pace(1_000_000, 0.0)
    assert all(pace.spend(9_999, number / 100) == 0.0 for number in range(10_000))


def test_debt_is_bounded() -> None:
    pace = Pace(10_000, 0.0)
    assert pace.spend(10**9, 0.0) == LONGEST_DEBT
    assert pace.spend(10**9, 1.0) == LONGEST_DEBT
    assert pace.spend(0, 1.0 + LONGEST_DEBT) == 0.0


def test_a_new_rate_holds_for_the_debt_too() -> None:
    pace = Pace(1_000_000, 0.0)
    assert pace.spend(1_500_000, 0.0) == 1.0
    pace.rate = 2_000_000
    assert pace.spend(0, 0.0) == 0.5


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


def test_the_slowest_pace_counts() -> None:
    pacing = Pacing((Pace(1_000_000, 0.0), Pace(2_000_000, 0.0)), 7)
    assert pacing.spend(1_500_007, 0.0) == 1.0
    assert pacing.spend(1_500_007, 0.5) == 0.5
