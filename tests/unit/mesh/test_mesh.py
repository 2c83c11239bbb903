"""The engine held against docs/protocol.md, 4: routes, what is accepted and from whom, identity.

Times and sessions, absent peers and unknown sessions: tests/mesh.
"""

from __future__ import annotations

from dataclasses import replace

import pytest

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.mesh import mesh as engine
from shadowmesh.mesh.routes import MAX_FLOWS
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.memory import MemoryMesh, Node, met, packet, with_ips
from shadowmesh.wire import record
from shadowmesh.wire.message import SEALED
from shadowmesh.wire.record import Probe


def ip4(text: str) -> bytes:
    return bytes(map(int, text.split(".")))


# -- routes


def test_a_flow_goes_to_the_address_of_its_destination() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    for version, at in ((4, 0), (6, 1)):
        flow = a.mesh.flow(a.ip(version) + b.ip(version))
        assert flow is not None
        assert (flow.source, flow.destination) == (a.addresses[at], b.addresses[at])
        assert flow.peer is None
        assert a.mesh.flow(a.ip(version) + b.ip(version)) is flow


@pytest.mark.parametrize(
    "target", ["10.10.10.1", "10.10.11.1", "10.10.10.255", "10.10.10.0", "224.0.0.1", "255.255.255.255"]
)
def test_no_flow_to_oneself_elsewhere_or_to_many(target: str) -> None:
    (a,) = MemoryMesh(1).nodes
    assert a.emit(packet(a.ip(), ip4(target))) == "no route"


def test_both_ends_of_a_two_address_network_are_hosts() -> None:
    mesh = MemoryMesh(0)
    a = mesh.add("a", "10.9.9.0/31")
    assert a.emit(packet(a.ip(), ip4("10.9.9.1"))) == "queued"


def test_no_flow_from_a_foreign_source() -> None:
    a, b = MemoryMesh(2).nodes
    assert a.emit(packet(ip4("10.10.10.9"), b.ip())) == "no route"


def test_the_longest_route_wins() -> None:
    mesh = MemoryMesh(0)
    routes = [("10.0.0.0/8", "10.10.10.2"), ("10.20.0.0/16", "10.10.10.3"), ("10.20.0.0/15", "10.10.10.2")]
    a = mesh.add("a", "10.10.10.1/24", routes=routes)
    for target, hop in {"10.20.0.1": 3, "10.21.0.1": 2, "10.99.0.1": 2, "10.10.10.7": 7}.items():
        flow = a.mesh.flow(a.ip() + ip4(target))
        assert flow is not None
        assert flow.next_hop == ip4(f"10.10.10.{hop}")
    assert a.mesh.flow(a.ip() + ip4("11.0.0.1")) is None


def test_a_default_route_leaves_the_overlay_alone() -> None:
    mesh = MemoryMesh(0)
    a = mesh.add("a", "10.10.10.1/24", routes=[("0.0.0.0/0", "10.10.10.2")])
    gateway = mesh.add("b", "10.10.10.2/24", advertise=["0.0.0.0/0"])
    c = mesh.add("c", "10.10.10.3/24")
    a.ping(c, b"direct")
    a.emit(packet(a.ip(), ip4("8.8.8.8"), b"by the gateway"))
    mesh.run(0.2)
    assert c.payloads == [b"direct"]
    assert gateway.payloads == [b"by the gateway"]
    assert gateway.emit(packet(ip4("8.8.8.8"), a.ip(), b"reply")) == "sent"
    c.ping(a, b"direct too")
    mesh.run(0.1)
    assert sorted(a.payloads) == [b"direct too", b"reply"]


def test_flows_are_found_anew_when_a_peer_is_met_or_lost() -> None:
    mesh, a, b = met()
    flow = a.mesh.flow(a.ip() + b.ip())
    assert flow is not None
    assert flow.peer is a.peer(b)
    b.mesh.bye()
    mesh.run(0.1)
    flow = a.mesh.flow(a.ip() + b.ip())
    assert flow is not None
    assert flow.peer is None


def test_the_flow_table_is_bounded() -> None:
    (a,) = (MemoryMesh(0).add("a", "10.0.0.1/8"),)
    for i in range(2, MAX_FLOWS + 100):
        assert a.mesh.flow(a.ip() + (0x0A000000 + i).to_bytes(4)) is not None
        assert len(a.mesh._flows) <= MAX_FLOWS


