"""The local API on `daemon.listen_address`: what there is to see, and, with the token, to change.

Whoever can open a connection to it may look. A web page in a browser on this host can open one, too: so it is
answered only under its own IP or as localhost (no name that a page could point here, "DNS rebinding"), never
to another Origin, and without CORS. Changes need the token, which no page has.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from functools import cached_property
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any, NamedTuple

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from shadowmesh.config.client import DaemonConfig
from shadowmesh.daemon.control import Control
from shadowmesh.daemon.openapi import DESCRIPTION
from shadowmesh.daemon.ping import MAX_COUNT, UnknownPeer
from shadowmesh.daemon.token import Token
from shadowmesh.errors import ConfigError, ShadowMeshError, StartError, TunError
from shadowmesh.net.http import HttpServer, serve_http
from shadowmesh.observe.logging import get_logger, log_not_reloaded

MAX_BODY = 4096
_SAME_SITE = {"none", "same-origin"}  # Sec-Fetch-Site of what no other page has asked for
_JSON = "application/json"
# No more than this: what some parsers take for a port or drop behind the name is a way in for another name.
_HOST = re.compile(
    r"(?:\[([0-9a-f]*:[0-9a-f:.]+)\]|([0-9.]+|localhost))(?::[0-9]{1,5})?", re.ASCII | re.IGNORECASE
)

log = get_logger("daemon")

Fields = Mapping[str, Any]
Answer = Awaitable[Response]


class Refused(Exception):
    """An answer that is an error."""

    def __init__(
        self, status: int, error: str, headers: dict[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(error)
        self.response = answer({"error": error} | more, status, headers)


class ApiServer(NamedTuple):
    """The running local API; made by `serve_api`."""

    server: HttpServer
    token: Token

    async def close(self) -> None:
        """Stop serving and remove the token."""
        await self.server.close()
        self.token.close()


async def serve_api(control: Control, config: DaemonConfig) -> ApiServer:
    """Serve the API as configured. Raises StartError in words."""
    listen = config.listen_address
    token = Token(config.token_file)
    if token.trouble:
        log.warning("no token, nothing can be changed by the local API", why=token.trouble)
    try:
        server = await serve_http(
            create_api(control, token), listen.host, listen.port, "daemon.listen_address"
        )
    except StartError as error:
        token.close()
        if "another program has this port" not in str(error):
            raise
        raise StartError(
            f"{error}: for this daemon daemon.listen_address, such as 127.0.0.1:9091; if a relay runs on "
            "this host, whose metrics are on 9090 too, its metrics_port would do as well"
        ) from None
    return ApiServer(server, token)


def create_api(control: Control, token: Token) -> ASGIApp:
    """The API as an ASGI application."""
    return _Api(control, token)


def answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """A JSON response, for people too."""
    fields = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"} | (headers or {})
    return Response(json.dumps(content, indent=2) + "\n", status, fields, media_type=_JSON)


class _Api:
    def __init__(self, control: Control, token: Token) -> None:
        self._control = control
        self._token = token
        self._gets: dict[str, Callable[[Request], Answer]] = {
            "/health": self._health,
            "/status": self._status,
            "/peers": self._peers,
            "/metrics": self._metrics,
            "/openapi.json": self._openapi,
        }
        self._posts: dict[str, Callable[[Fields], Answer]] = {
            "/connect": self._connect,
            "/disconnect": self._disconnect,
            "/reload": self._reload,
            "/trust": self._trust,
            "/ping": self._ping,
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request = Request(scope, receive)
        try:
            response = await self._route(request)
        except Refused as refused:
            response = refused.response
        except ConfigError as error:
            response = answer({"error": "the configuration has mistakes", "problems": error.problems}, 409)
        except ShadowMeshError as error:
            response = answer({"error": str(error)}, 409)
        except ClientDisconnect:
            return
        await response(scope, receive, send)

    async def _route(self, request: Request) -> Response:
        _check_source(request)
        path = request.scope["path"]
        if path in self._gets:
            if request.method not in ("GET", "HEAD"):
                raise Refused(405, f"{path} is for GET", {"Allow": "GET, HEAD"})
            return await self._gets[path](request)
        if path in self._posts:
            if request.method != "POST":
                raise Refused(405, f"{path} is for POST", {"Allow": "POST"})
            return await self._posts[path](await self._checked(request))
        raise Refused(404, "no such path", paths=[*self._gets, *self._posts])

    async def _checked(self, request: Request) -> Fields:
        """The JSON object in the body of a request that may change something."""
        if request.headers.get("content-type", "").partition(";")[0].strip().lower() != _JSON:
            raise Refused(415, f"Content-Type must be {_JSON}")
        if self._token.trouble:
            raise Refused(503, f"there is no token that would allow this: {self._token.trouble}")
        scheme, _, shown = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not self._token.matches(shown.strip()):
            raise Refused(
                401,
                f"this needs the token in {self._token.path} as Authorization: Bearer TOKEN",
                {"WWW-Authenticate": "Bearer"},
            )
        return await _body(request)

    # -- to see

    async def _health(self, request: Request) -> Response:
        facts = self._control.report.health()
        return answer(facts, 200 if facts["status"] == "connected" else 503)

    async def _status(self, request: Request) -> Response:
        return answer(self._control.report.status())

    async def _peers(self, request: Request) -> Response:
        return answer({"peers": self._control.report.peers()})

    async def _metrics(self, request: Request) -> Response:
        body, content_type = self._exposition.render(request.headers.get("accept", ""))
        return Response(body, headers={"Content-Type": content_type})

    @cached_property
    def _exposition(self) -> Any:
        # prometheus_client takes 30 ms to import: only where metrics are wanted.
        from shadowmesh.daemon.metrics import collect
        from shadowmesh.observe.metrics import Exposition

        return Exposition(lambda: collect(self._control.report))

    async def _openapi(self, request: Request) -> Response:
        return answer(DESCRIPTION)

    # -- to change

    async def _connect(self, fields: Fields) -> Response:
        _only(fields)
        self._control.connect()
        return answer(self._control.report.health())

    async def _disconnect(self, fields: Fields) -> Response:
        _only(fields)
        await self._control.disconnect()
        return answer(self._control.report.health())

    async def _reload(self, fields: Fields) -> Response:
        _only(fields)
        try:
            return answer(await self._control.reload())
        except (ConfigError, StartError, TunError) as error:
            log_not_reloaded(log, error)
            raise

    async def _trust(self, fields: Fields) -> Response:
        _only(fields, "ip", "fingerprint")
        expected = _text(fields, "fingerprint") if "fingerprint" in fields else ""
        return answer(self._control.trust(_text(fields, "ip"), expected))

    async def _ping(self, fields: Fields) -> Response:
        _only(fields, "peer", "count")
        count = fields.get("count", 1)
        if type(count) is not int or not 1 <= count <= MAX_COUNT:
            raise Refused(400, f"count is not a number from 1 to {MAX_COUNT}")
        try:
            return answer(await self._control.ping(_text(fields, "peer"), count))
        except UnknownPeer as error:
            raise Refused(404, str(error)) from None


def _check_source(request: Request) -> None:
    """Refuse what another site's page could have asked for, whatever the path. Raises Refused."""
    host, *others = request.headers.getlist("host") or [""]
    if others or not _is_own(host, request.scope.get("server")):
        raise Refused(403, "this Host is not served here: use this address or localhost")
    origins, sites = request.headers.getlist("origin"), request.headers.getlist("sec-fetch-site")
    foreign = any(origin.lower() != f"http://{host}".lower() for origin in origins)
    if foreign or len(origins) > 1 or not set(sites) <= _SAME_SITE:
        raise Refused(403, "no web page of another origin may ask")


