"""Accepting WebSocket connections: `serve`. See `net.websocket` for the rules of a connection.

The accept path is our own because picows shows its upgrade factory no peer address. Connections that have not
sent their upgrade request yet are unknown to everybody else, so they are bounded here: in time, in all, and
per source. picows and OpenSSL get a connection only with its first byte, which tells TLS (22) from all else:
who is silent costs a socket and no more, and who speaks the wrong one of both hears so at once.

An upgrade costs the server a fraction of a millisecond, and TLS a signature besides: a few are begun in each
turn of the event loop, so that a crowd that comes back does not stop the frames of those who are there. A
handshake that fails is counted, and logged once a minute at most; anybody can cause one.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import sys
from asyncio import AbstractEventLoop, Task, TimerHandle
from base64 import b64decode
from collections import Counter, deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from ipaddress import ip_address
from ssl import SSLContext
from time import monotonic
from typing import Any
from typing import Protocol as Interface
from urllib.parse import parse_qsl

import aiofastnet
from picows import WSUpgradeRequest, WSUpgradeResponse, WSUpgradeResponseWithListener

from shadowmesh.net.listen import listen
from shadowmesh.net.protocol import READ_BUFFER, TLS_OPTIONS, Protocol, host_port
from shadowmesh.net.tls import FAILURES, failure
from shadowmesh.net.turn import TurnClock
from shadowmesh.net.websocket import EARLY_LIMIT, WebSocket
from shadowmesh.ratelimit import TokenBucket

if sys.platform != "win32":
    from resource import RLIM_INFINITY, RLIMIT_NOFILE, getrlimit

UPGRADE_SECONDS = 10.0
UNSENT_BYTES = 256 * 1024
"""What the kernel keeps of a connection beyond what is under way; else 4 MB for each that stops reading. With
less, a busy client's frames would wait in its outbox now and then, which costs a copy of each."""
ACCEPTS_PER_WAKEUP = 64
ACCEPT_PAUSE = 0.2
"""Seconds without accepting after an error such as EMFILE, which trying again at once would only repeat."""
RESERVED_FILES = 32
"""File descriptors that are left to the HTTP ports and to files that are read later; a quarter of few."""
SECONDS_BETWEEN_LINES = 60.0
"""Of the log, about file descriptors and about TLS, each."""
MAX_PENDING = 1024
"""Connections without an upgrade request yet; the oldest goes when there are more."""
MAX_PENDING_PER_SOURCE = 64
"""The same per source address, loopback and `Server.trusted` (reverse proxies) excepted; the newest is
refused."""
STARTS_PER_TURN = 16
"""Connections without TLS begun in one turn of the event loop."""
HANDSHAKES_PER_TURN = 4
"""TLS handshakes begun in one turn of the event loop; each takes 0.5 to 5 ms, depending on the key."""
_TLS_HELLO = b"\x16"  # RFC 8446 section 5.1: a record of type handshake
_WORDS = b"This port speaks TLS: wss:// or https://\n"
_SPEAK_TLS = (
    b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\nContent-Type: text/plain\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_WORDS), _WORDS)
)


@dataclass(frozen=True, slots=True)
class Request:
    """A WebSocket upgrade request. `path` is as sent, without the query; names of `headers` in any case."""

    path: str
    query: dict[str, str]
    headers: Mapping[str, str] = field(repr=False)  # an API key may be in it
    remote: tuple[str, int]
    subprotocols: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Reject:
    """An HTTP answer (`status` ≥ 400) instead of the upgrade; `body` is plain text."""

    status: int
    body: str
    headers: dict[str, str] = field(default_factory=dict)


class Log(Interface):
    """What a Server writes to; structlog's loggers do."""

    def info(self, event: str, **facts: Any) -> object:
        """Write a line."""

    def warning(self, event: str, **facts: Any) -> object:
        """Write a line that somebody should see."""


