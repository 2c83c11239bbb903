"""The guide's monitoring chapter: a real Prometheus scrapes a real relay that works.

It runs with the files of monitoring/: every query of the dashboard has data, every alert can be evaluated.
"""

from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from guide.dashboards import WINDOW, Dashboard, check_alerts
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.prometheus import Prometheus
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_program import RelayProgram, free_ports
from shadowmesh.wire.frame import HEADER_SIZE

INTERVAL = 0.5
"""Seconds between scrapes."""
FULL = f"count_over_time(shadowmesh_relay_joins_total[{WINDOW}]) >= 7 and shadowmesh_relay_joins_total == 2"
PAYLOAD = 1000
DASHBOARD = Dashboard("grafana-dashboard.json", job="shadowmesh-relay", region="us-east-1")


async def load(relay: RelayProgram, trust: ssl.SSLContext, enough: threading.Event) -> None:
    """Two clients send each other frames; a third was refused before, so that a close code was sent."""

    def client() -> RelayClient:
        return RelayClient(relay.url.replace("ws://", "wss://"), ssl=trust)

    async with client() as a, client() as b:
        async with client() as stranger:
            await stranger.send("not a join")
            await stranger.closed()
        await a.join(address("a"), device="a")
        await b.join(address("b"), device="b")
        while not enough.is_set():
            await a.send(frame(address("b"), address("a"), bytes(PAYLOAD)))
            await b.send(frame(address("a"), address("b"), bytes(PAYLOAD)))
            await asyncio.gather(a.next_data(), b.next_data())
            await asyncio.sleep(0.005)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    directory = tmp_path_factory.mktemp("monitoring")
    files = make_certificate(directory, ["127.0.0.1"])
    trust = ssl.create_default_context(cafile=files.ca)
    tls = {"cert_file": str(files.cert), "key_file": str(files.key)}
    (port,) = free_ports(1)
    with (
        ThreadPoolExecutor(1) as executor,
        RelayProgram(directory, {"tls": tls}) as relay,
        Prometheus(
            directory, port, [f"127.0.0.1:{relay.metrics_port}"], f"{INTERVAL * 1000:.0f}ms"
        ) as scraper,
    ):
        relay.ready()
        scraper.ready()
        enough = threading.Event()
        loading = executor.submit(lambda: asyncio.run(load(relay, trust, enough)))
        try:
            scraper.wait_for(lambda: loading.done() or scraper.query(FULL), "window full of scrapes", 20)
            yield scraper
        finally:
            enough.set()
        loading.result(10)


def test_the_relay_is_scraped(prometheus: Prometheus) -> None:
    (target,) = prometheus.api("targets")["activeTargets"]
    assert (target["labels"]["job"], target["health"], target["lastError"]) == ("shadowmesh-relay", "up", "")


def test_the_types_arrive(prometheus: Prometheus) -> None:
    kinds = {name: each[0]["type"] for name, each in prometheus.api("metadata").items()}
    assert kinds["shadowmesh_relay_latency_seconds"] == "histogram"
    assert kinds["shadowmesh_relay_frames_dropped"] == "unknown"
    assert kinds["shadowmesh_relay_latency_ms"] == "gauge"


@pytest.mark.parametrize("name", DASHBOARD.queries)
def test_a_query_of_the_dashboard_has_data(prometheus: Prometheus, name: str) -> None:
    DASHBOARD.check_query(prometheus, name)


def test_the_numbers_are_those_of_the_load(prometheus: Prometheus) -> None:
    panels = DASHBOARD.queries

    def one(name: str, expression: str = "{}") -> float:
        (series,) = prometheus.query(DASHBOARD.filled_in(expression.replace("{}", panels[name])))
        return float(series["value"][1])

    assert one("Frames relayed A") > 10
    bits = one("Bits relayed A", f"({{}}) / ({panels['Frames relayed A']})")
    assert bits == pytest.approx(8 * (HEADER_SIZE + PAYLOAD))
    assert 0 < one("Latency p99 A") < 1000
    assert one("Queue drops A") == 0
    assert one("Certificate A") == pytest.approx(30 * 86400, abs=300)
    assert one("Open files A") > 5


def test_the_variables_and_the_annotation_can_be_asked_for(prometheus: Prometheus) -> None:
    DASHBOARD.check_variables(prometheus)
    prometheus.query(DASHBOARD.filled_in(DASHBOARD.content["annotations"]["list"][1]["expr"]))


def test_every_alert_can_be_evaluated_and_is_quiet(prometheus: Prometheus) -> None:
    check_alerts(prometheus, more_than=20)
