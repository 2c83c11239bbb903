"""The local API: GET /health and /status on `daemon.listen_address`, for the operator of this device."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

Report = Callable[[], dict[str, Any]]


def create_api(status: Report) -> Starlette:
    """status: the facts of /status.

    A page that points its own name at this address (DNS rebinding) is refused by its Host header.
    """

    def guarded(handler: Callable[[], Response]) -> Callable[[Request], Awaitable[Response]]:
        async def answer(request: Request) -> Response:
            if not _is_own(request.headers.get("host", "")):
                return _json({"error": "this Host is not served here"}, 403)
            return handler()

        return answer

    def health() -> Response:
        facts = status()
        healthy = facts["status"] == "connected"
        body = {key: facts[key] for key in ("status", "reason", "uptime", "version")}
        return _json(body, 200 if healthy else 503)

    async def not_found(request: Request, error: Exception) -> Response:
        return PlainTextResponse("not found; there are /health and /status\n", status_code=404)

    return Starlette(
        routes=[
            Route("/health", guarded(health)),
            Route("/status", guarded(lambda: _json(status()))),
        ],
        exception_handlers={404: not_found},
    )


def _json(content: dict[str, Any], status: int = 200) -> Response:
    return Response(json.dumps(content, indent=2) + "\n", status, media_type="application/json")


def _is_own(host: str) -> bool:
    """Whether a Host header names an IP address or localhost, which no page can point anywhere."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or bool(ip_address(name))
    except ValueError:
        return False
