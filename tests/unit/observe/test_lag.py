from __future__ import annotations

import asyncio
import time

import pytest

from shadowmesh.observe.lag import INTERVAL, WINDOW, LoopLag


def test_a_loop_that_is_held_up_is_seen_and_then_forgotten() -> None:
    async def scenario() -> None:
        lag = LoopLag()
        measuring = asyncio.create_task(lag.run())
        await asyncio.sleep(INTERVAL / 2)
        time.sleep(INTERVAL + 0.3)
        assert lag.worst(time.monotonic()) > 0.3, "seen while it lasts"
        await asyncio.sleep(0.01)
        now = time.monotonic()
        assert 0.3 < lag.latest < 1
        assert lag.worst(now) == lag.latest
        assert lag.histogram.quantiles((1.0,), now)[0] == pytest.approx(lag.latest, rel=0.02)
        measuring.cancel()

    asyncio.run(scenario())


def test_worst_is_that_of_the_last_ten_seconds() -> None:
    lag = LoopLag()
    assert lag.worst(100.0) == 0.0
    for at, seconds in ((100.0, 0.5), (103.0, 2.0), (104.0, 0.1), (105.0, 1.0), (106.0, -0.001)):
        lag.record(seconds, at)
    assert lag.latest == 0.0
    assert lag.worst(106.0) == 2.0
    assert lag.worst(103.0 + WINDOW) == 2.0
    assert lag.worst(103.1 + WINDOW) == 1.0
    assert lag.worst(105.1 + WINDOW) == 0.0
    assert lag.worst(200.0) == 0.0


def test_the_window_takes_bounded_memory() -> None:
    lag = LoopLag()
    for i in range(10_000):
        lag.record(1.0 - i * 1e-5, i * INTERVAL)  # ever less: each stays the worst of those after it
        lag.worst(i * INTERVAL)
    assert len(lag._worst) <= WINDOW / INTERVAL + 2
