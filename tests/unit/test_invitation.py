"""The line of an invitation: its format to the byte, and each thing that is wrong with one, in words."""

from __future__ import annotations

import zlib
from base64 import b32encode
from collections.abc import Iterable
from contextlib import suppress
from ipaddress import ip_interface
from random import Random

import pytest

from shadowmesh.errors import InvitationError
from shadowmesh.invitation import MAX_TEXT, SCHEME, Invitation, decode, encode

KEY = bytes(range(32))
API_KEY = "smk_abcdefgh_" + "A" * 43
SMALL = Invitation(KEY, (ip_interface("10.10.10.2/24"),), "desktop", ("ws://203.0.113.9:9545/relay",))
FIELDS = [(1, KEY), (2, bytes([10, 10, 10, 2, 24])), (3, b"desktop"), (4, b"ws://203.0.113.9:9545/relay")]


def line(fields: Iterable[tuple[int, bytes]], version: int = 1, behind: bytes = b"") -> str:
    """What the page describes, made once more."""
    body = bytes([version]) + b"".join(bytes([kind, len(value)]) + value for kind, value in fields) + behind
    body += zlib.crc32(body).to_bytes(4, "big")
    return SCHEME + b32encode(body).decode().rstrip("=").lower()


def test_the_format() -> None:
    assert encode(SMALL) == line(FIELDS)
    whole = Invitation(
        KEY,
        (ip_interface("10.10.10.2/24"), ip_interface("fd00::2/64")),
        "desktop",
        ("wss://a.example/relay", "wss://b.example/relay"),
        1300,
        API_KEY,
        True,
        "/etc/shadowmesh/ca.pem",
    )
    ip6 = ip_interface("fd00::2/64").packed + b"\x40"
    fields = [
        *(
            *FIELDS[:2],
            (2, ip6),
            (3, b"desktop"),
            (4, b"wss://a.example/relay"),
            (4, b"wss://b.example/relay"),
        ),
        *((5, b"\x05\x14"), (6, API_KEY.encode()), (7, b""), (8, b"/etc/shadowmesh/ca.pem")),
    ]
    assert encode(whole) == line(fields)
    assert decode(line(fields)) == whole


def test_nothing_secret_is_shown() -> None:
    shown = repr(Invitation(KEY, SMALL.addresses, "desktop", SMALL.relays, api_key=API_KEY))
    assert KEY.hex() not in shown
    assert repr(KEY) not in shown
    assert API_KEY not in shown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "this is no invitation: one begins with shadowmesh://"),
        ("wss://relay.example.com", "this is no invitation"),
        (SCHEME, "it has a mistake in it, or a part is missing; copy it once more, as a whole"),
        (SCHEME + "aaaaaaaa", "it has a mistake in it"),
        (SCHEME + "a" * MAX_TEXT, "too long to be an invitation; give its one line and nothing else"),
        (line(FIELDS).replace("a", "A", 1), "this is no invitation|it has a mistake in it"),
        (line(FIELDS)[:-1], "it has a mistake in it"),
        (line(FIELDS).replace("s", "ſ", 1), "this is no invitation"),
        (line(FIELDS)[:-1] + "ı", "it has a mistake in it"),
        (
            line(FIELDS, 2),
            "is of version 2, this program knows 1: use the same version of ShadowMesh on both",
        ),
        (line(FIELDS, behind=b"\x05"), "ends within a field"),
        (line(FIELDS, behind=b"\x05\x02\x00"), "ends within a field"),
        (line([*FIELDS, (9, b"")]), "holds fields that version 1 has not, or in another order"),
        (line(FIELDS[::-1]), "in another order"),
        (line(FIELDS[1:]), "network key 0 times; it is there 1 to 1"),
        (line([FIELDS[0], *FIELDS]), "network key 2 times"),
        (line([FIELDS[0], *FIELDS[2:]]), "overlay IP 0 times; it is there 1 to 8"),
        (line(FIELDS[:3]), "relay URL 0 times; it is there 1 to 4"),
        (line([*FIELDS, *FIELDS[3:] * 4]), "relay URL 5 times"),
        (line([(1, KEY[1:]), *FIELDS[1:]]), "network key of 31 bytes; it has 32 to 32"),
        (line([*FIELDS[:2], (3, b""), FIELDS[3]]), "name of 0 bytes; it has 1 to 63"),
        (line([*FIELDS[:2], (3, b"a\n"), FIELDS[3]]), "its name holds characters that cannot be seen"),
        (line([*FIELDS[:2], (3, b"\xff"), FIELDS[3]]), "its name holds characters that cannot be seen"),
        (line([FIELDS[0], (2, b"\x0a\x0a\x0a\x02\x21"), *FIELDS[2:]]), "an overlay IP that is none"),
        (line([FIELDS[0], (2, b"\x0a\x0a\x0a\x02\x02\x21"), *FIELDS[2:]]), "an overlay IP that is none"),
        (line([*FIELDS, (6, b"x" * 56)]), "its API key is none"),
    ],
)
def test_each_mistake_in_words(text: str, words: str) -> None:
    with pytest.raises(InvitationError, match=words) as error:
        decode(text)
    assert b32encode(KEY).decode()[:20].lower() not in str(error.value).lower()


def test_a_url_that_is_too_long() -> None:
    with pytest.raises(InvitationError, match="relay URL of 300 bytes; it has 1 to 255"):
        encode(Invitation(KEY, SMALL.addresses, "desktop", ("w" * 300,)))


def test_random_fields_are_an_invitation_or_an_error_in_words() -> None:
    """Behind a right CRC, where no mutation of a whole line comes."""
    random = Random(8)
    for _ in range(2000):
        fields = [(kind, value) for kind, value in FIELDS if random.random() < 0.9]
        at = random.randrange(len(fields) + 1)
        fields.insert(at, (random.randrange(10), random.randbytes(random.choice((0, 2, 5, 17, 32, 56)))))
        with suppress(InvitationError):
            decode(line(fields, behind=random.randbytes(random.choice((0, 0, 1, 3)))))