# -- what is accepted


def test_a_packet_needs_a_source_of_its_sender_and_a_destination_of_ours() -> None:
    mesh, a, b = met()
    c = ip4("10.10.10.3")
    got = len(a.received)
    b.seal(
        a,
        (record.PACKET, packet(c, a.ip())),
        (record.PACKET, packet(b.ip(), c)),
        (record.PACKET, packet(b.ip(), a.ip())[:-1]),
        (record.PACKET, b""),
        (record.OFFLOAD, b"short"),
        (record.OFFLOAD, bytes(10) + packet(c, a.ip())),
        (9, b"later"),
        (record.OFFLOAD, bytes(10) + packet(b.ip(), a.ip(), b"offload")),
        (record.PACKET, packet(b.ip(6), a.ip(6), b"six")),
        (record.PACKET, packet(b.ip(6), a.ip(6), b"and again")),
    )
    mesh.run(0.1)
    assert a.payloads[got:] == [b"offload", b"six", b"and again"]
    assert a.drops == {"foreign_source": 2, "foreign_destination": 1, "bad_packet": 3}


@pytest.mark.parametrize(
    "plaintext", [b"\x01\x00\x00\x05abc", b"\x01\x00\x00", bytes(65_600)[:65_599] + b"\x01"]
)
def test_a_message_of_bad_records_is_dropped_whole(plaintext: bytes) -> None:
    mesh, a, b = met()
    session = b.session(a)
    whole = record.pack(record.PACKET, packet(b.ip(), a.ip(), b"not this")) + plaintext
    b.send(session.remote, session.local, session.sealer.seal(whole[:65_600]))
    mesh.run(0.1)
    assert a.payloads == []
    assert a.drops["bad_records"] == 1


def test_a_message_is_opened_once() -> None:
    mesh, a, b = met()
    message = b.seal(a, (record.PACKET, packet(b.ip(), a.ip(), b"once")))
    mesh.run(0.1)
    a.mesh.receive(b.addresses[0], a.addresses[0], memoryview(message), mesh.now)
    tampered = bytearray(b.seal(a, (record.PACKET, packet(b.ip(), a.ip(), b"never"))))
    mesh.relay.forward = lambda frame: ()
    tampered[-1] ^= 1
    a.mesh.receive(b.addresses[0], a.addresses[0], memoryview(tampered), mesh.now)
    assert a.payloads == [b"once"]
    assert a.drops["bad_sealed"] == 2


def test_the_largest_plaintext_and_no_larger() -> None:
    mesh, a, b = met()
    session = b.session(a)
    for size in (130_992, 131_008):
        b.send(session.remote, session.local, session.sealer.seal(record.pack(9, bytes(size - 4))))
    mesh.run(0.1)
    assert a.peer(b).messages_in == 1
    assert a.drops["bad_sealed"] == 1


def test_routed_prefixes() -> None:
    mesh = MemoryMesh(0)
    a = mesh.add("a", "10.10.10.1/24", routes=[("192.168.7.0/24", "10.10.10.2")])
    b = mesh.add("b", "10.10.10.2/24", advertise=["192.168.7.0/24"])
    c = mesh.add("c", "10.10.10.3/24")
    inside, outside = ip4("192.168.7.9"), ip4("192.168.8.9")
    assert a.emit(packet(a.ip(), inside, b"in")) == "queued"
    mesh.run(0.2)
    assert b.payloads == [b"in"]
    assert b.emit(packet(inside, a.ip(), b"out")) == "sent"
    mesh.run(0.1)
    assert a.payloads == [b"out"]
    mesh.meet(c, a)
    c.seal(a, (record.PACKET, packet(inside, a.ip())))
    b.seal(a, (record.PACKET, packet(outside, a.ip())))
    a.seal(b, (record.PACKET, packet(a.ip(), outside)))
    mesh.run(0.1)
    assert a.drops["foreign_source"] == 2
    assert b.drops["foreign_destination"] == 1


def test_the_cache_of_accepted_flows_is_bounded() -> None:
    mesh = MemoryMesh(0)
    a = mesh.add("a", "10.10.10.1/24", routes=[("10.0.0.0/8", "10.10.10.2")])
    b = mesh.add("b", "10.10.10.2/24")
    mesh.meet(b, a)
    session = a.session(b)
    for i in range(MAX_FLOWS + 50):
        assert a.mesh._accept(session, (0x0A000000 + i).to_bytes(4) + a.ip())
        assert len(session.accepted) <= MAX_FLOWS


