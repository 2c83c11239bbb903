"""Sessions in time: rekey, expiry, silence, confirmation, the end (docs/protocol.md, 4, "Times")."""

from __future__ import annotations

import pytest

from shadowmesh.mesh import mesh as engine
from shadowmesh.testing.memory import MemoryMesh, dropping, met, packet
from shadowmesh.wire import record
from shadowmesh.wire.message import HELLO, SEALED
from shadowmesh.wire.record import Bye, Probe

# -- times


def test_the_initiator_rekeys_at_120_s_when_it_sends() -> None:
    mesh, a, b = met()
    first = a.session(b)
    mesh.run(119.5 - (mesh.now - first.created))
    assert a.ping(b) == b.ping(a) == "sent"
    mesh.run(0.2)
    assert len(mesh.sent(HELLO)) == 1
    mesh.run(0.4)
    assert b.ping(a) == "sent"
    mesh.run(0.1)
    assert len(mesh.sent(HELLO)) == 1, "not the responder"
    assert a.ping(b, b"in the old one") == "sent"
    mesh.run(0.1)
    assert [frame.sender for frame in mesh.sent(HELLO)] == [a, a]
    assert a.session(b) is not first
    assert b.payloads[-1] == b"in the old one"
    assert a.ping(b) == b.ping(a) == "sent"
    mesh.run(0.1)
    assert len(mesh.sent(HELLO)) == 2


def test_the_initiator_rekeys_at_165_s_when_it_only_receives() -> None:
    mesh, a, b = met()
    created = a.session(b).created
    for second in range(179):
        mesh.run(created + second + 0.5 - mesh.now)
        assert b.ping(a) == "sent"
        mesh.run(0.1)
        assert len(mesh.sent(HELLO, a)) == (1 if second < 165 else 2)
    assert not mesh.sent(HELLO, b)


@pytest.mark.parametrize("begins", [0, 1])
def test_either_rekeys_after_2_to_the_60_messages(begins: int) -> None:
    mesh, a, b = met()
    node, other = (a, b) if begins == 0 else (b, a)
    node.session(other).sealer.counter = 2**60 - 1
    node.ping(other)
    assert len(mesh.sent(HELLO)) == 1
    node.ping(other)
    mesh.run(0.1)
    assert mesh.sent(HELLO)[-1].sender is node
    assert node.session(other).sealer.counter < 10
    assert node.ping(other) == "sent"


def test_a_session_is_unusable_at_180_s() -> None:
    mesh, a, b = met()
    created = a.session(b).created
    mesh.relay.forward = lambda frame: ()
    mesh.run(created + 179.99 - mesh.now)
    assert b.ping(a) == "sent"
    for at, expired in ((179.99, 0), (180.0, 1)):
        message = memoryview(b.session(a).sealer.seal(record.KEEPALIVE))
        a.mesh.receive(b.addresses[0], a.addresses[0], message, created + at)
        assert a.drops["expired"] == expired
    mesh.run(0.2)
    assert not a.knows(b)
    assert not b.knows(a)
    assert a.context.indices == {}
    assert a.mesh._owners == {}
    assert a.event_names()[-1] == "peer_gone"
    assert a.ping(b) == "queued"


def test_two_devices_that_each_began_a_session_still_rekey() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    a.ping(b)
    b.ping(a, version=6)
    mesh.run(1.0)
    assert len(a.peer(b).sessions) == 2
    for _ in range(400):
        assert a.ping(b) == b.ping(a) == "sent"
        mesh.run(1.0)
    assert len(mesh.sent(HELLO)) <= 10


def test_a_keepalive_10_s_after_a_packet_that_got_no_reply() -> None:
    mesh, a, b = met()
    mesh.run(30)
    before = len(mesh.log)
    a.ping(b)
    at = mesh.now
    mesh.run(40)
    _, reply = mesh.log[before:]
    assert reply.sender is b
    assert reply.at == pytest.approx(at + 10.01)
    assert len(reply.message) == 32 + 16
    before = len(mesh.log)
    a.ping(b)
    mesh.run(9)
    b.ping(a)
    mesh.run(0.5)
    a.ping(b)
    mesh.run(8)
    assert len(mesh.log) == before + 3


def test_a_hello_15_s_after_a_packet_when_nothing_was_heard() -> None:
    mesh, a, b = met()
    mesh.run(10)
    mesh.relay.forward = lambda frame: ()
    for _ in range(14):
        a.ping(b)
        mesh.run(1.0)
    assert len(mesh.sent(HELLO)) == 1
    mesh.run(1.2)
    assert [frame.sender for frame in mesh.sent(HELLO)] == [a, a]


def test_no_hello_while_the_peer_is_heard() -> None:
    mesh, a, b = met()
    for _ in range(60):
        a.ping(b)
        mesh.run(1.0)
    assert len(mesh.sent(HELLO)) == 1


# -- the end of sessions


def test_bye_ends_one_session_only() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    a.ping(b)
    b.ping(a, version=6)
    mesh.run(0.2)
    assert len(a.peer(b).sessions) == 2
    message = b.seal(a, (record.JSON, Bye().encode()))
    mesh.run(0.1)
    (left,) = a.peer(b).sessions
    assert left.local_index != message[4:8]
    assert a.session(b) is left


def test_a_bye_ends_what_a_killed_run_of_the_peer_had_left() -> None:
    mesh, a, b = met()
    b.restart()
    mesh.run(1.0)
    b.ping(a)
    mesh.run(0.5)
    assert len(a.peer(b).sessions) == 2
    assert a.mesh.is_connected(a.peer(b))
    b.mesh.bye()
    mesh.run(0.1)
    assert not a.knows(b)


