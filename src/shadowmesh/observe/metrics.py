"""Prometheus exposition of plain numbers: the one place that imports `prometheus_client`.

Programs count in plain ints; a `collect` function turns them into `Metric`s when somebody scrapes. Names
are exposed exactly as written here. `prometheus_client` would append `_total` to a counter that lacks it,
so a counter whose public name does not end in `_total` has the kind `unknown` (OpenMetrics 1.0, "Unknown").
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector, exposition
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.openmetrics import exposition as openmetrics
from prometheus_client.registry import Collector

from shadowmesh.observe.histogram import LatencyHistogram

Kind = Literal["counter", "gauge", "unknown"]
LATENCY_BOUNDS = (
    *(50e-6, 100e-6, 250e-6, 500e-6),
    *(1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 100e-3, 250e-3, 500e-3),
    *(1.0, 2.5, 5.0, 10.0),
)
"""Bounds in seconds of the buckets of `Latencies`."""

_to_openmetrics: Callable[[Collector], bytes] = openmetrics.generate_latest
_FAMILIES: dict[str, Callable[[str, str], Family]] = {
    "counter": CounterMetricFamily,
    "gauge": GaugeMetricFamily,
    "unknown": UnknownMetricFamily,
}


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric with its samples: (labels, value) pairs."""

    name: str
    help: str
    kind: Kind
    samples: Iterable[tuple[dict[str, str], float]]

    def family(self) -> Family:
        """The metric as `prometheus_client` has it."""
        family = _FAMILIES[self.kind](self.name, self.help)
        for labels, value in self.samples:
            family.add_sample(self.name, labels, value)
        return family


@dataclass(frozen=True, slots=True)
class Latencies:
    """All that a LatencyHistogram has seen, as a Prometheus histogram in seconds."""

    name: str
    help: str
    labels: dict[str, str]
    histogram: LatencyHistogram

    def family(self) -> Family:
        """The metric as `prometheus_client` has it."""
        family = HistogramMetricFamily(self.name, self.help)
        below = self.histogram.cumulative(LATENCY_BOUNDS)
        for bound, count in zip((*map(repr, LATENCY_BOUNDS), "+Inf"), below, strict=True):
            family.add_sample(f"{self.name}_bucket", self.labels | {"le": bound}, count)
        family.add_sample(f"{self.name}_sum", self.labels, self.histogram.sum)
        family.add_sample(f"{self.name}_count", self.labels, below[-1])
        return family


class Exposition(Collector):
    """Answers scrapes from `collect_metrics()` plus the usual `process_*` (CPU, memory, open files)."""

    def __init__(self, collect_metrics: Callable[[], Iterable[Metric | Latencies]]) -> None:
        self._collect_metrics = collect_metrics
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Family]:
        """The metrics as `prometheus_client` families (called by its registry)."""
        for metric in self._collect_metrics():
            yield metric.family()

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Body and content type for a scrape: OpenMetrics 1.0 if `Accept` takes it, else text 0.0.4.

        `prometheus_client.exposition.choose_encoder` would answer a version it has never heard of with its
        name, and a malformed one with an exception.
        """
        if _takes_openmetrics(accept):
            return _to_openmetrics(self._registry), openmetrics.CONTENT_TYPE_LATEST
        return exposition.generate_latest(self._registry), exposition.CONTENT_TYPE_PLAIN_0_0_4


def _takes_openmetrics(accept: str) -> bool:
    for each in accept.lower().split(","):
        name, *parameters = (part.strip() for part in each.split(";"))
        if name == "application/openmetrics-text":
            return not any(re.fullmatch(r"q=0(\.0*)?", parameter) for parameter in parameters)
    return False