# -- V


def test_an_ip_is_the_sessions_once_its_address_was_shown() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    mesh.relay.forward = lambda frame: (frame,) if frame.source == b.addresses[0] or frame.sender is a else ()
    mesh.meet(a, b)
    assert a.peer(b).verified == {b.ip()}
    b.seal(a, (record.PACKET, packet(b.ip(6), a.ip(6), b"early")))
    mesh.run(0.1)
    assert a.drops["foreign_source"] == 1
    mesh.relay.forward = lambda frame: (frame,)
    b.seal(a, (record.PACKET, packet(b.ip(6), a.ip(6), b"shown")), source=b.addresses[1])
    mesh.run(0.1)
    assert a.payloads == [b"shown"]
    assert a.peer(b).verified == {b.ip(), b.ip(6)}


def test_after_a_new_session_both_show_their_other_addresses() -> None:
    mesh, a, b = met()
    for node, other in ((a, b), (b, a)):
        assert {f.source for f in mesh.sent(SEALED, node)} >= set(node.addresses[1:])
        assert node.peer(other).verified == set(other.local.ips)
        assert len(mesh.sent(SEALED, node)) <= 3


def test_an_ip_that_is_not_in_the_info_is_never_the_sessions() -> None:
    mesh, a, b = met(3)
    c = mesh.nodes[2]
    b.seal(a, (record.PACKET, packet(c.ip(), a.ip())), source=c.addresses[0])
    mesh.run(0.1)
    assert c.ip() not in a.peer(b).verified
    assert a.drops["foreign_source"] == 1


def test_an_ip_outside_of_the_overlay_is_nobodys() -> None:
    mesh, a, b = met()
    lan = ip4("192.168.1.1")
    b.local = with_ips(b.local, "10.10.10.2/24", "192.168.1.1/24")
    source = mesh.network.ip_address(lan)
    b.seal(a, (record.JSON, b.local.info().encode()), (record.PACKET, packet(lan, a.ip())), source=source)
    mesh.run(0.1)
    assert a.peer(b).verified == {ip4("10.10.10.2")}
    assert a.drops["foreign_source"] == 1
    assert lan not in a.trust.known


def test_our_own_ip_is_never_a_peers() -> None:
    mesh, a, b = met()
    b.local = with_ips(b.local, "10.10.10.1/24")
    b.seal(a, (record.JSON, b.local.info().encode()), source=a.addresses[0])
    mesh.run(0.1)
    assert a.peer(b).verified == set()
    assert a.ip() not in a.mesh._owners


def test_a_new_info_takes_and_gives_ips() -> None:
    mesh, a, b = met()
    info = replace(b.local.info(), seq=5, ips=(b.ip(6), ip4("10.10.10.77")))
    b.ping(a, b"while it was its own")
    b.seal(a, (record.JSON, info.encode()), source=b.addresses[1])
    b.seal(a, (record.JSON, replace(b.local.info(), seq=4).encode()))
    mesh.run(0.1)
    assert a.peer(b).verified == {b.ip(6)}
    assert a.peer(b).info == info
    flow = a.mesh.flow(a.ip() + b.ip())
    assert flow is not None
    assert flow.peer is None
    b.seal(a, (record.JSON, b'{"type":"info"}'), (record.PACKET, packet(b.ip(6), a.ip(6), b"not lost")))
    b.ping(a, b"no more")
    mesh.run(0.1)
    assert a.drops == {"bad_records": 1, "foreign_source": 1}
    assert a.payloads == [b"while it was its own", b"not lost"]


def test_json_records_are_read_at_a_bounded_rate() -> None:
    mesh, a, b = met()
    b.seal(a, *[(record.JSON, Probe(i, ack=False).encode()) for i in range(100)])
    mesh.run(0.1)
    assert a.drops["json_rate"] == 70
    assert b.event_names().count("probe_ack") == 30


def test_sources_of_a_session_are_bounded() -> None:
    mesh, a, b = met()
    message = record.KEEPALIVE
    for i in range(200):
        session = b.session(a)
        sealed = session.sealer.seal(message)
        a.mesh.receive(i.to_bytes(16), a.addresses[0], memoryview(sealed), mesh.now)
        assert len(a.session(b).sources) <= engine.MAX_SOURCES


