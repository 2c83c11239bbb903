"""What must hold after `bench flap`, as pure functions of what was seen, and its tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bench.report import table
from bench.soak_checks import Check, few_new_objects, memory
from bench.soak_watch import Metrics, Sample
from bench.stats import median, percentile

A, B, FIRST, SECOND = "daemon a", "daemon b", "first relay", "second relay"
SURVIVORS = (A, SECOND)
"""Broken in every way, but never ended."""
MARKS = {True: 3.0, False: 6.0}
"""Seconds at most for 95 of 100 rounds: whether something tells the clients of the fault, or of its end."""
OBJECTS = {
    "shadowmesh.mesh.peer.Session": 3,
    "shadowmesh.mesh.peer.Peer": 1,
    "shadowmesh.daemon.link._Connection": 2,
}
"""How many a daemon has at most (protocol, section 4: three sessions with a peer), once the last fault is
long over. What has ended waits for its timers until then, as no timer is cancelled."""
NEW_OBJECTS = 100
"""Of any one type, over all faults that count: those of the sessions and connections of the moment."""
MEMBERS = {"connections": 2, "connections_unjoined": 0, "networks": 1, "addresses": 4, "frames_queued": 0}
"""Of a relay with both devices, which have an overlay IP and a name each."""


class Round(NamedTuple):
    """Faults at the same time, and the seconds from when there was a way again to the first ping reply."""

    faults: Sequence[str]
    announced: bool
    seconds: float


@dataclass
class Facts:
    """What was seen; samples are of a quiet moment, by the program."""

    rounds: list[Round] = field(default_factory=list)
    samples: dict[str, list[Sample]] = field(default_factory=dict)
    """Of the survivors, after each round that counts."""
    bare: dict[str, Sample] = field(default_factory=dict)
    """Relays before the first client …"""
    empty: dict[str, Sample] = field(default_factory=dict)
    """… and after the last one."""
    start: dict[str, Sample] = field(default_factory=dict)
    """All, before the first fault …"""
    warm: dict[str, Sample] = field(default_factory=dict)
    """… the survivors, when what counts begins …"""
    end: dict[str, Sample] = field(default_factory=dict)
    """… and all in the end."""
    types_warm: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """Objects of each type of the survivors, when what counts begins …"""
    types: dict[str, Mapping[str, int]] = field(default_factory=dict)
    """… and of them and the other daemon some time after the last fault …"""
    peers: dict[str, int] = field(default_factory=dict)
    """… and the peers in their status."""
    joined: int = 0
    """Joins at the second relay, as the clients count them."""
    megabytes: float = 0.0
    """That the transfer carried."""
    pings: int = 0
    answers: int = 0
    statuses: dict[str, int] = field(default_factory=dict)
    """Exit statuses of all that ended in order."""
    errors: Sequence[str] = ()
    """Lines of the logs that tell of a fault of a program."""


def checks(facts: Facts, *, short: bool = False) -> list[Check]:
    """All of them; memory, objects and the marks are not judged after a `short` run."""
    found: list[Check] = []
    if not short:
        found += _marks(facts)
        for name in SURVIVORS:
            for check in memory("over all faults", facts.samples[name], facts.warm[name], facts.end[name]):
                found.append(check._replace(what=f"{name}: {check.what}"))
            check = few_new_objects(facts.types_warm[name], facts.types[name], NEW_OBJECTS)
            found.append(check._replace(what=f"{name}: {check.what}"))
    return [*found, *_left(facts, short), *_emptied(facts), *_counted(facts)]


def _marks(facts: Facts) -> Iterator[Check]:
    for announced, mark in MARKS.items():
        seconds = [each.seconds for each in facts.rounds if each.announced is announced]
        if seconds:
            late = percentile(seconds, 95)
            yield Check(
                f"faults that {'are' if announced else 'nothing'} announced: a ping is answered "
                f"within {mark:g} s after there is a way, 95 of 100 times",
                f"{late:.2f} s",
                late < mark,
            )


def few_objects(types: Mapping[str, int]) -> bool:
    """Whether a daemon has some of each of OBJECTS and not too many."""
    return all(0 < types.get(name, 0) <= most for name, most in OBJECTS.items())


def _left(facts: Facts, short: bool) -> Iterator[Check]:
    kinds: tuple[tuple[str, Callable[[Sample], int]], ...] = (
        ("open files", lambda sample: sample.fds),
        ("asyncio tasks", lambda sample: len(sample.tasks)),
    )
    for what, numbers in kinds:
        pairs = {name: (numbers(facts.start[name]), numbers(facts.end[name])) for name in facts.end}
        yield Check(
            f"{what} in the end are not more than before the first fault, also of what was started again",
            ", ".join(f"{name} {old}, {new}" for name, (old, new) in pairs.items()),
            all(old >= new for old, new in pairs.values()),
        )
    for name in (A, B):
        yield Check(f"{name}: one peer in its status", str(facts.peers[name]), facts.peers[name] == 1)
        if not short:
            wanted = ", ".join(f"{each.rpartition('.')[2]} {most}" for each, most in OBJECTS.items())
            yield Check(
                f"{name}: objects in memory, at most {wanted}",
                ", ".join(str(facts.types[name].get(each, 0)) for each in OBJECTS),
                few_objects(facts.types[name]),
            )
    for name in (FIRST, SECOND):
        yield _metrics(f"{name}, with both clients", facts.end[name].metrics, MEMBERS)


def _emptied(facts: Facts) -> Iterator[Check]:
    for name in (FIRST, SECOND):
        before, after = facts.bare[name], facts.empty[name]
        yield _metrics(f"{name}, without a client", after.metrics, dict.fromkeys(MEMBERS, 0))
        yield Check(
            f"{name}: open files and tasks without a client are not more than before the first one",
            f"{before.fds}, {after.fds}; {len(before.tasks)}, {len(after.tasks)}",
            before.fds >= after.fds and len(before.tasks) >= len(after.tasks),
        )


def _metrics(what: str, metrics: Metrics, wanted: Mapping[str, int]) -> Check:
    seen = {name: metrics[name] for name in wanted}
    return Check(
        f"{what}: {', '.join(f'{name} {value}' for name, value in wanted.items())}",
        ", ".join(f"{value:g}" for value in seen.values()),
        seen == wanted,
    )


def _counted(facts: Facts) -> Iterator[Check]:
    samples = [*facts.samples[SECOND], facts.end[SECOND], facts.end[FIRST], *facts.empty.values()]
    wrong = [each for each in samples if each.lost]
    yield Check(
        "relays: frames received = relayed + dropped by reason + queued, in each sample",
        f"{len(samples) - len(wrong)} of {len(samples)}",
        not wrong,
    )
    metrics = facts.empty[SECOND].metrics
    joins, accepts = metrics["joins_total"], metrics["accepts_total"]
    yield Check(
        f"{SECOND}: joins that the clients count ≤ joins ≤ connections accepted",
        f"{facts.joined} ≤ {joins:.0f} ≤ {accepts:.0f}",
        facts.joined <= joins <= accepts,
    )
    yield Check(
        "one TCP connection went through it all, each byte of it right",
        f"{facts.megabytes:.0f} MB",
        facts.megabytes > 0,
    )
    yield Check(
        "all programs end with status 0",
        str(sorted(set(facts.statuses.values()))),
        not any(facts.statuses.values()),
    )
    first = "".join(f"; {line[:300]}" for line in facts.errors[:1])
    yield Check("no error and no traceback in any log", f"{len(facts.errors)}{first}", not facts.errors)


def markdown(facts: Facts, found: Sequence[Check], environment: Mapping[str, str]) -> str:
    """All of it."""
    parts = [
        "; ".join(f"{name} {value}" for name, value in environment.items()) + ".",
        _rounds(facts),
        _programs(facts),
        f"Of {facts.pings:,} pings {facts.answers:,} were answered; the transfer has carried "
        f"{facts.megabytes:,.0f} MB.",
        "\n".join(f"- {check}" for check in found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _rounds(facts: Facts) -> str:
    names = Counter(name for each in facts.rounds for name in each.faults)
    groups = [
        (name, [each.seconds for each in facts.rounds if name in each.faults]) for name in sorted(names)
    ]
    for title, announced in (("all rounds, announced", True), ("all rounds, nothing tells of it", False)):
        groups.append((title, [each.seconds for each in facts.rounds if each.announced is announced]))
    head = ["fault, by itself or with others", "rounds", "until a ping is answered, median, s", "p95", "most"]
    return table(
        head,
        [
            [name, str(len(seconds)), *(f"{each(seconds):.2f}" for each in (median, _p95, max))]
            for name, seconds in groups
            if seconds
        ],
    )


def _p95(values: Sequence[float]) -> float:
    return percentile(values, 95)


def _programs(facts: Facts) -> str:
    """Resident memory over the time, and what else each has."""
    rows = []
    for name in facts.end:
        samples = facts.samples.get(name, [])
        third = max(1, len(samples) // 3)
        sizes = [median([each.rss for each in part]) for part in (samples[:third], samples[-third:]) if part]
        start, end = facts.start[name], facts.end[name]
        rows.append(
            [
                name if samples else f"{name} (started again)",
                f"{start.rss:.1f}",
                *([f"{size:.1f}" for size in sizes] or ["", ""]),
                f"{end.rss:.1f}",
                f"{start.fds}, {end.fds}",
                f"{len(start.tasks)}, {len(end.tasks)}",
            ]
        )
    head = ["memory, MB", "at first", "first third", "last third", "in the end", "open files", "tasks"]
    return table(head, rows)


def to_json(facts: Facts, found: Sequence[Check], environment: Mapping[str, str]) -> str:
    """Every sample, with what is needed to judge it."""

    def plain(samples: Mapping[str, Sample]) -> dict[str, Any]:
        return {name: each._asdict() for name, each in samples.items()}

    whole: dict[str, Any] = {
        "environment": dict(environment),
        "checks": [check._asdict() for check in found],
        "rounds": [each._asdict() for each in facts.rounds],
        "samples": {name: [each._asdict() for each in some] for name, some in facts.samples.items()},
        "start": plain(facts.start),
        "end": plain(facts.end),
        "bare": plain(facts.bare),
        "empty": plain(facts.empty),
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"
