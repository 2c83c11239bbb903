"""A real Prometheus scrapes a client by the files of monitoring/: each query has data, each alert is well."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guide.dashboards import WINDOW, Dashboard, check_alerts
from shadowmesh.testing.prometheus import Prometheus
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.reports import Served

INTERVAL = "500ms"
DASHBOARD = Dashboard("grafana-dashboard-client.json", job="shadowmesh-client")


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


@pytest.mark.parametrize("name", DASHBOARD.queries)
def test_a_query_of_the_dashboard_has_data(prometheus: Prometheus, name: str) -> None:
    DASHBOARD.check_query(prometheus, name)


def test_the_variables_can_be_asked_for(prometheus: Prometheus) -> None:
    DASHBOARD.check_variables(prometheus)


def test_every_alert_can_be_evaluated_and_is_quiet(prometheus: Prometheus) -> None:
    check_alerts(prometheus, more_than=8)
