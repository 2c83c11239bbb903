"""The attackers attack: a kit that did nothing would make every test of docs/security.md pass."""

from __future__ import annotations

import json

import pytest

from shadowmesh.errors import OffloadError
from shadowmesh.testing.hostile import HonestRelay, HostileMember, HostileRelay, check_state, hostile_records
from shadowmesh.testing.memory import Frame, MemoryMesh, met
from shadowmesh.wire import offload


def frame(relay: HostileRelay, number: int = 0) -> Frame:
    a, b = relay.mesh.nodes
    return Frame(relay.mesh.now, a, b.addresses[0], a.addresses[0], bytes([number] * 100))


def test_every_attack_changes_what_arrives() -> None:
    relay = HostileRelay(2, seed=1)
    relay.seen = [frame(relay, 7)]
    each = frame(relay)
    for attack in relay.all_attacks:
        if attack in (relay.drop, relay.delay, relay.reorder):
            assert attack(each) == []
        elif attack == relay.forge_gone:
            assert attack(each) == [each]
            assert relay.mesh.nodes[0].mesh._held
        else:
            frames = attack(each)
            assert each in frames
            assert len(frames) > 1
            assert attack == relay.duplicate or any(other != each for other in frames)
    assert relay.mesh._agenda, "what is delayed comes later"
    assert len(relay.reorder(each) + relay.reorder(each) + relay.reorder(frame(relay, 1))) == 4


def test_all_frames_pass_through_its_attacks() -> None:
    relay = HostileRelay(2, chance=1.0)
    a, b = relay.mesh.nodes
    relay.attacks = [relay.drop]
    a.ping(b)
    relay.mesh.run(0.1)
    assert len(relay.seen) == 1
    assert not b.mesh.handshakes._half_open
    relay.attacks = []
    relay.play(relay.seen)
    assert b.mesh.handshakes._half_open


def test_an_honest_relay_looks_at_sources() -> None:
    mesh = MemoryMesh(2, relay=HonestRelay())
    a, b = mesh.nodes
    for source, passes in ((b.addresses[0], False), (bytes(16), False), (a.addresses[1], True)):
        sent = Frame(mesh.now, a, b.addresses[0], source, b"x")
        assert mesh.relay.forward(sent) == ([sent] if passes else [])


def test_a_member_lies_and_claims() -> None:
    mesh = MemoryMesh(1)
    (a,) = mesh.nodes
    m = HostileMember.joined(mesh, "m", "10.10.10.66/24")
    m.lie(seq=5, mtu=9)
    assert (m.local.info().seq, m.local.info().mtu, m.local.info().id) == (5, 9, "m")
    m.lie(raw=b"[]")
    assert m.local.info().encode() == b"[]"
    assert json.loads(a.local.info().encode())["id"] == "a"
    assert m.claim("10.10.10.67")
    assert not m.claim("10.10.10.1")
    assert mesh.relay.routes[m.seize(a.ip())] is m
    a.mesh.receive(m.addresses[0], a.addresses[0], memoryview(m.hello(a.addresses[0])), mesh.now)
    assert a.mesh.handshakes._half_open, "its hand-made hellos are genuine"


@pytest.mark.parametrize("pair", [("10.10.10.66", "10.10.10.1"), ("fd00::66", "fd00::1")])
def test_hostile_records_are_of_both_kinds(pair: tuple[str, str]) -> None:
    refused = 0
    records = hostile_records(*pair)
    for body in records.values():
        try:
            offload.sanitize(memoryview(bytearray(body)))
        except OffloadError:
            refused += 1
    assert 100 < refused < len(records) - 100


def test_a_table_that_does_not_fit_is_noticed() -> None:
    _, a, b = met()
    check_state(a)
    a.mesh._owners.pop(b.ip())
    with pytest.raises(AssertionError):
        check_state(a)
