"""API keys of a relay with `auth.mode: api_key`: what each grants, and to whom. Pure.

A relay knows the SHA-256 of each key, never the key: of 256 random bits nothing slower is needed. Times are
those of the wall clock, in Unix seconds, for people choose them; `now` is compared at each look, so a clock
that is set right later makes a key good or not from then on.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from hmac import compare_digest
from typing import NamedTuple

from shadowmesh.apikey import API_KEY

ASKED = "this relay asks for an API key"
_NO_DIGEST = bytes(32)


@dataclass(frozen=True, slots=True)
class Previous:
    """The key that a rotated one replaces, good until `expires`, and known as replaced from then on."""

    digest: bytes = field(repr=False)
    expires: int


@dataclass(frozen=True, slots=True)
class Key:
    """One key. digest: SHA-256 of its whole text; network: id of the one it is good for; 0: no limit."""

    id: str
    name: str
    digest: bytes = field(repr=False)
    created: int
    expires: int | None = None
    network: bytes | None = None
    max_connections: int = 0
    bytes_per_second: int = 0
    revoked: int | None = None
    previous: Previous | None = None
    max_addresses: int = 0


@dataclass(frozen=True, slots=True)
class Grant:
    """What a connection may by its key, and until when (Unix seconds; None: for ever); 0: no limit."""

    id: str
    name: str
    network: bytes | None
    max_connections: int
    bytes_per_second: int
    expires: int | None
    digest: bytes = field(repr=False)
    """Of the key that was shown: after a rotation its holder has another one."""
    max_addresses: int = 0


class Refusal(NamedTuple):
    """Why a key grants nothing. is_ours: it is, or was, good; who shows it does not try keys out."""

    why: str
    is_ours: bool = False


class Keys:
    """The keys of one file, by their ids."""

    def __init__(self, keys: Iterable[Key] = ()) -> None:
        self._keys = {key.id: key for key in keys}

    def __len__(self) -> int:
        return len(self._keys)

    def differ(self, other: Keys) -> set[str]:
        """The ids of the keys that are not the same in both."""
        ids = self._keys.keys() | other._keys.keys()
        return {each for each in ids if self._keys.get(each) != other._keys.get(each)}

    def admit(self, authorization: Sequence[str], now: float) -> Grant | Refusal:
        """What the Authorization headers of a request grant, or why nothing."""
        if not authorization:
            return Refusal(ASKED)
        scheme, _, shown = authorization[0].strip().partition(" ")
        found = API_KEY.fullmatch(shown.strip())
        if len(authorization) > 1 or scheme.lower() != "bearer" or found is None:
            return Refusal("malformed Authorization header; Bearer and an API key belong there")
        return self._grant(found[1], sha256(found[0].encode()).digest(), now)

    def renew(self, grant: Grant, now: float) -> Grant | str:
        """What the key of `grant` grants now, or in words why nothing any more."""
        renewed = self._grant(grant.id, grant.digest, now)
        return renewed.why if isinstance(renewed, Refusal) else renewed

    def _grant(self, key_id: str, digest: bytes, now: float) -> Grant | Refusal:
        # An unknown id takes as long as a wrong secret; ids are no secret, though.
        key = self._keys.get(key_id)
        previous = key.previous if key else None
        is_current = compare_digest(key.digest if key else _NO_DIGEST, digest)
        is_previous = compare_digest(previous.digest if previous else _NO_DIGEST, digest) and bool(previous)
        if key is None or not (is_current or is_previous):
            return Refusal("unknown API key")
        if key.revoked is not None:
            return Refusal("this API key is revoked", is_ours=True)
        if key.expires is not None and key.expires <= now:
            return Refusal("this API key has expired", is_ours=True)
        expires = key.expires
        if not is_current and previous is not None:
            if previous.expires <= now:
                return Refusal("this API key was replaced by a new one", is_ours=True)
            expires = previous.expires if expires is None else min(previous.expires, expires)
        return Grant(
            key.id,
            key.name,
            key.network,
            key.max_connections,
            key.bytes_per_second,
            expires,
            digest,
            key.max_addresses,
        )
