from __future__ import annotations

import random

import pytest

from shadowmesh.observe.histogram import LatencyHistogram


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
