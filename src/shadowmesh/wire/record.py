"""Records: what the plaintext of a sealed message, and of handshake payloads 2 and 3, is made of.

kind 1 ‖ length 3 ‖ body        repeated until the plaintext is filled exactly, at most 4096 times

0 zeros    padding; alone (0000000c ‖ 12 zeros) the message is a keepalive
1 IP packet; its own length field equals the body's length
2 offload packet: virtio_net_hdr (10 B) ‖ IP packet of up to 64 KiB
3 JSON: info, probe, probe_ack, conflict, bye
"""

from __future__ import annotations

import ipaddress
import json
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from shadowmesh.errors import ControlError, MessageError
from shadowmesh.wire.control import strict_json

PAD = 0
PACKET = 1
OFFLOAD = 2
JSON = 3

HEADER_SIZE = 4
MAX_RECORDS = 4096
MOST_PADDING = 19
"""Bytes of the longest record that `padding` gives."""
MAX_PLAINTEXT = 65_600  # one 64 KiB offload packet, its header and padding
LARGEST_PLAINTEXT = 130_992
"""The same for a peer that says it takes so much (`Info.max_plaintext`): what fits a frame of 128 KiB."""
MAX_INFO = 4096
MAX_IPS = 8
MAX_ROUTES = 64
BLOCK = 16  # plaintexts are padded to a multiple of it

_PREFIX = re.compile(r"[0-9A-Fa-f.:]+/(?:0|[1-9][0-9]{0,2})")

KEEPALIVE = bytes((0, 0, 0, 12)) + bytes(12)

header = struct.Struct(">I")  # kind << 24 | length


def padding(size: int) -> bytes:
    """The padding record that brings `size` bytes to a multiple of 16: empty, or 4 to 19 bytes."""
    short = -size % BLOCK
    if short == 0:
        return b""
    if short < HEADER_SIZE:
        short += BLOCK
    return header.pack(short - HEADER_SIZE) + bytes(short - HEADER_SIZE)


def padded_size(size: int) -> int:
    """`size` with the padding record that `padding` gives."""
    short = -size % BLOCK
    return size + short + (BLOCK if 0 < short < HEADER_SIZE else 0)


def pack(kind: int, body: bytes | memoryview) -> bytes:
    """One record."""
    return header.pack(kind << 24 | len(body)) + body


def split(plaintext: memoryview, size: int) -> list[tuple[int, int, int]]:
    """(kind, start, end of the body) of each record in plaintext[:size].

    Raises MessageError, having shown nothing, unless the records fill it exactly.
    """
    records: list[tuple[int, int, int]] = []
    at = 0
    while at < size:
        if at + HEADER_SIZE > size or len(records) == MAX_RECORDS:
            raise MessageError("records do not fill their message")
        (word,) = header.unpack_from(plaintext, at)
        at += HEADER_SIZE
        end = at + (word & 0xFFFFFF)
        records.append((word >> 24, at, end))
        at = end
    if at != size:
        raise MessageError("records do not fill their message")
    return records


@dataclass(frozen=True)
class Info:
    """What a device says of itself under the session's keys. `ips` and `routes` are network-order bytes.

    seq: a lower one of the same session is ignored. ips: overlay IPs (4 or 16 bytes), at most 8.
    routes: CIDR prefixes the device offers, shown and never installed unasked. mtu: of its TUN device, bytes.
    max_plaintext: bytes of plaintext that it takes in one sealed message.
    """

    seq: int
    id: str
    ips: tuple[bytes, ...]
    routes: tuple[str, ...]
    agent: str
    mtu: int
    versions: tuple[int, ...]
    max_plaintext: int = MAX_PLAINTEXT

    def encode(self) -> bytes:
        """The JSON body. Raises ValueError above 4096 bytes: only own settings can cause that."""
        longer = self.max_plaintext > MAX_PLAINTEXT
        body = json.dumps(
            {
                "type": "info",
                "seq": self.seq,
                "id": self.id,
                "ips": [str(ipaddress.ip_address(ip)) for ip in self.ips],
                "routes": list(self.routes),
                "agent": self.agent,
                "mtu": self.mtu,
                "versions": list(self.versions),
            }
            | ({"max_plaintext": self.max_plaintext} if longer else {}),
            separators=(",", ":"),
        ).encode()
        if len(body) > MAX_INFO:
            raise ValueError(f"the info record has {len(body)} bytes, {MAX_INFO} are allowed")
        return body


