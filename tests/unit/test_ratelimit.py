"""Token bucket against a clock of our own."""

from __future__ import annotations

import pytest

from shadowmesh.ratelimit import TokenBucket


def test_starts_full_and_refills() -> None:
    bucket = TokenBucket(10, 3)
    assert [bucket.take(100.0) for _ in range(4)] == [True, True, True, False]
    assert not bucket.take(100.05)
    assert bucket.take(100.11)
    assert not bucket.take(100.11)


def test_never_holds_more_than_the_burst() -> None:
    bucket = TokenBucket(10, 3)
    assert bucket.take(0.0)
    assert sum(bucket.take(1e9) for _ in range(10)) == 3


def test_takes_several_or_none() -> None:
    bucket = TokenBucket(1, 10)
    assert bucket.take(5.0, 8)
    assert not bucket.take(5.0, 3)
    assert bucket.take(5.0, 2)
    assert not bucket.take(5.5, 1)
    assert bucket.take(6.0, 1)


def test_long_run_average() -> None:
    bucket = TokenBucket(50, 100)
    taken = sum(bucket.take(step / 1000) for step in range(10_000))
    assert 599 <= taken <= 600


@pytest.mark.parametrize(("rate", "burst"), [(0, 1), (1, 0), (-1, 1)])
def test_senseless_values(rate: float, burst: float) -> None:
    with pytest.raises(ValueError):
        TokenBucket(rate, burst)
