"""Who has which key: counted by key, over joins, ends, and changes of the file and of the mode."""

from __future__ import annotations

from dataclasses import dataclass, replace
from hashlib import sha256
from types import SimpleNamespace
from typing import Any, cast

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
    member: Any = None


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


def holds(keys: Gate, each: Connection, addresses: int) -> None:
    """So many addresses are held by a connection now."""
    each.member.held = range(addresses)  # type: ignore[union-attr]
    keys.count(each)


def test_addresses_of_a_key_are_those_of_all_its_joined_connections() -> None:
    keys = gate(replace(KEY, max_connections=0, max_addresses=10))
    one, two = connection(keys), connection(keys)
    for each in (one, two):
        assert keys.most_addresses(each) == 10
        each.member = cast(Any, SimpleNamespace(held=(), network=SimpleNamespace(id=b"n")))
        keys.joined(each)
    holds(keys, one, 4)
    assert (keys.most_addresses(one), keys.most_addresses(two)) == (10, 6)
    holds(keys, two, 6)
    assert (keys.most_addresses(one), keys.most_addresses(two)) == (4, 6)
    assert keys.most_addresses(connection(keys)) == 0
    assert keys.most_addresses(connection(keys), old=one) == 4, "in place of that one"
    holds(keys, one, 1)
    assert keys.most_addresses(connection(keys)) == 3
    for _ in range(2):
        keys.left(two)
        assert keys.most_addresses(connection(keys)) == 9
    # It is lowered: what is held stays, and nothing comes to it.
    keys.use(Keys([replace(KEY, max_addresses=1)]))
    holds(keys, one, 5)
    assert keys.renew(one) is None
    assert keys.most_addresses(one) == 1
    assert keys.most_addresses(connection(keys)) == 0
    keys.use(None)
    keys.use(Keys([replace(KEY, max_addresses=7)]))
    assert keys.most_addresses(connection(keys)) == 7, "nobody is counted from before"
    keys.left(one)
    assert not keys._addresses
    keys.count(one)
    assert not keys._addresses, "it has left"


def test_addresses_without_a_key_or_a_bound_of_it() -> None:
    keys = gate(KEY)
    assert keys.most_addresses(connection(keys)) > 10**9
    assert keys.most_addresses(cast(Connection, Fake(None))) > 10**9


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
