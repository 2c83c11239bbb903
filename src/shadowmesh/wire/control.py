"""Control messages between client and relay: JSON in WebSocket TEXT, protocol section 3.

    relay  → challenge, joined, addresses, gone, pause, resume, problem, drain
    client → join (around signed claims), addresses

Decoders return a message, or None for a type they do not know, and raise only ControlError, whose words never
hold the bytes received. Unknown keys are ignored.
"""

from __future__ import annotations

import binascii
import json
import math
import re
from base64 import b64decode, b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NoReturn

from shadowmesh.errors import ControlError, LocalProtocolError
from shadowmesh.wire.frame import ADDRESS_SIZE, MIN_MAX_FRAME

VERSION = 1
SUBPROTOCOL = "shadowmesh.v1"
REJOIN_HEADER = "Shadowmesh-Rejoin"
"""`1` in an upgrade request of a process that has joined before: it may have a place at a full relay."""
MAX_CONTROL = 8192
"""Bytes of one control message, in UTF-8."""
MAX_NESTING = 8
MAX_CLAIMED = 48
MAX_ADDRESSES = 64
"""Addresses one connection may hold, and the length of every list but the claimed one."""
MAX_DETAIL = 200
MAX_AGENT = 64
MAX_NAME = 63
MAX_HOST = 255
MAX_DRAIN_MS = 600_000

# RFC 6455 section 7.4.2 leaves 4000–4999 to the application.
CLOSE_JOIN_REFUSED = 4001
CLOSE_JOIN_TIMEOUT = 4002
CLOSE_PROTOCOL = 4003
CLOSE_REPLACED = 4004
CLOSE_WITHDRAWN = 4005


@dataclass(frozen=True, slots=True)
class Challenge:
    """The relay's first message; `nonce` is 32 bytes, `max_frame` in bytes, `keepalive_s` in seconds."""

    version: int
    nonce: bytes
    server_name: str
    region: str
    max_frame: int
    keepalive_s: float


@dataclass(frozen=True, slots=True)
class Claims:
    """What a joining client says of itself: public keys of 32 bytes, instance and blind addresses of 16.

    `relay` is the host it dialled: lower case, no port, IPv6 without brackets.
    """

    version: int
    network: bytes
    device: bytes
    instance: bytes
    relay: str
    addresses: tuple[bytes, ...]
    agent: str


@dataclass(frozen=True, slots=True)
class Join:
    """Encoded claims (see `decode_claims`) and the two Ed25519 signatures over them, 64 bytes each."""

    claims: bytes
    network_signature: bytes
    device_signature: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """A blind address the relay did not give, and why: `address_in_use` or `too_many`."""

    address: bytes
    code: str


@dataclass(frozen=True, slots=True)
class Limits:
    """How many addresses one connection may hold, and the largest data frame in bytes."""

    addresses: int
    max_frame: int


@dataclass(frozen=True, slots=True)
class Joined:
    """The relay took the join; `remote` is the client's own address as the relay sees it."""

    remote: str
    held: tuple[bytes, ...]
    refused: tuple[Refused, ...]
    limits: Limits


@dataclass(frozen=True, slots=True)
class Addresses:
    """A client asks for blind addresses and gives others up."""

    add: tuple[bytes, ...] = ()
    remove: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class AddressesResult:
    """The relay's answer to Addresses: everything held now, and what was refused."""

    held: tuple[bytes, ...] = ()
    refused: tuple[Refused, ...] = ()


@dataclass(frozen=True, slots=True)
class Gone:
    """No connection holds `address`: `reason` is `not_here` or `disconnected`."""

    address: bytes
    reason: str


@dataclass(frozen=True, slots=True)
class Pause:
    """Much waits at the relay for `address`: what is sent to it beyond that may be lost."""

    address: bytes


@dataclass(frozen=True, slots=True)
class Resume:
    """Little waits for `address` any more."""

    address: bytes


@dataclass(frozen=True, slots=True)
class Problem:
    """Something this client does is wrong or disputed; the connection goes on."""

    code: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Drain:
    """The relay is about to restart."""

    reconnect_after_ms: int


FromClient = Join | Addresses
FromRelay = Challenge | Joined | AddressesResult | Gone | Pause | Resume | Problem | Drain


