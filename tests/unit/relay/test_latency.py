"""The quantiles that a relay shows are those of all its frames, in whatever rhythm they come."""

from __future__ import annotations

import random
from itertools import cycle

import pytest

from shadowmesh.config import RelayConfig
from shadowmesh.relay import connection, delivery
from shadowmesh.relay.server import Server

MICROSECONDS = 10
"""What each frame of a turn adds to the wait of the next."""


@pytest.mark.parametrize("rhythm", [[1], [20, 1], [1] * 15 + [200], [100], [16], [3, 1, 4, 1, 5]], ids=str)
def test_sampled_quantiles_are_those_of_all_frames(
    rhythm: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    random.seed(7)
    server = Server(RelayConfig())
    client = connection.Connection(server, ("127.0.0.1", 1), "127.0.0.1", "test")
    now, true = 1000.0, list[float]()
    monkeypatch.setattr(delivery, "monotonic", lambda: now)
    turns = cycle(rhythm)
    while len(true) < 60_000:
        began = now
        for _ in range(next(turns)):
            now += MICROSECONDS / 1e6
            true.append(now - began)
            client._sent(1, 100, began)
    true.sort()
    for wanted, shown in zip((0.5, 0.99), server.counters.latency.quantiles((0.5, 0.99), now), strict=True):
        assert shown == pytest.approx(true[int(wanted * len(true))], rel=0.15, abs=2 * MICROSECONDS / 1e6)
