from __future__ import annotations

import asyncio

from bench.isolation import calls, upgrades


def test_each_call_is_timed() -> None:
    found = asyncio.run(calls(16))
    assert len(found) == 6
    assert all(0 < seconds < 1 for seconds in found.values())


def test_connections_cost_the_program_something() -> None:
    assert 0 < upgrades(16, tls=False) < 1