class Server:
    """A listening WebSocket server; made by `serve`.

    `ssl`, `read_buffer_size` and `trusted` may be changed at any time; new connections get them.
    """

    def __init__(
        self,
        listener: socket.socket,
        upgrade: Callable[[Request], WebSocket | Reject],
        max_frame: int,
        ssl: SSLContext | None,
        read_buffer_size: int,
    ) -> None:
        self.port: int = listener.getsockname()[1]
        self.max_frame = max_frame
        self.ssl = ssl
        """TLS for all new connections, or None for none."""
        self.read_buffer_size = read_buffer_size
        """Bytes of the first read buffer, see `first_buffer` of `net.protocol`; it grows as needed."""
        self.trusted: Callable[[str], bool] = _nobody
        """Whether this IP is a reverse proxy, through which many come: it may have any number pending."""
        self.source_of: Callable[[str], str] = str
        """What counts as one source, of an IP."""
        self.admits: Callable[[str], bool] = _everybody
        """Whether a connection from this IP is let in; if not, it is closed at once."""
        self.refuses: Callable[[Request], Reject | None] = _nothing
        """Says no to a request for where it comes from, before it is known whether it is a good one."""
        self.refused: Callable[[int], None] = _ignored
        """Hears the status of each refusal that is not from `refuses`, the upgrade handler or picows."""
        self.log: Log | None = None
        """Of what is wrong with the host or its TLS; at a bounded rate, and without a word of a client's."""
        self.clock = TurnClock()
        """Of the turns that read from connections."""
        self.connections: set[WebSocket] = set()
        """Those whose upgrade was accepted and which are not lost."""
        self.accepted = 0
        """Connections accepted by the kernel for us, whatever became of them."""
        self.accept_errors = 0
        """Failed accept() calls, and connections closed at once to keep file descriptors for others."""
        self.pending_refused = 0
        """Connections closed because too many had not sent their request."""
        self.tls_failed = Counter(dict.fromkeys(FAILURES, 0))
        """Connections that did not get through TLS, by reason; see FAILURES of `net.tls`."""
        self._loop: AbstractEventLoop = asyncio.get_running_loop()
        self._listener: socket.socket | None = listener
        self._upgrade = upgrade
        self._pending: dict[_Pending, None] = {}
        self._pending_from: Counter[str] = Counter()
        self._ready: deque[_Pending] = deque()
        self._tasks: set[Task[Any]] = set()
        self._all_closed = asyncio.Event()
        self._alive = 0
        self._files_line = TokenBucket(1 / SECONDS_BETWEEN_LINES, 1)
        self._tls_line = TokenBucket(1 / SECONDS_BETWEEN_LINES, 1)
        self._tls_unlogged = 0
        self._file_bound = _file_limit()[0]
        listener.setblocking(False)
        self._loop.add_reader(listener, self._accept, listener)

    def close(self) -> None:
        """Stop listening and drop connections that are not upgraded; the others go on."""
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
            for pending in list(self._pending):
                self._drop(pending)
            if not self._alive:
                self._all_closed.set()

    async def wait_closed(self) -> None:
        """Wait until `close` was called and every connection is lost."""
        await self._all_closed.wait()

    # From here on called by the event loop and by _ServerProtocol only.

    def _accept(self, listener: socket.socket) -> None:
        for _ in range(ACCEPTS_PER_WAKEUP):
            try:
                connection, address = listener.accept()
            except BlockingIOError:
                return
            except ConnectionAbortedError:
                continue
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE):
                    self._say_files(_file_limit()[1])
                self._pause(listener)
                return
            if connection.fileno() >= self._file_bound and self._files_run_out(connection.fileno()):
                connection.close()
                self._pause(listener)
                return
            self.accepted += 1
            try:
                self._admit(connection, host_port(address)[0])
            except Exception as exc:
                connection.close()
                self._loop.call_exception_handler({"message": "cannot admit a connection", "exception": exc})

    def _files_run_out(self, number: int) -> bool:
        """Whether a connection with this file descriptor takes one of those that are left to others."""
        self._file_bound = _file_limit()[0]  # it may have been raised meanwhile
        if number < self._file_bound:
            return False
        self._say_files(number)
        return True

    def _say_files(self, taken: int) -> None:
        if self.log is not None and self._files_line.take(monotonic()):
            self.log.warning(
                "file descriptors run out, newcomers are refused; raise LimitNOFILE of the service",
                open=taken,
                allowed=_file_limit()[1],
            )

    def _pause(self, listener: socket.socket) -> None:
        self.accept_errors += 1
        self._loop.remove_reader(listener)
        self._loop.call_later(ACCEPT_PAUSE, self._resume, listener)

    def _resume(self, listener: socket.socket) -> None:
        if self._listener is listener:
            self._loop.add_reader(listener, self._accept, listener)

    def _admit(self, connection: socket.socket, ip: str) -> None:
        if not self.admits(ip):
            connection.close()
            return
        source = self.source_of(ip)
        if self._pending_from[source] >= MAX_PENDING_PER_SOURCE and not (
            _is_loopback(ip) or self.trusted(ip)
        ):
            self.pending_refused += 1
            connection.close()
            return
        if len(self._pending) >= MAX_PENDING:
            self.pending_refused += 1
            self._drop(next(iter(self._pending)))
        connection.setblocking(False)
        if hasattr(socket, "TCP_NOTSENT_LOWAT"):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, UNSENT_BYTES)
        pending = _Pending(connection, source)
        self._loop.add_reader(connection, self._first_byte, pending)
        pending.deadline = self._loop.call_later(UPGRADE_SECONDS, self._drop, pending)
        self._pending[pending] = None
        self._pending_from[source] += 1
        self._alive += 1

    def _first_byte(self, pending: _Pending) -> None:
        connection = pending.connection
        try:
            head = connection.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return
        except OSError:
            head = b""
        self._loop.remove_reader(connection)
        if not head or pending not in self._pending:
            self._end(pending)
        elif (head == _TLS_HELLO) != (self.ssl is not None):
            self._no_tls("tls_off" if self.ssl is None else "not_tls")
            if self.ssl is not None:
                with suppress(OSError):
                    connection.recv(65536)  # closing with input unread would take the answer back
                    connection.send(_SPEAK_TLS)
            self._end(pending)
        else:
            pending.secure = self.ssl is not None
            self._ready.append(pending)
            if len(self._ready) == 1:
                self._loop.call_soon(self._start_some)

    def _start_some(self) -> None:
        for _ in range(min(STARTS_PER_TURN if self.ssl is None else HANDSHAKES_PER_TURN, len(self._ready))):
            pending = self._ready.popleft()
            if pending in self._pending and pending.secure == (self.ssl is not None):
                self._start(pending, self.ssl)
            else:
                self._end(pending)
        if self._ready:
            self._loop.call_soon(self._start_some)

    def _start(self, pending: _Pending, ssl: SSLContext | None) -> None:
        protocol = pending.protocol = _ServerProtocol(self, pending)
        starting = aiofastnet.connect_accepted_socket(
            protocol.for_tls(self._loop) if ssl else self._loop,
            lambda: protocol,
            pending.connection,
            ssl=ssl,
            **(TLS_OPTIONS | {"ssl_handshake_timeout": UPGRADE_SECONDS} if ssl else {}),
        )
        task = self._loop.create_task(starting)
        self._tasks.add(task)
        task.add_done_callback(lambda task: self._started(task, protocol, pending, ssl is not None))

    def _started(self, task: Task[Any], protocol: _ServerProtocol, pending: _Pending, secure: bool) -> None:
        self._tasks.discard(task)
        error = None if task.cancelled() else task.exception()
        # connection_lost comes only to a protocol that connection_made came to.
        if (error or task.cancelled()) and protocol.transport is None:
            if secure:
                # What was dropped here is settled.
                self._no_tls(failure(error) if pending in self._pending else "too_slow")
            self._end(pending)
        # A peer that breaks off, or fails in TLS, is no news.
        if error is not None and not isinstance(error, OSError):
            self._loop.call_exception_handler({"message": "cannot start a connection", "exception": error})

    def _no_tls(self, reason: str) -> None:
        self.tls_failed[reason] += 1
        self._tls_unlogged += 1
        if self.log is not None and self._tls_line.take(monotonic()):
            self.log.info("TLS handshake failed", why=reason, unlogged_before=self._tls_unlogged - 1)
            self._tls_unlogged = 0

    def _drop(self, pending: _Pending) -> None:
        """End a connection that is too slow or one too many."""
        self.settled(pending)
        with suppress(OSError):
            # Whatever it waits for, it now reads the end of the stream.
            pending.connection.shutdown(socket.SHUT_RDWR)
        # But uvloop by itself is deaf to a connection that was reset while input was left to read.
        if pending.protocol is not None and pending.protocol.transport is not None:
            pending.protocol.transport.underlying_transport.abort()

    def _end(self, pending: _Pending) -> None:
        """Close a connection that has no protocol, or one that does not know of it."""
        pending.connection.close()
        self.settled(pending)
        self._lost_one()

    def _lost_one(self) -> None:
        self._alive -= 1
        if not self._alive and self._listener is None:
            self._all_closed.set()

    def settled(self, pending: _Pending) -> None:
        """This connection does not wait for an upgrade request any more."""
        if pending in self._pending:
            del self._pending[pending]
            pending.deadline.cancel()
            self._pending_from[pending.source] -= 1
            if not self._pending_from[pending.source]:
                del self._pending_from[pending.source]

    def lost(self, protocol: _ServerProtocol) -> None:
        """The connection of `protocol` is gone."""
        if protocol.pending is not None:
            self.settled(protocol.pending)
        if protocol.ws is not None:
            self.connections.discard(protocol.ws)
        self._lost_one()

    def upgrade(self, protocol: _ServerProtocol, request: WSUpgradeRequest) -> WSUpgradeResponseWithListener:
        """Answer an upgrade request; picows calls this."""
        if protocol.pending is not None:
            self.settled(protocol.pending)
            protocol.pending = None
        try:
            asked = _request(request, protocol.remote)
            refusal = self.refuses(asked)
            if refusal is None and (refusal := _refusal(request)):
                self.refused(refusal.status)
            answer = refusal or self._upgrade(asked)
        except Exception as exc:
            self._loop.call_exception_handler(
                {"message": "unhandled exception in a WebSocket upgrade handler", "exception": exc}
            )
            answer = Reject(500, "internal error")
            self.refused(500)
        if isinstance(answer, Reject):
            response = WSUpgradeResponse.create_error_response(
                answer.status, f"{answer.body}\n".encode(), answer.headers
            )
            return WSUpgradeResponseWithListener(response, None)
        protocol.attach(answer, EARLY_LIMIT)
        self.connections.add(answer)
        agreed = {"Sec-WebSocket-Protocol": answer.subprotocol} if answer.subprotocol else None
        return WSUpgradeResponseWithListener(WSUpgradeResponse.create_101_response(agreed), answer)


