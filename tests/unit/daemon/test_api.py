"""The local API: what /health and /status answer, and to whom."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest

from shadowmesh.daemon.api import create_api

FACTS: dict[str, Any] = {
    "status": "connected",
    "reason": "",
    "uptime": 1.5,
    "version": "1",
    "peers": [{"name": "b"}],
}


def get(path: str, host: str = "127.0.0.1:9090", method: str = "GET", **changes: Any) -> httpx.Response:
    async def request() -> httpx.Response:
        transport = httpx.ASGITransport(create_api(lambda: FACTS | changes))
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090") as client:
            return await client.request(method, path, headers={"Host": host})

    return asyncio.run(request())


def test_status() -> None:
    response = get("/status")
    assert response.status_code == 200
    assert response.json() == FACTS


def test_health_of_a_connected_daemon() -> None:
    response = get("/health")
    assert response.status_code == 200
    assert response.json() == {"status": "connected", "reason": "", "uptime": 1.5, "version": "1"}


@pytest.mark.parametrize("status", ["connecting", "joining", "waiting"])
def test_health_without_a_relay(status: str) -> None:
    response = get("/health", status=status, reason="the relay restarts")
    assert response.status_code == 503
    assert response.json()["reason"] == "the relay restarts"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9090", "[::1]:9090", "192.168.1.5", "[fd00::1]:1"])
def test_hosts_that_no_page_can_point_here(host: str) -> None:
    assert get("/status", host).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:9090",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "127.0.0.1@evil.example",
        "127.1",
        "",
        "[::1",
        "[evil]",
        "a b",
    ],
)
@pytest.mark.parametrize("path", ["/status", "/health"])
def test_a_foreign_host_is_refused(path: str, host: str) -> None:
    response = get(path, host)
    assert response.status_code == 403
    assert response.json() == {"error": "this Host is not served here"}


def test_nothing_else_is_served() -> None:
    assert get("/").status_code == 404
    assert get("/status", method="POST").status_code == 405


def test_answers_are_for_people_too() -> None:
    assert get("/health").text == (
        '{\n  "status": "connected",\n  "reason": "",\n  "uptime": 1.5,\n  "version": "1"\n}\n'
    )
    assert get("/status").headers["content-type"] == "application/json"
