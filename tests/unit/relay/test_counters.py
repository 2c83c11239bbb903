from __future__ import annotations

from dataclasses import dataclass

from shadowmesh.relay.counters import DROP_REASONS, REFUSALS, Counters


@dataclass(eq=False)
class Connection:
    frames_in: int = 0
    bytes_in: int = 0
    frames_out: int = 0
    bytes_out: int = 0


def test_totals_are_of_those_here_and_those_gone() -> None:
    a, b = Connection(1, 20, 3, 40), Connection(5, 60, 7, 80)
    here = {a, b}
    counters = Counters(0.0, here)

    def totals() -> tuple[int, ...]:
        return counters.frames_in, counters.bytes_in, counters.frames_out, counters.bytes_out

    assert totals() == (6, 80, 10, 120)
    here.remove(a)
    counters.retire(a)
    assert totals() == (6, 80, 10, 120)
    b.frames_in += 1
    assert counters.frames_in == 7


def test_each_reason_is_there_from_the_start() -> None:
    counters = Counters(0.0)
    assert counters.drops == dict.fromkeys(DROP_REASONS, 0)
    assert counters.refused == dict.fromkeys(REFUSALS, 0)
