"""The JSON of sections 3 and 4 and the data frame: what each text says, or that it is refused.

Decoded values are JSON again: bytes as hex (base64 and IPs too), absent lists as empty ones, no unknown keys.
"""

from __future__ import annotations

import base64
import ipaddress
import json
from collections.abc import Callable
from typing import Any, NoReturn

MAX_CONTROL, MAX_RECORD = 8192, 4096
MAX_NESTING = 8
MAX_PLAINTEXT = 65_600
DATA = 0x10
MIN_FRAME, MIN_MAX_FRAME = 34, 66_048
CLAIMED, HELD, IPS, ROUTES = 48, 64, 8, 64

Check = Callable[[Any], Any]


class Refused(ValueError):
    """Not a text or a frame of the protocol."""


def need(condition: bool, why: str) -> None:
    if not condition:
        raise Refused(why)


def depth(value: object) -> int:
    if isinstance(value, dict):
        return 1 + max(map(depth, value.values()), default=0)
    if isinstance(value, list):
        return 1 + max(map(depth, value), default=0)
    return 0


def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    need(len(set(keys)) == len(keys), "duplicate key")
    return dict(pairs)


def no_constant(name: str) -> NoReturn:
    raise Refused(name)


def in_range(digits: str) -> float:
    need(abs(float(digits)) < float("inf"), digits)
    return float(digits)


def parse(data: bytes, most: int) -> dict[str, Any]:
    """Section 0: one strict object."""
    need(len(data) <= most, "too long")
    try:
        value = json.loads(
            data.decode(), object_pairs_hook=unique, parse_constant=no_constant, parse_float=in_range
        )
        deep = depth(value)
    except (ValueError, RecursionError) as error:
        raise Refused(str(error)) from None
    need(isinstance(value, dict), "not an object")
    need(deep <= MAX_NESTING, "nesting")
    return dict(value)


def number(low: int, high: int | None = None) -> Check:
    def check(value: Any) -> Any:
        need(isinstance(value, int) and not isinstance(value, bool), "not a whole number")
        need(low <= value and (high is None or value <= high), "number out of range")
        return value

    return check


def text(most: int | None = None) -> Check:
    def check(value: Any) -> Any:
        need(isinstance(value, str) and all(" " <= character <= "~" for character in value), "not text")
        need(most is None or len(value) <= most, "text too long")
        return value

    return check


def host(value: Any) -> Any:
    need(text()(value) == value.lower(), "upper case")
    return value


def b64(size: int | None = None) -> Check:
    def check(value: Any) -> str:
        need(isinstance(value, str) and value.isascii(), "not base64")
        try:
            decoded = base64.b64decode(value)  # as tolerant as can be; the comparison is the test
        except ValueError as error:
            raise Refused(str(error)) from None
        need(base64.b64encode(decoded).decode() == value, "not strict base64")
        need(size is None or len(decoded) == size, "wrong size")
        return decoded.hex()

    return check


def hexadecimal(size: int) -> Check:
    def check(value: Any) -> Any:
        need(isinstance(value, str) and len(value) == 2 * size, "wrong size")
        need(set(value) <= set("0123456789abcdef"), "not lower-case hex")
        return value

    return check


def several(each: Check, most: int, least: int = 0) -> Check:
    def check(value: Any) -> list[Any]:
        need(isinstance(value, list) and least <= len(value) <= most, "not a list of that length")
        return [each(item) for item in value]

    return check


def fields(form: dict[str, Check], *absent_lists: str, **absent: int) -> Check:
    def check(value: Any) -> dict[str, Any]:
        need(isinstance(value, dict), "not an object")
        value = {key: [] for key in absent_lists} | absent | value
        need(form.keys() <= value.keys(), "a key is missing")
        return {key: each(value[key]) for key, each in form.items()}

    return check


def ip(value: Any) -> str:
    """IPv4-mapped ones count as IPv4."""
    try:
        need("%" not in text(64)(value), "a scope")
        packed = ipaddress.ip_address(value).packed
    except ValueError as error:
        raise Refused(str(error)) from None
    return packed.hex().removeprefix("00" * 10 + "ffff") if len(packed) == 16 else packed.hex()


