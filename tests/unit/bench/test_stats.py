from __future__ import annotations

import pytest

from bench.stats import Spread, percentile, spread


@pytest.mark.parametrize(("percent", "value"), [(0, 1), (50, 50), (99, 99), (99.5, 100), (100, 100)])
def test_a_percentile_is_the_value_of_its_rank(percent: float, value: float) -> None:
    assert percentile([float(n) for n in range(100, 0, -1)], percent) == value


def test_the_spread_has_the_median_between_the_ends() -> None:
    assert spread([3.0, 9.0, 1.0]) == Spread(3.0, 1.0, 9.0)
    assert spread([1.0, 2.0]) == Spread(1.5, 1.0, 2.0)
    with pytest.raises(ValueError):
        spread([])
