"""What must hold after a soak, as pure functions of what was seen."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any, NamedTuple

from bench.soak_probe import Look
from bench.soak_watch import Metrics, Sample
from bench.stats import median

MAX_SLOPE = 1.0
"""Percent of the memory in a minute."""
MAX_GROWTH = 10.0
"""Percent of memory, idle after the soak against idle after the warm-up."""
MAX_NEW_OBJECTS = 1000
"""Of any one type, from the start to the end: a few for each source of clients, none for each connection."""
MAX_LAG = 1.0
"""Seconds: a relay as late as that says itself that it is not healthy."""
MAX_PINGS_LOST = 0.01
_LOG = {"client": 2.0, "refusal": 1.0, "libraries": 1.0}
_LOG_BURST = 4000 + 10 + 100
_LOG_ROUTING = 2 * 50.0
_LOG_RELOAD = 10

HTTP_COUNTED = {f"http {status}" for status in (401, 403, 404, 426, 429, 431, 500, 503)}
"""Refusals before the upgrade that `refused_total` counts: all but what picows takes for no HTTP (400)."""


class Check(NamedTuple):
    """Something that had to hold, and what was seen."""

    what: str
    seen: str
    held: bool

    def __str__(self) -> str:
        return f"{'held' if self.held else '**broken**'}: {self.what}: {self.seen}"


@dataclass
class Facts:
    """What a soak has seen."""

    seconds: float = 0.0
    """Of the time from the start of the relay to its end."""
    samples: Sequence[Sample] = ()
    """Of the soak without its warm-up."""
    start: Sample = field(init=False)
    """Before the first client."""
    before: Sample = field(init=False)
    """Idle after the warm-up …"""
    after: Sample = field(init=False)
    """… and after the soak."""
    types_before: Look = field(default_factory=dict)
    """Objects before the first client …"""
    types_after: Look = field(default_factory=dict)
    """… and in the end."""
    honest: list[dict[str, int]] = field(default_factory=list)
    """For the warm-up and the soak, what pairs sent and what the relay says of them."""
    tally: Counter[str] = field(default_factory=Counter)
    """Of all members and enemies, in both."""
    daemons: list[dict[str, float]] = field(default_factory=list)
    """For the warm-up and the soak: connects, pings, answers."""
    log: str = ""
    reloads: int = 0
    logged_seconds: float = 0.0
    """With a log of frames or routing."""
    status: int | None = None
    """Exit status of the relay."""


def checks(facts: Facts, *, short: bool = False) -> list[Check]:
    """All of them; memory is not judged after a `short` run."""
    found: list[Check] = []
    if not short:
        found += memory("under load", facts.samples, facts.before, facts.after)
    return [
        *found,
        *_idle(facts),
        *_frames(facts),
        *_connections(facts),
        *_traffic(facts),
        *_behaviour(facts),
    ]


def slope(samples: Sequence[Sample], name: str = "rss") -> float:
    """Growth of a number over the last two thirds, in percent of its median in a minute.

    The median of the slopes between each two samples (Theil and Sen): what waits in outboxes comes and goes
    by tens of MB, and a few such samples shall not count; a leak is in most of the pairs.
    """
    chosen = samples[len(samples) // 3 :]
    slopes = [
        (getattr(late, name) - getattr(early, name)) / (late.at - early.at)
        for early, late in combinations(chosen, 2)
    ]
    return 60 * 100 * median(slopes) / median([getattr(each, name) for each in chosen]) if slopes else 0.0


def memory(when: str, samples: Sequence[Sample], before: Sample, after: Sample) -> Iterator[Check]:
    """Of one process, in the samples from a soak and idle before and after it."""
    for name, words in (("rss", "resident memory"), ("private", "private memory")):
        grown = slope(samples, name)
        yield Check(
            f"{words} {when} is flat: at most {MAX_SLOPE:g} % in a minute",
            f"{grown:+.2f} %",
            grown <= MAX_SLOPE,
        )
        old, new = getattr(before, name), getattr(after, name)
        yield Check(
            f"idle {words} afterwards is at most {MAX_GROWTH:g} % above that after the warm-up",
            f"{old:.1f} MB, {new:.1f} MB",
            new <= old * (1 + MAX_GROWTH / 100),
        )


def _idle(facts: Facts) -> Iterator[Check]:
    files = facts.start.fds, facts.after.fds
    yield Check(
        "open files afterwards are as many as before the first client",
        "{}, {}".format(*files),
        len({*files}) == 1,
    )
    threads = facts.before.threads, facts.after.threads
    yield Check(
        "threads afterwards are not more than after the warm-up",
        "{}, {}".format(*threads),
        threads[0] >= threads[1],
    )
    tasks, more = facts.after.tasks, Counter(facts.after.tasks) - Counter(facts.start.tasks)
    yield Check(
        "asyncio tasks afterwards are those of before the first client",
        f"{len(facts.start.tasks)}, {len(tasks)}" + "".join(f"; new: {name}" for name in more),
        not more,
    )
    names = ("connections", "connections_unjoined", "addresses", "networks", "frames_queued", "queued_bytes")
    left = {name: facts.after.metrics[name] for name in names}
    yield Check(
        "no connection, address, network or queued frame is left",
        ", ".join(f"{name} {value:g}" for name, value in left.items()),
        not any(left.values()),
    )
    objects = facts.types_after["connections"]
    # The variable of a loop over connections keeps its last value.
    yield Check("no object of a connection is left, but the last", str(objects), objects <= 1)
    yield few_new_objects(facts.types_before["types"], facts.types_after["types"], MAX_NEW_OBJECTS)


def few_new_objects(before: Mapping[str, int], after: Mapping[str, int], most: int) -> Check:
    """Of no type more than so many."""
    grown = new_objects(before, after)
    return Check(
        f"no type has more than {most} new objects",
        ", ".join(f"{name} {more:+}" for name, more in grown[:3]) or "none has any",
        not grown or grown[0][1] <= most,
    )


def new_objects(before: Mapping[str, int], after: Mapping[str, int]) -> list[tuple[str, int]]:
    """Types with more objects than before, and how many more, the most first."""
    more = ((name, count - before.get(name, 0)) for name, count in after.items())
    return sorted((each for each in more if each[1] > 0), key=lambda each: -each[1])


def _frames(facts: Facts) -> Iterator[Check]:
    samples = [*facts.samples, facts.before, facts.after]
    wrong = [each for each in samples if each.lost]
    yield Check(
        "frames received = relayed + dropped by reason + queued, in each sample",
        f"{len(samples) - len(wrong)} of {len(samples)}",
        not wrong,
    )
    for name, one in zip(("warm-up", "soak"), facts.honest, strict=False):
        yield Check(
            f"{name}, honest pairs: frames sent, which all arrived = received by the relay = relayed",
            f"{one['sent']:,} = {one['received']:,} = {one['relayed']:,}",
            one["sent"] == one["received"] == one["relayed"] > 0,
        )
        yield Check(
            f"{name}, honest pairs: bytes sent = received by the relay = relayed",
            f"{one['bytes sent']:,} = {one['bytes received']:,} = {one['bytes relayed']:,}",
            one["bytes sent"] == one["bytes received"] == one["bytes relayed"],
        )
    tally = facts.tally
    yield Check(
        "members: what arrives is what was sent, in its order",
        f"{tally['frames received']:,} frames, {tally['frames corrupt']} wrong, {tally['frames late']} late",
        tally["frames received"] > 0 and not tally["frames corrupt"] and not tally["frames late"],
    )


def _connections(facts: Facts) -> Iterator[Check]:
    tally, metrics = facts.tally, facts.after.metrics
    accepts, joins = metrics["accepts_total"], metrics["joins_total"]
    yield Check(
        "connections accepted = dialled",
        _between(accepts, tally["dialled"], tally["dialled?"]),
        tally["dialled"] <= accepts <= tally["dialled"] + tally["dialled?"],
    )
    yield Check(
        "joins counted = answered",
        _between(joins, tally["joined"], tally["joined?"]),
        tally["joined"] <= joins <= tally["joined"] + tally["joined?"],
    )
    closes = labelled(metrics, "closes_total")
    sent = sum(count for code, count in closes.items() if code not in _ECHOES)
    seen = sum(tally[name] for name in tally if name.startswith("closed ") and name[7:] not in _ECHOES)
    yield Check(
        "each close code that clients saw, but for the echoes of their own, is counted",
        f"{seen:,} seen, {sent:,.0f} counted",
        seen <= sent,
    )
    refused = labelled(metrics, "refused_total")
    answered = sum(tally[name] for name in HTTP_COUNTED)
    yield Check(
        "each refusal that clients saw is counted",
        f"{answered:,} seen, {sum(refused.values()):,.0f} counted",
        answered <= sum(refused.values()),
    )
    ended = joins + sum(refused.values()) + metrics.get("idle_refused_total", 0.0)
    ended += sum(labelled(metrics, "tls_failed_total").values())
    yield Check(
        "none is counted twice: joins + refusals + failed TLS + turned away ≤ accepted",
        f"{ended:,.0f} ≤ {accepts:,.0f}",
        ended <= accepts,
    )


_ECHOES = {"1000", "1002"}
"""What the relay answers to who closes, in order or not."""


def _between(value: float, least: int, unsure: int) -> str:
    return f"{value:,.0f}, clients {least:,}" + (f" to {least + unsure:,}" if unsure else "")


def labelled(metrics: Metrics, name: str) -> dict[str, float]:
    """Values of a metric by its label."""
    return {key[len(name) + 1 : -1]: value for key, value in metrics.items() if key.startswith(f"{name}{{")}


def _traffic(facts: Facts) -> Iterator[Check]:
    for name, one in zip(("warm-up", "soak"), facts.daemons, strict=False):
        lost = one["pings"] - one["answers"]
        yield Check(
            f"{name}, two daemons: connected once, at most {MAX_PINGS_LOST:.0%} of pings lost, TCP goes on",
            f"{one['connects']:g} connections, {lost:g} of {one['pings']:g} lost, {one['mbit']:.1f} Mbit/s",
            # The last one may be on its way.
            one["connects"] == 2 and 0 <= lost <= 1 + one["pings"] * MAX_PINGS_LOST and one["mbit"] > 0,
        )


def _behaviour(facts: Facts) -> Iterator[Check]:
    lag = max((each.metrics["loop_lag_worst_seconds"] for each in facts.samples), default=0.0)
    yield Check(
        f"the relay is healthy all the time: the event loop never {MAX_LAG:g} s late",
        f"{lag * 1000:.0f} ms at worst",
        lag < MAX_LAG,
    )
    lines = facts.log.splitlines()
    bad = [line for line in lines if is_error(line)]
    yield Check(
        "no error and no traceback in the log",
        f"{len(bad)}" + "".join(f"; {b[:300]}" for b in bad[:1]),
        not bad,
    )
    most = (
        _LOG_BURST
        + sum(_LOG.values()) * facts.seconds
        + _LOG_ROUTING * facts.logged_seconds
        + _LOG_RELOAD * facts.reloads
    )
    yield Check(
        "the log keeps to its rates",
        f"{len(lines):,} lines, {len(facts.log) / 1e6:.2f} MB; at most {most:,.0f} lines",
        len(lines) <= most,
    )
    yield Check("the relay ends with status 0", str(facts.status), facts.status == 0)


def is_error(line: str) -> bool:
    """Whether a line of the log tells of a fault of the relay."""
    try:
        event: dict[str, Any] = json.loads(line)
    except ValueError:
        return True  # a traceback, or whatever else does not come through the log
    return event.get("level") in ("error", "critical") or "exception" in event
