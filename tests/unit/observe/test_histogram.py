from __future__ import annotations

import random

import pytest

from shadowmesh.observe.histogram import LatencyHistogram
from shadowmesh.observe.metrics import LATENCY_BOUNDS


@pytest.mark.parametrize("scale", [1e-5, 1e-3, 0.1, 10.0])
def test_quantiles_are_close_to_the_exact_ones(scale: float) -> None:
    chance = random.Random(7)
    values = [chance.expovariate(1 / scale) for _ in range(20_000)]
    histogram = LatencyHistogram()
    for value in values:
        histogram.record(value, 0.0)
    values.sort()
    wanted = (0.01, 0.5, 0.9, 0.99, 0.999)
    for q, measured in zip(wanted, histogram.quantiles(wanted, 0.0), strict=True):
        exact = values[int(q * len(values)) - 1]
        assert measured == pytest.approx(exact, rel=1 / 64 + 0.001, abs=1e-6)


def test_every_value_stands_for_itself_within_a_64th() -> None:
    for exponent in range(27):
        for micros in (1 << exponent, (1 << exponent) + (1 << exponent) // 3, (2 << exponent) - 1):
            histogram = LatencyHistogram()
            histogram.record((micros + 0.5) / 1e6, 0.0)
            assert histogram.quantiles((0.5,), 0.0)[0] == pytest.approx(micros / 1e6, rel=1 / 64)


def test_out_of_range_values_are_clamped() -> None:
    histogram = LatencyHistogram()
    histogram.record(-1.0, 0.0)
    assert histogram.quantiles((1.0,), 0.0) == [0.0]
    histogram.record(1e9, 0.0)
    assert histogram.quantiles((1.0,), 0.0)[0] == pytest.approx(134.2, rel=1 / 64)


def test_a_weight_counts_that_many_times() -> None:
    histogram = LatencyHistogram()
    histogram.record(0.001, 0.0, 16)
    for _ in range(10):
        histogram.record(1.0, 0.0)
    assert histogram.quantiles((0.5,), 0.0)[0] == pytest.approx(0.001, rel=1 / 64)


def test_empty_is_zero() -> None:
    assert LatencyHistogram().quantiles((0.5, 0.99), 1000.0) == [0.0, 0.0]


def test_old_values_leave_after_one_to_two_half_windows() -> None:
    histogram = LatencyHistogram(now=100.0, half_window=60.0)
    histogram.record(1.0, 101.0)
    assert histogram.quantiles((0.5,), 165.0)[0] == pytest.approx(1.0, rel=1 / 64)
    histogram.record(0.001, 170.0)
    assert histogram.quantiles((0.0,), 170.0)[0] == pytest.approx(0.001, rel=1 / 64)
    assert histogram.quantiles((1.0,), 170.0)[0] == pytest.approx(1.0, rel=1 / 64)
    assert histogram.quantiles((1.0,), 230.0)[0] == pytest.approx(0.001, rel=1 / 64)
    assert histogram.quantiles((1.0,), 500.0) == [0.0]


def test_counts_since_the_start_keep_what_has_left_the_window() -> None:
    histogram = LatencyHistogram(now=0.0, half_window=60.0)
    histogram.record(0.0002, 0.0, 16)
    histogram.record(0.02, 61.0)
    histogram.record(2.0, 122.0)
    for now in (122.0, 200.0, 1000.0, 2000.0):
        histogram.quantiles((0.5,), now)
        assert histogram.cumulative((0.0001, 0.001, 0.1)) == [0, 16, 17, 18]
    histogram.record(99.0, 5000.0)
    assert histogram.cumulative((10.0,)) == [18, 19]
    assert histogram.sum == pytest.approx(16 * 0.0002 + 0.02 + 2.0 + 99.0)


def test_a_negative_latency_adds_nothing_to_the_sum() -> None:
    histogram = LatencyHistogram()
    histogram.record(-1.0, 0.0, 16)
    assert (histogram.sum, histogram.cumulative((1.0,))) == (0.0, [16, 16])


@pytest.mark.parametrize("bound", LATENCY_BOUNDS)
def test_the_bounds_of_the_exposed_histogram_are_exact_to_a_percent(bound: float) -> None:
    histogram = LatencyHistogram()
    histogram.record(bound * 0.989, 0.0)
    histogram.record(bound * 1.011, 0.0)
    assert histogram.cumulative((bound,)) == [1, 2]


def test_counts_agree_with_those_of_sorted_values() -> None:
    chance = random.Random(8)
    values = [chance.lognormvariate(-7, 2) for _ in range(20_000)]
    histogram = LatencyHistogram()
    for number, value in enumerate(values):
        histogram.record(value, number / 50)
    counts = histogram.cumulative(LATENCY_BOUNDS)
    assert counts == sorted(counts)
    assert counts[-1] == len(values)
    for bound, count in zip(LATENCY_BOUNDS, counts[:-1], strict=True):
        low, high = (sum(value < bound * factor for value in values) for factor in (0.99, 1.01))
        assert low <= count <= high
