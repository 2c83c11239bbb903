from __future__ import annotations

from collections.abc import Iterable

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from shadowmesh.observe.metrics import Exposition, Metric


def metrics() -> Iterable[Metric]:
    region = {"region": 'eu "west"\n'}
    yield Metric("x_frames_total", "Frames.", "counter", [(region, 12)])
    yield Metric("x_frames_dropped", "Drops.", "unknown", [(region, 3)])
    yield Metric("x_latency_ms", "Latency.", "gauge", [(region | {"quantile": "0.5"}, 1.25)])


@pytest.mark.parametrize("accept", ["", "application/openmetrics-text; version=1.0.0; charset=utf-8"])
def test_names_labels_and_values_are_exposed_as_given(accept: str) -> None:
    body, content_type = Exposition(metrics).render(accept)
    parse = parse_openmetrics if "openmetrics" in content_type else parse_text
    samples = {
        sample.name: (sample.labels, sample.value)
        for family in parse(body.decode())
        for sample in family.samples
        if not sample.name.startswith("process_")
    }
    assert samples == {
        "x_frames_total": ({"region": 'eu "west"\n'}, 12),
        "x_frames_dropped": ({"region": 'eu "west"\n'}, 3),
        "x_latency_ms": ({"region": 'eu "west"\n', "quantile": "0.5"}, 1.25),
    }


def test_process_metrics_come_along() -> None:
    body, content_type = Exposition(metrics).render()
    assert content_type.startswith("text/plain")
    assert b"\nprocess_resident_memory_bytes " in body
