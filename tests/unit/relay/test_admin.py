"""The words of /health and /ready for each state of the relay, and who may restart whom for them."""

from __future__ import annotations

import time

import pytest

from shadowmesh.config import RelayConfig
from shadowmesh.observe.lag import LoopLag
from shadowmesh.relay.admin import LAGGING, health, loop_lag, readiness, uptime
from shadowmesh.relay.server import Server


def server(*, draining: bool = False, joined: int = 0, lag: float | None = None) -> tuple[Server, float]:
    """A relay with room for ten, and the time."""
    relay, now = Server(RelayConfig(max_connections=10)), time.monotonic()
    relay.draining, relay.admission.joined = draining, joined
    if lag is not None:
        relay.lag = LoopLag()
        relay.lag.record(lag, now)
    return relay, now


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (330, "5m30s"), (3600, "1h0m0s"), (93_784, "26h3m4s")],
)
def test_uptime(seconds: float, text: str) -> None:
    assert uptime(seconds) == text


def test_a_relay_with_room_is_healthy_and_ready() -> None:
    for relay, now in (server(), server(joined=9, lag=LAGGING * 0.9)):
        assert (health(relay, now), readiness(relay, now)) == ("healthy", "ready")


def test_a_full_relay_is_healthy() -> None:
    for joined in (10, 11):  # max_connections may have been lowered below what is there
        relay, now = server(joined=joined)
        assert (health(relay, now), readiness(relay, now)) == ("healthy", "full")


def test_a_lagging_relay_is_neither_until_ten_seconds_are_over() -> None:
    relay, now = server(lag=LAGGING, joined=10)
    assert (health(relay, now), readiness(relay, now)) == ("lagging", "lagging")
    assert (health(relay, now + 10.1), readiness(relay, now + 10.1)) == ("healthy", "full")


def test_a_draining_relay_is_left_in_peace_even_if_it_lags() -> None:
    relay, now = server(draining=True, lag=5.0)
    assert (health(relay, now), readiness(relay, now)) == ("draining", "draining")
    assert loop_lag(relay, now) == 5.0
