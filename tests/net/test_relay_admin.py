"""Health, status and metrics of a running relay, as the deployment guide shows them."""

from __future__ import annotations

import asyncio
import platform
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest

from shadowmesh import __version__
from shadowmesh.config import RelayConfig
from shadowmesh.relay.app import Relay, start
from shadowmesh.testing.relay_client import RelayClient, address, frame, key, public

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


GUIDE_KEYS = [
    "status",
    "uptime",
    "connections",
    "max_connections",
    "utilization_pct",
    "region",
    "server_name",
]


async def ask(relay: Relay, http: httpx.AsyncClient, path: str) -> httpx.Response:
    return await http.get(f"http://127.0.0.1:{relay.health.port}{path}")


@pytest.mark.parametrize("path", ["/health", "/status", "/ready", "/"])
def test_all_begin_with_the_keys_of_the_guide(path: str) -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        async with RelayClient(f"ws://127.0.0.1:{relay.listener.port}/relay?peer_id=test") as client:
            await client.join(address("a"))
            response = await ask(relay, http, path)
        assert response.status_code == 200
        assert response.headers["content-type"] == "application/json"
        assert response.headers["cache-control"] == "no-store"
        status = response.json()
        assert list(status)[:7] == GUIDE_KEYS
        assert len(status) == 7 or path == "/status"
        assert re.fullmatch(r"\d+s", status["uptime"])
        assert [status[key] for key in GUIDE_KEYS if key != "uptime"] == [
            "ready" if path == "/ready" else "healthy",
            1,
            400,
            0.25,
            "eu-west-2",
            "relay-eu-west-2",
        ]

    play(scenario, region="eu-west-2", server_name="relay-eu-west-2", max_connections=400)


def test_status_says_more() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        status = (await ask(relay, http, "/status")).json()
        assert 0 <= status.pop("loop_lag_ms") < 1000
        assert {key: value for key, value in status.items() if key not in GUIDE_KEYS} == {
            "version": __version__,
            "draining": False,
            "processes": 1,
            "tls": False,
        }

    play(scenario)


async def answers(relay: Relay, http: httpx.AsyncClient) -> list[tuple[int, str]]:
    responses = [await ask(relay, http, path) for path in ("/health", "/ready", "/status")]
    return [(response.status_code, response.json()["status"]) for response in responses]


def test_a_draining_relay_is_healthy_but_not_ready() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        relay.server.draining = True
        assert await answers(relay, http) == [(200, "draining"), (503, "draining"), (200, "draining")]
        assert (await ask(relay, http, "/status")).json()["draining"] is True

    play(scenario)


def test_a_full_relay_is_healthy_but_not_ready() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        async with RelayClient(f"ws://127.0.0.1:{relay.listener.port}/relay?peer_id=test") as client:
            await client.join(address("a"))
            assert await answers(relay, http) == [(200, "healthy"), (503, "full"), (200, "healthy")]

    play(scenario, max_connections=1)


def test_a_relay_whose_event_loop_stood_still_is_neither() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        await asyncio.sleep(0)  # the measurement is under way
        time.sleep(1.2)  # holds the loop up
        assert await answers(relay, http) == [(503, "lagging"), (503, "lagging"), (200, "lagging")]
        assert (await ask(relay, http, "/status")).json()["loop_lag_ms"] >= 1000

    play(scenario)


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
            f'shadowmesh_build_info{{python_version="{platform.python_version()}",region="us-east-1",'
            f'server_name="relay-here",version="{__version__}"}} 1.0',
            'shadowmesh_relay_connections{region="us-east-1"} 2.0',
            'shadowmesh_relay_max_connections{region="us-east-1"} 1000.0',
            'shadowmesh_relay_utilization_percent{region="us-east-1"} 0.2',
            'shadowmesh_relay_frames_total{region="us-east-1"} 2.0',
            'shadowmesh_relay_frames_dropped{region="us-east-1"} 1.0',
            'shadowmesh_relay_bytes_relayed{region="us-east-1"} 38.0',
            'shadowmesh_relay_bytes_received_total{region="us-east-1"} 78.0',
            'shadowmesh_relay_joins_total{region="us-east-1"} 2.0',
            'shadowmesh_relay_accepts_total{region="us-east-1"} 2.0',
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

    play(scenario, server_name="relay-here")


def test_nothing_names_a_client() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        async with RelayClient(f"ws://127.0.0.1:{relay.listener.port}/relay?peer_id=test-peer") as client:
            await client.join(address("a"))
            assert relay.metrics is not None
            pages = [(await ask(relay, http, path)).text for path in ("/health", "/ready", "/status")]
            pages.append((await http.get(f"http://127.0.0.1:{relay.metrics.port}/metrics")).text)
        names = [public(key(name)).hex()[:8] for name in ("network", "device")]
        for page in pages:
            for name in (*names, address("a").hex()[:8], "test-peer", "test/1", "127.0.0.1"):
                assert name not in page

    play(scenario)


def test_metrics_can_be_off() -> None:
    async def scenario(relay: Relay, _: httpx.AsyncClient) -> None:
        assert relay.metrics is None

    play(scenario, metrics_enabled=False)


REQUESTS = {
    ("GET", "/health/"): 200,
    ("HEAD", "/health"): 200,
    ("GET", "/metrics"): 404,
    ("GET", "/health/x"): 404,
    ("POST", "/health"): 405,
}


def test_other_paths_and_methods_are_refused() -> None:
    async def scenario(relay: Relay, http: httpx.AsyncClient) -> None:
        url = f"http://127.0.0.1:{relay.health.port}"
        answers = [(await http.request(method, url + path)) for method, path in REQUESTS]
        assert [answer.status_code for answer in answers] == list(REQUESTS.values())
        assert answers[-1].headers["allow"] == "GET, HEAD"

    play(scenario)
