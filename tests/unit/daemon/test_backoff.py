"""How long the link waits before it dials again; that it does is in tests/net/test_link.py."""

from __future__ import annotations

from itertools import pairwise

import pytest

from shadowmesh.daemon.backoff import LATER_AFTER, Backoff

LOST = [None, 1000, 1001, 1008, 1009, 1012, 1013, 4002]
REFUSED = [4001, 4003, 4005]
UNAUTHORIZED = 401


def longest() -> Backoff:
    return Backoff(lambda low, high: high)


@pytest.mark.parametrize("code", LOST)
def test_after_a_loss(code: int | None) -> None:
    backoff = longest()
    waits = [backoff.next(code) for _ in range(30)]
    assert waits[:4] == pytest.approx([0.2, 0.4, 0.8, 1.6])
    assert set(waits[4:]) == {2.0}
    assert backoff.next(code, LATER_AFTER - 0.1) == 2.0
    assert backoff.next(code, LATER_AFTER) == 30.0


@pytest.mark.parametrize("code", REFUSED)
def test_after_a_refusal(code: int) -> None:
    backoff = longest()
    waits = [backoff.next(code) for _ in range(30)]
    assert waits[:5] == [30, 60, 120, 240, 480]
    assert set(waits[5:]) == {600}


def test_after_an_api_key_that_the_relay_does_not_know_yet() -> None:
    backoff = longest()
    waits = [backoff.next(UNAUTHORIZED) for _ in range(30)]
    assert waits[:7] == [5, 10, 20, 40, 80, 160, 320]
    assert set(waits[7:]) == {600}


def test_jitter() -> None:
    ranges: list[tuple[float, float]] = []

    def uniform(low: float, high: float) -> float:
        ranges.append((low, high))
        return low

    backoff = Backoff(uniform)
    for code in (None, 4001, 4004, 4004):
        backoff.next(code)
    assert ranges == [(0.0, 0.2), (15.0, 30.0), (30.0, 60.0), (30.0, 60.0)]


def test_losses_and_refusals_are_counted_apart() -> None:
    """A relay that was away for long and then refuses once is asked again after half a minute."""
    backoff = longest()
    for _ in range(20):
        backoff.next(None)
    assert backoff.next(4003) == 30
    assert backoff.next(4004) == 60
    assert backoff.next(4003) == 60
    assert backoff.next(None) == 2


def test_a_good_connection_starts_anew() -> None:
    backoff = longest()
    before = [backoff.next(code) for code in (None, None, 4001, 4001)]
    backoff.reset()
    assert [backoff.next(code) for code in (None, None, 4001, 4001)] == before
    assert all(one < other for one, other in pairwise(before))