def max_plaintext(value: Any) -> int:
    """Everybody takes 65,600 bytes."""
    said: int = number(0, 2**53 - 1)(value)
    return max(MAX_PLAINTEXT, said)


def route(value: Any) -> str:
    """A CIDR prefix without host bits."""
    address, _, prefix = text(64)(value).partition("/")
    need("%" not in address, "a scope")
    need(prefix.isdigit() and str(int(prefix)) == prefix, "no prefix length")
    try:
        packed = ipaddress.ip_address(address).packed
    except ValueError as error:
        raise Refused(str(error)) from None
    host_bits = 8 * len(packed) - int(prefix)
    need(host_bits >= 0 and int.from_bytes(packed) % (1 << host_bits) == 0, "host bits")
    return f"{ipaddress.ip_address(packed)}/{int(prefix)}"


ADDRESS = hexadecimal(16)
LIST = several(ADDRESS, HELD)
NOT_GIVEN = several(fields({"address": ADDRESS, "code": text()}), HELD)

CLAIMS = fields(
    {
        "version": number(0),
        "network": hexadecimal(32),
        "device": hexadecimal(32),
        "instance": hexadecimal(16),
        "relay": host,
        "addresses": several(ADDRESS, CLAIMED, least=1),
        "agent": text(64),
    }
)
CLIENT = {
    "join": fields({"claims": b64(), "network_signature": b64(64), "device_signature": b64(64)}),
    "addresses": fields({"add": LIST, "remove": LIST}, "add", "remove"),
}
RELAY = {
    "challenge": fields(
        {
            "version": number(0),
            "nonce": b64(32),
            "server_name": text(),
            "region": text(),
            "max_frame": number(MIN_MAX_FRAME),
            "keepalive_s": number(1),
        }
    ),
    "joined": fields(
        {
            "remote": text(),
            "held": LIST,
            "refused": NOT_GIVEN,
            "limits": fields({"addresses": number(1), "max_frame": number(MIN_MAX_FRAME)}),
        },
        "held",
        "refused",
    ),
    "addresses": fields({"held": LIST, "refused": NOT_GIVEN}, "held", "refused"),
    "gone": fields({"address": ADDRESS, "reason": text()}),
    "pause": fields({"address": ADDRESS}),
    "resume": fields({"address": ADDRESS}),
    "problem": fields({"code": text(), "detail": text(200)}),
    "drain": fields({"reconnect_after_ms": number(0)}),
}
PROBE = fields({"id": number(0, 2**53 - 1)})
PEER = {
    "info": fields(
        {
            "seq": number(0, 2**53 - 1),
            "id": text(63),
            "ips": several(ip, IPS),
            "routes": several(route, ROUTES),
            "agent": text(64),
            "mtu": number(0, 65_535),
            "versions": several(number(1, 15), 16, least=1),
            "max_plaintext": max_plaintext,
        },
        max_plaintext=MAX_PLAINTEXT,
    ),
    "probe": PROBE,
    "probe_ack": PROBE,
    "conflict": fields({"ip": ip}),
    "bye": fields({}),
}


def decode(origin: str, data: bytes) -> dict[str, Any] | None:
    """What a text of a `relay`, a `client`, a `peer`, or `claims` says; None: of a type to be ignored."""
    value = parse(data, MAX_RECORD if origin == "peer" else MAX_CONTROL)
    if origin == "claims":
        return dict(CLAIMS(value))
    kind = value.get("type")
    if not isinstance(kind, str):
        raise Refused("no type")
    form = {"relay": RELAY, "client": CLIENT, "peer": PEER}[origin].get(kind)
    return None if form is None else {"type": kind, **form(value)}


def pack_frame(destination: bytes, source: bytes, payload: bytes) -> bytes:
    return bytes([DATA]) + destination + source + payload


def unpack_frame(frame: bytes) -> tuple[bytes, bytes, bytes]:
    need(len(frame) >= MIN_FRAME, "too short")
    need(frame[0] == DATA, "other first byte")
    return frame[1:17], frame[17:33], frame[33:]