# -- conflicts


def rival(mesh: MemoryMesh, b: Node) -> Node:
    """Another device with b's IPv4, which has taken its relay address over."""
    c = mesh.nodes[2]
    c.restart(with_ips(c.local, "10.10.10.2/24"))
    return c


def test_an_ip_of_a_live_peer_is_not_taken_over() -> None:
    mesh, a, b = met(3)
    c = rival(mesh, b)
    mesh.meet(c, a)
    assert a.mesh._owners[b.ip()] is a.peer(b)
    assert a.peer(c).verified == set()
    c.ping(a, b"stolen")
    mesh.run(0.1)
    assert a.payloads == []
    assert a.event_names().count("address_conflict") == 1


def test_it_is_taken_over_after_30_s_of_silence() -> None:
    mesh, a, b = met(3)
    c = rival(mesh, b)
    c.trust.remember(a.ip(), a.device.static_public)
    mesh.meet(c, a)
    for _ in range(28):
        mesh.run(1.0)
        c.ping(a, b"early")
    assert a.payloads == []
    mesh.run(2.0)
    c.ping(a, b"now")
    mesh.run(0.1)
    assert a.payloads == [b"now"]
    assert a.mesh._owners[b.ip()] is a.peer(c)
    assert a.peer(b).verified == {b.ip(6)}
    assert "identity_changed" in a.event_names()
    flow = a.mesh.flow(a.ip() + b.ip())
    assert flow is not None
    assert flow.peer is a.peer(c)


def test_who_comes_back_takes_its_ip_back_in_the_same_session() -> None:
    mesh, a, b = met(3)
    mesh.run(31)
    c = rival(mesh, b)
    mesh.meet(c, a)
    assert a.mesh._owners[b.ip()] is a.peer(c)
    c.disconnect()
    b.connect()
    mesh.run(31)
    b.ping(a, b"back")
    mesh.run(0.1)
    assert a.payloads[-1] == b"back"


def test_a_conflict_is_told_once_and_keeps_one_timer() -> None:
    mesh, a, b = met(3)
    c = rival(mesh, b)
    mesh.meet(c, a)
    timers = len(a.context.timers._heap)
    for _ in range(100):
        c.seal(a, (record.JSON, c.local.info().encode()))
        b.ping(a)
        mesh.run(0.02)
    assert a.event_names().count("address_conflict") == 1
    assert len(a.context.timers._heap) <= timers + 1
    for _ in range(100):
        c.ping(a)
        b.ping(a)
        mesh.run(1.0)
    assert a.event_names().count("address_conflict") <= a.peer(c).handshakes + 4
    assert len(a.context.timers._heap) < 30


# -- identity


def test_a_strict_mesh_refuses_a_changed_key_a_lenient_one_tells() -> None:
    for strict in (False, True):
        mesh = MemoryMesh(1)
        (b,) = mesh.nodes
        trust = Trust({b.ip(): bytes(32)}, strict=strict)
        a = mesh.add("x", "10.10.10.9/24", trust=trust)
        a.ping(b, b"hello")
        mesh.run(0.2)
        assert ("identity_refused" in a.event_names()) is strict
        assert ("identity_changed" in a.event_names()) is not strict
        assert b.payloads == ([] if strict else [b"hello"])
        assert trust.known[b.ip()] == (bytes(32) if strict else b.device.static_public)


def test_a_refused_ip_stays_out_of_v_when_the_session_came_by_another() -> None:
    mesh = MemoryMesh(1)
    (b,) = mesh.nodes
    a = mesh.add("x", "10.10.10.9/24", "fd00::9/64", trust=Trust(pins={b.ip(): fingerprint(bytes(32))}))
    a.ping(b, b"six", version=6)
    mesh.run(0.2)
    assert b.payloads == [b"six"]
    assert a.peer(b).verified == {b.ip(6)}
    assert b.ping(a, b"four") == "sent"
    mesh.run(0.1)
    assert a.payloads == []
    assert a.drops["foreign_source"] == 1


def test_first_use_is_remembered_for_every_ip() -> None:
    mesh, a, b = met()
    assert a.trust.known == dict.fromkeys(b.local.ips, b.device.static_public)
    b.restart()
    mesh.meet(b, a)
    assert set(a.event_names()) == {"identity_new", "session"}
