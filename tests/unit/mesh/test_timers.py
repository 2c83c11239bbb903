"""Deadlines come in the order of their times, once each, and never before."""

from __future__ import annotations

from shadowmesh.mesh.timers import Timers


def test_nothing_waits_at_first() -> None:
    timers = Timers()
    assert timers.next is None
    timers.run(1e9)


def test_runs_what_is_due_in_the_order_of_times() -> None:
    timers, calls = Timers(), list[tuple[object, float]]()

    def call(argument: object, now: float) -> None:
        calls.append((argument, now))

    timers.at(3.0, call, "late")
    timers.at(1.0, call, "first")
    timers.at(2.0, call, "second")
    assert timers.next == 1.0
    timers.run(0.9)
    assert calls == []
    timers.run(2.0)
    assert calls == [("first", 2.0), ("second", 2.0)]
    assert timers.next == 3.0


def test_equal_times_keep_their_order_and_need_no_comparable_arguments() -> None:
    timers, calls = Timers(), list[object]()
    arguments = [object() for _ in range(5)]
    for argument in arguments:
        timers.at(1.0, lambda argument, now: calls.append(argument), argument)
    timers.run(1.0)
    assert calls == arguments


def test_a_timer_set_by_a_timer_runs_when_it_is_due() -> None:
    timers, calls = Timers(), list[float]()

    def again(argument: float, now: float) -> None:
        calls.append(now)
        if len(calls) < 3:
            timers.at(now + argument, again, argument)

    timers.at(1.0, again, 0.0)
    timers.run(1.0)
    assert calls == [1.0, 1.0, 1.0]
    timers.at(2.0, again, 5.0)
    timers.run(2.0)
    assert timers.next is None
