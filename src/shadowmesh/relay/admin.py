"""Health, readiness, status and metrics of the relay over HTTP."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shadowmesh import __version__

if TYPE_CHECKING:
    from shadowmesh.observe.metrics import Exposition
    from shadowmesh.relay.server import Server

LAGGING = 1.0
"""Seconds: an event loop that was late by so much in the last 10 s serves nobody well."""
PROCESSES = 1


def uptime(seconds: float) -> str:
    """Seconds in the style of the guide: `42s`, `5m30s`, `26h0m5s`."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m}m{s}s" if hours else f"{m}m{s}s" if m else f"{s}s"


def loop_lag(server: Server, now: float) -> float:
    """The worst lag of the event loop in the last 10 seconds, in seconds."""
    return server.lag.worst(now) if server.lag is not None else 0.0


def health(server: Server, now: float) -> str:
    """`healthy`, `draining` or `lagging`: only the last is a fault that a restart could mend."""
    if server.draining:
        return "draining"
    return "lagging" if loop_lag(server, now) >= LAGGING else "healthy"


def readiness(server: Server, now: float) -> str:
    """`ready`, or why no new client should be sent here: `draining`, `lagging` or `full`."""
    word = health(server, now)
    if word != "healthy":
        return word
    return "full" if server.admission.full else "ready"


def health_app(server: Server) -> ASGIApp:
    """GET /health (and /), /ready and /status: the guide's JSON; 503 says what a probe must know."""

    def answer(word: str, now: float, code: int, more: dict[str, Any]) -> Response:
        status = {
            "status": word,
            "uptime": uptime(now - server.started_at),
            "connections": server.admission.joined,
            "max_connections": server.admission.max_connections,
            "utilization_pct": round(server.admission.utilization_percent, 2),
            "region": server.config.region,
            "server_name": server.config.server_name,
        }
        return Response(
            json.dumps(status | more, indent=2) + "\n",
            status_code=code,
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    async def on_health(_: Request) -> Response:
        now = time.monotonic()
        word = health(server, now)
        return answer(word, now, 503 if word == "lagging" else 200, {})

    async def on_ready(_: Request) -> Response:
        now = time.monotonic()
        word = readiness(server, now)
        return answer(word, now, 200 if word == "ready" else 503, {})

    async def on_status(_: Request) -> Response:
        now = time.monotonic()
        more = {
            "version": __version__,
            "draining": server.draining,
            "processes": PROCESSES,
            "loop_lag_ms": round(loop_lag(server, now) * 1000, 1),
            "tls": server.certificate is not None,
        }
        return answer(health(server, now), now, 200, more)

    return _app({"": on_health, "/health": on_health, "/ready": on_ready, "/status": on_status})


def metrics_app(server: Server) -> ASGIApp:
    """GET /metrics for Prometheus."""
    made: list[Exposition] = []

    async def metrics(request: Request) -> Response:
        if not made:
            # It takes 30 ms to import, which a start can do without and clients need not wait for.
            made.append(await asyncio.to_thread(_exposition, server))
        body, content_type = made[0].render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return _app({"/metrics": metrics})


def _exposition(server: Server) -> Exposition:
    from shadowmesh.observe.metrics import Exposition
    from shadowmesh.relay.metrics import collect

    return Exposition(lambda: collect(server, time.monotonic()))


def _app(pages: dict[str, Callable[[Request], Awaitable[Response]]]) -> ASGIApp:
    """An application of pages to read, by their paths, which may end in a slash."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope)
        page = pages.get(scope["path"].rstrip("/"))
        if page is None:
            response = Response("Not Found", 404, media_type="text/plain")
        elif request.method not in ("GET", "HEAD"):
            response = Response("Method Not Allowed", 405, {"Allow": "GET, HEAD"}, "text/plain")
        else:
            response = await page(request)
        await response(scope, receive, send)

    return app
