from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from shadowmesh.observe.histogram import LatencyHistogram
from shadowmesh.observe.metrics import LATENCY_BOUNDS, Exposition, Latencies, Metric

OPENMETRICS = "application/openmetrics-text; version=1.0.0; charset=utf-8"
REGION = {"region": 'eu "west"\n'}


def latencies() -> LatencyHistogram:
    histogram = LatencyHistogram()
    histogram.record(0.0003, 0.0, 16)
    histogram.record(0.3, 0.0)
    histogram.record(60.0, 0.0)
    return histogram


def metrics() -> Iterable[Metric | Latencies]:
    yield Metric("x_frames_total", "Frames.", "counter", [(REGION, 12)])
    yield Metric("x_frames_dropped", "Drops.", "unknown", [(REGION, 3)])
    yield Metric("x_latency_ms", "Latency.", "gauge", [(REGION | {"quantile": "0.5"}, 1.25)])
    yield Latencies("x_latency_seconds", "Latency.", REGION, latencies())


def families(accept: str) -> Mapping[str, Any]:
    body, content_type = Exposition(metrics).render(accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    return {family.name: family for family in parse(body.decode()) if not family.name.startswith("process_")}


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_names_labels_and_values_are_exposed_as_given(accept: str) -> None:
    samples = {
        sample.name: (sample.labels, sample.value)
        for family in families(accept).values()
        for sample in family.samples
        if not sample.name.startswith("x_latency_seconds")
    }
    assert samples == {
        "x_frames_total": (REGION, 12),
        "x_frames_dropped": (REGION, 3),
        "x_latency_ms": (REGION | {"quantile": "0.5"}, 1.25),
    }


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_types_say_what_may_be_done_with_a_metric(accept: str) -> None:
    types = {name: family.type for name, family in families(accept).items()}
    assert types == {
        "x_frames": "counter",
        "x_frames_dropped": "unknown",
        "x_latency_ms": "gauge",
        "x_latency_seconds": "histogram",
    }


@pytest.mark.parametrize("accept", ["", OPENMETRICS])
def test_a_histogram_has_cumulative_buckets_sum_and_count(accept: str) -> None:
    samples = families(accept)["x_latency_seconds"].samples
    buckets = {
        float(sample.labels["le"]): sample.value for sample in samples if sample.name.endswith("_bucket")
    }
    assert tuple(buckets) == (*LATENCY_BOUNDS, float("inf"))
    assert [buckets[bound] for bound in (0.00025, 0.0005, 0.25, 0.5, 10.0)] == [0, 16, 16, 17, 17]
    assert buckets[float("inf")] == 18
    rest = {sample.name: sample.value for sample in samples if not sample.name.endswith("_bucket")}
    assert rest == {
        "x_latency_seconds_count": 18,
        "x_latency_seconds_sum": pytest.approx(16 * 0.0003 + 0.3 + 60),
    }


def test_process_metrics_come_along() -> None:
    body, content_type = Exposition(metrics).render()
    assert content_type == "text/plain; version=0.0.4; charset=utf-8"
    assert b"\nprocess_resident_memory_bytes " in body


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text",
        "text/plain;q=0, Application/OpenMetrics-Text;q=0.001",
        "application/openmetrics-text;version=junk",
        "application/openmetrics-text;version=9.9.9;escaping=what",
        "application/vnd.google.protobuf;proto=io.prometheus.client.MetricFamily;encoding=delimited;q=0.7,"
        "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
    ],
)
def test_openmetrics_is_named_by_the_version_that_it_has(accept: str) -> None:
    body, content_type = Exposition(metrics).render(accept)
    assert content_type == OPENMETRICS
    assert body.endswith(b"# EOF\n")


@pytest.mark.parametrize(
    "accept",
    [
        "application/openmetrics-text;q=0",
        "Application/OpenMetrics-Text; version=1.0.0 ; Q=0.000, text/plain",
        "text/plain;x=application/openmetrics-text",
        "application/openmetrics-texts",
        "*/*",
        ";,;",
    ],
)
def test_openmetrics_is_for_those_who_take_it(accept: str) -> None:
    assert Exposition(metrics).render(accept)[1] == "text/plain; version=0.0.4; charset=utf-8"
