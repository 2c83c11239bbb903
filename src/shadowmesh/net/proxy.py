"""Through a proxy to the relay: HTTP CONNECT (RFC 9110 section 9.3.6) and SOCKS5 (RFC 1928, RFC 1929).

The proxy looks the relay's name up, for where there is one, names of the outside are often not known.
"""

from __future__ import annotations

import asyncio
import re
import socket
from base64 import b64encode
from ipaddress import ip_address
from typing import Protocol

from shadowmesh.net.failure import ConnectFailed, first_line, is_page, named, place

MAX_HEADER = 16384
"""Bytes of a proxy's answer before the tunnel."""
PROXY_AUTHENTICATION = 407
_REPLIES = {  # RFC 1928 section 6
    1: "it has a general failure",
    2: "its rules do not allow it",
    3: "the network cannot be reached",
    4: "the host cannot be reached, or its name is not found",
    5: "the connection is refused: is the relay running, and is this its port?",
    6: "it takes too long",
    7: "it does not know CONNECT",
    8: "it does not know this kind of address",
}
_IPV4, _NAME, _IPV6 = 1, 3, 4


class Proxy(Protocol):
    """What `config.proxy.ProxyUrl` is: scheme is "http" or "socks5", source names where it is written."""

    scheme: str
    host: str
    port: int
    source: str

    def reveal(self) -> tuple[str, str]:
        """User name and password; empty without."""


def title(proxy: Proxy) -> str:
    """The proxy in messages, without user name and password."""
    return f"the proxy {proxy.scheme}://{place(proxy.host, proxy.port)}"