@dataclass(frozen=True)
class Probe:
    """A question on a path, or its answer, which takes the same path back."""

    id: int
    ack: bool

    def encode(self) -> bytes:
        """The JSON body."""
        kind = "probe_ack" if self.ack else "probe"
        return json.dumps({"type": kind, "id": self.id}, separators=(",", ":")).encode()


@dataclass(frozen=True)
class Bye:
    """The sender has forgotten this session."""

    def encode(self) -> bytes:
        """The JSON body."""
        return b'{"type":"bye"}'


@dataclass(frozen=True)
class Conflict:
    """Another device that the sender hears shows the same overlay IP (4 or 16 bytes)."""

    ip: bytes

    def encode(self) -> bytes:
        """The JSON body."""
        return json.dumps({"type": "conflict", "ip": str(ipaddress.ip_address(self.ip))}).encode()


def decode_json(body: bytes) -> Info | Probe | Conflict | Bye | None:
    """The value of a JSON record, None for a type of a later version. Raises MessageError."""
    if len(body) > MAX_INFO:
        raise MessageError("a JSON record is too long")
    try:
        fields = strict_json(body)
    except ControlError as error:
        raise MessageError(f"a JSON record is not strict JSON: {error.what}") from None
    match fields.get("type"):
        case "info":
            return _info(fields)
        case "probe" | "probe_ack" as kind:
            return Probe(_integer(fields, "id", 2**53 - 1), kind == "probe_ack")
        case "conflict":
            try:
                return Conflict(_ip(_text(fields.get("ip"), "ip", 64)))
            except ValueError:
                raise MessageError("conflict: the address cannot be read") from None
        case "bye":
            return Bye()
        case str():
            return None
    raise MessageError("a JSON record has no type")


def _info(fields: dict[str, object]) -> Info:
    try:
        ips = tuple(_ip(text) for text in _strings(fields, "ips", MAX_IPS))
        routes = tuple(_route(text) for text in _strings(fields, "routes", MAX_ROUTES))
    except ValueError:
        raise MessageError("info: an address or a route cannot be read") from None
    versions = fields.get("versions")
    if not isinstance(versions, list) or not 0 < len(versions) <= 16:
        raise MessageError("info: versions is not a short list")
    if not all(type(version) is int and 0 < version < 16 for version in versions):
        raise MessageError("info: a version is not a small number")
    return Info(
        seq=_integer(fields, "seq", 2**53 - 1),
        id=_text(fields.get("id"), "id", 63),
        ips=ips,
        routes=routes,
        agent=_text(fields.get("agent"), "agent", 64),
        mtu=_integer(fields, "mtu", 65_535),
        versions=tuple(versions),
        max_plaintext=_max_plaintext(fields),
    )


def _max_plaintext(fields: dict[str, object]) -> int:
    """What is used of it: every peer takes MAX_PLAINTEXT, and we seal no more than LARGEST_PLAINTEXT."""
    if "max_plaintext" not in fields:
        return MAX_PLAINTEXT
    return min(max(_integer(fields, "max_plaintext", 2**53 - 1), MAX_PLAINTEXT), LARGEST_PLAINTEXT)


def _ip(text: str) -> bytes:
    """IPv4-mapped becomes IPv4, whose blind address it has: a second form of an IP would evade its pin."""
    if "%" in text:
        raise ValueError("a scope means nothing to others")
    address = ipaddress.ip_address(text)
    return (getattr(address, "ipv4_mapped", None) or address).packed


def _route(text: str) -> str:
    if not _PREFIX.fullmatch(text):
        raise ValueError("not address/length")
    return str(ipaddress.ip_network(text))


def _integer(fields: dict[str, object], key: str, most: int) -> int:
    value = fields.get(key)
    if type(value) is not int or not 0 <= value <= most:  # bool is an int to Python, not to the protocol
        raise MessageError(f"{key} is not a number from 0 to {most}")
    return value


def _text(value: object, key: str, most: int) -> str:
    if not isinstance(value, str) or len(value) > most or not value.isascii() or not value.isprintable():
        raise MessageError(f"{key} is not printable ASCII of at most {most} bytes")
    return value


def _strings(fields: dict[str, object], key: str, most: int) -> Sequence[str]:
    values = fields.get(key)
    if not isinstance(values, list) or len(values) > most:
        raise MessageError(f"info: {key} is not a list of at most {most}")
    return [_text(value, key, 64) for value in values]
