"""What `bench flap` makes of what it saw, and which faults it draws; tests/netns/test_bench.py runs it."""

from __future__ import annotations

import json
from collections.abc import Callable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import environment, flap, flap_checks
from bench.flap import QUICK, Flap, errors
from bench.flap_checks import (
    FIRST,
    MEMBERS,
    NEW_OBJECTS,
    OBJECTS,
    SECOND,
    SURVIVORS,
    A,
    B,
    Facts,
    Round,
    checks,
)
from bench.soak_watch import Sample

EMPTY = {
    "frames_total": 10.0,
    "frames_relayed_total": 9.0,
    "frames_dropped": 1.0,
    "drops_total{not_here}": 1.0,
}
EMPTY |= {"joins_total": 5.0, "accepts_total": 6.0, **dict.fromkeys(MEMBERS, 0.0)}


def sample(at: float = 0.0, rss: float = 60.0, fds: int = 20, tasks: int = 9, **metrics: float) -> Sample:
    return Sample(at, at / 2, rss, rss - 20, fds, 3, ("task",) * tasks, 1000, EMPTY | metrics)


@pytest.fixture
def facts() -> Facts:
    """Of a run in which all held."""
    with_both = sample()._replace(metrics=EMPTY | MEMBERS)
    return Facts(
        rounds=[Round([f"{A}: stopped"], True, 0.1), Round([f"{B}: killed", f"{A}: stopped"], False, 2.0)],
        samples={name: [sample(10.0 * n, 61.0 + n % 2) for n in range(30)] for name in SURVIVORS},
        bare=dict.fromkeys((FIRST, SECOND), sample(fds=17)),
        empty=dict.fromkeys((FIRST, SECOND), sample(fds=17)),
        start=dict.fromkeys((A, B, FIRST, SECOND), sample()),
        warm=dict.fromkeys(SURVIVORS, sample()),
        end={A: sample(), B: sample(), FIRST: with_both, SECOND: with_both},
        types_warm=dict.fromkeys(SURVIVORS, OBJECTS),
        types=dict.fromkeys((A, B, SECOND), OBJECTS),
        peers={A: 1, B: 1},
        joined=5,
        megabytes=100.0,
        statuses={A: 0, B: 0, FIRST: 0, SECOND: 0},
    )


def test_what_should_be_seen_holds(facts: Facts) -> None:
    found = checks(facts)
    assert all(check.held for check in found)
    assert len(found) == 14 + len(checks(facts, short=True))


def lose(facts: Facts, **changes: Any) -> None:
    for name, value in changes.items():
        setattr(facts, name, getattr(facts, name) | value if isinstance(value, dict) else value)


@pytest.mark.parametrize(
    ("words", "change"),
    [
        ("are announced", lambda facts: lose(facts, rounds=[Round([], True, 3.5)])),
        ("nothing announced", lambda facts: lose(facts, rounds=[Round([], False, 6.5)])),
        (
            "resident memory over all faults",
            lambda facts: lose(facts, samples={A: [sample(10.0 * n, 60.0 + n) for n in range(30)]}),
        ),
        ("idle resident memory", lambda facts: lose(facts, end={A: sample(rss=70.0)})),
        ("open files in the end", lambda facts: lose(facts, end={B: sample(fds=21)})),
        ("tasks in the end", lambda facts: lose(facts, end={A: sample(tasks=10)})),
        ("one peer", lambda facts: lose(facts, peers={A: 2})),
        ("objects", lambda facts: lose(facts, types={A: {name: most + 1 for name, most in OBJECTS.items()}})),
        ("objects", lambda facts: lose(facts, types={B: dict.fromkeys(OBJECTS, 0)})),
        ("new objects", lambda facts: lose(facts, types={SECOND: {"builtins.dict": NEW_OBJECTS + 1}})),
        ("with both clients", lambda facts: lose(facts, end={SECOND: sample(connections=3.0)})),
        ("without a client", lambda facts: lose(facts, empty={FIRST: sample(fds=17, networks=1.0)})),
        ("without a client are", lambda facts: lose(facts, empty={FIRST: sample(fds=18)})),
        ("frames received", lambda facts: lose(facts, empty={SECOND: sample(fds=17, frames_total=11.0)})),
        ("joins", lambda facts: lose(facts, joined=6)),
        ("one TCP connection", lambda facts: lose(facts, megabytes=0.0)),
        ("status 0", lambda facts: lose(facts, statuses={B: -9})),
        ("no error", lambda facts: lose(facts, errors=["Traceback"])),
    ],
)
def test_what_should_not_be_seen_is_found(facts: Facts, words: str, change: Callable[[Facts], None]) -> None:
    change(facts)
    assert [check for check in checks(facts) if not check.held and words in check.what]


def test_the_tables_tell_what_happened(facts: Facts) -> None:
    lines = flap_checks.markdown(facts, checks(facts), {"kernel": "Linux 6.1", "seed": "7"}).split("\n")
    for line in (
        "kernel Linux 6.1; seed 7.",
        "| daemon a: stopped | 2 | 1.05 | 2.00 | 2.00 |",
        "| all rounds, announced | 1 | 0.10 | 0.10 | 0.10 |",
        "| daemon a | 60.0 | 61.5 | 61.5 | 60.0 | 20, 20 | 9, 9 |",
        "| daemon b (started again) | 60.0 |  |  | 60.0 | 20, 20 | 9, 9 |",
        "- held: all programs end with status 0: [0]",
    ):
        assert line in lines, line
    assert json.loads(flap_checks.to_json(facts, [], {}))["rounds"][1]["seconds"] == 2.0


def test_each_fault_has_its_turn_and_no_part_two_at_once() -> None:
    drawn = []
    made = Flap(cast(Any, SimpleNamespace(bare={}, relay=None)), cast(Any, None), QUICK, Random(1))
    for _ in range(200):
        together = made._draw()
        assert len({each.part for each in together}) == len(together)
        drawn.append(tuple(map(str, together)))
    assert any(len(each) == 1 for each in drawn)
    assert any(len(each) > 2 for each in drawn)
    kinds = {name for each in drawn for name in each}
    assert len(kinds) == 16
    assert not [
        name for name in kinds if name.startswith(SURVIVORS) and ("killed" in name or "ended" in name)
    ]
    again = Flap(cast(Any, SimpleNamespace(bare={}, relay=None)), cast(Any, None), QUICK, Random(1))
    assert [tuple(map(str, again._draw())) for _ in range(200)] == drawn


def test_errors_are_found_in_every_kind_of_log() -> None:
    console = (
        "2026-11-23T08:00:00Z [info     ] relay lost\n2026-11-23T08:00:00Z [error    ] no\nTraceback (most"
    )
    assert len(list(errors("daemon", console))) == 2
    assert list(errors("relay", '{"level": "info"}\n{"level": "error"}')) == ['relay: {"level": "error"}']


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--seconds", "0"], "at least 1"), (["--quick", "--write-docs"], "mean nothing")],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        flap.main(arguments)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_missing_programs_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "missing_packages", lambda _: ["iptables"])
    assert flap.main([]) == 2
    assert "apt-get install --no-install-recommends iptables" in capsys.readouterr().err