async def open_tunnel(connection: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    """Ask the proxy at the other end of `connection` for the way to `host`; then its bytes are the relay's.

    Raises ConnectFailed, OSError, EOFError (the proxy hung up); the caller sets the time and closes.
    """
    if proxy.scheme == "http":
        await _http(connection, proxy, host, port)
    else:
        await _socks5(connection, proxy, host, port)


async def _http(connection: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    lines = [f"CONNECT {place(host, port)} HTTP/1.1", f"Host: {place(host, port)}", "User-Agent: shadowmesh"]
    user, password = proxy.reveal()
    if user:
        lines.append(f"Proxy-Authorization: Basic {b64encode(f'{user}:{password}'.encode()).decode()}")
    await loop.sock_sendall(connection, "\r\n".join([*lines, "", ""]).encode())
    answer = bytearray()
    while not (end := re.search(rb"\r?\n\r?\n", answer)):
        if len(answer) >= MAX_HEADER:
            raise ConnectFailed(f"{title(proxy)} answers with a header of more than {MAX_HEADER} bytes")
        received = await loop.sock_recv(connection, MAX_HEADER - len(answer))
        if not received:
            raise EOFError
        answer += received
        if not answer.startswith(b"HTTP/1."[: len(answer)]):
            raise ConnectFailed(f"{title(proxy)} is no HTTP proxy: is it the right port, or socks5://?")
    head, rest = bytes(answer[: end.start()]), bytes(answer[end.end() :])
    line = re.match(rb"HTTP/1\.[01] (\d{3})\b", head)
    status = int(line[1]) if line else 0
    if not 200 <= status <= 299:
        raise _refused(proxy, status, head, rest, host, port)
    if rest:
        # A relay does not speak before it is asked, so this is the body of a page.
        what = "with a web page instead of a tunnel" if is_page(head, rest) else "with bytes nobody asked for"
        raise ConnectFailed(f"{title(proxy)} answers {what}: is it an HTTP proxy, or a network's login page?")


def _refused(proxy: Proxy, status: int, head: bytes, rest: bytes, host: str, port: int) -> ConnectFailed:
    what, code = f"{title(proxy)} refuses ({named(status)})", None
    match status:
        case 401 | 407:  # tinyproxy says 401 to a wrong password
            code = PROXY_AUTHENTICATION
            offered = re.findall(rb"\nproxy-authenticate:[ \t]*([a-z-]+)", head, re.IGNORECASE)
            schemes = [scheme.decode().lower() for scheme in offered]
            if schemes and "basic" not in schemes:
                why = f"it asks for {', '.join(schemes)} authentication, which is not built: only Basic is"
            elif proxy.reveal()[0]:
                why = f"it does not accept the user name and password in {proxy.source}"
            else:
                why = (
                    f"it asks for a user name and password: write http://USER:PASSWORD@... in {proxy.source}"
                )
        case 403 | 405:
            why = f"it does not allow the way to {place(host, port)}"
            if port != 443:
                why += "; many proxies allow port 443 only: a relay at wss://HOST would do"
        case 500 | 502 | 503 | 504:  # tinyproxy says 500
            why = f"it does not reach {place(host, port)}: is the relay running, and is the address right?"
        case 301 | 302 | 303 | 307 | 308 | 511:
            why = "a web page answers instead: a login page of this network? Then open a browser and log in"
        case 400 | 404 | 501:
            why = "is it a proxy at all?"
        case 0:
            return ConnectFailed(f"{title(proxy)} is no HTTP proxy: is it the right port, or socks5://?")
        case _:
            text = first_line(rest)
            why = text if text and not is_page(head, rest) else "its own log may say why"
    return ConnectFailed(f"{what}: {why}", code)


async def _socks5(connection: socket.socket, proxy: Proxy, host: str, port: int) -> None:
    loop = asyncio.get_running_loop()
    user, password = proxy.reveal()
    methods = bytes([0, 2] if user else [0])
    await loop.sock_sendall(connection, bytes([5, len(methods)]) + methods)
    version, method = await _exactly(connection, 2)
    if version != 5:
        raise ConnectFailed(f"{title(proxy)} is no SOCKS5 proxy: is it the right port, or http://?")
    if method == 2 and user:
        name, word = user.encode(), password.encode()
        await loop.sock_sendall(connection, bytes([1, len(name)]) + name + bytes([len(word)]) + word)
        if (await _exactly(connection, 2))[1]:
            raise ConnectFailed(
                f"{title(proxy)} does not accept the user name and password in {proxy.source}",
                PROXY_AUTHENTICATION,
            )
    elif method != 0:
        raise ConnectFailed(
            f"{title(proxy)} asks for another authentication than a user name and password"
            if user
            else f"{title(proxy)} asks for a user name and password: write socks5://USER:PASSWORD@... in "
            f"{proxy.source}",
            PROXY_AUTHENTICATION,
        )
    await loop.sock_sendall(connection, b"\5\1\0" + _address(host) + port.to_bytes(2))
    version, reply, _, kind = await _exactly(connection, 4)
    if version != 5 or (not reply and kind not in (_IPV4, _NAME, _IPV6)):
        raise ConnectFailed(f"{title(proxy)} answers what is not SOCKS5")
    if reply:
        why = _REPLIES.get(reply, f"error {reply}")
        raise ConnectFailed(f"{title(proxy)} does not reach {place(host, port)}: {why}")
    # Where the proxy dials from: of no use to us, and it must be out of the way.
    size = {_IPV4: 4, _IPV6: 16}.get(kind) or (await _exactly(connection, 1))[0]
    await _exactly(connection, size + 2)


def _address(host: str) -> bytes:
    try:
        ip = ip_address(host)
    except ValueError:
        name = host.encode()
        return bytes([_NAME, len(name)]) + name
    return bytes([_IPV4 if ip.version == 4 else _IPV6]) + ip.packed


async def _exactly(connection: socket.socket, size: int) -> bytes:
    loop = asyncio.get_running_loop()
    data = b""
    while len(data) < size:
        received = await loop.sock_recv(connection, size - len(data))
        if not received:
            raise EOFError
        data += received
    return data
