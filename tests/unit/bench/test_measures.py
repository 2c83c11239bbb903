"""The search for the highest UDP rate, on made-up paths."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.measures import Effort, highest_rate
from bench.parse import Udp
from shadowmesh.testing.program import LabError

EFFORT = Effort.full(5)


def path(capacity: float, sender: float = 1e9) -> tuple[Callable[[float], Udp], list[float]]:
    """A trial that loses what is above `capacity`, by a sender that is no faster than `sender`; its rates."""
    rates: list[float] = []

    def trial(rate: float) -> Udp:
        rates.append(rate)
        sent = min(rate, sender)
        return Udp(sent, min(sent, capacity))

    return trial, rates


@pytest.mark.parametrize("capacity", [700.0, 6e3, 20e3, 21e3, 90e3, 1e6])
def test_the_rate_is_found_within_the_precision(capacity: float) -> None:
    trial, rates = path(capacity)
    found = highest_rate(trial, EFFORT).received
    assert capacity / EFFORT.precision <= found <= capacity
    assert len(rates) < 28


def test_it_ends_at_the_limit_of_the_sender() -> None:
    trial, rates = path(capacity=1e9, sender=70e3)
    assert highest_rate(trial, EFFORT).received == 70e3
    assert rates == [20e3, 40e3, 80e3]


def test_one_hiccup_does_not_count() -> None:
    trial, rates = path(90e3)

    def hiccups(rate: float) -> Udp:
        result = trial(rate)
        return Udp(rate, 0.0) if len(rates) % 4 == 2 else result

    assert highest_rate(hiccups, EFFORT).received >= 90e3 / EFFORT.precision


def test_a_path_that_always_loses_is_an_error() -> None:
    trial, _ = path(0.0)
    with pytest.raises(LabError, match="under 1% loss"):
        highest_rate(trial, EFFORT)
