"""Invitations: one line of text that makes a device of the network out of another machine. Pure.

    shadowmesh:// ‖ base32(version 1 ‖ fields ‖ CRC-32 of all before, 4, big endian)

A field is type 1 ‖ length 1 ‖ value, in ascending order of the types below (docs/client.md has the table).
Version and CRC stay where they are in later versions. The line is as secret as the key in it.
"""

from __future__ import annotations

import binascii
from base64 import b32decode, b32encode
from collections import Counter
from dataclasses import dataclass, field
from ipaddress import IPv4Interface, IPv6Interface, ip_interface

from shadowmesh.apikey import API_KEY
from shadowmesh.errors import InvitationError

SCHEME = "shadowmesh://"
VERSION = 1
MAX_TEXT = 4000
"""Characters: more than the longest has, and less than a terminal takes as one line (4095)."""
MAX_VALUE = 255
"""Bytes of one field."""

_KEY, _IP, _NAME, _RELAY, _MTU, _API_KEY, _INSECURE, _CA_FILE = range(1, 9)
# type -> (what it is, least bytes, most bytes, least times, most times)
_FIELDS = {
    _KEY: ("network key", 32, 32, 1, 1),
    _IP: ("overlay IP", 5, 17, 1, 8),
    _NAME: ("name", 1, 63, 1, 1),
    _RELAY: ("relay URL", 1, MAX_VALUE, 1, 4),
    _MTU: ("MTU", 2, 2, 0, 1),
    _API_KEY: ("API key", 56, 56, 0, 1),
    _INSECURE: ("mark for an API key in clear", 0, 0, 0, 1),
    _CA_FILE: ("path of a CA file", 1, MAX_VALUE, 0, 1),
}
_TYPING_MISTAKE = "it has a mistake in it, or a part is missing; copy it once more, as a whole"


@dataclass(frozen=True, slots=True)
class Invitation:
    """What a machine needs to be the device `name`. What the values mean is up to the configuration's loader.

    key: 32 bytes. relays, api_key, insecure_api_key, ca_file: as in `relay:` of the configuration.
    """

    key: bytes = field(repr=False)
    addresses: tuple[IPv4Interface | IPv6Interface, ...]
    name: str
    relays: tuple[str, ...]
    mtu: int | None = None
    api_key: str | None = field(default=None, repr=False)
    insecure_api_key: bool = False
    ca_file: str | None = None


def encode(invitation: Invitation) -> str:
    """The line. Raises InvitationError if a value is too long for one."""
    fields = [(_KEY, invitation.key)]
    fields += [(_IP, one.packed + bytes([one.network.prefixlen])) for one in invitation.addresses]
    fields.append((_NAME, invitation.name.encode()))
    fields += [(_RELAY, url.encode()) for url in invitation.relays]
    if invitation.mtu is not None:
        fields.append((_MTU, invitation.mtu.to_bytes(2, "big")))
    if invitation.api_key is not None:
        fields.append((_API_KEY, invitation.api_key.encode()))
    if invitation.insecure_api_key:
        fields.append((_INSECURE, b""))
    if invitation.ca_file is not None:
        fields.append((_CA_FILE, invitation.ca_file.encode()))
    _check(fields)
    body = bytes([VERSION]) + b"".join(bytes([kind, len(value)]) + value for kind, value in fields)
    body += binascii.crc32(body).to_bytes(4, "big")
    return SCHEME + b32encode(body).decode().rstrip("=").lower()


def decode(text: str) -> Invitation:
    """What a line says. White space counts for nothing, so one that a mail has broken is read, too.

    All letters are small, or all are capital as in the QR code. Raises InvitationError, without what is
    secret in it.
    """
    fields = _fields(_bytes(text))
    _check(fields)
    found: dict[int, list[bytes]] = {kind: [] for kind in _FIELDS}
    for kind, value in fields:
        found[kind].append(value)
    texts = {
        kind: [_text(kind, value) for value in found[kind]] for kind in (_NAME, _RELAY, _API_KEY, _CA_FILE)
    }
    if any(not API_KEY.fullmatch(one) for one in texts[_API_KEY]):
        raise InvitationError("the invitation: its API key is none")
    return Invitation(
        found[_KEY][0],
        tuple(map(_address, found[_IP])),
        texts[_NAME][0],
        tuple(texts[_RELAY]),
        int.from_bytes(found[_MTU][0], "big") if found[_MTU] else None,
        next(iter(texts[_API_KEY]), None),
        bool(found[_INSECURE]),
        next(iter(texts[_CA_FILE]), None),
    )


def _bytes(text: str) -> bytes:
    """Version and fields, once the CRC is right."""
    line = "".join(text.split())
    if len(line) > MAX_TEXT:
        raise InvitationError("this is too long to be an invitation; give its one line and nothing else")
    if line[: len(SCHEME)].lower() != SCHEME:
        raise InvitationError(f"this is no invitation: one begins with {SCHEME}")
    digits = line[len(SCHEME) :].upper()
    try:
        # Some letters outside of ASCII would become ASCII ones by upper().
        if not line.isascii() or line not in (line.lower(), line.upper()):
            raise ValueError
        body = b32decode(digits + "=" * (-len(digits) % 8))
    except ValueError:
        raise InvitationError(f"the invitation cannot be read: {_TYPING_MISTAKE}") from None
    canonical = b32encode(body).decode().rstrip("=") == digits
    if len(body) < 5 or not canonical or binascii.crc32(body[:-4]) != int.from_bytes(body[-4:], "big"):
        raise InvitationError(f"the invitation cannot be read: {_TYPING_MISTAKE}")
    if body[0] != VERSION:
        raise InvitationError(
            f"the invitation is of version {body[0]}, this program knows {VERSION}: "
            "use the same version of ShadowMesh on both machines"
        )
    return body[:-4]


def _fields(body: bytes) -> list[tuple[int, bytes]]:
    fields = []
    at = 1
    while at < len(body):
        if at + 2 > len(body) or (end := at + 2 + body[at + 1]) > len(body):
            raise InvitationError("the invitation ends within a field")
        fields.append((body[at], body[at + 2 : end]))
        at = end
    return fields


def _check(fields: list[tuple[int, bytes]]) -> None:
    kinds = [kind for kind, _ in fields]
    if not _FIELDS.keys() >= set(kinds) or kinds != sorted(kinds):
        raise InvitationError("the invitation holds fields that version 1 has not, or in another order")
    for kind, value in fields:
        what, least, most, *_ = _FIELDS[kind]
        if not least <= len(value) <= most:
            raise InvitationError(f"the invitation: {what} of {len(value)} bytes; it has {least} to {most}")
    times = Counter(kinds)
    for kind, (what, _, _, least, most) in _FIELDS.items():
        if not least <= times[kind] <= most:
            raise InvitationError(
                f"the invitation: {what} {times[kind]} times; it is there {least} to {most}"
            )


def _text(kind: int, value: bytes) -> str:
    try:
        text = value.decode()
    except UnicodeDecodeError:
        text = "\0"
    if not text.isprintable():
        raise InvitationError(f"the invitation: its {_FIELDS[kind][0]} holds characters that cannot be seen")
    return text


def _address(value: bytes) -> IPv4Interface | IPv6Interface:
    try:
        return ip_interface((value[:-1], value[-1]))
    except ValueError:
        raise InvitationError("the invitation: an overlay IP that is none") from None