def test_connected_means_that_packets_arrive() -> None:
    mesh, a, b = met()
    peer = a.peer(b)
    assert a.mesh.is_connected(peer)
    b.disconnect()
    a.ping(b)
    mesh.run(5.0)  # the relay has nobody there
    assert not a.mesh.is_connected(peer)
    b.connect()
    mesh.run(0.1)
    assert a.mesh.is_connected(peer)


def test_an_address_that_the_relay_refuses_is_not_shown_until_it_is_granted() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    ip6 = next(address for address, ip in b.context.addresses.items() if len(ip) == 16)
    b.mesh.refused({ip6})
    a.ping(b)
    mesh.run(0.5)
    assert [len(ip) for ip in a.peer(b).verified] == [4]
    b.mesh.refused(set())
    mesh.run(0.1)
    assert sorted(len(ip) for ip in a.peer(b).verified) == [4, 16]


@pytest.mark.parametrize("age", [5.0, 170.0])
def test_nothing_of_a_message_counts_behind_a_bye(age: float) -> None:
    mesh, a, b = met()
    mesh.run(age)
    tail = [(record.JSON, b.local.info().encode()), (record.PACKET, packet(b.ip(), a.ip(), b"late"))]
    b.seal(a, (record.JSON, Bye().encode()), *tail)
    mesh.run(0.1)
    assert not a.knows(b)
    assert a.payloads == []
    assert not a.mesh._owners
    assert not a.context.indices
    assert b.ping(a, b"again") == "sent"
    mesh.run(0.2)
    assert b.ping(a, b"and again") == "sent"
    mesh.run(0.1)
    assert a.payloads == [b"and again"]


def test_at_most_3_sessions_the_oldest_goes_first() -> None:
    mesh, a, b = met()
    peer = b.peer(a)
    made = [*peer.sessions]
    for _ in range(4):
        a.mesh.handshakes.attempt(a.addresses[0], b.addresses[0], mesh.now)
        mesh.run(1.0)
        made.append(peer.sessions[-1])
        assert len(a.peer(b).sessions) <= 3
    assert peer.sessions == made[-3:]
    assert peer.sending is made[-1]
    assert set(b.context.indices) == {session.local_index for session in made[-3:]}


def test_a_full_peer_table_forgets_who_was_silent_longest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "MAX_PEERS", 2)
    mesh = MemoryMesh(4)
    a, b, c, d = mesh.nodes
    for node in (b, c):
        mesh.meet(node, a)
        mesh.run(1.0)
    b.ping(a)
    mesh.run(0.1)
    mesh.meet(d, a)
    assert [a.knows(node) for node in (b, c, d)] == [True, False, True]
    assert len(a.mesh.peers) == 2


# -- confirmation, probes


def test_the_initiator_waits_for_the_first_sealed_message_when_it_has_another_session() -> None:
    mesh, a, b = met()
    old = a.session(b)
    mesh.relay.forward = lambda frame: () if frame.kind == SEALED and frame.sender is b else (frame,)
    a.mesh.handshakes.attempt(a.addresses[0], b.addresses[0], mesh.now)
    mesh.run(0.2)
    assert len(a.peer(b).sessions) == 2
    assert a.session(b) is old
    assert b.session(a) is b.peer(a).sessions[-1], "the responder sends in it after a valid finish"
    mesh.relay.forward = lambda frame: (frame,)
    b.ping(a)
    mesh.run(0.1)
    assert a.session(b) is a.peer(b).sessions[-1]


def test_connected_is_told_only_after_the_first_sealed_message() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    mesh.relay.forward = dropping(SEALED, b)
    a.ping(b)
    mesh.run(0.2)
    assert ("session" in a.event_names(), "session" in b.event_names()) == (False, True)
    assert not a.confirmed(b)


def test_a_probe_is_answered() -> None:
    mesh, a, b = met()
    a.seal(b, (record.JSON, Probe(7, ack=False).encode()))
    mesh.run(0.1)
    assert a.events[-1] == ("probe_ack", {"peer": a.peer(b), "id": 7})


@pytest.mark.parametrize("asks", [0, 1], ids=["initiator", "responder"])
def test_who_asks_for_answers_only_keeps_the_session(asks: int) -> None:
    """No packet goes, for three lives of a session; what asks from time to time of itself keeps none."""
    mesh, a, b = met()
    one, other = ((a, b), (b, a))[asks]
    for _ in range(60):
        one.mesh.probe(one.session(other), 7)
        one.mesh.keep(one.session(other), mesh.now)
        mesh.run(10.0)
    assert one.peer(other).handshakes >= 3
    assert "peer_gone" not in one.event_names()
    for _ in range(60):
        if one.knows(other) and (session := one.peer(other).sending) is not None:
            one.mesh.probe(session, 7)
        mesh.run(10.0)
    assert "peer_gone" in one.event_names()


def test_counters_of_a_peer() -> None:
    """The packet that the handshake carried counts, too: 4 + 20 bytes, without padding."""
    mesh, a, b = met()
    a.ping(b, bytes(100))
    mesh.run(0.1)
    assert (a.peer(b).messages_out, a.peer(b).bytes_out) == (2, 24 + 128)
    assert (b.peer(a).messages_in, b.peer(a).bytes_in) == (2, 24 + 128)
    assert (a.peer(b).messages_in, a.peer(b).bytes_in) == (b.peer(a).messages_out, 0) == (0, 0)
    assert a.peer(b).handshakes == 1
