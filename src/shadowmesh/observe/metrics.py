"""Prometheus exposition of plain numbers: the one place that imports `prometheus_client`.

Programs count in plain ints; a `collect` function turns them into `Metric`s when somebody scrapes. Names
are exposed exactly as written here. `prometheus_client` would append `_total` to a counter that lacks it,
so a counter whose public name does not end in `_total` has the kind `unknown` (OpenMetrics 1.0, "Unknown").
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    UnknownMetricFamily,
)
from prometheus_client.metrics_core import Metric as Family
from prometheus_client.registry import Collector

Kind = Literal["counter", "gauge", "unknown"]

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


class Exposition(Collector):
    """Answers scrapes from `collect_metrics()` plus the usual `process_*` (CPU, memory, open files)."""

    def __init__(self, collect_metrics: Callable[[], Iterable[Metric]]) -> None:
        self._collect_metrics = collect_metrics
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def collect(self) -> Iterator[Family]:
        """The metrics as `prometheus_client` families (called by its registry)."""
        for metric in self._collect_metrics():
            family = _FAMILIES[metric.kind](metric.name, metric.help)
            for labels, value in metric.samples:
                family.add_sample(metric.name, labels, value)
            yield family

    def render(self, accept: str = "") -> tuple[bytes, str]:
        """Body and content type of a scrape: OpenMetrics if its `Accept` header asks so, else text 0.0.4."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type
