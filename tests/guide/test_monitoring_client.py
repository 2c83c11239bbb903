"""A real Prometheus scrapes a client by the files of monitoring/: each query has data, each alert is well."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from shadowmesh.testing.prometheus import MONITORING, Prometheus
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.reports import Served

INTERVAL = "500ms"
WINDOW = "4s"
"""What stands for Grafana's $__rate_interval at that pace."""
DASHBOARD: dict[str, Any] = json.loads((MONITORING / "grafana-dashboard-client.json").read_text())


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("monitoring")
    client = Served(directory)
    client.link.rtt = 0.02
    (port,) = free_ports(1)
    target = f"127.0.0.1:{client.port}"
    try:
        with Prometheus(directory, port, [target], INTERVAL, "prometheus-client.yml") as scraper:
            scraper.ready()
            full = f"count_over_time(shadowmesh_daemon_connected[{WINDOW}]) >= 6"
            scraper.wait_for(lambda: scraper.query(full), "window full of scrapes", 20)
            yield scraper
    finally:
        client.close()


def filled_in(expression: str) -> str:
    """A query as Grafana sends it with "All" chosen everywhere."""
    expression = expression.replace("$__rate_interval", WINDOW).replace("$job", "shadowmesh-client")
    return expression.replace("$instance", ".+")


def queries() -> list[tuple[str, str]]:
    return [
        (f"{panel['title']} {target['refId']}", target["expr"])
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    ]


@pytest.mark.parametrize("expression", [pytest.param(query, id=name) for name, query in queries()])
def test_a_query_of_the_dashboard_has_data(prometheus: Prometheus, expression: str) -> None:
    series = prometheus.query(filled_in(expression))
    assert series
    assert "NaN" not in [each["value"][1] for each in series]


def test_the_variables_and_the_annotation_can_be_asked_for(prometheus: Prometheus) -> None:
    for variable in DASHBOARD["templating"]["list"][1:]:
        match = re.fullmatch(r"label_values\((\w+(?:\{.*\})?), (\w+)\)", variable["query"]["query"])
        assert match is not None
        values = prometheus.api(f"label/{match[2]}/values", **{"match[]": filled_in(match[1])})
        assert len(values) == 1
    prometheus.query(filled_in(DASHBOARD["annotations"]["list"][1]["expr"]))


def test_every_alert_can_be_evaluated_and_is_quiet(prometheus: Prometheus) -> None:
    def evaluated() -> list[Any] | None:
        (group,) = prometheus.api("rules")["groups"]
        return None if any(rule["health"] == "unknown" for rule in group["rules"]) else group["rules"]

    rules = prometheus.wait_for(evaluated, "evaluation of all alerts")
    assert len(rules) > 8
    for rule in rules:
        assert (rule["health"], rule.get("lastError", "")) == ("ok", ""), rule["name"]
        assert rule["state"] != "firing", rule["name"]
        prometheus.query(rule["query"])