def _is_own(host: str, server: tuple[str, int | None] | None) -> bool:
    """Whether a Host header names localhost or the address that this connection came to."""
    name = _HOST.fullmatch(host)
    if name is None:
        return False
    if host[0] in "lL":
        return True
    try:
        return server is not None and _ip(name[1] or name[2]) == _ip(server[0])
    except ValueError:
        return False


def _ip(text: str) -> IPv4Address | IPv6Address:
    """IPv4-mapped (a client of ours on a dual-stack socket) becomes IPv4."""
    ip = ip_address(text)
    return getattr(ip, "ipv4_mapped", None) or ip


async def _body(request: Request) -> Fields:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise Refused(413, f"the body has more than {MAX_BODY} bytes")
    try:
        fields = json.loads(body or b"{}")
    except (ValueError, RecursionError):
        fields = None
    if not isinstance(fields, dict):
        raise Refused(400, "the body is not a JSON object")
    return fields


def _only(fields: Fields, *known: str) -> None:
    if unknown := sorted(fields.keys() - set(known)):
        raise Refused(400, f"unknown field in the body: {unknown[0][:40]!r}")


def _text(fields: Fields, name: str) -> str:
    value = fields.get(name)
    if not isinstance(value, str) or not value:
        raise Refused(400, f"the body lacks {name!r}, a string")
    return value
