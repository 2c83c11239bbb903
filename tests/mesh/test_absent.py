"""Peers that are not there, and messages of sessions that are not known any more."""

from __future__ import annotations

from shadowmesh.mesh import mesh as engine
from shadowmesh.testing.memory import MemoryMesh, Node, dropping, met, packet
from shadowmesh.wire.message import FINISH, HELLO, SEALED

JUNK = SEALED + b"what" + bytes(40)


# -- gone


def test_hold_back_grows_to_2_s_and_ends_with_anything_authenticated() -> None:
    mesh, a, b = met()
    b.disconnect()
    for wait in (0.5, 1.0, 2.0, 2.0):
        assert a.ping(b) == "sent"
        mesh.run(0.02)
        assert a.ping(b) == "held"
        mesh.run(wait - 0.05)
        assert a.ping(b) == "held"
        mesh.run(0.05)
    assert a.knows(b), "sessions stay"
    a.ping(b)
    mesh.run(0.1)
    assert a.ping(b) == "held"
    b.connect()
    mesh.run(0.1)
    assert a.ping(b) == "sent"
    b.disconnect()
    mesh.run(0.1)
    assert a.ping(b) == "held"
    mesh.run(0.45)
    assert a.ping(b) == "sent", "it begins with 0.5 s again"
    assert a.drops["held_back"] == 10


def test_hold_back_ends_when_the_absent_peer_says_hello() -> None:
    mesh, a, b = met()
    b.disconnect()
    for _ in range(3):
        a.ping(b)
        mesh.run(1.5)
    a.ping(b)
    mesh.run(0.1)
    assert a.ping(b) == "held"
    b.restart()
    b.ping(a)
    mesh.run(0.031)
    assert a.confirmed(b)
    assert a.ping(b) == "sent"


def test_hold_back_ends_with_a_new_relay_connection() -> None:
    mesh, a, b = met()
    a.mesh.gone(b.addresses[0], mesh.now)
    assert a.ping(b) == "held"
    a.connect()
    assert a.ping(b) == "sent"


def test_what_waits_for_an_absent_address_is_given_up_at_once() -> None:
    mesh = MemoryMesh(1)
    (a,) = mesh.nodes
    target = packet(a.ip(), bytes((10, 10, 10, 99)))
    assert a.emit(target) == "queued"
    mesh.run(0.02)
    assert a.unreachable_packets == [target]
    assert a.emit(target) == "held"
    assert a.mesh.next_deadline is None or not a.context.indices


def test_absent_addresses_are_remembered_up_to_a_bound() -> None:
    (a,) = MemoryMesh(1).nodes
    for i in range(5000):
        a.mesh.gone(i.to_bytes(16), 1000.0)
    assert len(a.mesh._held) == engine.MAX_REMEMBERED


def test_after_joined_one_keepalive_to_each_live_peer() -> None:
    mesh, a, b = met(3)
    c = mesh.nodes[2]
    mesh.meet(a, c)
    mesh.run(1.0)
    at = len(mesh.log)
    a.disconnect()
    a.connect()
    frames = mesh.log[at:]
    assert sorted(frame.destination for frame in frames) == sorted([b.addresses[0], c.addresses[0]])
    assert {len(frame.message) for frame in frames} == {48}


# -- unknown sessions


def solicit(mesh: MemoryMesh, node: Node, source: bytes, at: int = 0) -> None:
    node.mesh.receive(source, node.addresses[at], memoryview(JUNK), mesh.now)


def test_an_unknown_session_is_answered_by_one_hello() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    mesh.relay.forward = lambda frame: ()
    solicit(mesh, a, b.addresses[0], at=1)
    mesh.run(9.9)
    (hello,) = mesh.sent(HELLO)
    assert (hello.source, hello.destination) == (a.addresses[1], b.addresses[0])
    solicit(mesh, a, b.addresses[0], at=1)
    assert len(mesh.sent(HELLO)) == 1, "a handshake is pending"
    mesh.run(0.2)
    solicit(mesh, a, b.addresses[0], at=1)
    assert len(mesh.sent(HELLO)) == 2
    assert a.drops["sealed_unknown"] == 3


def test_one_hello_in_5_s_to_one_source() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    b.disconnect()
    solicit(mesh, a, b.addresses[0])
    for _ in range(49):
        mesh.run(0.1)
        solicit(mesh, a, b.addresses[0])
    assert len(mesh.sent(HELLO)) == 1
    mesh.run(0.2)
    solicit(mesh, a, b.addresses[0])
    assert len(mesh.sent(HELLO)) == 2


def test_20_hellos_per_s_in_all() -> None:
    mesh = MemoryMesh(1)
    (a,) = mesh.nodes
    for i in range(1000):
        solicit(mesh, a, i.to_bytes(16))
    assert len(mesh.log) == 20
    mesh.run(0.5)
    for i in range(1000, 2000):
        solicit(mesh, a, i.to_bytes(16))
    assert len(mesh.log) == 30
    assert len(a.mesh.handshakes.solicited) == 30


def test_no_hello_while_a_session_is_younger_than_5_s() -> None:
    mesh, a, b = met()
    mesh.run(4.5)
    solicit(mesh, a, b.addresses[0])
    assert len(mesh.sent(HELLO)) == 1
    mesh.run(1.0)
    solicit(mesh, a, b.addresses[0])
    assert len(mesh.sent(HELLO)) == 2


def test_no_hello_for_what_is_not_between_us_and_another() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    a.mesh.receive(b.addresses[0], b.addresses[1], memoryview(JUNK), mesh.now)
    solicit(mesh, a, a.addresses[1])
    assert not mesh.log


def test_a_half_open_session_is_known() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    mesh.relay.forward = dropping(FINISH, a)
    a.ping(b)
    mesh.run(0.1)
    a.ping(b)
    mesh.run(0.1)
    assert b.drops["sealed_too_early"] == 1
    assert not mesh.sent(HELLO, b)
