"""What an API key grants, until when, and what becomes of it by revocation, rotation and the clock."""

from __future__ import annotations

from dataclasses import replace
from hashlib import sha256

import pytest

from shadowmesh.apikey import key_text
from shadowmesh.relay.keys import ASKED, Grant, Key, Keys, Previous, Refusal

TEXT, OLD, OTHER = (key_text("abcdefgh", bytes([n]) * 32) for n in range(3))
KEY = Key("abcdefgh", "laptop", sha256(TEXT.encode()).digest(), created=0)
UNKNOWN = "unknown API key"
MALFORMED = "malformed Authorization header; Bearer and an API key belong there"


def admit(key: Key, text: str = TEXT, now: float = 1000.0) -> Grant | Refusal:
    return Keys([key]).admit([f"Bearer {text}"], now)


def why(key: Key, text: str = TEXT, now: float = 1000.0) -> str:
    """Why a key that is, or was, one of ours grants nothing."""
    refusal = admit(key, text, now)
    assert isinstance(refusal, Refusal)
    assert refusal.is_ours
    return refusal.why


def test_a_key_grants_what_the_file_says() -> None:
    key = replace(
        KEY, expires=2000, network=b"n" * 32, max_connections=5, bytes_per_second=10_000, max_addresses=7
    )
    grant = admit(key)
    assert grant == Grant("abcdefgh", "laptop", b"n" * 32, 5, 10_000, 2000, KEY.digest, 7)
    assert admit(KEY) == Grant("abcdefgh", "laptop", None, 0, 0, None, KEY.digest)


def test_no_repr_shows_a_hash() -> None:
    shown = repr([admit(KEY), KEY, Previous(KEY.digest, 0)])
    assert str(KEY.digest) not in shown
    assert KEY.digest.hex() not in shown


@pytest.mark.parametrize(
    ("headers", "words"),
    [
        ([], ASKED),
        ([f"Bearer {OTHER}"], UNKNOWN),
        ([f"Bearer {TEXT.replace('abcdefgh', 'hgfedcba')}"], UNKNOWN),
        ([f"Basic {TEXT}"], MALFORMED),
        ([TEXT], MALFORMED),
        (["Bearer"], MALFORMED),
        (["Bearer "], MALFORMED),
        (["Bearer \x00"], MALFORMED),
        ([f"Bearer {TEXT}x"], MALFORMED),
        ([f"Bearer {TEXT[:-1]}"], MALFORMED),
        ([f"Bearer {TEXT}\n"[:-2]], MALFORMED),
        ([f"Bearer {TEXT} {TEXT}"], MALFORMED),
        ([f"Bearer {TEXT}, Bearer {TEXT}"], MALFORMED),
        ([f"Bearer {TEXT}", f"Bearer {TEXT}"], MALFORMED),
        ([f"Bearer {'A' * 8000}"], MALFORMED),
    ],
)
def test_everything_else_is_refused_in_words(headers: list[str], words: str) -> None:
    assert Keys([KEY]).admit(headers, 0.0) == Refusal(words)


@pytest.mark.parametrize("header", [f"bearer {TEXT}", f"BEARER   {TEXT} "])
def test_the_scheme_is_read_as_http_does(header: str) -> None:
    assert isinstance(Keys([KEY]).admit([header], 0.0), Grant)


def test_no_keys_let_nobody_in() -> None:
    assert Keys().admit([f"Bearer {TEXT}"], 0.0) == Refusal(UNKNOWN)


def test_a_digest_of_zeros_is_no_way_in() -> None:
    """An unknown id, and a key without a previous one, are compared with zeros: those grant nothing."""
    grant = admit(KEY)
    assert isinstance(grant, Grant)
    zeros = replace(grant, digest=bytes(32))
    assert Keys([KEY]).renew(zeros, 0.0) == UNKNOWN
    assert Keys().renew(zeros, 0.0) == UNKNOWN


def test_expiry_is_by_the_clock_that_is_given_also_when_it_jumps() -> None:
    keys = Keys([replace(KEY, expires=2000)])
    grant = keys.admit([f"Bearer {TEXT}"], 1999.9)
    assert isinstance(grant, Grant)
    expired = Refusal("this API key has expired", is_ours=True)
    for now, good in ((1999.9, True), (2000.0, False), (9e9, False), (-1.0, True)):
        assert keys.renew(grant, now) == (grant if good else expired.why)
        assert keys.admit([f"Bearer {TEXT}"], now) == (grant if good else expired)


def test_a_revoked_key() -> None:
    assert why(replace(KEY, revoked=999)) == "this API key is revoked"
    assert admit(replace(KEY, revoked=999), OTHER) == Refusal(UNKNOWN), "only its holder hears so"
    # Also when the clock is set back behind the revocation, and when it had expired before.
    assert why(replace(KEY, revoked=5000, expires=1)) == "this API key is revoked"


def test_a_rotated_key_is_good_beside_the_new_one_until_its_grace_ends() -> None:
    rotated = replace(KEY, previous=Previous(sha256(OLD.encode()).digest(), 2000))
    keys = Keys([rotated])
    old = keys.admit([f"Bearer {OLD}"], 1000)
    new = keys.admit([f"Bearer {TEXT}"], 1000)
    assert isinstance(old, Grant)
    assert isinstance(new, Grant)
    assert (old.expires, new.expires, old.id) == (2000, None, new.id)
    assert keys.renew(old, 2000) == "this API key was replaced by a new one"
    assert keys.renew(new, 2000) == new
    # The grace does not outlive the key.
    short = Keys([replace(rotated, expires=1500)]).admit([f"Bearer {OLD}"], 1000)
    assert isinstance(short, Grant)
    assert short.expires == 1500


def test_a_key_that_was_rotated_without_grace_is_known_as_replaced() -> None:
    rotated = replace(KEY, previous=Previous(sha256(OLD.encode()).digest(), 1000))
    assert why(rotated, OLD) == "this API key was replaced by a new one"
    assert admit(rotated, OTHER) == Refusal(UNKNOWN)
    assert why(replace(rotated, revoked=1), OLD) == "this API key is revoked"


def test_renewal_takes_over_what_has_changed() -> None:
    grant = admit(KEY)
    assert isinstance(grant, Grant)
    renewed = Keys([replace(KEY, bytes_per_second=20_000, max_connections=1)]).renew(grant, 0.0)
    assert isinstance(renewed, Grant)
    assert (renewed.bytes_per_second, renewed.max_connections) == (20_000, 1)
    assert Keys().renew(grant, 0.0) == UNKNOWN
