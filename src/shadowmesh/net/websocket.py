"""One WebSocket connection of relay or daemon: our rules around picows. `net.server`, `net.client` make it.

picows parses frames in C and calls straight through, without tasks and copies; what it leaves open is closed
here (RFC 6455 section numbers in brackets):

- Memory: `net.protocol` bounds the read buffer by the largest message allowed now.
- After a close, ours or the peer's, nothing is delivered; the connection is aborted two seconds later if it
  still exists, whatever the peer does.
- Fragments are joined up to the same limit, into one buffer, however many they are [5.4], but for the time
  before the join; reserved bits [5.2], wrong order of fragments and text that is not UTF-8 [8.1] close the
  connection.
- Pings are answered here, at a bounded rate, and not into a full write buffer.
- A bug in one of our handlers goes to the loop's exception handler and closes that connection with 1011.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import struct
import sys
import time
from collections.abc import Callable
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from aiofastnet.ssl_transport import SSLTransport_Socket  # type: ignore[import-not-found]
from picows import WSFrame, WSListener, WSMsgType, WSTransport

from shadowmesh.errors import LocalProtocolError
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.wire.control import CLOSE_PROTOCOL, MAX_CONTROL

if TYPE_CHECKING:
    from shadowmesh.net.protocol import Protocol

# It warns of every write between an error and connection_lost, which any peer can cause.
logging.getLogger("aiofastnet").setLevel(logging.ERROR)

Buffer = bytes | bytearray | memoryview

EARLY_LIMIT = MAX_CONTROL
"""Bytes of a message before `raise_limit`."""
EARLY_FRAGMENTS = 64
"""Fragments of a message before `raise_limit`: empty ones come under no limit of bytes, and are work too."""
CLOSE_SECONDS = 2.0
PING_RATE, PING_BURST = 50, 100
PONG_ROOM = 16384
"""Bytes waiting to be written above which a ping gets no answer: who does not read gets no queue of pongs."""

LARGE = 600
"""Bytes of TCP data in a packet: Linux takes what it receives for 536 until a larger one has come."""

_BINARY, _TEXT, _CONTINUATION = WSMsgType.BINARY, WSMsgType.TEXT, WSMsgType.CONTINUATION
_PING, _PONG, _CLOSE = WSMsgType.PING, WSMsgType.PONG, WSMsgType.CLOSE


class _TcpInfo(NamedTuple):
    largest_received: int  # bytes in a packet
    in_flight: int  # packets
    acked: int  # bytes, as all that follow but `delivered`
    waiting: int
    delivered: int  # packets
    sent: int


class WebSocket(WSListener):
    """One connection. Subclass it, override the hooks, hand it to `net.client.connect` or `net.server.serve`.

    The hooks run inside the event loop's read callback. After `on_open`, `on_closed` comes exactly once.
    """

    __slots__ = (
        "_code",
        "_controls",
        "_fragments",
        "_parts",
        "_parts_kind",
        "_ping",
        "_ping_at",
        "_protocol",
        "_reason",
        "_special",
        "_transport",
        "bulk",
        "closed_here",
        "closing",
        "heard",
        "local",
        "remote",
        "rtt",
        "send_binary",
        "subprotocol",
        "write_buffer_size",
        "write_frames",
    )

    early_close: ClassVar[tuple[int, str]] = (CLOSE_PROTOCOL, "message too long before the join")
    """Close code and reason for a message over EARLY_LIMIT before `raise_limit`."""

    send_binary: Callable[[Buffer], None]
    """Send one BINARY message, silently dropped once closing. Bound to picows, no Python call in between."""
    write_buffer_size: Callable[[], int]
    """Bytes accepted but not yet taken by the kernel."""
    write_frames: Callable[[list[bytes]], None]
    """Send several whole frames (`binary_frame`) with one call; not for a connection that is closing."""

    def __init__(self) -> None:
        self.remote: tuple[str, int] = ("", 0)
        """Address and port of the other end, set before the upgrade handler or `on_open` runs."""
        self.local: tuple[str, int] = ("", 0)
        self.subprotocol: str | None = None
        """What the 101 response agrees to; the server's upgrade handler sets it."""
        self.closing = False
        """A close was sent or received, or the connection is lost; nothing more is delivered or sent."""
        self.closed_here = False
        """This side closed first."""
        self.heard = False
        """Set by every read; whoever watches for silence clears it."""
        self.bulk = False
        """Set for a message of more than `READ_PER_TURN`: the next read may take as much."""
        self.rtt: float | None = None
        """Seconds between the latest `ping()` that was answered and its pong."""
        self._special = False  # closing, or inside a fragmented message: leave the fast path
        self._transport: WSTransport | None = None
        self._protocol: Protocol | None = None
        self._code: int | None = None
        self._reason = ""
        self._parts: bytearray | None = None
        self._parts_kind = _BINARY
        self._controls: TokenBucket | None = None
        self._ping = 0
        self._ping_at = 0.0
        self.send_binary = self.write_frames = _not_open
        self.write_buffer_size = int

    # Hooks

    def on_open(self) -> None:
        """The connection is up; sending is possible from here on."""

    def on_binary(self, data: memoryview) -> None:
        """One BINARY message. `data` points into the read buffer: use or copy it during this call only."""

    def on_text(self, text: str) -> None:
        """One TEXT message."""

    def on_read_end(self) -> None:
        """All messages that one read from the socket has completed were delivered."""

    def on_unfinished(self, size: int) -> None:
        """Of a message in fragments `size` bytes have come so far; 0: it is complete."""

    def on_pong(self, payload: bytes) -> None:
        """A pong; `rtt` is up to date if it answers the latest `ping()`."""

    def on_closed(self, code: int | None, reason: str) -> None:
        """The connection is gone. `code` and `reason` are of the first close frame, sent or received.

        1005 stands for a close frame without a code, None for a connection lost without a close frame.
        """

    def pause_writing(self) -> None:
        """More than `high` bytes wait to be written."""

    def resume_writing(self) -> None:
        """No more than `low` bytes wait."""

    # Methods

    def send_text(self, text: str) -> None:
        """Send one TEXT message; silently dropped once closing."""
        self._opened().send(_TEXT, text)

    def ping(self) -> None:
        """Send a ping with a counter in it; its pong sets `rtt`."""
        self._ping += 1
        self._ping_at = time.monotonic()
        self._opened().send_ping(self._ping.to_bytes(8))

    def tcp_socket(self) -> socket.socket:
        """The socket below, for its options."""
        found: socket.socket = self._opened().underlying_transport.get_extra_info("socket")
        return found

    def delivered(self) -> tuple[int, int] | None:
        """(bytes that the other end's TCP has acknowledged, bytes given to send, with those that wait here).

        Both count from the same start, so they tell whether what was sent at some time has got through. None
        where the system does not say: anywhere but on Linux 4.19 and later.
        """
        if (info := self._tcp_info()) is None:
            return None
        return info.acked, info.sent + info.waiting + self.write_buffer_size()

    def about_silence(self) -> str:
        """What TCP knows about the silence of the other end, in words that go on from it; mostly nothing.

        Packets above some size get lost where a router does not say so (RFC 2923 section 2.1): then what
        waits for an acknowledgement is large, and what has got one was small; or, the other way round, all
        of ours has got one, and nothing large has ever come.
        """
        if (info := self._tcp_info()) is None:
            return ""
        in_flight = info.sent - info.acked
        if in_flight:
            large = in_flight >= LARGE * info.in_flight and info.acked < LARGE * info.delivered
            return ": large packets seem to get lost on the way" if large else ""
        return ", though it gets what is sent" if info.largest_received <= LARGE else ""

    def _tcp_info(self) -> _TcpInfo | None:
        if sys.platform != "linux":
            return None
        opened = self._opened()
        try:
            raw = self.tcp_socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 216)
            # rcv_mss, unacked, bytes_acked, notsent_bytes, delivered, bytes_sent, bytes_retrans of struct
            # tcp_info (linux/tcp.h); bytes_acked counts the SYN too, where this side sent one that was no
            # answer.
            largest, in_flight, acked, waiting, delivered, sent, again = struct.unpack(
                "=20xII92xQ16xI44xI4xQQ", raw
            )
        except (OSError, struct.error):
            return None
        acked -= opened.is_client_side
        return _TcpInfo(largest, in_flight, acked, waiting, delivered, sent - again)

    def close(self, code: int = 1000, reason: str = "") -> None:
        """Start the closing handshake; nothing when closing already. `reason` is cut to 123 ASCII bytes."""
        if not self.closing:
            transport = self._opened()
            self.closed_here = True
            self._end(code, reason)
            # The stub has an Enum here, the C code any integer.
            transport.send_close(code, reason.encode("ascii", "replace")[:123])  # type: ignore[arg-type]

    def abort(self) -> None:
        """Cut the connection at once; `on_closed` follows from the event loop."""
        if self._transport is not None:
            self._special = self.closing = True
            self._transport.disconnect(graceful=False)

    def set_write_limits(self, high: int, low: int) -> None:
        """Set the waiting bytes at which `pause_writing` and `resume_writing` are called.

        (0, 0): when the kernel does not take all, and when it has taken everything. With TLS other limits are
        inexact by 32 KiB.
        """
        if self._protocol is not None:
            self._protocol.set_write_limits(high, low)

    def pause_reading(self) -> None:
        """Take nothing more from the socket until `resume_reading`, not even a close; pings go on from here.

        Not to be called from a hook: with TLS, what is decrypted by then would wait for more to come.
        """
        self._opened().underlying_transport.pause_reading()

    def resume_reading(self) -> None:
        """Take from the socket again."""
        self._opened().underlying_transport.resume_reading()

    def raise_limit(self) -> None:
        """Allow messages up to `max_frame` from now on: the peer has shown who it is."""
        if self._protocol is not None:
            self._protocol.allow(self._protocol.max_frame)

    # From here on called by picows and by Protocol only.

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        self.send_binary = partial(transport.send, _BINARY)
        lower: Any = transport.underlying_transport
        self.write_frames = lower.writelines
        # What OpenSSL has encrypted and the kernel not taken waits, too; get_write_buffer_size forgets it.
        of_tls = isinstance(lower, SSLTransport_Socket)
        self.write_buffer_size = lower.get_local_write_buffer_size if of_tls else lower.get_write_buffer_size
        # picows would keep the headers as long as the connection lives: 2 KB, and an API key may be in them.
        request, transport.response.headers = transport.request, _NO_HEADERS
        request.method, request.path, request.version, request.headers = b"", b"", b"", _NO_HEADERS
        self.guard(self.on_open)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        try:
            if (
                frame.msg_type is _BINARY
                and frame.fin
                and not self._special
                and not (frame.rsv1 or frame.rsv2 or frame.rsv3)
            ):
                self.on_binary(frame.get_payload_as_memoryview())
            else:
                self._on_other(frame)
        except Exception as error:
            self._report(error)

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        self._special = self.closing = True
        self._parts = None
        self.guard(self.on_closed, self._code, self._reason)

    def guard(self, hook: Callable[..., None], *args: object) -> None:
        """Call a hook; an exception is our bug: report it, close this connection, spare the others."""
        try:
            hook(*args)
        except Exception as error:
            self._report(error)

    def attach(self, protocol: Protocol | None) -> None:
        self._protocol = protocol

    def lost_input(self) -> None:
        """The peer has ended its stream."""
        if not self.closing:
            self._end(None, "")

    def parse_error(self) -> None:
        """Picows found a protocol error and is about to send a close frame."""
        if not self.closing:
            self.closed_here = True
            self._end(1002, "protocol error")

    def too_long(self) -> None:
        """A message does not fit in the limit."""
        early = self._protocol is not None and self._protocol.limit <= EARLY_LIMIT
        self.close(*(self.early_close if early else (1009, "message too long")))

    def _opened(self) -> WSTransport:
        if self._transport is None:
            raise LocalProtocolError("the WebSocket is not open yet")
        return self._transport

    def _report(self, error: Exception) -> None:
        asyncio.get_running_loop().call_exception_handler(
            {"message": f"unhandled exception in {type(self).__name__}", "exception": error}
        )
        self.close(1011, "internal error")

    def _end(self, code: int | None, reason: str) -> None:
        self._special = self.closing = True
        self._code, self._reason = code, reason
        self._parts = None
        if self._protocol is not None:
            self._protocol.expire()

    def _on_other(self, frame: WSFrame) -> None:
        kind = frame.msg_type
        if kind is _CLOSE:
            self._on_close(frame.get_payload_as_bytes())
        elif self.closing:
            pass
        elif frame.rsv1 or frame.rsv2 or frame.rsv3:
            self.close(1002, "reserved bit set")
        elif kind is _PING or kind is _PONG:
            self._on_control(kind, frame.get_payload_as_bytes())
        elif (kind is _CONTINUATION) != (self._parts is not None):
            self.close(1002, "fragments out of order")
        elif self._parts is None and frame.fin:
            self._deliver(kind, frame.get_payload_as_memoryview())
        else:
            self._on_fragment(kind, frame)

    def _on_fragment(self, kind: WSMsgType, frame: WSFrame) -> None:
        if self._parts is None:
            self._parts, self._parts_kind, self._special = bytearray(), kind, True
            self._fragments = 0
        assert self._protocol is not None
        self._fragments += 1
        if self._fragments > EARLY_FRAGMENTS and self._protocol.limit <= EARLY_LIMIT:
            self.close(self.early_close[0], "too many fragments before the join")
            return
        if len(self._parts) + frame.payload_size > self._protocol.limit:
            self.too_long()
            return
        self._parts += frame.get_payload_as_memoryview()
        if frame.fin:
            message, self._parts, self._special = self._parts, None, False
            self.on_unfinished(0)
            self._deliver(self._parts_kind, memoryview(message))
        else:
            self.on_unfinished(len(self._parts))

    def _deliver(self, kind: WSMsgType, data: memoryview) -> None:
        if kind is _BINARY:
            self.on_binary(data)
            return
        try:
            text = str(data, "utf-8")
        except UnicodeDecodeError:
            self.close(1007, "text is not UTF-8")
        else:
            self.on_text(text)

    def _on_control(self, kind: WSMsgType, payload: bytes) -> None:
        if self._controls is None:
            self._controls = TokenBucket(PING_RATE, PING_BURST)
        now = time.monotonic()
        if not self._controls.take(now):
            self.close(1008, "too many pings")
        elif kind is _PONG:
            if payload == self._ping.to_bytes(8):
                self.rtt = now - self._ping_at
            self.on_pong(payload)
        elif self.write_buffer_size() <= PONG_ROOM:
            self._opened().send_pong(payload)

    def _on_close(self, payload: bytes) -> None:
        transport = self._opened()
        if not self.closing:
            code = int.from_bytes(payload[:2]) if payload else 1005
            self._end(code, payload[2:].decode(errors="replace"))
            # 1005 is no code to send, and neither is one the peer may not send [7.4].
            valid = 1000 <= code < 5000 and code not in (1004, 1006, 1015)
            echo = 1000 if code == 1005 else code if valid else 1002
            transport.send_close(echo)  # type: ignore[arg-type]
        if not transport.is_client_side:
            transport.disconnect()  # the server ends the TCP connection, the client waits for that [7.1.1]


_NO_HEADERS: Any = MappingProxyType({})


def binary_frame(payload: Buffer) -> bytes:
    """One BINARY message of less than 64 KiB, as a server sends it: not masked [5.2]."""
    size = len(payload)
    return (bytes((0x82, size)) if size < 126 else b"\x82\x7e" + size.to_bytes(2)) + payload


def _not_open(data: object) -> None:
    raise LocalProtocolError("the WebSocket is not open yet")