class _Pending:
    """A connection that has not sent its upgrade request."""

    __slots__ = ("connection", "deadline", "protocol", "secure", "source")

    deadline: TimerHandle
    secure: bool
    """It speaks TLS; set with its first byte."""

    def __init__(self, connection: socket.socket, source: str) -> None:
        self.connection = connection
        self.source = source
        self.protocol: _ServerProtocol | None = None


class _ServerProtocol(Protocol):
    __slots__ = ("_server", "pending")

    def __init__(self, server: Server, pending: _Pending) -> None:
        super().__init__(
            lambda request: server.upgrade(self, request),
            server.max_frame,
            client=False,
            read_buffer=server.read_buffer_size,
        )
        self.clock = server.clock
        self._server = server
        self.pending: _Pending | None = pending

    def _too_long(self) -> memoryview:
        if self.pending is not None:
            self._server.refused(431)
        return super()._too_long()

    def connection_lost(self, exc: Exception | None) -> None:
        self._server.lost(self)
        super().connection_lost(exc)


async def serve(
    host: str | None,
    port: int,
    upgrade: Callable[[Request], WebSocket | Reject],
    *,
    max_frame: int,
    ssl: SSLContext | None = None,
    read_buffer_size: int = READ_BUFFER,
    what: str = "relay_port",
) -> Server:
    """Listen on `host` (None: all interfaces, IPv4 and IPv6) and `port` (0: any free one).

    `upgrade` decides about every well-formed upgrade request: it returns the WebSocket to open, or what to
    answer instead. A connection takes messages of EARLY_LIMIT bytes until its `raise_limit`, then of
    `max_frame`. Raises StartError, in which `what` names the port.
    """
    return Server(listen(host, port, what), upgrade, max_frame, ssl, read_buffer_size)


