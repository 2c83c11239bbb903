"""The clock of a turn stands still for all of it and runs anew in the next."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from shadowmesh.net.loop import run_loop
from shadowmesh.net.turn import TurnClock


@pytest.mark.parametrize("run", [asyncio.run, run_loop], ids=["asyncio", "uvloop"])
def test_a_turn_has_one_beginning(run: Callable[..., None]) -> None:
    async def main() -> None:
        clock, before = TurnClock(), 0.0
        for _ in range(3):
            assert clock.at == 0.0
            began = clock.begin()
            assert before < began == clock.at <= monotonic()
            before = began
            await asyncio.sleep(0.001)

    run(main())
