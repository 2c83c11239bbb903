"""The relay's metrics: the guide's names, what promtool says, both formats, the page, the cost."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from shadowmesh.config import RelayConfig
from shadowmesh.observe.lag import LoopLag
from shadowmesh.observe.metrics import Exposition
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.metrics import collect
from shadowmesh.relay.server import Server
from shadowmesh.testing import guide
from shadowmesh.testing.prometheus import promtool

ROOT = Path(__file__).parents[3]
FORMATS = ["", "application/openmetrics-text"]
PROMTOOL_SAYS = {
    "shadowmesh_relay_latency_ms metric names should not contain abbreviated units",
    'shadowmesh_relay_latency_ms non-summary metrics should not have "quantile" label',
}
"""The guide's name and label."""


def relay() -> Server:
    """A relay that shows all it has."""
    server = Server(RelayConfig(region="eu-west-2"))
    server.listener = cast(
        Any, SimpleNamespace(accepted=9, accept_errors=1, pending_refused=2, tls_failed={"cipher": 3})
    )
    server.certificate = cast(Any, SimpleNamespace(not_after=1.9e9))
    server.lag = LoopLag()
    server.lag.record(0.004, time.monotonic())
    server.counters.joins = 4
    server.counters.drops["queue_full"] = 5
    server.counters.drops["not_here"] = 2
    server.counters.refused["full"] = 6
    server.counters.closes[1013] = 6
    server.counters.latency.record(0.0012, server.started_at, 16)
    return server


def render(server: Server, accept: str = "") -> str:
    return Exposition(lambda: collect(server, server.started_at)).render(accept)[0].decode()


def families(text: str, accept: str) -> list[Any]:
    return list((parse_openmetrics if accept else parse_text)(text))


def samples(accept: str, server: Server | None = None) -> Mapping[tuple[str, ...], float]:
    """(name, values of the labels but for region, in order) → value."""
    return {
        (sample.name, *(value for name, value in sorted(sample.labels.items()) if name != "region")): (
            sample.value
        )
        for family in families(render(server or relay(), accept), accept)
        for sample in family.samples
    }


@pytest.mark.parametrize("accept", FORMATS)
def test_the_names_and_labels_of_the_guide_are_there(accept: str) -> None:
    page = (ROOT / "tests/guide/deployment-guide.md").read_text()
    (block,) = (each for each in guide.blocks(page) if each.section == "Monitoring / Prometheus Metrics")
    wanted = {
        (sample.name, *sorted((name, value) for name, value in sample.labels.items() if name != "region"))
        for family in parse_text(block.text)
        for sample in family.samples
    }
    assert len(wanted) == 8
    exposed = {
        (sample.name, *sorted((name, value) for name, value in sample.labels.items() if name != "region"))
        for family in families(render(relay(), accept), accept)
        for sample in family.samples
        if sample.labels.get("region") == "eu-west-2"
    }
    assert wanted <= exposed


@pytest.mark.parametrize("accept", FORMATS)
def test_values_are_those_of_the_relay(accept: str) -> None:
    found = samples(accept)
    prefix = "shadowmesh_relay_"
    assert found[f"{prefix}frames_dropped",] == 7
    assert found[f"{prefix}drops_total", "queue_full"] == 5
    assert found[f"{prefix}drops_total", "draining"] == 0
    assert found[f"{prefix}refused_total", "full"] == 6
    assert found[f"{prefix}closes_total", "1013"] == 6
    assert found[f"{prefix}joins_total",] == 4
    assert found[f"{prefix}ready",] == 1
    assert found[f"{prefix}draining",] == 0
    assert found[f"{prefix}accepts_total",] == 9
    assert found[f"{prefix}accept_errors_total",] == 1
    assert found[f"{prefix}idle_refused_total",] == 2
    assert found[f"{prefix}tls_failed_total", "cipher"] == 3
    assert found[f"{prefix}certificate_expiry_timestamp_seconds",] == 1.9e9
    assert found[f"{prefix}queue_limit_bytes",] == 256 << 20
    assert found[f"{prefix}loop_lag_worst_seconds",] == 0.004
    assert found[f"{prefix}loop_lag_seconds_count",] == 1
    assert found[f"{prefix}latency_ms", "0.99"] == pytest.approx(1.2, rel=1 / 64)
    assert found[f"{prefix}latency_seconds_bucket", "0.001"] == 0
    assert found[f"{prefix}latency_seconds_bucket", "0.0025"] == 16
    assert found[f"{prefix}latency_seconds_sum",] == pytest.approx(16 * 0.0012)


def test_a_draining_relay_shows_it() -> None:
    server = relay()
    server.draining = True
    found = samples("", server)
    assert (found["shadowmesh_relay_ready",], found["shadowmesh_relay_draining",]) == (0, 1)


def test_promtool_complains_about_names_of_the_guide_only() -> None:
    checked = promtool("check", "metrics", stdin=render(relay()))
    assert set(checked.stderr.splitlines()) == PROMTOOL_SAYS
    assert checked.stdout == ""


@pytest.mark.parametrize("accept", FORMATS)
def test_the_page_has_each_metric_with_its_type_and_labels(accept: str) -> None:
    page = (ROOT / "docs/monitoring.md").read_text().partition("\n## Metrics\n")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| \**`(\w+)`\** \| (\w+) \| (.*?) \|", page, re.MULTILINE)
    listed = {
        name: (kind, set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", labels))))
        for name, kind, labels in rows
    }
    exposed: dict[str, tuple[str, set[str]]] = {}
    for family in families(render(relay(), accept), accept):
        labels = {label for sample in family.samples for label in sample.labels}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        exposed[name] = (family.type, labels)
    assert listed == exposed


@pytest.mark.parametrize("accept", FORMATS)
def test_a_scrape_of_5000_clients_takes_a_few_milliseconds(accept: str) -> None:
    server = relay()
    for number in range(5000):
        name = number.to_bytes(32, "big")
        connection = Connection(server, ("192.0.2.1", 1), "192.0.2.1", "test")
        server.connections.add(connection)
        server.router.join(connection, name, name, name[:16], [name[16:]], 0.0)
    exposition = Exposition(lambda: collect(server, time.monotonic()))
    exposition.render(accept)
    best = 1.0
    for _ in range(5):
        before = time.process_time()
        exposition.render(accept)
        best = min(best, time.process_time() - before)
    assert best < 0.05
