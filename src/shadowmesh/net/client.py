"""Dialling a relay: `connect`, with every failure in words. `net.websocket` has the rules of a connection."""

from __future__ import annotations

import asyncio
import errno
import re
import socket
from functools import partial
from http.client import responses
from itertools import zip_longest
from ssl import PROTOCOL_TLS_CLIENT, SSLCertVerificationError, SSLContext, SSLError
from typing import Any
from urllib.parse import urlsplit

import aiofastnet
from picows import WSError, WSHandshakeError

from shadowmesh.errors import LocalProtocolError, ShadowMeshError
from shadowmesh.net.protocol import TLS_OPTIONS, Protocol
from shadowmesh.net.websocket import WebSocket
from shadowmesh.wire.control import printable

NOT_A_RELAY = "the server answers, but it is no ShadowMesh relay"
_NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305 section 5: how long one address has before the next is tried as well
_MAX_RETRY_AFTER = 3600.0


class ConnectFailed(ShadowMeshError):
    """No connection to the relay; `str()` says why.

    `status` is the HTTP status if the server answered with one that is not 101, `retry_after` its Retry-After
    header in seconds.
    """

    def __init__(self, reason: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after


async def connect(
    url: str,
    ws: WebSocket,
    *,
    max_frame: int,
    subprotocol: str | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = 10.0,
    ssl: SSLContext | None = None,
    address: str | None = None,
) -> None:
    """Open `ws` to a ws:// or wss:// URL; its `on_open` has run when this returns.

    `timeout` (seconds) covers it all: DNS, TCP (all addresses, RFC 8305), TLS, upgrade. `ssl` replaces the
    default TLS settings; `address` is dialled instead of looking up the URL's host. Messages of up to
    `max_frame` bytes are taken at once. Raises ConnectFailed; then, or when cancelled, the connection is cut.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("ws", "wss") or not host:
        raise LocalProtocolError("not a ws:// or wss:// URL")
    secure = parts.scheme == "wss"
    port = parts.port or (443 if secure else 80)
    where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    fields = dict(headers or {})
    if subprotocol:
        fields["Sec-WebSocket-Protocol"] = subprotocol
    if any(not value.isascii() or not value.isprintable() for value in fields.values()):
        raise LocalProtocolError("an HTTP header is not printable ASCII")

    def upgraded(request: Any, response: Any) -> WebSocket:
        if response.headers.get("Sec-WebSocket-Protocol") != subprotocol:
            raise ConnectFailed(f"{NOT_A_RELAY} (it does not speak {subprotocol})")
        if "Sec-WebSocket-Extensions" in response.headers:
            raise ConnectFailed(f"{NOT_A_RELAY} (it uses a WebSocket extension nobody asked for)")
        protocol.attach(ws, max_frame)
        return ws

    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    protocol = Protocol(
        upgraded, max_frame, client=True, host=parts.netloc.rpartition("@")[2], path=path, headers=fields
    )
    late = f"the name {host} is not found in time: does the name server answer?"
    try:
        async with asyncio.timeout(timeout):
            loop = asyncio.get_running_loop()
            # In the loop's executor, whose threads nobody waits for; uvloop has its own for loop.getaddrinfo.
            look_up = partial(socket.getaddrinfo, address or host, port, type=socket.SOCK_STREAM)
            found = await loop.run_in_executor(None, look_up)
            late = f"{where} does not answer in time: is the address right, and does a firewall allow it?"
            connection = await _dial(loop, found)
            late = f"{where} accepts connections, but does not answer in time: "
            late += "does it speak TLS, or is it ws://?" if secure else "is it a relay?"
            await aiofastnet.create_connection(
                protocol.for_tls(loop) if secure else loop,
                lambda: protocol,
                sock=connection,
                ssl=(ssl or _default_tls()) if secure else None,
                server_hostname=host if secure else None,
                **(TLS_OPTIONS if secure else {}),
            )
            await protocol.wait_until_handshake_complete()
        # picows ends the wait without an exception when the connection is lost during it.
        if protocol.listener is None:
            raise ConnectFailed(f"{where} closed the connection without an answer")
    except BaseException as exc:
        if protocol.transport is not None:
            protocol.transport.disconnect(graceful=False)
        elif secure and isinstance(exc, ConnectionResetError):
            exc = ConnectFailed(f"{where} breaks off TLS: does it speak TLS, or is it ws://?")
        failure = _in_words(exc, where, host, late)
        if failure is None:
            raise
        raise failure from None


def _default_tls() -> SSLContext:
    """The system's certificates. ssl.create_default_context would also write the keys of each connection to
    $SSLKEYLOGFILE, which with aiofastnet is the end of the process.
    """
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    return context


async def _dial(loop: asyncio.AbstractEventLoop, found: list[Any]) -> socket.socket:
    """Connect to the first address that answers, as RFC 8305 says; raises the last one's OSError.

    asyncio and aiofastnet can do this too, but when cancelled at the wrong moment they lose the socket.
    """
    first = [info for info in found if info[0] == found[0][0]]
    second = [info for info in found if info[0] != found[0][0]]
    waiting = [info for pair in zip_longest(first, second) for info in pair if info]
    attempts: set[asyncio.Task[socket.socket]] = set()
    try:
        while True:
            if waiting:
                attempts.add(loop.create_task(_dial_one(loop, waiting.pop(0))))
            await asyncio.wait(
                attempts,
                timeout=_NEXT_ADDRESS_SECONDS if waiting else None,
                return_when=asyncio.FIRST_COMPLETED,
            )
            for attempt in [each for each in attempts if each.done()]:
                attempts.remove(attempt)
                if attempt.exception() is None or not (attempts or waiting):
                    return attempt.result()
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_unused)


async def _dial_one(loop: asyncio.AbstractEventLoop, info: tuple[Any, ...]) -> socket.socket:
    connection = socket.socket(*info[:3])
    try:
        connection.setblocking(False)
        await loop.sock_connect(connection, info[4])
    except BaseException:
        connection.close()
        raise
    return connection


def _close_unused(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()


def _in_words(exc: BaseException, where: str, host: str, late: str) -> ConnectFailed | None:
    match exc:
        case ConnectFailed():
            return exc
        case WSHandshakeError():
            return _answered(exc)
        case WSError():
            return ConnectFailed(NOT_A_RELAY)
        case TimeoutError():
            return ConnectFailed(late)
        case socket.gaierror():
            return ConnectFailed(f"cannot find the address of {host}: {exc.strerror}")
        case SSLCertVerificationError():
            return ConnectFailed(f"the TLS certificate of {where} is not valid: {exc.verify_message}")
        case SSLError():
            return ConnectFailed(
                f"TLS with {where} fails ({exc.reason or 'no reason given'}): does it speak TLS?"
            )
        case ConnectionRefusedError():
            return ConnectFailed(f"{where} refuses connections: is the relay running, and is this its port?")
        case OSError(errno=errno.ENETUNREACH | errno.EHOSTUNREACH):
            return ConnectFailed(f"{where} cannot be reached: no route to it")
        case ConnectionResetError():
            return ConnectFailed(f"{where} closed the connection without an answer")
        case OSError():
            return ConnectFailed(f"cannot connect to {where}: {exc.strerror or exc}")
    return None


def _answered(exc: WSHandshakeError) -> ConnectFailed:
    # From the raw line, for picows does not know every status that proxies use.
    line = re.match(rb"HTTP/1\.[01] (\d{3})\b", exc.raw_header or b"")
    status = int(line[1]) if line else None
    if status is None or status == 101:
        return ConnectFailed(NOT_A_RELAY)
    text = printable((exc.raw_body or b"").decode("ascii", "replace").partition("\n")[0].strip(), 120)
    if status in (200, 404) and "/relay" not in text:
        return ConnectFailed(f"{NOT_A_RELAY} (HTTP {status}); a relay's own port is 9545", status)
    phrase = responses.get(status, "")
    retry = exc.response.headers.get("Retry-After", "") if exc.response is not None else ""
    return ConnectFailed(
        f"HTTP {status} {phrase}".rstrip() + (f": {text}" if text and "<" not in text else ""),
        status,
        min(float(retry), _MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", retry) else None,
    )
