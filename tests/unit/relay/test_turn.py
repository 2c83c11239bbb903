from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

import pytest

from shadowmesh.net.loop import run_loop
from shadowmesh.relay.turn import WEIGHT, Turn


def read(turn: Turn, frames: int) -> list[float]:
    """What so many frames of one turn of the event loop get as their time."""
    times = []
    for _ in range(frames):
        turn.left = left = turn.left - 1
        times.append(turn.clock() if left <= 0 else 0.0)
    return times


@pytest.mark.parametrize("run", [asyncio.run, run_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("frames", [1, 5, 100])
def test_a_sixteenth_of_all_frames_is_clocked_in_whole_turns(run: Callable[..., None], frames: int) -> None:
    async def main() -> None:
        turn, clocked, turns = Turn(), 0, 3200 // frames
        for _ in range(turns):
            before = monotonic()
            times = read(turn, frames)
            assert len(set(times)) == 1, "the time of the turn, for all of its frames or for none"
            assert times[0] == 0.0 or before <= times[0] <= monotonic()
            clocked += frames * (times[0] > 0)
            await asyncio.sleep(0)
        assert 0.5 / WEIGHT < clocked / (turns * frames) < 2.0 / WEIGHT

    run(main())


def test_the_first_frame_of_all_is_clocked() -> None:
    async def main() -> None:
        assert read(Turn(), 1)[0] > 0.0

    asyncio.run(main())


def test_frames_that_ask_for_no_time_do_not_stop_the_clock() -> None:
    """Dropped ones count as frames, and no more."""

    async def main() -> None:
        turn = Turn()
        read(turn, 1)
        await asyncio.sleep(0)
        for _ in range(10):
            turn.left -= 10
            read(turn, 1)
            await asyncio.sleep(0)
        times = []
        for _ in range(20 * WEIGHT):
            times += read(turn, 1)
            await asyncio.sleep(0)
        assert any(times)

    asyncio.run(main())
