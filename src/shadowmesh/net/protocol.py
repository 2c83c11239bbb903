"""picows' parser under a `WebSocket`: how much it reads at once and holds, TLS below it, the end of it all.

picows' read buffer doubles whenever a read nearly fills it and never shrinks. `get_buffer` lets no read go
beyond the largest message allowed now, so the buffer stops growing at the first of 2.25, 4.5, 9 … 144 KiB
that holds it: 9 KiB before `raise_limit`, 144 KiB for a `max_frame` of 128 KiB. Where it starts is the
caller's choice (`first_buffer`). Up to 36 KiB it grows with the traffic, beyond only for a message that needs
it. A message that does not fit is seen by the same test, before it is in memory.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio import TimerHandle
from collections.abc import Callable
from contextlib import suppress
from typing import Any, cast

from aiofastnet import Transport
from picows import WSAutoPingStrategy
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from shadowmesh.net import websocket
from shadowmesh.net.loop import TlsLoop
from shadowmesh.net.turn import TurnClock
from shadowmesh.net.websocket import WebSocket

MAX_REQUEST = 8192
"""Bytes of an HTTP upgrade request."""
MAX_RESPONSE = 16384
"""Bytes of an HTTP response to ours, where picows itself gives up."""
_SMALLEST_BUFFER = 2304  # doubled 6 times it holds a max_frame of 128 KiB with nothing to spare
_BUSY_BUFFER = 16 * _SMALLEST_BUFFER  # 24 packets of 1.4 KiB in one read take half the time they take alone
_MOST_READ = 2 * _BUSY_BUFFER * 9 // 10
_BUFFER_SPARE = 256  # what picows takes off the size it is given
READ_BUFFER = 4096
TLS_OPTIONS: dict[str, Any] = {
    "ssl_shutdown_timeout": websocket.CLOSE_SECONDS,
    "ssl_incoming_bio_size": 2 * (16384 + 64),
    "ssl_outgoing_bio_size": 2 * (16384 + 64),
}
"""For aiofastnet: OpenSSL takes two records at once from the kernel, and gives it two. 16, the default, are
no faster, and wait where no write limit sees them."""


class Protocol(WSProtocol):  # type: ignore[misc]
    """picows' parser with bounded reads, before and after the upgrade."""

    __slots__ = (
        "_ceiling",
        "_client",
        "_expiry",
        "_full",
        "_quiet",
        "_size",
        "clock",
        "limit",
        "local",
        "max_frame",
        "remote",
        "ws",
    )

    def __init__(
        self,
        factory: Callable[..., Any],
        max_frame: int,
        *,
        client: bool,
        host: str | None = None,
        path: str | None = None,
        headers: dict[str, str] | None = None,
        read_buffer: int = READ_BUFFER,
    ) -> None:
        self._quiet = _Quiet()
        super().__init__(
            host_port=host,
            ws_path=path,
            is_client_side=client,
            ws_listener_factory=factory,
            logger=self._quiet,
            disconnect_on_exception=True,
            websocket_handshake_timeout=None,
            enable_auto_ping=False,
            auto_ping_idle_timeout=1,
            auto_ping_reply_timeout=1,
            auto_ping_strategy=WSAutoPingStrategy.PING_WHEN_IDLE,
            enable_auto_pong=False,
            max_frame_size=sys.maxsize,  # get_buffer is stricter, and earlier
            extra_headers=headers,
            read_buffer_init_size=first_buffer(read_buffer, max_frame) + _BUFFER_SPARE,
        )
        self.ws: WebSocket | None = None
        self.clock: TurnClock | None = None
        """Started by the first read of a turn."""
        self.max_frame = max_frame
        self.limit = 0
        """Bytes of one message's payload."""
        self.remote = self.local = ("", 0)
        self._client = client
        self._ceiling = MAX_RESPONSE if client else MAX_REQUEST  # bytes in the read buffer
        self._size = 0  # of the read buffer
        self._expiry: TimerHandle | None = None
        self._full: bool | None = None  # whether the kernel takes no more; None: the transport has the limits

    def attach(self, ws: WebSocket, limit: int) -> None:
        """The upgrade succeeded and `ws` is the connection."""
        self.ws = self._quiet.ws = ws
        ws.remote, ws.local = self.remote, self.local
        ws.attach(self)
        self.allow(limit)

    def allow(self, limit: int) -> None:
        """Set the largest payload of a message, in bytes."""
        self.limit = limit
        self._ceiling = (
            limit + (2 if limit < 126 else 4 if limit < 65536 else 10) + (0 if self._client else 4)
        )

    def expire(self) -> None:
        """Abort the connection in two seconds if it still exists then."""
        if self._expiry is None:
            lower = self.transport.underlying_transport
            self._expiry = asyncio.get_running_loop().call_later(websocket.CLOSE_SECONDS, lower.abort)

    def set_write_limits(self, high: int, low: int) -> None:
        """See `WebSocket.set_write_limits`."""
        exact = self.transport.is_secure and high == 0
        self._full = False if exact else None
        self.transport.underlying_transport.set_write_buffer_limits(
            *((sys.maxsize, 0) if exact else (high, low))
        )

    def for_tls(self, loop: asyncio.AbstractEventLoop) -> asyncio.AbstractEventLoop:
        """What to give aiofastnet as the loop of a TLS connection."""
        return cast(asyncio.AbstractEventLoop, TlsLoop(loop, self._on_full, self._on_drained))

    def discard(self) -> None:
        """Let no byte reach the parser any more."""
        self.transport.underlying_transport.set_protocol(_Discard(self))

    # Called by the transport.

    def connection_made(self, transport: Transport) -> None:
        try:
            remote = transport.get_extra_info("peername")
            if remote is None:
                raise ConnectionResetError
            self.remote, self.local = host_port(remote), host_port(transport.get_extra_info("sockname"))
            super().connection_made(transport)
        except Exception as error:
            # Reset already, or a bug. picows must not see a byte then: it would use a transport that is not
            # there, and that is the end of the process.
            transport.set_protocol(_Discard(self))
            transport.abort()
            if not isinstance(error, OSError):
                asyncio.get_running_loop().call_exception_handler(
                    {"message": "cannot start a connection", "exception": error}
                )
        if transport.is_closing():
            # aiofastnet adds its reader after this all the same, and nobody would remove it: uvloop would
            # take the next connection with this file descriptor for the dead one.
            loop = asyncio.get_running_loop()
            loop.call_soon(_remove_reader, loop, transport.get_extra_info("socket").fileno())

    def get_buffer(self, hint: int) -> memoryview:
        clock = self.clock
        if clock is not None and not clock.at:
            clock.begin()
        view: memoryview = _get_buffer(self, hint)
        room = len(view)
        # A read leaves at least one byte free, so more room than the whole size means the buffer was doubled.
        if room > self._size:
            self._size = self._size * 2 or room
        ws, most = self.ws, _MOST_READ
        if ws is not None:
            ws.heard = True
            if ws.bulk:
                ws.bulk, most = False, self._size
        pending = self._size - room
        free = self._ceiling - pending
        if free <= 0:
            return self._too_long()
        # Filled to nine tenths the buffer doubles. Once it is large enough for a busy peer, that is for a
        # message that needs it: 72 KiB hold the frames that offload makes. And what is larger is there for a
        # larger message only, read at once for who has just sent another one: to read more small ones at once
        # would keep others waiting.
        spare = 0 if self._size < _BUSY_BUFFER else min(self._size * 9 // 10 - pending, most)
        return view[: min(free, spare if spare > 0 else room - 1)]

    def buffer_updated(self, size: int) -> None:
        try:
            _buffer_updated(self, size)
        finally:
            if (ws := self.ws) is not None:
                ws.guard(ws.on_read_end)

    def pause_writing(self) -> None:
        if self.ws is not None:
            self.ws.guard(self.ws.pause_writing)

    def resume_writing(self) -> None:
        if self.ws is not None:
            self.ws.guard(self.ws.resume_writing)

    def _on_full(self) -> None:
        if self._full is False:
            self._full = True
            self.pause_writing()

    def _on_drained(self) -> None:
        # aiofastnet also takes its wish back when it closes; then nobody is to send.
        if self._full and self.ws is not None and not self.ws.write_buffer_size():
            self._full = False
            self.resume_writing()

    def eof_received(self) -> bool:
        self.expire()
        if self.ws is not None:
            self.ws.lost_input()
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        if self._expiry is not None:
            self._expiry.cancel()
        if self.transport is not None:
            super().connection_lost(exc)
            # picows leaves a client's parse error in a future, and asyncio would report that nobody asked for
            # it. As the future is done, the coroutine ends at once.
            with suppress(StopIteration, Exception):
                self.transport.wait_disconnected().send(None)
        if self.ws is not None:
            self.ws.attach(None)
        self.ws = self._quiet.ws = None

    def _too_long(self) -> memoryview:
        lower = self.transport.underlying_transport
        if self.ws is not None:
            self.ws.too_long()
        else:
            lower.write(_TOO_LONG)
            self.expire()
        # Closing with input unread would reset the connection, and the peer might never see the close frame.
        # So the rest is read and thrown away, and the end of our stream tells the peer that this is all.
        self.discard()
        if lower.can_write_eof():
            lower.write_eof()
        else:  # TLS: its end of stream is part of closing; and not now, for it would read within this read
            asyncio.get_running_loop().call_soon(lower.close)
        return _scrap


class _Discard(asyncio.BufferedProtocol):
    """Takes the place of a Protocol whose peer is not listened to any more."""

    def __init__(self, protocol: Protocol) -> None:
        self._protocol = protocol

    def get_buffer(self, sizehint: int) -> memoryview:
        return _scrap

    def buffer_updated(self, nbytes: int) -> None:
        pass

    def eof_received(self) -> bool:
        return self._protocol.eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._protocol.connection_lost(exc)


class _Quiet:
    """Takes the place of picows' logger: peers cannot fill our log, and its errors tell that picows gives up.

    As our hooks raise nothing, picows logs errors in its parser only, right before it sends a close frame.
    """

    __slots__ = ("ws",)

    def __init__(self) -> None:
        self.ws: WebSocket | None = None

    def isEnabledFor(self, level: int) -> bool:
        return False

    def info(self, *args: object) -> None:
        pass

    debug = log = warning = info

    def error(self, *args: object) -> None:
        if self.ws is not None:
            self.ws.parse_error()

    def exception(self, *args: object) -> None:
        self.error()
        asyncio.get_running_loop().call_exception_handler(
            {"message": "unhandled exception in picows", "exception": sys.exc_info()[1]}
        )


_get_buffer, _buffer_updated = WSProtocol.get_buffer, WSProtocol.buffer_updated
_scrap = memoryview(bytearray(65536))
_TOO_LONG = b"HTTP/1.1 431 Request Header Fields Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


def _remove_reader(loop: asyncio.AbstractEventLoop, number: int) -> None:
    with suppress(NotImplementedError):  # Windows
        loop.remove_reader(number)


def first_buffer(wanted: int, max_frame: int) -> int:
    """The bytes that a read buffer starts with: of 2.25, 4.5, 9 … KiB the most that is not above `wanted`.

    At least 2.25 KiB (picows takes no less than 2), at most what holds a message of `max_frame`.
    """
    size = _SMALLEST_BUFFER
    while size * 2 <= wanted and size * 9 // 10 < max_frame + 14:
        size *= 2
    return size


def host_port(address: Any) -> tuple[str, int]:
    """Return host and port of a socket address; IPv4 that a socket for both shows as IPv6 becomes IPv4."""
    host, port = address[:2]
    return (host.removeprefix("::ffff:") if "." in host else host), port
