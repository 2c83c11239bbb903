from __future__ import annotations

import pytest

from shadowmesh.relay.sources import REMEMBERED, Sources


def connects(sources: Sources, times: int, now: float, source: str = "a") -> int:
    """How many of so many connections are let in."""
    return sum(sources.connects(source, now) for _ in range(times))


def fail(sources: Sources, times: int, now: float, source: str = "a") -> None:
    for _ in range(times):
        sources.failed(source, now)


def test_ten_seconds_worth_of_connections_at_once_and_then_the_rate() -> None:
    sources = Sources(20, 0)
    assert connects(sources, 300, 0.0) == 200
    assert connects(sources, 300, 1.0) == 20
    assert connects(sources, 300, 1.02) == 0
    assert connects(sources, 300, 1000.0) == 200
    assert connects(sources, 200, 1000.0, "b") == 200, "others have their own"


def test_no_limit() -> None:
    sources = Sources(0, 0)
    assert connects(sources, 100_000, 0.0) == 100_000
    sources.open("a")
    assert not sources.is_full("a")
    assert not sources.exceeds("a")


def test_a_new_rate_holds_at_once() -> None:
    sources = Sources(20, 0)
    assert connects(sources, 10, 0.0) == 10
    sources.rate = 1
    assert connects(sources, 300, 0.0) == 10
    sources.rate = 0
    assert connects(sources, 300, 0.0) == 300
    fail(sources, 1, 0.0, "b")
    sources.rate = 2
    assert connects(sources, 300, 0.0, "b") == 20, "it was known without a rate"


def test_connections_at_a_time() -> None:
    sources = Sources(0, 2)
    sources.open("a")
    assert not sources.is_full("a")
    sources.open("a")
    assert (sources.is_full("a"), sources.exceeds("a"), sources.is_full("b")) == (True, False, False)
    sources.open("a")
    assert sources.exceeds("a")
    for _ in range(3):
        sources.close("a")
    assert not sources.is_full("a")
    assert not sources._connections, "nothing is left of who is gone"


@pytest.mark.parametrize(("failures", "barred"), [(9, 0.0), (10, 60.0)])
def test_ten_failures_are_one_too_many(failures: int, barred: float) -> None:
    sources = Sources(0, 0)
    fail(sources, failures, 5.0)
    assert sources.barred("a", 5.0) == barred
    assert sources.barred("b", 5.0) == 0.0


def test_failures_older_than_a_minute_do_not_count() -> None:
    sources = Sources(0, 0)
    fail(sources, 9, 0.0)
    fail(sources, 9, 60.0)
    assert sources.barred("a", 60.0) == 0.0
    fail(sources, 1, 119.9)
    assert sources.barred("a", 119.9) == 60.0


def test_a_penalty_ends_and_each_further_one_is_twice_as_long() -> None:
    sources, now = Sources(0, 0), 0.0
    for seconds in (60.0, 120.0, 240.0, 480.0, 600.0, 600.0):
        fail(sources, 10, now)
        assert sources.barred("a", now) == seconds
        assert sources.barred("a", now + seconds - 0.5) == 0.5
        now += seconds
        assert sources.barred("a", now) == 0.0
    fail(sources, 10, now + 599.0)
    assert sources.barred("a", now + 599.0) == 600.0
    now += 599.0 + 600.0
    fail(sources, 10, now + 600.0)
    assert sources.barred("a", now + 600.0) == 60.0, "forgiven"


def test_what_is_tried_during_a_penalty_does_not_count() -> None:
    """Or whoever shares an address with one that goes on would be shut out for longer and longer."""
    sources = Sources(0, 0)
    fail(sources, 100, 0.0)
    fail(sources, 100, 59.9)
    assert sources.barred("a", 59.9) == pytest.approx(0.1)
    fail(sources, 9, 60.0)
    assert sources.barred("a", 60.0) == 0.0
    fail(sources, 1, 60.0)
    assert sources.barred("a", 60.0) == 120.0


def test_what_is_remembered_is_bounded_and_connections_are_never_forgotten() -> None:
    sources = Sources(20, 1)
    sources.open("a")
    fail(sources, 10, 0.0)
    for number in range(REMEMBERED - 1):
        sources.connects(f"s{number}", 0.0)
    assert sources.barred("a", 0.0) == 60.0
    sources.connects("one more", 0.0)
    assert len(sources._known) == REMEMBERED
    assert sources.barred("a", 0.0) == 0.0, "the one not seen for longest"
    assert sources.is_full("a")


def test_who_was_seen_lately_is_remembered() -> None:
    sources = Sources(20, 0)
    fail(sources, 9, 0.0)
    for number in range(REMEMBERED - 1):
        sources.connects(f"s{number}", 0.0)
    fail(sources, 1, 0.0)
    for number in range(REMEMBERED - 1):
        sources.connects(f"t{number}", 0.0)
    assert sources.barred("a", 0.0) == 60.0