def encode(message: FromClient | FromRelay) -> str:
    """Return the TEXT for `message`; text fields are cut to their limits and to printable ASCII.

    Raises LocalProtocolError when it would be longer than MAX_CONTROL.
    """
    match message:
        case Challenge():
            fields = {
                "type": "challenge",
                "version": message.version,
                "nonce": _to_b64(message.nonce),
                "server_name": printable(message.server_name, MAX_NAME),
                "region": printable(message.region, MAX_NAME),
                "max_frame": message.max_frame,
                "keepalive_s": message.keepalive_s,
            }
        case Join():
            fields = {
                "type": "join",
                "claims": _to_b64(message.claims),
                "network_signature": _to_b64(message.network_signature),
                "device_signature": _to_b64(message.device_signature),
            }
        case Joined():
            fields = {
                "type": "joined",
                "remote": message.remote,
                "held": _to_hex(message.held),
                "refused": _to_refused(message.refused),
                "limits": {"addresses": message.limits.addresses, "max_frame": message.limits.max_frame},
            }
        case Addresses():
            fields = {"type": "addresses", "add": _to_hex(message.add), "remove": _to_hex(message.remove)}
        case AddressesResult():
            fields = {
                "type": "addresses",
                "held": _to_hex(message.held),
                "refused": _to_refused(message.refused),
            }
        case Gone():
            fields = {"type": "gone", "address": message.address.hex(), "reason": message.reason}
        case Pause():
            fields = {"type": "pause", "address": message.address.hex()}
        case Resume():
            fields = {"type": "resume", "address": message.address.hex()}
        case Problem():
            fields = {
                "type": "problem",
                "code": message.code,
                "detail": printable(message.detail, MAX_DETAIL),
            }
        case Drain():
            fields = {"type": "drain", "reconnect_after_ms": message.reconnect_after_ms}
    return _dump(fields)


def encode_claims(claims: Claims) -> bytes:
    """Return the bytes that both signatures of a join cover (through SHA-256).

    Raises LocalProtocolError when it would be longer than MAX_CONTROL.
    """
    fields = {
        "version": claims.version,
        "network": claims.network.hex(),
        "device": claims.device.hex(),
        "instance": claims.instance.hex(),
        "relay": claims.relay,
        "addresses": _to_hex(claims.addresses),
        "agent": printable(claims.agent, MAX_AGENT),
    }
    return _dump(fields).encode()


def decode_from_client(text: str | bytes) -> FromClient | None:
    """Decode what a client sent to a relay; None for an unknown type. Raises ControlError."""
    match _typed(text):
        case "join", message:
            return Join(
                claims=_b64(message, "claims"),
                network_signature=_b64(message, "network_signature", 64),
                device_signature=_b64(message, "device_signature", 64),
            )
        case "addresses", message:
            return Addresses(add=_addresses(message, "add"), remove=_addresses(message, "remove"))
    return None


def decode_from_relay(text: str | bytes) -> FromRelay | None:
    """Decode what a relay sent to a client; None for an unknown type. Raises ControlError."""
    match _typed(text):
        case "challenge", message:
            return Challenge(
                version=_integer(message, "version", 0),
                nonce=_b64(message, "nonce", 32),
                server_name=_text(message, "server_name", MAX_NAME),
                region=_text(message, "region", MAX_NAME),
                max_frame=_integer(message, "max_frame", MIN_MAX_FRAME),
                keepalive_s=_seconds(message, "keepalive_s"),
            )
        case "joined", message:
            limits = _object(message.get("limits"), "limits")
            return Joined(
                remote=_text(message, "remote", MAX_HOST),
                held=_addresses(message, "held"),
                refused=_refused(message),
                limits=Limits(_integer(limits, "addresses", 1), _integer(limits, "max_frame", MIN_MAX_FRAME)),
            )
        case "addresses", message:
            return AddressesResult(held=_addresses(message, "held"), refused=_refused(message))
        case "gone", message:
            return Gone(_hex(message.get("address"), "address"), _text(message, "reason", MAX_NAME))
        case "pause", message:
            return Pause(_hex(message.get("address"), "address"))
        case "resume", message:
            return Resume(_hex(message.get("address"), "address"))
        case "problem", message:
            return Problem(
                _text(message, "code", MAX_NAME), _text({"detail": "", **message}, "detail", MAX_DETAIL)
            )
        case "drain", message:
            return Drain(_integer(message, "reconnect_after_ms", 0, MAX_DRAIN_MS))
    return None


def decode_claims(data: bytes) -> Claims:
    """Decode the claims of a join. Until both signatures verify, trust nothing in them but the two keys.

    Raises ControlError.
    """
    if len(data) > MAX_CONTROL:
        _fail("claims too long")
    claims = strict_json(data)
    relay = _text(claims, "relay", MAX_HOST)
    if not relay or relay != relay.lower():
        _fail("relay: not a host name in lower case")
    addresses = _addresses(claims, "addresses", MAX_CLAIMED)
    if not addresses:
        _fail("addresses: none claimed")
    return Claims(
        version=_integer(claims, "version", 0),
        network=_hex(claims.get("network"), "network", 32),
        device=_hex(claims.get("device"), "device", 32),
        instance=_hex(claims.get("instance"), "instance", 16),
        relay=relay,
        addresses=addresses,
        agent=_text(claims, "agent", MAX_AGENT),
    )


