"""What was measured: values of all rounds, their medians, and the marks that they have to reach."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from bench.stats import Spread, spread

OWN = "shadowmesh"


class Metric(NamedTuple):
    """One row of the table."""

    title: str
    unit: str
    decimals: int
    more_is_better: bool = True


METRICS = {
    "tcp1": Metric("TCP, 1 stream", "Gbit/s", 2),
    "tcp8": Metric("TCP, 8 streams", "Gbit/s", 2),
    "tcpr": Metric("TCP, 1 stream, B to A", "Gbit/s", 2),
    "cpu": Metric("processor time, whole machine", "s/GB", 2, more_is_better=False),
    "udp1200": Metric("UDP of 1200 bytes, < 1 % loss", "Mbit/s", 0),
    "udp100": Metric("UDP of 100 bytes, < 1 % loss", "datagrams/s", 0),
    "ping": Metric("ping, idle, median", "ms", 3, more_is_better=False),
    "ping p99": Metric("ping, idle, 99th percentile", "ms", 3, more_is_better=False),
    "loaded": Metric("ping under one TCP stream, median", "ms", 2, more_is_better=False),
    "loaded p99": Metric("… 99th percentile", "ms", 2, more_is_better=False),
    "loaded lost": Metric("… lost", "%", 1, more_is_better=False),
    "wrk": Metric("HTTP, 64 connections, 1 KiB", "requests/s", 0),
    "wrk ms": Metric("… median time", "ms", 2, more_is_better=False),
}

MEMORY = {
    "start": Metric("relay, at start", "MB", 1, more_is_better=False),
    "idle": Metric("relay, each idle connection", "KB", 1, more_is_better=False),
    "used": Metric("relay, each connection after 64 KiB frames", "KB", 1, more_is_better=False),
    "relay ready": Metric("relay, start to ready", "s", 2, more_is_better=False),
    "daemon ready": Metric("daemon, start to connected", "s", 2, more_is_better=False),
}


class Mark(NamedTuple):
    """What a number of ShadowMesh has to reach, against another subject or by itself."""

    metric: str
    against: str | None
    limit: float
    at_least: bool
    what: str
    measure: str = ""
    """Name of the measure that gives the metric, where it is not the metric's own."""


MARKS = (
    Mark("tcp1", "proxy", 0.15, True, "TCP, 1 stream, against the nginx TCP proxy"),
    Mark("tcp1", "wireguard", 8.0, True, "TCP, 1 stream, against wireguard-go"),
    Mark("udp1200", "nebula", 1.5, True, "UDP of 1200 bytes, against nebula"),
    Mark("ping", "nebula", 1.6, False, "idle ping median, against nebula"),
    Mark("start", None, 60.0, False, "relay memory at start, MB", "memory"),
    Mark("idle", None, 25.0, False, "relay memory, KB for each idle connection", "memory"),
    Mark("used", None, 160.0, False, "relay memory, KB for each connection after 64 KiB frames", "memory"),
    Mark("relay ready", None, 0.6, False, "start of the relay to ready, s", "memory"),
    Mark("daemon ready", None, 0.6, False, "start of the daemon to connected, s", "memory"),
    Mark("rss daemon in A", None, 90.0, False, "memory of the daemon in A, MB", "rss"),
    Mark("rss daemon in B", None, 90.0, False, "memory of the daemon in B, MB", "rss"),
)


class Verdict(NamedTuple):
    """A mark, and what was reached: None where a measure that was asked for gave no number."""

    mark: Mark
    value: float | None

    @property
    def met(self) -> bool:
        if self.value is None:
            return False
        return self.value >= self.mark.limit if self.mark.at_least else self.value <= self.mark.limit

    def __str__(self) -> str:
        sign = "≥" if self.mark.at_least else "≤"
        value = "no number" if self.value is None else f"{self.value:.2f}"
        return f"{self.mark.what}: {value} (mark {sign} {self.mark.limit:g})"


@dataclass
class Results:
    """All values of one run with one congestion control."""

    congestion: str
    subjects: tuple[str, ...]
    measures: tuple[str, ...]
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    """Subject, then metric, to the values of the rounds."""
    errors: list[str] = field(default_factory=list)
    """A line for each measure that failed in a round."""
    marks: tuple[Mark, ...] = MARKS

    def add(self, subject: str, numbers: Mapping[str, float]) -> None:
        """The numbers of one measure in one round."""
        of_subject = self.values.setdefault(subject, {})
        for metric, value in numbers.items():
            of_subject.setdefault(metric, []).append(value)

    def spread(self, subject: str, metric: str) -> Spread | None:
        """Over the rounds; None when it was never measured."""
        values = self.values.get(subject, {}).get(metric)
        return spread(values) if values else None

    def names(self, prefix: str) -> list[tuple[str, str]]:
        """(subject, metric) of all metrics that begin so, in the order of the subjects."""
        return [
            (subject, metric)
            for subject in self.subjects
            for metric in self.values.get(subject, {})
            if metric.startswith(prefix)
        ]

    def verdicts(self) -> list[Verdict]:
        """One for each mark whose subjects and measure were part of the run."""
        return [Verdict(mark, self._reached(mark)) for mark in self.marks if self._asked(mark)]

    def _asked(self, mark: Mark) -> bool:
        wanted: Iterable[str] = (OWN, mark.against) if mark.against else (OWN,)
        measured = (mark.measure or mark.metric) in self.measures
        return measured and all(subject in self.subjects for subject in wanted)

    def _reached(self, mark: Mark) -> float | None:
        own = self.spread(OWN, mark.metric)
        if own is None or mark.against is None:
            return own.median if own else None
        other = self.spread(mark.against, mark.metric)
        return own.median / other.median if other and other.median else None
