"""Health, status and metrics of the relay over HTTP."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

if TYPE_CHECKING:
    from shadowmesh.relay.server import Server


def uptime(seconds: float) -> str:
    """Seconds in the style of the guide: `42s`, `5m30s`, `26h0m5s`."""
    minutes, s = divmod(int(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}h{m}m{s}s" if hours else f"{m}m{s}s" if m else f"{s}s"


def health_app(server: Server) -> Starlette:
    """GET /health, /status and / with the JSON of the guide; 503 while the relay is shutting down."""

    async def health(_: Request) -> Response:
        status = {
            "status": "draining" if server.draining else "healthy",
            "uptime": uptime(time.monotonic() - server.started_at),
            "connections": server.admission.joined,
            "max_connections": server.admission.max_connections,
            "utilization_pct": round(server.admission.utilization_percent, 2),
            "region": server.config.region,
            "server_name": server.config.server_name,
        }
        return Response(
            json.dumps(status, indent=2) + "\n",
            status_code=503 if server.draining else 200,
            media_type="application/json",
            headers={"Cache-Control": "no-store"},
        )

    return Starlette(routes=[Route(path, health) for path in ("/", "/health", "/status")])


def metrics_app(server: Server) -> Starlette:
    """GET /metrics for Prometheus."""
    # prometheus_client takes 30 ms to import: only where metrics are wanted.
    from shadowmesh.observe.metrics import Exposition
    from shadowmesh.relay.metrics import collect

    exposition = Exposition(lambda: collect(server, time.monotonic()))

    async def metrics(request: Request) -> Response:
        body, content_type = exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    return Starlette(routes=[Route("/metrics", metrics)])