def strict_json(data: bytes | str) -> dict[str, object]:
    """Parse one JSON object: strict UTF-8, no duplicate keys, no NaN or Infinity, nesting ≤ 8 with itself as
    1.

    Unlike `json.loads` it cannot raise RecursionError: the nesting is counted before the parser runs. The
    caller bounds the length. Raises ControlError.
    """
    try:
        text = data if isinstance(data, str) else data.decode()
    except UnicodeDecodeError:
        _fail("not UTF-8")
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(text):
        character = token[0][0]
        if character in "[{":
            depth += 1
            if depth > MAX_NESTING:
                _fail("JSON nested too deeply")
        elif character in "]}":
            depth -= 1
    try:
        value = json.loads(text, object_pairs_hook=_unique, parse_float=_finite, parse_constant=_no_constant)
    except ValueError:
        _fail("not JSON")
    return _object(value, "message")


def printable(text: str, limit: int) -> str:
    """Return `text` as at most `limit` printable ASCII characters, others replaced by `?`."""
    return _NOT_PRINTABLE.sub("?", text[:limit])


# The closing quote is optional so that a match never fails after a quote: that keeps the scan linear.
_STRING_OR_BRACKET = re.compile(r'"(?:[^"\\]|\\.)*"?|[\[\]{}]', re.DOTALL)
_NOT_PRINTABLE = re.compile(r"[^ -~]")


def _fail(what: str) -> NoReturn:
    # Without the cause: its text and fields would hold the bytes received.
    raise ControlError(what) from None


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    result = dict(pairs)
    if len(result) != len(pairs):
        _fail("duplicate key")
    return result


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        _fail("number out of range")
    return value


def _no_constant(name: str) -> NoReturn:
    _fail("NaN or Infinity")


def _dump(fields: object) -> str:
    text = json.dumps(fields, separators=(",", ":"))
    if len(text) > MAX_CONTROL:
        raise LocalProtocolError(f"control message of {len(text)} bytes, at most {MAX_CONTROL}")
    return text


def _to_b64(data: bytes) -> str:
    return b64encode(data).decode()


def _to_hex(addresses: Iterable[bytes]) -> list[str]:
    return [address.hex() for address in addresses]


def _to_refused(refused: Iterable[Refused]) -> list[dict[str, str]]:
    return [{"address": each.address.hex(), "code": each.code} for each in refused]


def _typed(data: str | bytes) -> tuple[str, dict[str, object]]:
    # A str of n characters has at least n bytes, so the cheap test comes first.
    if len(data) > MAX_CONTROL or (
        isinstance(data, str) and not data.isascii() and _utf8_length(data) > MAX_CONTROL
    ):
        _fail("control message too long")
    message = strict_json(data)
    kind = message.get("type")
    if not isinstance(kind, str):
        _fail("type: missing or not a string")
    return kind, message


def _utf8_length(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))


def _object(value: object, key: str) -> dict[str, object]:
    if not isinstance(value, dict):
        _fail(f"{key}: not an object")
    return value


def _text(fields: dict[str, object], key: str, limit: int) -> str:
    value = fields.get(key)
    if not isinstance(value, str) or len(value) > limit or _NOT_PRINTABLE.search(value):
        _fail(f"{key}: not printable ASCII of at most {limit} characters")
    return value


def _integer(fields: dict[str, object], key: str, low: int, high: int = 2**31 - 1) -> int:
    value = fields.get(key)
    # `type` and not isinstance: true is not 1.
    if type(value) is not int or not low <= value <= high:
        _fail(f"{key}: not an integer from {low} to {high}")
    return value


def _seconds(fields: dict[str, object], key: str) -> float:
    value = fields.get(key)
    if (type(value) is not int and type(value) is not float) or not 0 < value <= 3600:
        _fail(f"{key}: not a number of seconds above 0, at most 3600")
    return value


def _b64(fields: dict[str, object], key: str, size: int | None = None) -> bytes:
    value = fields.get(key)
    if isinstance(value, str):
        try:
            data = b64decode(value, validate=True)
        except ValueError:
            data = b""
        # Encoding again refuses what the decoder tolerates, such as unused bits that are not zero.
        if data and (size is None or len(data) == size) and _to_b64(data) == value:
            return data
    _fail(f"{key}: not base64" + (f" of {size} bytes" if size else ""))


def _hex(value: object, key: str, size: int = ADDRESS_SIZE) -> bytes:
    if isinstance(value, str) and len(value) == 2 * size:
        try:
            data = binascii.unhexlify(value)
        except ValueError:
            data = b""
        if data.hex() == value:
            return data
    _fail(f"{key}: not {2 * size} lower-case hexadecimal digits")


def _list(fields: dict[str, object], key: str, limit: int = MAX_ADDRESSES) -> list[object]:
    value = fields.get(key, [])
    if not isinstance(value, list) or len(value) > limit:
        _fail(f"{key}: not a list of at most {limit}")
    return value


def _addresses(fields: dict[str, object], key: str, limit: int = MAX_ADDRESSES) -> tuple[bytes, ...]:
    return tuple(_hex(item, key) for item in _list(fields, key, limit))


def _refused(fields: dict[str, object]) -> tuple[Refused, ...]:
    items = [_object(item, "refused") for item in _list(fields, "refused")]
    return tuple(
        Refused(_hex(item.get("address"), "address"), _text(item, "code", MAX_NAME)) for item in items
    )
