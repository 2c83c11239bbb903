"""Each sentence of protocol section 3, "Ownership", and the bounds of the tables."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter

import pytest

from shadowmesh.errors import JoinError
from shadowmesh.relay.router import GRACE, MAX_HELD, PROBE_TIMEOUT, Member, Outcome, Router

NETWORK, OTHER_NETWORK = b"N" * 32, b"O" * 32
ALICE, BOB = b"A" * 32, b"B" * 32


def address(number: int) -> bytes:
    return number.to_bytes(16, "big")


X, Y, Z = address(1), address(2), address(3)


class Relay:
    """A router whose connections are strings."""

    def __init__(self, max_away: int = 1000) -> None:
        self.router: Router[str] = Router(max_away)

    def join(
        self,
        name: str,
        device: bytes,
        addresses: Sequence[bytes],
        now: float = 0.0,
        *,
        network: bytes = NETWORK,
        instance: bytes | None = None,
    ) -> Outcome[str]:
        return self.router.join(name, network, device, instance or name.encode(), addresses, now)


@pytest.fixture
def relay() -> Relay:
    return Relay()


def assert_empty(router: Router[str]) -> None:
    assert (router.networks, router.addresses) == (0, 0)


def test_routes_lead_to_the_holder_within_one_network(relay: Relay) -> None:
    alice = relay.join("a", ALICE, [X, Y]).member
    bob = relay.join("b", BOB, [Z]).member
    stranger = relay.join("c", BOB, [X], network=OTHER_NETWORK).member
    assert alice.routes is bob.routes
    assert alice.routes == {X: "a", Y: "a", Z: "b"}
    assert stranger.routes == {X: "c"}
    assert alice.held == {X, Y}


def test_same_devices_new_connection_takes_all_its_entries_at_once(relay: Relay) -> None:
    old = relay.join("a1", ALICE, [X, Y]).member
    outcome = relay.join("a2", ALICE, [X, Y], 1.0)
    assert outcome.replaced == "a1"
    assert outcome.refused == []
    assert outcome.member.routes == {X: "a2", Y: "a2"}
    assert outcome.member.held == {X, Y}
    assert old.held == set()


def test_entries_not_claimed_again_are_released(relay: Relay) -> None:
    relay.join("a1", ALICE, [X, Y])
    relay.join("a2", ALICE, [Y], 1.0)
    outcome = relay.join("b", BOB, [X], 1.0)
    assert outcome.refused == []
    assert outcome.member.routes == {Y: "a2", X: "b"}


def test_removal_by_a_replaced_connection_does_nothing(relay: Relay) -> None:
    old = relay.join("a1", ALICE, [X]).member
    new = relay.join("a2", ALICE, [X], 1.0).member
    relay.router.claim(old, [], [X], 2.0)
    relay.router.leave(old, 2.0)
    assert new.routes == {X: "a2"}
    assert new.held == {X}


def test_another_device_is_refused_and_nobody_is_evicted(relay: Relay) -> None:
    alice = relay.join("a", ALICE, [X]).member
    outcome = relay.join("b", BOB, [X, Y])
    assert outcome.refused == [(X, "address_in_use")]
    assert outcome.member.held == {Y}
    assert alice.routes == {X: "a", Y: "b"}
    assert (outcome.replaced, outcome.dead) == (None, [])


def test_holder_hears_of_a_conflict_at_most_once_a_minute_for_each_address(relay: Relay) -> None:
    alice = relay.join("a", ALICE, [X, Y]).member
    assert relay.join("b", BOB, [X]).tell == [("a", X)]
    bob = relay.join("b", BOB, []).member
    told: list[float] = []
    for now in range(5, 130, 5):
        alice.heard_at = float(now)
        told += [now for _ in relay.router.claim(bob, [X], [], float(now)).tell]
    assert told == [60, 120]
    alice.heard_at = 130.0
    assert relay.router.claim(bob, [Y], [], 130.0).tell == [("a", Y)]


def test_holder_that_answers_the_ping_keeps_its_address(relay: Relay) -> None:
    alice = relay.join("a", ALICE, [X]).member
    first = relay.join("b", BOB, [X], 10.0)
    assert first.probe == ["a"]
    alice.heard_at = 10.2
    later = relay.router.claim(first.member, [X], [], 15.0)
    assert (later.refused, later.dead) == ([(X, "address_in_use")], [])
    assert later.probe == ["a"], "a later conflict asks again"


def test_a_holder_is_pinged_once_in_three_seconds_however_many_ask(relay: Relay) -> None:
    """Or a crowd would have it answer more pings than it may, and be closed for that."""
    alice = relay.join("a", ALICE, [X, Y]).member
    crowd = [relay.join(f"c{n}", bytes((n,)) * 32, []).member for n in range(1, 21)]
    pings = 0
    for step in range(100):
        now = 10.0 + step / 10
        for member in crowd:
            pings += len(relay.router.claim(member, [X, Y], [], now).probe)
        alice.heard_at = now + 0.05
    assert pings == 4
    assert alice.held == {X, Y}


def test_address_of_a_silent_holder_is_free_after_three_seconds(relay: Relay) -> None:
    alice = relay.join("a", ALICE, [X, Y]).member
    bob = relay.join("b", BOB, [X], 10.0).member
    early = relay.router.claim(bob, [X], [], 10.0 + PROBE_TIMEOUT - 0.1)
    assert (early.refused, early.probe) == ([(X, "address_in_use")], []), "one ping is under way already"
    late = relay.router.claim(bob, [X], [], 10.0 + PROBE_TIMEOUT)
    assert (late.refused, late.dead) == ([], ["a"])
    assert bob.routes == {X: "b", Y: "a"}
    assert (alice.held, bob.held) == ({Y}, {X})
    relay.router.leave(alice, 13.1)
    assert bob.routes == {X: "b"}


def test_a_dead_holder_of_two_addresses_is_named_once(relay: Relay) -> None:
    relay.join("a", ALICE, [X, Y])
    bob = relay.join("b", BOB, [X, Y], 10.0).member
    assert relay.router.claim(bob, [X, Y], [], 15.0).dead == ["a"]
    assert bob.held == {X, Y}


def test_entries_are_kept_for_their_device_for_thirty_seconds(relay: Relay) -> None:
    alice = relay.join("a1", ALICE, [X]).member
    bob = relay.join("b", BOB, []).member
    relay.router.leave(alice, 100.0)
    assert bob.routes == {}
    assert relay.router.is_away(bob, X)
    refused = relay.router.claim(bob, [X], [], 100.0 + GRACE - 0.1)
    assert refused.refused == [(X, "address_in_use")]
    assert (refused.probe, refused.tell) == ([], []), "there is nobody to ask or to tell"
    again = relay.join("a2", ALICE, [X], 100.0 + GRACE - 0.1)
    assert (again.replaced, again.refused) == (None, [])
    assert bob.routes == {X: "a2"}


@pytest.mark.parametrize("swept", [False, True])
def test_an_entry_is_free_when_its_grace_is_over(relay: Relay, swept: bool) -> None:
    alice = relay.join("a1", ALICE, [X]).member
    bob = relay.join("b", BOB, []).member
    relay.router.leave(alice, 100.0)
    relay.router.expire(100.0 + GRACE - 0.1)
    assert relay.router.is_away(bob, X)
    if swept:
        relay.router.expire(100.0 + GRACE)
        assert not relay.router.is_away(bob, X)
    assert relay.router.claim(bob, [X], [], 100.0 + GRACE).refused == []
    assert bob.routes == {X: "b"}


def test_a_join_releases_what_its_device_left_in_grace_and_does_not_claim(relay: Relay) -> None:
    relay.router.leave(relay.join("a1", ALICE, [X, Y]).member, 0.0)
    relay.join("a2", ALICE, [Y], 1.0)
    assert relay.join("b", BOB, [X], 1.0).refused == []


def test_fourth_replacement_between_instances_within_a_minute_is_refused(relay: Relay) -> None:
    relay.join("one", ALICE, [X], 0.0)
    relay.join("two", ALICE, [X], 1.0)
    relay.join("one", ALICE, [X], 2.0)
    last = relay.join("two", ALICE, [X], 3.0).member
    with pytest.raises(JoinError, match="several running processes"):
        relay.join("one", ALICE, [X, Y], 60.9)
    assert last.routes == {X: "two"}
    assert last.held == {X}
    assert relay.join("one", ALICE, [X], 61.0).replaced == "two"


def test_replacements_by_the_same_process_do_not_count(relay: Relay) -> None:
    for number in range(10):
        relay.join(f"c{number}", ALICE, [X], float(number), instance=b"same")
    assert relay.join("other", ALICE, [X], 11.0).member.routes == {X: "other"}


def test_a_join_after_the_connection_ended_is_no_replacement(relay: Relay) -> None:
    for number in range(10):
        member = relay.join(f"c{number}", ALICE, [X], float(number)).member
        relay.router.leave(member, number + 0.5)
    assert relay.join("last", ALICE, [X], 11.0).refused == []


def test_a_connection_holds_at_most_64_addresses(relay: Relay) -> None:
    member = relay.join("a", ALICE, [address(n) for n in range(48)]).member
    outcome = relay.router.claim(member, [address(n) for n in range(40, 100)], [], 1.0)
    assert len(member.held) == MAX_HELD
    assert outcome.refused == [(address(n), "too_many") for n in range(64, 100)]
    swapped = relay.router.claim(member, [address(99)], [address(0)], 2.0)
    assert swapped.refused == []
    assert address(99) in member.held
    assert address(0) not in member.routes


def test_claiming_twice_and_removing_what_is_not_held_change_nothing(relay: Relay) -> None:
    member = relay.join("a", ALICE, [X, X]).member
    bob = relay.join("b", BOB, [Y]).member
    relay.router.claim(member, [X], [Y, Z], 1.0)
    assert member.routes == {X: "a", Y: "b"}
    assert bob.held == {Y}


def test_removed_addresses_are_free_at_once(relay: Relay) -> None:
    member = relay.join("a", ALICE, [X]).member
    relay.router.claim(member, [], [X], 1.0)
    assert relay.join("b", BOB, [X], 1.0).refused == []


def test_nothing_is_remembered_of_who_is_gone_for_good(relay: Relay) -> None:
    members: list[Member[str]] = [
        relay.join("a", ALICE, [X, Y]).member,
        relay.join("b", BOB, []).member,
        relay.join("c", ALICE, [X], network=OTHER_NETWORK).member,
    ]
    assert relay.router.joined(NETWORK, ALICE)
    assert not relay.router.joined(OTHER_NETWORK, BOB)
    for member in members:
        relay.router.leave(member, 5.0)
    assert not relay.router.joined(NETWORK, ALICE)
    assert relay.router.networks == 2
    relay.router.expire(5.0 + GRACE)
    assert_empty(relay.router)


def test_entries_in_grace_are_bounded_and_the_oldest_of_a_network_goes_first() -> None:
    relay = Relay(max_away=3)
    witness = relay.join("w", BOB, []).member
    for number in range(5):
        device = bytes((number,)) * 32
        relay.router.leave(relay.join(f"c{number}", device, [address(number)]).member, float(number))
    assert [relay.router.is_away(witness, address(n)) for n in range(5)] == [False, False, True, True, True]


def test_a_holder_of_whom_something_has_just_come_is_not_silent() -> None:
    heard = {"a": False}
    router: Router[str] = Router(1000, heard=lambda connection: heard.get(connection, False))
    router.join("a", NETWORK, ALICE, b"a", [X], 0.0)
    bob = router.join("b", NETWORK, BOB, b"b", [X], 1.0).member
    heard["a"] = True
    assert router.claim(bob, [X], [], 1.0 + PROBE_TIMEOUT).refused == [(X, "address_in_use")]
    heard["a"] = False
    assert router.claim(bob, [X], [], 1.0 + 2 * PROBE_TIMEOUT).refused == []


def test_a_device_that_may_have_fewer_than_before_gives_the_others_back(relay: Relay) -> None:
    relay.join("a", ALICE, [X, Y, Z])
    outcome = relay.router.join("b", NETWORK, ALICE, b"b", [Y, X, Z], 1.0, 1)
    assert (outcome.member.held, outcome.replaced) == ({Y}, "a")
    assert outcome.refused == [(X, "too_many"), (Z, "too_many")]
    assert outcome.member.routes == {Y: "b"}
    assert relay.router.claim(outcome.member, [X], [Y], 1.0, 1).refused == []
    assert relay.router.claim(outcome.member, [Y], [], 1.0, 0).refused == [(Y, "too_many")]
    relay.router.leave(outcome.member, 2.0)
    relay.router.expire(2.0 + GRACE)
    assert (relay.router.networks, relay.router.addresses) == (0, 0)


def test_of_the_network_that_has_most_in_grace_one_goes_first() -> None:
    """Made-up networks must not have the address of somebody who is away for a moment given to another."""
    relay = Relay(max_away=100)
    witness = relay.join("w", BOB, []).member
    relay.router.leave(relay.join("a", ALICE, [X, Y]).member, 0.0)
    for number in range(20):
        made_up = number.to_bytes(32)
        addresses = [address(10 + each) for each in range(48)]
        relay.router.leave(relay.join("m", ALICE, addresses, network=made_up).member, 1.0)
        assert len(relay.router._away) <= 100
    assert relay.router.is_away(witness, X)
    assert relay.join("b", BOB, [X], 2.0).refused == [(X, "address_in_use")]
    relay.router.expire(1.0 + GRACE)
    assert (len(relay.router._away), relay.router._away_of.most) == (0, 0)
    assert relay.router.networks == 1


def test_a_crowd_that_leaves_at_once_is_forgotten_a_few_at_a_time() -> None:
    relay = Relay(max_away=1000)
    for number in range(10):
        device = bytes((number,)) * 32
        relay.router.leave(relay.join("c", device, [address(10 * number + n) for n in range(10)]).member, 1.0)
    assert not relay.router.expire(GRACE, 30)
    turns = 1
    while relay.router.expire(1.0 + GRACE, 30):
        turns += 1
        assert len(relay.router._away) == 100 - 30 * (turns - 1)
    assert turns == 4
    assert_empty(relay.router)


def test_the_end_of_a_grace_costs_the_same_however_many_there_are() -> None:
    def seconds(members: int) -> float:
        relay = Relay(max_away=64_000)
        for number in range(members):
            addresses = [address(64 * number + each) for each in range(64)]
            relay.router.leave(relay.join("c", number.to_bytes(32), addresses).member, 0.0)
        begin = perf_counter()
        relay.router.expire(GRACE)
        return (perf_counter() - begin) / members

    assert min(seconds(1000) for _ in range(2)) < 6 * min(seconds(20) for _ in range(3))


def test_a_smaller_bound_on_entries_in_grace_holds_at_once() -> None:
    relay = Relay(max_away=3)
    witness = relay.join("w", BOB, []).member
    for number in range(3):
        device = bytes((number,)) * 32
        relay.router.leave(relay.join(f"c{number}", device, [address(number)]).member, float(number))
    relay.router.resize(1)
    assert [relay.router.is_away(witness, address(n)) for n in range(3)] == [False, False, True]


def test_members_are_devices_that_are_here(relay: Relay) -> None:
    first = relay.join("a", ALICE, [X]).member
    again = relay.join("a", ALICE, [X], 1.0).member
    bob = relay.join("b", BOB, [Y], 1.0).member
    relay.join("c", ALICE, [X], network=OTHER_NETWORK)
    assert [relay.router.members(each) for each in (NETWORK, OTHER_NETWORK, b"?" * 32)] == [2, 1, 0]
    relay.router.leave(first, 2.0)
    assert relay.router.members(NETWORK) == 2, "it was replaced"
    relay.router.leave(bob, 2.0)
    relay.router.leave(bob, 2.0)
    assert relay.router.members(NETWORK) == 1
    relay.router.leave(again, 2.0)
    assert relay.router.members(NETWORK) == 0


def test_addresses_of_a_network_are_bounded(relay: Relay) -> None:
    """Those in grace count, each network by itself, and who is over the bound keeps what it has."""
    relay.router.max_addresses = 2
    alice = relay.join("a", ALICE, [X, Y, Z])
    assert (alice.member.held, alice.refused) == ({X, Y}, [(Z, "too_many")])
    assert not relay.join("c", ALICE, [X, Y], network=OTHER_NETWORK).refused
    relay.router.leave(alice.member, 1.0)
    assert relay.join("b", BOB, [Z], 1.0).refused == [(Z, "too_many")]
    again = relay.join("a", ALICE, [X, Z], 2.0)
    assert (again.member.held, again.refused) == ({X, Z}, [])
    relay.router.max_addresses = 1
    assert not relay.router.claim(again.member, [X], [], 3.0).refused
    relay.router.max_addresses = 0
    assert not relay.router.claim(again.member, [Y], [], 3.0).refused
