"""Health, status and metrics of a running relay, as the deployment guide shows them."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from shadowmesh.config import RelayConfig
from shadowmesh.relay.admin import uptime
from shadowmesh.relay.app import Relay, start
from shadowmesh.testing.relay_client import RelayClient, address, frame

LOCAL: dict[str, Any] = {
    "relay_port": 0,
    "health_port": 0,
    "metrics_port": 0,
    "bind_address": "127.0.0.1",
    "health_bind": "127.0.0.1",
    "metrics_bind": "127.0.0.1",
}


def play(scenario: Callable[[Relay, httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        # A copy is not validated: port 0 is for tests only.
        relay = await start(RelayConfig(**settings).model_copy(update=LOCAL))
        try:
            async with httpx.AsyncClient(trust_env=False) as http:
                await scenario(relay, http)
        finally:
            await relay.stop()

    asyncio.run(run())


@pytest.mark.parametrize("path", ["/health", "/status", "/"])
def test_health_has_exactly_the_keys_of_the_guide(path: str) -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        url = f"http://127.0.0.1:{relay.health.port}{path}"
        async with RelayClient(f"ws://127.0.0.1:{relay.listener.port}/relay?peer_id=test") as client:
            await client.join(address("a"))
            response = await http.get(url)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        status = response.json()
        assert re.fullmatch(r"\d+s", status.pop("uptime"))
        assert status == {
            "status": "healthy",
            "connections": 1,
            "max_connections": 400,
            "utilization_pct": 0.25,
            "region": "eu-west-2",
            "server_name": "relay-eu-west-2",
        }

    play(scenario, region="eu-west-2", server_name="relay-eu-west-2", max_connections=400)


def test_health_says_when_it_is_draining() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        relay.server.draining = True
        response = await http.get(f"http://127.0.0.1:{relay.health.port}/health")
        assert (response.status_code, response.json()["status"]) == (503, "draining")

    play(scenario)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0s"), (59.9, "59s"), (330, "5m30s"), (3600, "1h0m0s"), (93_784, "26h3m4s")],
)
def test_uptime(seconds: float, text: str) -> None:
    assert uptime(seconds) == text


def test_metrics_have_the_names_and_labels_of_the_guide() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        url = f"ws://127.0.0.1:{relay.listener.port}/relay?peer_id=test"
        async with RelayClient(url) as a, RelayClient(url) as b:
            await a.join(address("a"), device="a")
            await b.join(address("b"), device="b")
            await a.send(frame(address("b"), address("a"), b"12345"))
            await a.send(frame(address("nobody"), address("a")))
            await b.next_data()
            await a.next_control("gone")
            assert relay.metrics is not None
            response = await http.get(f"http://127.0.0.1:{relay.metrics.port}/metrics")
        assert response.headers["content-type"].startswith("text/plain; version=0.0.4")
        lines = response.text.splitlines()
        for line in (
            'shadowmesh_relay_connections{region="us-east-1"} 2.0',
            'shadowmesh_relay_max_connections{region="us-east-1"} 1000.0',
            'shadowmesh_relay_utilization_percent{region="us-east-1"} 0.2',
            'shadowmesh_relay_frames_total{region="us-east-1"} 2.0',
            'shadowmesh_relay_frames_dropped{region="us-east-1"} 1.0',
            'shadowmesh_relay_bytes_relayed{region="us-east-1"} 38.0',
            'shadowmesh_relay_drops_total{reason="not_here",region="us-east-1"} 1.0',
            'shadowmesh_relay_drops_total{reason="queue_full",region="us-east-1"} 0.0',
            'shadowmesh_relay_frames_relayed_total{region="us-east-1"} 1.0',
        ):
            assert line in lines
        quantiles = [line for line in lines if line.startswith("shadowmesh_relay_latency_ms{")]
        assert [re.sub(r" [\d.]+$", "", line) for line in quantiles] == [
            'shadowmesh_relay_latency_ms{quantile="0.5",region="us-east-1"}',
            'shadowmesh_relay_latency_ms{quantile="0.99",region="us-east-1"}',
        ]

    play(scenario)


def test_metrics_can_be_off() -> None:
    async def scenario(relay: Relay, _: httpx.AsyncClient) -> None:
        assert relay.metrics is None

    play(scenario, metrics_enabled=False)
