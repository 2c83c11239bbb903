"""A request gets the one answer that a slow reader of it expects, in whatever pieces it arrives, or none yet.

No exception is allowed: none leaves the protocol object, none reaches the event loop. Whoever is not upgraded
is gone within the upgrade's time; what is left behind is nothing.

The first byte of the input says which limits the relay has, whether it asks for API keys, and how often the
request, which is the rest, is made; then comes a good one.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64encode
from collections import Counter
from ipaddress import IPv4Address, IPv6Address, ip_address
from urllib.parse import parse_qsl

from fuzz.kit import REMOTE, Frozen, Loop, Port, pieces
from shadowmesh.apikey import key_text
from shadowmesh.config.relay import RelayConfig
from shadowmesh.relay.keys import Key, Keys, Previous
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
CONNECTS, SHARE, UNJOINED = 1, 2, 3
"""The limits of an input, besides those of every relay: only one of them, or none."""
WITH_KEYS, FULL = 4, 8
RATE, SHARE_OF_SOURCE, MOST_UNJOINED = 1, 2, 2
GOOD, WRONG, REVOKED, EXPIRED, OLD = (key_text(name * 8, name.encode() * 32) for name in "abcde")
NEW = key_text("e" * 8, b"n" * 32)
DIGEST = {text: hashlib.sha256(text.encode()).digest() for text in (GOOD, REVOKED, EXPIRED, NEW, OLD)}
KEYS = Keys(
    [
        Key("a" * 8, "good", DIGEST[GOOD], created=0),
        Key("c" * 8, "revoked", DIGEST[REVOKED], created=0, revoked=1),
        Key("d" * 8, "expired", DIGEST[EXPIRED], created=0, expires=1),
        Key("e" * 8, "rotated", DIGEST[NEW], created=0, previous=Previous(DIGEST[OLD], 1)),
    ]
)
FROZEN = Frozen()
ALLOWED = r"https://app\.example\.com(:443)?"
# Of the protocol page; the last one is picows' own.
UPGRADE_SECONDS, CLOSE_SECONDS = 10.0, 2.0
MAX_REQUEST = 8192
MAX_HEADERS = 128
BURST_SECONDS, FAILURES, PER_SOURCE = 10, 10, 16
GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
# fmt: off
WORDS = [
    b"GET ", b"POST ", b" HTTP/1.1", b" HTTP/1.0", b"/relay", b"?peer_id=", b"&shard=2c", b"\r\n",
    b"\r\n\r\n", b"Host: ", b"Upgrade: ", b"websocket", b"Connection: ", b"keep-alive, Upgrade",
    b"Content-Length: 0",
    b"Sec-WebSocket-Version: 13", b"Sec-WebSocket-Key: ", b"AAAAAAAAAAAAAAAAAAAAAA==", b"Transfer-Encoding: ",
    b"Sec-WebSocket-Protocol: ", b"shadowmesh.v1", b"Sec-WebSocket-Extensions: ", b"Origin: ",
    b"https://app.example.com", b"X-Forwarded-For: ", b"X-Real-IP: ", b"[2001:db8::1]", b"192.0.2.1",
    b"Authorization: ", b"Bearer ", GOOD.encode(), REVOKED.encode(), OLD.encode(), b"Shadowmesh-Rejoin: 1",
    b"127.0.0.1", b"Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
]
# fmt: on


LAST = UPGRADE.format(path="/relay?peer_id=x", more=f"Authorization: Bearer {GOOD}\r\n").encode()


def one(data: bytes) -> object:
    """Returns the status of each answer, None while there is none."""
    setup, request = (data[0], data[1:]) if data else (0, b"")
    for way in ([request], pieces(request)):
        with FROZEN as loop:
            statuses = World(loop, setup).ask(request, way, setup >> 4)
    return statuses


class World:
    """A relay with the limits of `setup`, and what is to be known of it to foresee its answers."""

    def __init__(self, loop: Loop, setup: int) -> None:
        self.loop = loop
        self.setup = setup
        self.relay = relay = Server(CONFIG)
        self.port = Port(loop, relay.upgrade, MAX_FRAME)
        relay.listener = self.port.server
        relay.sources.rate = RATE if setup & 3 == CONNECTS else 0
        if setup & 3 == SHARE:
            relay.sources.most = SHARE_OF_SOURCE
        if setup & 3 == UNJOINED:
            relay.admission.max_unjoined = MOST_UNJOINED
        if setup & FULL:
            relay.admission.joined = relay.admission.max_connections
        relay.gate.use(KEYS if setup & WITH_KEYS else None)
        self.requests = Counter[object]()
        self.failures = Counter[object]()
        self.open: list[IPv4Address | IPv6Address] = []

    def ask(self, request: bytes, way: list[bytes], again: int) -> list[int | None]:
        """Make the request once and so often again, then a good one, and end them all."""
        wires, statuses = [], []
        for sent, parts in [(request, way)] * (1 + again) + [(LAST, [LAST])]:
            expected = self.status(sent)
            wire = self.port.dial()
            wire.feed(parts)
            check(sent, bytes(wire.sent), expected)
            wires.append(wire)
            statuses.append(expected)
            if expected == 101 and not sent.endswith(b"\r\n\r\n"):
                break  # what follows the request may end its connection
        relay = self.relay
        for connection in relay.connections:
            client = ip_address(connection.client[0])
            assert connection.client == REMOTE or (
                client not in CONFIG.trusted_proxies[0] and str(client) == connection.client[0]
            )
        assert {each.client[0] for each in relay.connections if not each.closing} <= {
            str(each) for each in self.open
        }
        for wire, status in zip(wires, statuses, strict=False):
            wire.feed([], end=status == 101)
        self.loop.run(max(UPGRADE_SECONDS, CLOSE_SECONDS))
        assert all(wire.lost for wire in wires)
        assert not self.loop.errors, self.loop.errors
        assert not relay.connections
        self.port.end()
        assert relay.admission.unjoined == 0
        assert not relay.sources._connections
        return statuses

    def status(self, data: bytes) -> int | None:
        """The answer by RFC 9112, RFC 6455 and section 3 of the protocol, read slowly."""
        headers = parsed(data)
        if not isinstance(headers, dict):
            return headers
        client = client_of(headers)
        source = counted(client, 64)
        exempt = client.is_loopback
        self.requests[source] += 1
        if not exempt and (
            self.failures[source] >= FAILURES
            or (self.setup & 3 == CONNECTS and self.requests[source] > RATE * BURST_SECONDS)
        ):
            return 429
        refusal = upgrade_refusal(data, headers)
        if refusal:
            return refusal
        if self.setup & WITH_KEYS:
            shown = headers.get("authorization", [])
            scheme, _, key = shown[0].strip().partition(" ") if len(shown) == 1 else ("", "", "")
            known = scheme.lower() == "bearer" and key.strip() in DIGEST
            if not known or key.strip() not in (GOOD, NEW):
                self.failures[source] += not known
                return 401
        origins = headers.get("origin", [])
        if not all(re.fullmatch(ALLOWED, origin.lower()) for origin in origins):
            return 403
        rejoin = headers.get("shadowmesh-rejoin") == ["1"]
        there = sum(counted(each, 64) == source for each in self.open)
        share = self.setup & 3 == SHARE and there >= SHARE_OF_SOURCE
        if not exempt and ((share and not rejoin) or there >= PER_SOURCE):
            return 429
        crowds = Counter(counted(each, 48) for each in self.open)
        gone = None
        if self.setup & 3 == UNJOINED and len(self.open) >= MOST_UNJOINED:
            crowd, most = crowds.most_common(1)[0]
            if crowds[counted(client, 48)] + 1 >= most:
                return 503
            gone = next(each for each in self.open if counted(each, 48) == crowd)
        if self.setup & FULL and not rejoin:
            return 503
        if gone is not None:
            self.open.remove(gone)
        self.open.append(client)
        return 101


def check(request: bytes, sent: bytes, expected: int | None) -> None:
    """What was sent to answer a request has this status, and the form that belongs to it."""
    if expected is None:
        assert not sent
        return
    head, _, body = sent.partition(b"\r\n\r\n")
    assert re.fullmatch(rb"HTTP/1\.1 %d [ -~]+(\r\n[!-9;-~]+: [ -~]+)*" % expected, head), (expected, head)
    assert (b"\r\nRetry-After: " in head) == (expected in (429, 503))
    assert (b"\r\nWWW-Authenticate: Bearer " in head) == (expected == 401)
    if expected == 101:
        key = re.search(rb"(?i)\r\nsec-websocket-key:[ \t]*(\S+)", request)
        assert key
        accept = hashlib.sha1(key[1] + GUID).digest()  # noqa: S324 - RFC 6455
        assert b"\r\nSec-WebSocket-Accept: " + b64encode(accept) in head
        assert (b"\r\nSec-WebSocket-Protocol: " in head) <= (SUBPROTOCOL.encode() in request)
        assert body.startswith(b"\x81\x7e"), "no challenge"
    else:
        assert b"Content-Length: %d" % len(body) in head


def counted(client: IPv4Address | IPv6Address, prefix: int) -> object:
    """As what a client is counted: itself, or its IPv6 prefix."""
    return client if client.version == 4 else int(client) >> 128 - prefix


def client_of(headers: dict[str, list[str]]) -> IPv4Address | IPv6Address:
    """Whose request it is, by what the proxy says."""

    def address(text: str) -> IPv4Address | IPv6Address | None:
        text = text.strip()
        if found := re.fullmatch(r"\[([^\]]*)(\].*)?|([^:]*):[^:]*", text, re.DOTALL):
            text = found[1] or found[3] or ""
        try:
            ip = ip_address(text)
        except ValueError:
            return None
        if ip.version == 6 and ip.scope_id:
            return None
        return ip.ipv4_mapped or ip if ip.version == 6 else ip

    proxy = ip_address(REMOTE[0])
    if real := headers.get("x-real-ip"):
        said = [",".join(real)]
    else:
        said = ",".join(headers.get("x-forwarded-for", [])).split(",")[::-1]
    for each in said:
        ip = address(each)
        if ip is None:
            break
        if ip not in CONFIG.trusted_proxies[0]:
            return ip
    return proxy


def parsed(data: bytes) -> dict[str, list[str]] | int | None:
    """The headers of a request, or what answers it if it is none."""
    if data[:1] == b"\x16":
        return None  # TLS, where none is spoken
    head, end, _ = data[:MAX_REQUEST].partition(b"\r\n\r\n")
    if not end:
        return 431 if len(data) > MAX_REQUEST else None
    first, *lines = head.split(b"\r\n")
    if not re.fullmatch(rb"GET ([^ ]+) HTTP/1\.1", first, re.DOTALL) or len(lines) > MAX_HEADERS:
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
    return headers


def upgrade_refusal(data: bytes, headers: dict[str, list[str]]) -> int | None:
    """What is wrong with a request whoever makes it."""

    def tokens(name: str) -> list[str]:
        return [token.strip(" \t").lower() for token in ",".join(headers.get(name, [])).split(",")]

    if len(headers.get("host", [])) != 1:
        return 400
    if "websocket" not in tokens("upgrade") or "upgrade" not in tokens("connection"):
        return 426
    if headers.get("sec-websocket-version") != ["13"]:
        return 426
    keys = headers.get("sec-websocket-key", [])
    if len(keys) != 1 or not re.fullmatch(r"[A-Za-z0-9+/]{22}==", keys[0]):
        return 400
    path, _, query = data.split(b" ", 2)[1].decode("ascii", "replace").partition("?")
    if path != "/relay":
        return 404
    peer_id = dict(parse_qsl(query, keep_blank_values=True)).get("peer_id", "")
    return None if re.fullmatch(r"[A-Za-z0-9._-]{1,64}", peer_id) else 400


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
    found |= {
        "good": good,
        "unfinished": good[:-1],
        "two requests": 2 * good,
        "TLS": b"\x16\x03\x01\x02\0\x01",
    }
    return {name: b"\0" + data for name, data in found.items()} | limited(good)


def limited(good: bytes) -> dict[str, bytes]:
    """Each answer of a relay that asks for keys, and of one with each limit."""
    often = 0xF0

    def more(*lines: str) -> bytes:
        return good.replace(b"\r\n\r\n", "".join(f"\r\n{line}" for line in (*lines, "\r\n")).encode())

    keys = {
        "a good key": (f"Authorization: Bearer {GOOD}",),
        "a rotated key": (f"Authorization: bearer  {NEW} ",),
        "a wrong key": (f"Authorization: Bearer {WRONG}",),
        "a key of nobody": (f"Authorization: Bearer {GOOD[:-1]}0",),
        "a revoked key": (f"Authorization: Bearer {REVOKED}",),
        "an expired key": (f"Authorization: Bearer {EXPIRED}",),
        "a replaced key": (f"Authorization: Bearer {OLD}",),
        "two keys at once": (f"Authorization: Bearer {GOOD}", f"Authorization: Bearer {GOOD}"),
        "another scheme": (f"Authorization: Basic {GOOD}",),
        "a foreign page with a key": (f"Authorization: Bearer {GOOD}", "Origin: null"),
    }
    here, host = "X-Real-IP: 192.0.2.1", "X-Real-IP: 127.0.0.1"
    found = {name: bytes((often | WITH_KEYS,)) + more(*lines) for name, lines in keys.items()}
    found |= {
        f"{name}, elsewhere": bytes((often | WITH_KEYS | CONNECTS,)) + more(*lines, here)
        for name, lines in keys.items()
    }
    found["tries by this host"] = bytes((often | WITH_KEYS | CONNECTS,)) + more(keys["a wrong key"][0], host)
    found["many unjoined"] = bytes((often,)) + good
    for name, setup in {"rate": CONNECTS, "share": SHARE, "unjoined": UNJOINED, "full": FULL}.items():
        for who, lines in {"": (), " elsewhere": (here,), " this host": (host,)}.items():
            found[f"{name}{who}"] = bytes((often | setup,)) + more(*lines)
        found[f"{name} again"] = bytes((often | setup,)) + more("Shadowmesh-Rejoin: 1")
    prefix = (f"X-Forwarded-For: 2001:db8:1:2::{n}" for n in (1, 2))
    found |= {f"a prefix {i}": bytes((often | SHARE,)) + more(line) for i, line in enumerate(prefix)}
    return found | {"a bad path too fast": bytes((often | CONNECTS,)) + good.replace(b"/relay", b"/")}
