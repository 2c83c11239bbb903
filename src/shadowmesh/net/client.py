"""Dialling a relay: `connect`, with every failure in words. `net.websocket` has the rules of a connection."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from functools import partial
from itertools import zip_longest
from ssl import PROTOCOL_TLS_CLIENT, SSLContext, SSLError, VerifyFlags
from typing import Any
from urllib.parse import urlsplit

import aiofastnet

from shadowmesh.errors import LocalProtocolError, StartError
from shadowmesh.net.failure import NOT_A_RELAY, ConnectFailed, Hop, in_words, place
from shadowmesh.net.protocol import TLS_OPTIONS, Protocol
from shadowmesh.net.proxy import Proxy, open_tunnel, title
from shadowmesh.net.websocket import WebSocket

__all__ = ["NOT_A_RELAY", "ConnectFailed", "Found", "check_ca_file", "connect", "look_up"]

Found = tuple[Any, ...]
"""One address, as socket.getaddrinfo gives it."""

_NEXT_ADDRESS_SECONDS = 0.25  # RFC 8305 section 5: how long one address has before the next is tried as well
_AGAIN_SECONDS = 1.5  # TCP repeats a first packet after 1, 3 and 7 s; behind a black hole that is too seldom
_MOST_SOCKETS = 3  # at once for one address
_UNACKNOWLEDGED_MS = 20_000  # until the kernel gives a connection up whose other side acknowledges nothing


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
    proxy: Proxy | None = None,
    ca_file: str | None = None,
    choose: Callable[[list[Found]], list[Found]] = lambda found: found,
) -> None:
    """Open `ws` to a ws:// or wss:// URL; its `on_open` has run when this returns.

    `timeout` (seconds) covers it all: DNS, TCP (all addresses, RFC 8305), proxy, TLS, upgrade. `ssl` replaces
    the default TLS settings, `ca_file` adds the certificates in a PEM file to what these trust; `address` is
    dialled instead of looking up the URL's host. Of all addresses that are found, `choose` says which to try.
    Through a `proxy` the name is the proxy's to look up, and the certificate must be the relay's all the
    same. Messages of up to `max_frame` bytes are taken at once.
    Raises ConnectFailed; then, or when cancelled, the connection is cut.
    """
    parts = urlsplit(url)
    host = parts.hostname
    if parts.scheme not in ("ws", "wss") or not host:
        raise LocalProtocolError("not a ws:// or wss:// URL")
    secure = parts.scheme == "wss"
    port = parts.port or (443 if secure else 80)
    where = place(host, port)
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
    relay = hop = Hop(where, host, ca_file=ca_file)
    late = ""
    dialled = address or host, port
    if proxy is not None:
        relay = relay._replace(where=f"{where} (through {title(proxy)})")
        hop = Hop(
            title(proxy),
            f"{proxy.host}, the proxy in {proxy.source}",
            refused=f"is it running, and is its address right in {proxy.source}?",
        )
        dialled = proxy.host, proxy.port
    try:
        async with asyncio.timeout(timeout):
            loop = asyncio.get_running_loop()
            trusted = (ssl or _default_tls(ca_file)) if secure else None
            late = f"the name {dialled[0]} is not found in time: does the name server answer?"
            found = await look_up(*dialled)
            if proxy is None and address is None:
                chosen = choose(found)
                if len(chosen) == 1 < len(found):
                    relay = hop = hop._replace(where=f"{where} ({chosen[0][4][0]})")
                found = chosen
            late = f"{hop.where} does not answer in time: is the address right, and does a firewall allow it?"
            connection = await _dial(loop, found)
            if proxy is not None:
                late = f"{hop.where} does not open the way to {where} in time: is the relay running?"
                await _through(connection, proxy, address or host, port)
                hop = relay
            late = f"{hop.where} accepts connections, but does not answer in time: "
            late += "does it speak TLS, or is it ws://?" if secure else "is it a relay?"
            await aiofastnet.create_connection(
                protocol.for_tls(loop) if secure else loop,
                lambda: protocol,
                sock=connection,
                ssl=trusted,
                server_hostname=host if secure else None,
                **(TLS_OPTIONS if secure else {}),
            )
            if protocol.transport is not None:  # else it was reset already
                await protocol.wait_until_handshake_complete()
        # picows ends the wait without an exception when the connection is lost during it.
        if protocol.listener is None:
            raise ConnectFailed(f"{hop.where} closed the connection without an answer")
    except BaseException as exc:
        if protocol.transport is not None:
            protocol.transport.disconnect(graceful=False)
        elif secure and hop is relay and isinstance(exc, ConnectionResetError):
            exc = ConnectFailed(f"{hop.where} breaks off TLS: does it speak TLS, or is it ws://?")
        failure = in_words(exc, hop, late)
        if failure is None:
            raise
        raise failure from None


async def look_up(host: str, port: int) -> list[Found]:
    """The addresses of a host for TCP, in the order in which to try them. Raises OSError."""
    # In the loop's executor, whose threads nobody waits for; uvloop has its own for loop.getaddrinfo.
    work = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    return await asyncio.get_running_loop().run_in_executor(None, work)


def check_ca_file(path: str) -> None:
    """Raise StartError, in words, unless `path` has certificates in PEM that can be trusted."""
    _trust(SSLContext(PROTOCOL_TLS_CLIENT), path)


def _default_tls(ca_file: str | None) -> SSLContext:
    """The system's certificates. ssl.create_default_context would also write the keys of each connection to
    $SSLKEYLOGFILE, which with aiofastnet is the end of the process.
    """
    context = SSLContext(PROTOCOL_TLS_CLIENT)
    context.load_default_certs()
    if ca_file is not None:
        try:
            _trust(context, ca_file)
        except StartError as error:
            raise ConnectFailed(str(error)) from None
    return context


def _trust(context: SSLContext, ca_file: str) -> None:
    try:
        context.load_verify_locations(cafile=ca_file)
    except SSLError:
        raise StartError(
            f"relay.tls_ca_file {ca_file}: no PEM certificate in this file, or a malformed one; "
            "DER becomes PEM with: openssl x509 -inform der"
        ) from None
    except OSError as error:
        raise StartError(f"relay.tls_ca_file {ca_file}: {error.strerror}") from None
    # What is written there is trusted, be it the relay's own certificate that somebody else has signed.
    context.verify_flags |= VerifyFlags.VERIFY_X509_PARTIAL_CHAIN


async def _through(connection: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    try:
        await open_tunnel(connection, proxy, host, port)
    except BaseException:
        connection.close()
        raise


async def _dial(loop: asyncio.AbstractEventLoop, found: list[Found]) -> socket.socket:
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
                attempts.add(loop.create_task(_reach(loop, waiting.pop(0))))
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


async def _reach(loop: asyncio.AbstractEventLoop, info: Found) -> socket.socket:
    """Connect to one address, by a further socket every 1.5 s: the way there may have come back since.

    The first one stays until the end, for a way that takes seconds. Raises the OSError of any.
    """
    attempts: list[asyncio.Task[socket.socket]] = []
    try:
        while True:
            attempts.append(loop.create_task(_dial_one(loop, info)))
            await asyncio.wait(attempts, timeout=_AGAIN_SECONDS, return_when=asyncio.FIRST_COMPLETED)
            if done := [attempt for attempt in attempts if attempt.done()]:
                first = next((attempt for attempt in done if attempt.exception() is None), done[0])
                attempts.remove(first)
                return first.result()
            if len(attempts) == _MOST_SOCKETS:
                attempts.pop(1).cancel()
    finally:
        for attempt in attempts:
            attempt.cancel()
            attempt.add_done_callback(_close_unused)


async def _dial_one(loop: asyncio.AbstractEventLoop, info: Found) -> socket.socket:
    connection = socket.socket(*info[:3])
    try:
        connection.setblocking(False)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNACKNOWLEDGED_MS)
        await loop.sock_connect(connection, info[4])
    except BaseException:
        connection.close()
        raise
    return connection


def _close_unused(attempt: asyncio.Task[socket.socket]) -> None:
    if not attempt.cancelled() and attempt.exception() is None:
        attempt.result().close()
