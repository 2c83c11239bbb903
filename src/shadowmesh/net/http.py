"""Small HTTP servers (health, metrics, local API): a Starlette app, served by uvicorn in the running loop.

The one place that imports uvicorn. It gets no signal handlers, no logging configuration and no access log.
Each connection serves one request and has bounds on its size, its time and the number of its like: one too
many costs somebody who keeps a place and asks for nothing, never the one who comes to ask.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
from collections import Counter
from collections.abc import Iterator
from time import monotonic
from typing import cast

from starlette.types import ASGIApp

from shadowmesh import lean
from shadowmesh.net.listen import listen

with lean.bare("uvicorn", Config="uvicorn.config"):  # without its command line and supervisors
    from uvicorn.config import Config
    from uvicorn.protocols.http.h11_impl import H11Protocol
    from uvicorn.server import Server

MAX_HEADER_BYTES = 16 * 1024
MAX_CONNECTIONS = 64
REQUEST_SECONDS = 10.0
ANSWER_SECONDS = 60.0  # after those, to make the answer (some take their time) and to take it
_HEAD_END = re.compile(rb"\n\r?\n")
_TOO_LONG = b'{"error": "the head of the request has more than %d bytes"}\n' % MAX_HEADER_BYTES
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\nConnection: close\r\n\r\n%s" % (len(_TOO_LONG), _TOO_LONG)
)
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
        Config(
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


class _Server(Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Signals belong to the program, not to one of its servers."""
        yield


class _Protocol(H11Protocol):
    """Drops a connection that has not sent a whole request or taken its answer in time, or is one too many.

    uvicorn itself would wait for ever, and answer 503 to everybody when there are too many: one who opens
    connections and says nothing could have a healthy relay restarted.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        if len(self.connections) >= MAX_CONNECTIONS:
            self._make_room()
        super().connection_made(transport)
        self._since = monotonic()
        self._head = 0  # bytes of it so far
        self._last = b""  # of them, where its end may have begun
        self._refused = False
        self._overdue = False
        self._deadline = self.loop.call_later(REQUEST_SECONDS, self._too_slow)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return  # read and forgotten: closed now, it would lose the answer
        if self.cycle is None:
            # h11 has this bound only for a head that comes in several reads.
            end = _HEAD_END.search(self._last + data)
            size = self._head - len(self._last) + end.end() if end else self._head + len(data)
            if size > MAX_HEADER_BYTES:
                self._refused = True
                self.transport.write(_REFUSAL)
                self.transport.write_eof()
                return
            self._head, self._last = size, (self._last + data)[-2:]
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self._deadline.cancel()
        super().connection_lost(exc)

    def _unsupported_upgrade_warning(self) -> None:
        """Anybody can ask for an upgrade; uvicorn's advice about it is not for our log."""

    def _too_slow(self) -> None:
        if self._asks or self._overdue:
            self.transport.abort()
        else:
            self._overdue = True
            self._deadline = self.loop.call_later(ANSWER_SECONDS, self._too_slow)

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
