"""A request gets the one answer that a slow reader of it expects, in whatever pieces it arrives, or none yet.

No exception is allowed: none leaves the protocol object, none reaches the event loop. Whoever is not upgraded
is gone within the upgrade's time; what is left behind is nothing.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from ipaddress import ip_address
from urllib.parse import parse_qsl

from fuzz.kit import REMOTE, Frozen, Loop, Port, pieces
from shadowmesh.config.relay import RelayConfig
from shadowmesh.relay.server import Server
from shadowmesh.testing.websocket import UPGRADE
from shadowmesh.wire.control import SUBPROTOCOL
from shadowmesh.wire.frame import MAX_FRAME

MAX_SIZE = 9000
CONFIG = RelayConfig(
    log_connections=False,
    allowed_origins=("https://app.example.com",),
    trusted_proxies=("203.0.113.0/24",),  # type: ignore[arg-type]  # validated into networks
)
FROZEN = Frozen()
ALLOWED = r"https://app\.example\.com(:443)?"
# Of the protocol page; the last one is picows' own.
UPGRADE_SECONDS, CLOSE_SECONDS = 10.0, 2.0
MAX_REQUEST = 8192
MAX_HEADERS = 128
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# fmt: off
WORDS = [
    b"GET ", b"POST ", b" HTTP/1.1", b" HTTP/1.0", b"/relay", b"?peer_id=", b"&shard=2c", b"\r\n",
    b"\r\n\r\n", b"Host: ", b"Upgrade: ", b"websocket", b"Connection: ", b"keep-alive, Upgrade",
    b"Content-Length: 0",
    b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: ", b"AAAAAAAAAAAAAAAAAAAAAA==", b"Transfer-Encoding: ",
    b"Sec-WebSocket-Protocol: ", b"shadowmesh.v1", b"Sec-WebSocket-Extensions: ", b"Origin: ",
    b"https://app.example.com", b"X-Forwarded-For: ", b"X-Real-IP: ", b"[2001:db8::1]", b"192.0.2.1",
]
# fmt: on


def one(data: bytes) -> object:
    """Returns the status of the answer, None while there is none."""
    expected = status(data)
    for way in ([data], pieces(data)):
        with FROZEN as loop:
            sent = answer(loop, way)
        if expected is None:
            assert not sent
            continue
        head, _, body = sent.partition(b"\r\n\r\n")
        assert re.fullmatch(rb"HTTP/1\.1 %d [ -~]+(\r\n[!-9;-~]+: [ -~]+)*" % expected, head), head
        if expected == 101:
            key = re.search(rb"(?i)\r\nsec-websocket-key:[ \t]*(\S+)", data)
            assert key
            accept = hashlib.sha1(key[1] + GUID).digest()  # noqa: S324 - RFC 6455
            assert b"\r\nSec-WebSocket-Accept: " + b64encode(accept) in head
            assert (b"\r\nSec-WebSocket-Protocol: " in head) <= (SUBPROTOCOL.encode() in data)
            assert body.startswith(b"\x81\x7e"), "no challenge"
        else:
            assert b"Content-Length: %d" % len(body) in head
    return expected


def answer(loop: Loop, way: list[bytes]) -> bytes:
    """All that the relay sends; its tables are empty again when this returns."""
    relay = Server(CONFIG)
    port = Port(loop, relay.upgrade, MAX_FRAME)
    wire = port.dial()
    wire.feed(way)
    sent, upgraded = bytes(wire.sent), bool(relay.connections)
    for connection in relay.connections:
        client = ip_address(connection.client[0])
        assert connection.client == REMOTE or (
            client not in CONFIG.trusted_proxies[0] and str(client) == connection.client[0]
        )
    wire.feed([], end=upgraded)
    loop.run(CLOSE_SECONDS if upgraded else UPGRADE_SECONDS)
    assert wire.lost
    assert not loop.errors, loop.errors
    assert not relay.connections
    port.end()
    assert relay.admission.unjoined == relay.admission.joined == 0
    return sent


def status(data: bytes) -> int | None:
    """The answer by RFC 9112, RFC 6455 and section 3 of the protocol, read as slowly as they are written."""
    if data[:1] == b"\x16":
        return None  # TLS, where none is spoken
    head, end, _ = data[:MAX_REQUEST].partition(b"\r\n\r\n")
    if not end:
        return 431 if len(data) > MAX_REQUEST else None
    first, *lines = head.split(b"\r\n")
    request = re.fullmatch(rb"GET ([^ ]+) HTTP/1\.1", first, re.DOTALL)
    if not request or len(lines) > MAX_HEADERS:
        return 400
    headers: dict[str, list[str]] = {}
    for line in lines:
        field = re.fullmatch(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):([\t -~\x80-\xff]*)", line)
        if not field:
            return 400
        headers.setdefault(field[1].decode().lower(), []).append(field[2].decode("latin-1").strip(" \t"))
    lengths = headers.get("content-length", ["0"])
    if "transfer-encoding" in headers or len(lengths) > 1 or set(lengths[0]) != {"0"}:
        return 400

    def tokens(name: str) -> list[str]:
        return [token.strip(" \t").lower() for token in ",".join(headers.get(name, [])).split(",")]

    if "websocket" not in tokens("upgrade") or "upgrade" not in tokens("connection"):
        return 426
    if headers.get("sec-websocket-version") != ["13"]:
        return 426
    keys = headers.get("sec-websocket-key", [])
    if len(keys) != 1 or not re.fullmatch(r"[A-Za-z0-9+/]{22}==", keys[0]):
        return 400
    path, _, query = request[1].decode("ascii", "replace").partition("?")
    if path != "/relay":
        return 404
    peer_id = dict(parse_qsl(query, keep_blank_values=True)).get("peer_id", "")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", peer_id):
        return 400
    origins = headers.get("origin", [])
    return 101 if all(re.fullmatch(ALLOWED, origin.lower()) for origin in origins) else 403


def seeds() -> dict[str, bytes]:
    """A request that is upgraded, and what is wrong with others."""
    good = UPGRADE.format(path="/relay?peer_id=x&shard=2c", more="").encode()
    more = {
        "our client": b"Sec-WebSocket-Protocol: shadowmesh.v1",
        "other subprotocols": b"Sec-WebSocket-Protocol: ,,chat,shadowmesh.v1,",
        "an API key": b"Authorization: Bearer abc",
        "an origin": b"Origin: https://app.example.com",
        "its default port": b"Origin: HTTPS://App.example.com:443",
        "a foreign origin": b"Origin: https://app.example.com.evil.example",
        "no origin": b"Origin: null",
        "two origins": b"Origin: https://app.example.com\r\nOrigin: https://evil.example",
        "a proxy": b"X-Forwarded-For: 192.0.2.1, 192.0.2.2, 203.0.113.9",
        "a proxy with a port": b"X-Forwarded-For: [2001:db8::1%eth0]:443, 192.0.2.2:1",
        "another proxy": b"X-Real-IP: ::ffff:192.0.2.1",
        "a proxy that is none": b"X-Real-IP: 203.0.113.9\r\nX-Forwarded-For: unknown, _hidden",
        "it was here before": b"Shadowmesh-Rejoin: 1",
        "no body": b"Content-Length: 0",
        "a body": b"Content-Length: 5",
        "two lengths": b"Content-Length: 0\r\nContent-Length: 0",
        "chunked": b"Transfer-Encoding: chunked",
        "two keys": b"Sec-WebSocket-Key: BAAAAAAAAAAAAAAAAAAAAA==",
        "two versions": b"Sec-WebSocket-Version: 13",
        "folded": b"X: a\r\n b",
        "no colon": b"Upgrade",
        "no name": b": x",
        "a zero": b"X: a\0b",
        "not ASCII": b"X: \x80\xff",
        "too long": b"X: " + b"y" * MAX_REQUEST,
        "many headers": b"X: y\r\n" * MAX_HEADERS + b"X: y",
        "compression": b"Sec-WebSocket-Extensions: permessage-deflate",
    }
    changes = {
        "no peer_id": (b"?peer_id=x", b""),
        "an empty peer_id": (b"=x", b"="),
        "an escaped peer_id": (b"=x", b"=%78"),
        "a bad escape": (b"=x", b"=%zz%ff"),
        "two peer_ids": (b"=x", b"=%00&peer_id=y"),
        "another path": (b"/relay", b"/metrics"),
        "a whole URL": (b"/relay", b"ws://relay/relay"),
        "a path of any bytes": (b"/relay", b"/\xff\0relay"),
        "POST": (b"GET", b"POST"),
        "HTTP 1.0": (b"HTTP/1.1", b"HTTP/1.0"),
        "no websocket": (b"Upgrade: websocket", b"Upgrade: h2c"),
        "no upgrade": (b"keep-alive, Upgrade", b"close"),
        "version 8": (b"Version: 13", b"Version: 8"),
        "a short key": (b"Key: AAAA", b"Key: "),
        "a key with spaces inside": (b"Key: AAAA", b"Key: A A A A"),
        "unused bits in the key": (b"AA==", b"AB=="),
        "line ends of Unix": (b"\r\n", b"\n"),
    }
    found = {name: good.replace(b"\r\n\r\n", b"\r\n" + lines + b"\r\n\r\n") for name, lines in more.items()}
    found |= {name: good.replace(*change) for name, change in changes.items()}
    return found | {
        "good": good,
        "unfinished": good[:-1],
        "two requests": 2 * good,
        "TLS": b"\x16\x03\x01\x02\0\x01",
    }
