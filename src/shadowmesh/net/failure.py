"""Why a relay cannot be reached, in words: what broke and what a person can do about it."""

from __future__ import annotations

import errno
import re
import socket
from datetime import UTC, datetime
from http.client import responses
from ssl import SSLCertVerificationError, SSLError
from typing import NamedTuple
from urllib.parse import urlsplit

from picows import WSError, WSHandshakeError

from shadowmesh.errors import ShadowMeshError
from shadowmesh.wire.control import printable

NOT_A_RELAY = "the server answers, but it is no ShadowMesh relay"
BEHIND_PROXY = "the proxy in front of the relay answers, the relay behind it does not"
_LOGIN_PAGE = "the login page of this network, as hotels have one? Then open a browser and log in"
_MAX_RETRY_AFTER = 3600.0
_REDIRECTS = {301, 302, 303, 307, 308}
_OF_GATEWAYS = {502, 504}
_LOGIN_REQUIRED = 511  # RFC 6585: Network Authentication Required

# X509_V_ERR_* of OpenSSL's x509_vfy.h
_NOT_YET_VALID, _EXPIRED = 9, 10
_UNKNOWN_ISSUER = {2, 18, 19, 20, 21}
_OTHER_NAME = {62, 64}  # host, IP address


class ConnectFailed(ShadowMeshError):
    """No connection to the relay; `str()` says why.

    `status` is the HTTP status if the server answered with one that is not 101 (407 also for a proxy that
    does not accept who we are), `retry_after` its Retry-After header in seconds.
    """

    def __init__(self, reason: str, status: int | None = None, retry_after: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status
        self.retry_after = retry_after


class Hop(NamedTuple):
    """What is being spoken to. where: its name in messages; host: what is looked up; refused: what to ask
    somebody whose connection it refuses; ca_file: what is trusted beside the system's certificates.
    """

    where: str
    host: str
    refused: str = "is the relay running, and is this its port?"
    ca_file: str | None = None


def place(host: str, port: int) -> str:
    """`host:port`, `[IPv6]:port`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def in_words(exc: BaseException, hop: Hop, late: str) -> ConnectFailed | None:
    """The failure that an exception is; None: a bug, or cancelled. late: what a TimeoutError means now."""
    where = hop.where
    match exc:
        case ConnectFailed():
            return exc
        case WSHandshakeError():
            return _answered(exc, hop.host)
        case WSError():
            return ConnectFailed(NOT_A_RELAY)
        case TimeoutError():
            return ConnectFailed(late)
        case socket.gaierror():
            return ConnectFailed(f"cannot find the address of {hop.host}: {exc.strerror}")
        case SSLCertVerificationError():
            why = exc.verify_message.rstrip(".") + _mend(exc, hop)
            return ConnectFailed(f"the TLS certificate of {where} is not valid: {why}")
        case SSLError():
            return ConnectFailed(
                f"TLS with {where} fails ({exc.reason or 'no reason given'}): does it speak TLS?"
            )
        case ConnectionRefusedError():
            return ConnectFailed(f"{where} refuses connections: {hop.refused}")
        case OSError(errno=errno.ENETUNREACH | errno.EHOSTUNREACH):
            return ConnectFailed(f"{where} cannot be reached: no route to it")
        case ConnectionResetError() | EOFError():
            return ConnectFailed(f"{where} closed the connection without an answer")
        case OSError():
            return ConnectFailed(f"cannot connect to {where}: {exc.strerror or exc}")
    return None


def _mend(exc: SSLCertVerificationError, hop: Hop) -> str:
    code = exc.verify_code
    if code in (_NOT_YET_VALID, _EXPIRED):
        clock = f"; this device's clock says {datetime.now(UTC):%Y-%m-%d %H:%M} UTC: if that is wrong, set it"
        return clock + (", else the relay's operator must renew the certificate" if code == _EXPIRED else "")
    if code in _UNKNOWN_ISSUER:
        beside = "write its certificate as relay.tls_ca_file"
        if hop.ca_file is not None:
            beside = "its certificate is not the one in relay.tls_ca_file"
        return (
            f"; if the relay has a CA of its own, {beside}; if not, somebody in between reads TLS: "
            f"a company's proxy (whose CA would go there), or {_LOGIN_PAGE}"
        )
    if code in _OTHER_NAME:
        return (
            f"; relay.server must have a name that stands in it. Or does somebody else answer: {_LOGIN_PAGE}"
        )
    return ""


def _answered(exc: WSHandshakeError, host: str) -> ConnectFailed:
    head = exc.raw_header or b""
    # From the raw line, for picows does not know every status that proxies use.
    line = re.match(rb"HTTP/1\.[01] (\d{3})\b", head)
    status = int(line[1]) if line else None
    if status is None or status == 101:
        return ConnectFailed(NOT_A_RELAY)
    text = first_line(exc.raw_body or b"")
    if status in _REDIRECTS or status == _LOGIN_REQUIRED:
        return ConnectFailed(_redirected(status, head, host), status)
    if status == 200 and is_page(head, exc.raw_body or b""):
        return ConnectFailed(
            f"{NOT_A_RELAY} but a web page (HTTP 200): {_LOGIN_PAGE}; a relay's own port is 9545", status
        )
    if status in (200, 404) and "/relay" not in text:
        return ConnectFailed(f"{NOT_A_RELAY} (HTTP {status}); a relay's own port is 9545", status)
    if status in _OF_GATEWAYS:
        text = BEHIND_PROXY
    retry = exc.response.headers.get("Retry-After", "") if exc.response is not None else ""
    return ConnectFailed(
        named(status) + (f": {text}" if text and "<" not in text else ""),
        status,
        min(float(retry), _MAX_RETRY_AFTER) if re.fullmatch(r"[0-9]{1,9}", retry) else None,
    )


def _redirected(status: int, head: bytes, host: str) -> str:
    found = re.search(rb"\r\nlocation:[ \t]*(\S{1,2000})", head, re.IGNORECASE)
    try:
        target = urlsplit(found[1].decode("latin-1") if found else "")
        if target.scheme == "https" and target.hostname == host:
            return f"{named(status)}: the server wants TLS; is it wss:// in relay.server?"
    except ValueError:
        target = urlsplit("")
    # Without the path, where a login page has tokens of its own.
    to = printable(f" to {target.scheme}://{target.hostname}", 120) if target.hostname else ""
    return f"a web page answers instead of the relay ({named(status)}{to}): {_LOGIN_PAGE}"


def named(status: int) -> str:
    """`HTTP 404 Not Found`."""
    return f"HTTP {status} {responses.get(status, '')}".rstrip()


def first_line(body: bytes) -> str:
    """The first line of an answer's body, fit to be shown."""
    return printable(body.decode("ascii", "replace").partition("\n")[0].strip(), 120)


def is_page(head: bytes, body: bytes) -> bool:
    """Whether an HTTP answer is a page for a browser."""
    return body.lstrip()[:1] == b"<" or b"\r\ncontent-type: text/html" in head.lower()
