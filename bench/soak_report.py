"""The tables of `bench soak`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.report import table
from bench.soak_checks import Check, Facts, labelled
from bench.soak_watch import Sample

ROWS = 12
"""At most so many lines for the time of the soak."""


@dataclass(frozen=True)
class Run:
    """One run of the honest pairs, as `soak_load` tells of it."""

    at: float
    payload: int
    frames: float
    gbit: float
    p50: float
    p99: float


def markdown(
    facts: Facts, runs: Sequence[Run], found: Sequence[Check], environment: Mapping[str, str]
) -> str:
    """All of it."""
    parts = [
        "; ".join(f"{name} {value}" for name, value in environment.items()) + ".",
        _times(facts, runs),
        _counts(facts),
        "\n".join(f"- {check}" for check in found),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def to_json(facts: Facts, runs: Sequence[Run], found: Sequence[Check], environment: Mapping[str, str]) -> str:
    """Every sample, with what is needed to judge it."""
    whole: dict[str, Any] = {
        "environment": dict(environment),
        "checks": [check._asdict() for check in found],
        "tally": facts.tally,
        "honest": facts.honest,
        "daemons": facts.daemons,
        "types before": facts.types_before.get("types"),
        "types after": facts.types_after.get("types"),
        "idle before": facts.before._asdict(),
        "idle after": facts.after._asdict(),
        "samples": [sample._asdict() for sample in facts.samples],
        "runs": [vars(run) for run in runs],
    }
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def _times(facts: Facts, runs: Sequence[Run]) -> str:
    """A line for each stretch of the soak, between one for the idle relay before and one for that after."""
    head = ["time", "memory, MB", "private, MB", "open files", "tasks", "connections", "queued, MB"]
    head += [
        "cores used",
        "frames/s",
        "event loop late, ms",
        "relay p99, ms",
        "honest pairs, Gbit/s",
        "p99, ms",
    ]
    rows = [_idle("idle, after the warm-up", facts.before, len(head))]
    samples = facts.samples
    if len(samples) > 1:
        each = -(-(len(samples) - 1) // ROWS)
        for first in range(0, len(samples) - 1, each):
            rows.append(_stretch(samples[0].at, samples[first : first + each + 1], runs))
    rows.append(_idle("idle, in the end", facts.after, len(head)))
    return table(head, rows)


def _idle(title: str, sample: Sample, width: int) -> list[str]:
    shown = [title, *_memory([sample]), f"{sample.fds}", f"{len(sample.tasks)}", *_queues([sample])]
    return shown + [""] * (width - len(shown))


def _stretch(start: float, samples: Sequence[Sample], runs: Sequence[Run]) -> list[str]:
    """The numbers of the samples after the first, which only tells where the counting begins."""
    first, last, seen = samples[0], samples[-1], samples[1:]
    took = last.at - first.at
    mine = [run for run in runs if first.at < run.at <= last.at]
    frames = last.metrics["frames_total"] - first.metrics["frames_total"]
    return [
        f"{_clock(first.at - start)}–{_clock(last.at - start)}",
        *_memory(seen),
        _range([each.fds for each in seen], 0),
        _range([len(each.tasks) for each in seen], 0),
        *_queues(seen),
        f"{(last.cpu - first.cpu) / took:.2f}",
        f"{frames / took:,.0f}",
        f"{max(each.metrics['loop_lag_worst_seconds'] for each in seen) * 1000:.0f}",
        f"{max(each.metrics['latency_ms{0.99}'] for each in seen):.1f}",
        _range([run.gbit for run in mine], 2),
        _range([run.p99 for run in mine], 1),
    ]


def _memory(samples: Sequence[Sample]) -> list[str]:
    return [_range([each.rss for each in samples], 1), _range([each.private for each in samples], 1)]


def _queues(samples: Sequence[Sample]) -> list[str]:
    return [
        _range([each.metrics["connections"] for each in samples], 0),
        _range([each.metrics["queued_bytes"] / 1e6 for each in samples], 1),
    ]


def _range(values: Sequence[float], decimals: int) -> str:
    """`least–most`, or the one value that all have."""
    if not values:
        return ""
    least, most = (f"{each:,.{decimals}f}" for each in (min(values), max(values)))
    return least if least == most else f"{least}–{most}"


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02}"


def _counts(facts: Facts) -> str:
    """What happened how often, from the start of the relay."""
    tally, metrics = facts.tally, facts.after.metrics
    rows = [
        ["connections accepted; joins", f"{metrics['accepts_total']:,.0f}; {metrics['joins_total']:,.0f}"],
        [
            "frames received; relayed",
            f"{metrics['frames_total']:,.0f}; {metrics['frames_relayed_total']:,.0f}",
        ],
        ["frames dropped", _listed(labelled(metrics, "drops_total"))],
        ["not let in", _listed(labelled(metrics, "refused_total"))],
        ["close codes sent", _listed(labelled(metrics, "closes_total"))],
        [
            "members went",
            _listed({name: tally[name] for name in ("leaves", "resets", "vanishes", "hangs up")}),
        ],
        ["storms; fights of clones", f"{tally['storms']}; {tally['clones']}"],
        ["addresses refused", _listed(_named(tally, "refused "))],
        ["attacks", _listed(_named(tally, "attack "))],
        ["reloads", str(facts.reloads)],
    ]
    return table(["from the start of the relay", "how often"], rows)


def _named(tally: Mapping[str, int], prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): count for name, count in tally.items() if name.startswith(prefix)}


def _listed(counts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {count:,.0f}" for name, count in sorted(counts.items()) if count) or "none"