def _nobody(host: str) -> bool:
    return False


def _everybody(host: str) -> bool:
    return True


def _nothing(request: Request) -> Reject | None:
    return None


def _ignored(status: int) -> None:
    pass


def _file_limit() -> tuple[int, int]:
    """(the first file descriptor that no connection may have, how many this process may have)."""
    if sys.platform == "win32":
        return sys.maxsize, sys.maxsize
    limit = getrlimit(RLIMIT_NOFILE)[0]
    if limit == RLIM_INFINITY:
        return sys.maxsize, sys.maxsize
    return limit - min(RESERVED_FILES, limit // 4), limit


def _refusal(request: WSUpgradeRequest) -> Reject | None:
    """Say no to what is not a WebSocket upgrade of RFC 6455; else bring its headers to the form picows takes.

    A request with no Host or several is none of HTTP/1.1 (RFC 9112 section 3.2).

    picows wants `Connection: Upgrade` alone (Firefox sends `keep-alive, Upgrade`), takes drafts 7 and 8, and
    says no only after the upgrade handler has said yes.
    """
    headers = request.headers
    if len(headers.getall("Host", [])) != 1:
        return Reject(400, "A request has one Host header.")
    if "websocket" not in _tokens(headers, "Upgrade") or "upgrade" not in _tokens(headers, "Connection"):
        return Reject(426, "This port speaks WebSocket.", {"Upgrade": "websocket"})
    if headers.getall("Sec-WebSocket-Version", []) != ["13"]:
        return Reject(
            426, "WebSocket version 13 only.", {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        )
    if not _is_key(headers.getall("Sec-WebSocket-Key", [])):
        return Reject(400, "Sec-WebSocket-Key is not one key of 16 bytes in base64.")
    headers["Upgrade"], headers["Connection"] = "websocket", "upgrade"
    return None


def _request(request: WSUpgradeRequest, remote: tuple[str, int]) -> Request:
    path, _, query = request.path.decode("ascii", "replace").partition("?")
    fields = dict(parse_qsl(query, keep_blank_values=True))
    offered = ",".join(request.headers.getall("Sec-WebSocket-Protocol", [])).split(",")
    return Request(
        path, fields, request.headers, remote, tuple(name.strip() for name in offered if name.strip())
    )


def _tokens(headers: Any, name: str) -> list[str]:
    return [token.strip().lower() for token in ",".join(headers.getall(name, [])).split(",")]


def _is_key(values: list[str]) -> bool:
    try:
        return len(values) == 1 and len(b64decode(values[0], validate=True)) == 16
    except ValueError:
        return False


def _is_loopback(host: str) -> bool:
    return ip_address(host.partition("%")[0]).is_loopback
