"""Other routes and offers while sessions live: they count at once, and live peers are told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_network

from shadowmesh.testing.memory import MemoryMesh, Node, dropping, packet
from shadowmesh.wire.message import FINISH, HELLO, SEALED

LAN = ip_network("192.168.7.0/24")
INSIDE = bytes((192, 168, 7, 9))


def pair() -> tuple[MemoryMesh, Node, Node]:
    mesh = MemoryMesh(0)
    a, b = mesh.add("a", "10.10.10.1/24"), mesh.add("b", "10.10.10.2/24")
    mesh.meet(a, b)
    return mesh, a, b


def route(node: Node, via: Node | None) -> None:
    routes = ((LAN, via.ip()),) if via is not None else ()
    node.mesh.use(replace(node.context.local, routes=routes))


def offer(node: Node, *prefixes: str) -> None:
    local = node.context.local
    node.mesh.use(replace(local, advertise=tuple(map(ip_network, prefixes)), seq=local.seq + 1))


def test_a_network_is_reached_as_soon_as_both_sides_say_so() -> None:
    mesh, a, b = pair()
    assert a.emit(packet(a.ip(), INSIDE, b"too early")) == "no route"
    offer(b, str(LAN))
    mesh.run(0.1)
    assert a.peer(b).sessions[-1].info.routes == (str(LAN),)
    route(a, b)
    assert a.emit(packet(a.ip(), INSIDE, b"there")) == "sent"
    mesh.run(0.1)
    assert b.emit(packet(INSIDE, a.ip(), b"and back")) == "sent"
    mesh.run(0.1)
    assert (a.payloads, b.payloads) == ([b"and back"], [b"there"])
    assert "route_not_offered" not in a.event_names()
    assert a.peer(b).handshakes == 1


def test_what_is_taken_back_is_closed_at_once() -> None:
    """Also where packets went a moment ago: no cache remembers it."""
    mesh, a, b = pair()
    offer(b, str(LAN))
    mesh.run(0.1)
    route(a, b)
    a.emit(packet(a.ip(), INSIDE, b"in"))
    b.emit(packet(INSIDE, a.ip(), b"out"))
    mesh.run(0.1)
    offer(b)
    a.emit(packet(a.ip(), INSIDE, b"not any more"))
    mesh.run(0.1)
    assert (a.payloads, b.payloads, b.drops["foreign_destination"]) == ([b"out"], [b"in"], 1)
    assert b.emit(packet(INSIDE, a.ip())) == "no route"
    assert a.event_names().count("route_not_offered") == 1
    offer(b, str(LAN))
    mesh.run(0.1)
    route(a, None)
    assert a.emit(packet(a.ip(), INSIDE)) == "no route"
    b.emit(packet(INSIDE, a.ip(), b"nobody asked"))
    mesh.run(0.1)
    assert (a.payloads, a.drops["foreign_source"]) == ([b"out"], 1)
    a.ping(b, b"all else goes on")
    mesh.run(0.1)
    assert b.payloads[-1] == b"all else goes on"
    assert a.peer(b).handshakes == 1


def test_a_route_to_a_peer_that_does_not_offer_it_is_told() -> None:
    _, a, b = pair()
    route(a, b)
    assert a.events[-1] == ("route_not_offered", {"route": str(LAN), "peer": a.peer(b)})


def test_the_same_offers_are_not_told_again() -> None:
    mesh, a, b = pair()
    before = len(mesh.log)
    route(b, a)
    assert len(mesh.log) == before


def test_an_offer_that_was_lost_comes_with_the_next_keys() -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(SEALED, b, 1)
    offer(b, str(LAN))
    for _ in range(130):
        a.ping(b)
        mesh.run(1.0)
    assert a.peer(b).handshakes == 2
    assert a.peer(b).sessions[-1].info.routes == (str(LAN),)


def test_a_session_that_the_other_side_may_not_know_is_spared() -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(FINISH, a)
    mesh.run(121.0)
    a.ping(b)  # and new keys
    mesh.run(0.2)
    assert [session.confirmed for session in a.peer(b).sessions] == [True, False]
    hellos = len(mesh.sent(HELLO))
    sealed = len(mesh.sent(SEALED, a))
    offer(a, str(LAN))
    assert len(mesh.sent(SEALED, a)) == sealed + 1  # in the session before, which is confirmed
    mesh.run(0.1)
    assert len(mesh.sent(HELLO)) == hellos
