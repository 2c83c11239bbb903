"""What must hold after a soak: each check holds for what should be seen, and sees what should not."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from bench.soak_checks import Check, Facts, checks, is_error, new_objects, slope
from bench.soak_watch import Sample

METRICS = {
    "accepts_total": 100.0,
    "addresses": 0.0,
    "closes_total{1000}": 1.0,
    "closes_total{4001}": 5.0,
    "connections": 0.0,
    "connections_unjoined": 0.0,
    "drops_total{not_here}": 3.0,
    "drops_total{queue_full}": 2.0,
    "frames_dropped": 5.0,
    "frames_queued": 0.0,
    "frames_relayed_total": 95.0,
    "frames_total": 100.0,
    "idle_refused_total": 7.0,
    "joins_total": 80.0,
    "loop_lag_worst_seconds": 0.1,
    "networks": 0.0,
    "queued_bytes": 0.0,
    "refused_total{full}": 10.0,
    "tls_failed_total{malformed}": 3.0,
}


def sample(at: float = 0.0, rss: float = 60.0, **changes: float) -> Sample:
    return Sample(at, at / 2, rss, rss - 20, 16, 3, ("watch",), 1000, METRICS | changes)


@pytest.fixture
def facts() -> Facts:
    """Of a soak in which all held."""
    honest = dict.fromkeys(("sent", "received", "relayed"), 1000)
    bytes_ = dict.fromkeys(("bytes sent", "bytes received", "bytes relayed"), 9000)
    found = Facts(
        seconds=60.0,
        samples=[sample(10.0 * n, 61.0 + n % 2) for n in range(30)],
        honest=[honest | bytes_, honest | bytes_],
        tally=Counter(
            {
                "dialled": 99,
                "dialled?": 2,
                "joined": 79,
                "joined?": 1,
                "http 503": 4,
                "closed 1000": 30,
                "closed 4001": 5,
                "frames received": 50,
            }
        ),
        daemons=[{"connects": 2, "pings": 100, "answers": 99, "mbit": 20.0}] * 2,
        types_before={"types": {"dict": 10}, "connections": 1},
        types_after={"types": {"dict": 30, "set": 1}, "connections": 1},
        log='{"event": "client joined", "level": "info"}\n',
        status=0,
    )
    found.start = found.before = sample()
    found.after = sample(300.0, 62.0)
    return found


def broken(facts: Facts, **options: bool) -> list[Check]:
    return [check for check in checks(facts, **options) if not check.held]


def test_all_holds(facts: Facts) -> None:
    assert broken(facts) == []
    assert len(checks(facts)) == len(checks(facts, short=True)) + 4


def change(name: str, value: object) -> Callable[[Facts], object]:
    return lambda facts: setattr(facts, name, value)


def count(name: str, number: int) -> Callable[[Facts], object]:
    return lambda facts: facts.tally.update({name: number})


BROKEN: dict[str, tuple[Callable[[Facts], object], str]] = {
    "memory grows": (
        change("samples", [sample(10.0 * n, 60.0 + n / 8) for n in range(30)]),
        "resident memory under load",
    ),
    "memory stays": (change("after", sample(rss=66.1)), "idle resident memory"),
    "a file is open": (change("start", sample()._replace(fds=15)), "open files"),
    "a thread runs": (change("before", sample()._replace(threads=2)), "threads"),
    "a task runs": (change("after", sample()._replace(tasks=("watch", "leak"))), "asyncio tasks"),
    "an address is held": (change("after", sample(addresses=1)), "no connection, address"),
    "a frame waits": (change("after", sample(queued_bytes=1)), "no connection, address"),
    "connections are kept": (change("types_after", {"types": {}, "connections": 2}), "no object"),
    "objects are kept": (change("types_after", {"types": {"x": 1001}, "connections": 0}), "no type"),
    "a frame is lost": (change("samples", [sample(frames_total=101)]), "frames received ="),
    "a reason is missing": (change("samples", [sample(frames_dropped=6)]), "frames received ="),
    "honest frames": (lambda facts: facts.honest[1].update(relayed=999), "soak, honest pairs: frames"),
    "honest bytes": (lambda facts: facts.honest[0].update({"bytes sent": 1}), "warm-up, honest pairs: bytes"),
    "a frame is corrupt": (count("frames corrupt", 1), "members"),
    "frames are out of order": (count("frames late", 1), "members"),
    "an accept is missing": (count("dialled", 2), "connections accepted"),
    "an accept too many": (count("dialled", -2), "connections accepted"),
    "a join is missing": (count("joined", 2), "joins counted"),
    "a close is missing": (count("closed 4001", 1), "each close code"),
    "a refusal is missing": (count("http 429", 7), "each refusal"),
    "somebody is counted twice": (change("after", sample(idle_refused_total=8)), "none is counted twice"),
    "a daemon was cut off": (lambda facts: facts.daemons[1].update(connects=3), "soak, two daemons"),
    "pings are lost": (
        change("daemons", [{"connects": 2, "pings": 100, "answers": 97, "mbit": 1}]),
        "warm-up",
    ),
    "the loop is late": (change("samples", [sample(loop_lag_worst_seconds=1.0)]), "the relay is healthy"),
    "an error": (change("log", '{"event": "unhandled", "level": "error"}\n'), "no error"),
    "a flood of lines": (change("log", '{"level": "info"}\n' * 5000), "the log keeps"),
    "it failed in the end": (change("status", 1), "the relay ends"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_does_not_hold_is_seen(name: str, facts: Facts) -> None:
    make, start = BROKEN[name]
    make(facts)
    found = [check.what for check in broken(facts)]
    assert any(what.startswith(start) for what in found), found


def test_only_memory_is_not_judged_after_a_short_run(facts: Facts) -> None:
    facts.after = sample(rss=100.0)
    assert broken(facts, short=True) == []
    facts.after = sample(rss=100.0, connections=1)
    assert len(broken(facts, short=True)) == 1


def test_the_slope_is_that_of_the_last_two_thirds_in_percent_of_a_minute() -> None:
    jump = [sample(10.0 * n, 10.0) for n in range(10)]
    line = [sample(10.0 * n, 99.0 + n / 6 / 2) for n in range(10, 30)]  # half a MB in a minute
    middle = (line[9].rss + line[10].rss) / 2
    assert slope([*jump, *line]) == pytest.approx(100 * 0.5 / middle)
    assert slope([*jump, *line], "private") == pytest.approx(100 * 0.5 / (middle - 20))
    assert slope([sample()]) == 0.0


def test_a_few_full_outboxes_are_no_growth() -> None:
    full = {17, 25, 27}
    assert slope([sample(10.0 * n, 67.0 if n in full else 60.0) for n in range(30)]) == 0.0


def test_the_types_that_have_grown_most_are_first() -> None:
    assert new_objects({"a": 5, "b": 5, "d": 5}, {"a": 6, "b": 9, "c": 2, "d": 1}) == [
        ("b", 4),
        ("c", 2),
        ("a", 1),
    ]


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ({"level": "info", "event": "x"}, False),
        ({"level": "warning", "event": "x"}, False),
        ({"level": "critical", "event": "x"}, True),
        ({"level": "info", "event": "x", "exception": "Traceback"}, True),
    ],
)
def test_errors_and_exceptions_are_errors(line: dict[str, Any], error: bool) -> None:
    assert is_error(json.dumps(line)) is error
    assert is_error("Traceback (most recent call last):")


def test_a_log_of_frames_may_be_longer(facts: Facts) -> None:
    facts.log *= 5000
    facts.logged_seconds = 60.0
    assert broken(facts) == []
