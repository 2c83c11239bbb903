"""Small HTTP servers (health, metrics, local API): a Starlette app, served by uvicorn in the running loop.

The one place that imports uvicorn. It gets no signal handlers, no logging configuration and no access log.
Each connection serves one request and has bounds on its size, its time and the number of its like: one too
many costs somebody who keeps a place and asks for nothing, never the one who comes to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from shadowmesh.net.listen import listen

MAX_HEADER_BYTES = 16 * 1024
MAX_CONNECTIONS = 64
REQUEST_SECONDS = 10.0
SHUTDOWN_SECONDS = 1


class HttpServer:
    """A running HTTP server; made by `serve_http`."""

    def __init__(self, server: _Server, task: asyncio.Task[None], port: int) -> None:
        self._server = server
        self._task = task
        self.port = port

    async def close(self) -> None:
        """Stop listening, let running requests end (at most a second), and free the port."""
        self._server.should_exit = True
        await self._task


async def serve_http(app: ASGIApp, host: str | None, port: int, what: str) -> HttpServer:
    """Serve `app` on `host` (None: all interfaces, IPv4 and IPv6) and `port` (0: any free one).

    `what` names the port in the StartError that is raised when it cannot be had, e.g. "health_port".
    """
    listener = listen(host, port, what)
    server = _Server(
        uvicorn.Config(
            app,
            http=_Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            headers=[("Connection", "close")],
            h11_max_incomplete_event_size=MAX_HEADER_BYTES,
            timeout_graceful_shutdown=SHUTDOWN_SECONDS,
        )
    )
    task = asyncio.create_task(server.serve(sockets=[listener]), name=f"http {what}")
    while not server.started and not task.done():
        await asyncio.sleep(0)
    if task.done():
        listener.close()
        task.result()
    return HttpServer(server, task, listener.getsockname()[1])


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the program, not to one of its servers."""
        yield


class _Protocol(H11Protocol):
    """Drops a connection that has not sent a whole request in time, or that is one too many.

    uvicorn itself would wait for ever, and answer 503 to everybody when there are too many: one who opens
    connections and says nothing could have a healthy relay restarted.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MAX_CONNECTIONS:
            self._make_room()
        super().connection_made(transport)
        self._since = monotonic()
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._too_slow)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Anybody can ask for an upgrade; uvicorn's advice about it is not for our log."""

    def _too_slow(self) -> None:
        if self._asks:
            self.transport.abort()

    @property
    def _asks(self) -> bool:
        """Whether it has yet to send the rest of its request."""
        return self.cycle is None or self.cycle.more_body

    @property
    def _source(self) -> str:
        return self.client[0] if self.client else ""

    def _make_room(self) -> None:
        """Drop the oldest connection that has not sent its request, of the source that has most of them.

        If all are being answered, it is the oldest that does not take its answer.
        """
        connections = cast(set[_Protocol], self.connections)
        idle = [each for each in connections if each._asks] or list(connections)
        share = Counter(each._source for each in idle)
        victim = min(idle, key=lambda each: (-share[each._source], each._since))
        connections.discard(victim)  # now, for connection_lost comes later
        victim.transport.abort()
