"""Who has which key: counted by key, over joins, ends, and changes of the file and of the mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from typing import cast

import pytest

from shadowmesh.apikey import key_text
from shadowmesh.errors import JoinError
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.gate import Gate
from shadowmesh.relay.keys import ASKED, Grant, Key, Keys
from shadowmesh.wire.control import Claims

TEXT = key_text("abcdefgh", bytes(32))
KEY = Key("abcdefgh", "laptop", sha256(TEXT.encode()).digest(), created=0, max_connections=1)
HEADERS = {"AUTHORIZATION": f"Bearer {TEXT}"}


@dataclass(eq=False)
class Fake:
    grant: Grant | None
    member: None = None


def gate(*keys: Key) -> Gate:
    made = Gate(lambda: 1000.0)
    made.use(Keys(keys))
    return made


def connection(gate: Gate) -> Connection:
    grant = gate.admit(HEADERS)
    assert isinstance(grant, Grant)
    return cast(Connection, Fake(grant))


def claims(network: bytes) -> Claims:
    return Claims(1, network, bytes(32), bytes(16), "relay", (bytes(16),), "agent")


def test_without_keys_everybody_comes_and_nothing_is_looked_at() -> None:
    open_gate = Gate()
    assert open_gate.admit({}) is None
    assert open_gate.admit({"Authorization": "nonsense"}) is None
    open_gate.check(None, claims(bytes(32)))
    assert not open_gate.is_full_for(None, None)


def test_a_place_is_free_when_its_connection_has_ended() -> None:
    keys = gate(KEY)
    one, two = connection(keys), connection(keys)
    keys.joined(one)
    assert keys.is_full_for(two.grant, None)
    assert not keys.is_full_for(two.grant, one), "in place of that one"
    assert keys.is_full_for(two.grant, two)
    for _ in range(2):
        keys.left(one)
        assert not keys.is_full_for(two.grant, None)
    assert keys._joined == {}


def test_one_that_never_joined_takes_nobody_s_place() -> None:
    keys = gate(KEY)
    one, two = connection(keys), connection(keys)
    keys.joined(one)
    keys.left(two)
    assert keys.is_full_for(two.grant, None)


def test_a_network_is_asked_for_at_the_join_and_at_each_change() -> None:
    keys = gate(replace(KEY, network=b"n" * 32))
    grant = connection(keys).grant
    keys.check(grant, claims(b"n" * 32))
    with pytest.raises(JoinError, match="this API key is for another network"):
        keys.check(grant, claims(b"m" * 32))


def test_only_what_has_changed_has_to_be_renewed() -> None:
    other = replace(KEY, id="hgfedcba", name="other")
    keys = gate(KEY, other)
    assert keys.use(Keys([other, KEY])) == set()
    assert keys.use(Keys([replace(KEY, revoked=1), other])) == {"abcdefgh"}
    assert keys.use(Keys([other])) == {"abcdefgh"}
    assert keys.use(Keys([KEY, other])) == {"abcdefgh"}
    assert keys.use(None) is None
    assert keys.use(Keys([KEY])) is None


def test_a_relay_that_stops_asking_and_asks_again() -> None:
    keys = gate(KEY)
    one = connection(keys)
    keys.joined(one)
    keys.use(None)
    assert keys.renew(one) is None
    assert one.grant is None
    keys.left(one)
    keys.use(Keys([KEY]))
    assert keys.renew(one) == ASKED
    assert not keys.is_full_for(connection(keys).grant, None)


def test_expiry() -> None:
    keys = gate(replace(KEY, expires=2000))
    one = connection(keys)
    assert not keys.expired(one, 1999.0)
    assert keys.expired(one, 2000.0)
    assert not keys.expired(connection(gate(KEY)), 9e9)
    assert not keys.expired(cast(Connection, Fake(None)), 9e9)
