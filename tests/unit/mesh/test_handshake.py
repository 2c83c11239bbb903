"""Handshakes held against docs/protocol.md, 4: hellos in time, bounds, and every way to fail."""

from __future__ import annotations

from functools import partial
from itertools import pairwise

import pytest

from shadowmesh.crypto.keys import NetworkKeys, fingerprint
from shadowmesh.mesh import handshake
from shadowmesh.mesh.handshake import Attempt, HalfOpen, PendingHello
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.memory import Frame, MemoryMesh, Node, by_address, dropping, packet, with_ips
from shadowmesh.wire import record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED
from shadowmesh.wire.record import Bye


def pair(seed: int = 0) -> tuple[MemoryMesh, Node, Node]:
    mesh = MemoryMesh(2, seed=seed)
    return mesh, mesh.nodes[0], mesh.nodes[1]


def silence(mesh: MemoryMesh) -> None:
    """A relay that passes nothing on and says nothing."""
    mesh.relay.forward = lambda frame: ()


def give(mesh: MemoryMesh, frame: Frame, **changes: bytes) -> None:
    """Hand a frame over once more, changed."""
    mesh.hand_over(frame._replace(**changes))  # type: ignore[arg-type]


def half_open(node: Node) -> list[HalfOpen]:
    return [entry for entry in node.context.indices.values() if isinstance(entry, HalfOpen)]


def pending(node: Node) -> list[PendingHello]:
    return [entry for entry in node.context.indices.values() if isinstance(entry, PendingHello)]


def attempt(node: Node, other: Node, *, retry: bool = True, name: bool = False) -> Attempt | None:
    remote = other.addresses[-1 if name else 0]
    return node.mesh.handshakes.attempt(node.addresses[0], remote, node.world.now, retry=retry)


# -- hellos in time


def test_hello_at_once_then_after_growing_times_for_90_s() -> None:
    mesh, a, b = pair()
    silence(mesh)
    a.ping(b)
    mesh.run(200)
    times = [frame.at for frame in mesh.sent(HELLO, a)]
    waits = [later - earlier for earlier, later in pairwise(times)]
    assert times[0] == mesh.log[0].at
    for wait, base in zip(waits, (0.5, 1, 2, 4, *[5] * 100), strict=False):
        assert 0.9 * base <= wait <= 1.1 * base
    assert len(set(waits)) == len(waits), "jitter"
    assert 84 <= times[-1] - times[0] <= 90
    assert not a.context.indices
    assert a.mesh.next_deadline is None
    a.ping(b)
    assert len(mesh.sent(HELLO, a)) == len(times) + 1, "again with the next packet"


def test_new_ephemerals_and_a_new_index_in_each_hello() -> None:
    mesh, a, b = pair()
    silence(mesh)
    a.ping(b)
    mesh.run(20)
    hellos = mesh.sent(HELLO, a)
    for part in (slice(4, 8), slice(8, 40)):
        assert len({frame.message[part] for frame in hellos}) == len(hellos) > 5


def test_each_hello_stays_answerable_for_10_s() -> None:
    mesh, a, b = pair()
    silence(mesh)
    a.ping(b)
    mesh.run(12)
    first, *_, last = mesh.sent(HELLO, a)
    give(mesh, first)
    too_late = mesh.sent(ANSWER, b)[-1]
    give(mesh, too_late)
    assert a.drops["answer_unknown"] == 1
    assert not mesh.sent(FINISH)
    recent = next(frame for frame in mesh.sent(HELLO, a) if mesh.now - frame.at < 9.5)
    assert recent is not last
    give(mesh, recent)
    give(mesh, mesh.sent(ANSWER, b)[-1])
    assert mesh.sent(FINISH, a)
    assert not pending(a)


def test_hellos_that_are_not_answerable_any_more_are_forgotten() -> None:
    mesh, a, b = pair()
    silence(mesh)
    a.ping(b)
    mesh.run(80)
    assert len(pending(a)) == len(a.context.indices) <= 3


def test_a_half_open_handshake_ends_after_10_s() -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(FINISH, a)
    a.ping(b)
    mesh.run(1.0)
    finish = mesh.sent(FINISH, a)[0]
    assert len(half_open(b)) == 1
    b.mesh.receive(finish.source, finish.destination, memoryview(finish.message), mesh.now + 10)
    assert b.drops["finish_unknown"] == 1, "also if nobody has called tick"
    mesh.run(9.5)
    assert not half_open(b)


def test_one_hello_without_retries() -> None:
    mesh, a, b = pair()
    silence(mesh)
    attempt(a, b, retry=False)
    mesh.run(30)
    assert len(mesh.sent(HELLO, a)) == 1
    assert not a.context.indices


def test_a_single_hello_is_followed_by_retries_once_a_packet_waits() -> None:
    mesh, a, b = pair()
    silence(mesh)
    attempt(a, b, retry=False)
    mesh.run(0.1)
    a.ping(b)
    mesh.run(0.3)
    assert len(mesh.sent(HELLO, a)) == 1
    mesh.run(1.5)
    assert len(mesh.sent(HELLO, a)) == 3


def test_a_new_relay_connection_asks_at_once() -> None:
    mesh, a, b = pair()
    a.disconnect()
    a.ping(b, b"kept")
    mesh.run(1.0)
    assert not mesh.log
    a.connect()
    mesh.run(0.1)
    assert len(mesh.sent(HELLO, a)) == 1
    assert b.payloads == [b"kept"]


# -- crossing hellos


def test_the_smaller_address_wins_when_hellos_cross() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    loser.ping(winner, b"from the loser")
    winner.ping(loser, b"from the winner")
    mesh.run(10)
    assert winner.drops["hello_crossed"] == 1
    assert [len(mesh.sent(kind, winner)) for kind in (HELLO, ANSWER, FINISH)] == [1, 0, 1]
    assert [len(mesh.sent(kind, loser)) for kind in (HELLO, ANSWER, FINISH)] == [1, 1, 0]
    assert winner.payloads == [b"from the loser"]
    assert loser.payloads == [b"from the winner"]


def test_the_loser_sends_no_retry_for_5_s() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    mesh.relay.forward = dropping(ANSWER, loser)
    loser.ping(winner)
    winner.ping(loser)
    mesh.run(4.0)
    last_hello = mesh.sent(HELLO, winner)[-1].at
    mesh.relay.forward = lambda frame: () if frame.sender is winner else (frame,)
    mesh.run(10)
    first, second, *_ = mesh.sent(HELLO, loser)
    assert first.at == mesh.log[0].at
    assert second.at >= last_hello + 5.0


def test_a_single_hello_that_loses_stays_a_single_one() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    mesh.relay.forward = lambda frame: () if frame.kind == ANSWER else (frame,)
    attempt(loser, winner, retry=False)
    attempt(winner, loser, retry=False)
    mesh.run(30)
    assert len(mesh.sent(HELLO, loser)) == 1


def test_the_loser_accepts_an_answer_to_its_own_hello() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    loser.ping(winner)
    mesh.run(0.015)  # answered, the answer is on its way
    winner.ping(loser)
    mesh.run(1.0)
    assert [len(mesh.sent(ANSWER, node)) for node in (winner, loser)] == [1, 1]
    assert mesh.sent(FINISH, loser)
    assert loser.confirmed(winner)


def test_the_winner_answers_once_its_own_hello_is_5_s_old() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    silence(mesh)
    attempt(winner, loser, retry=False)
    mesh.run(4.9)
    attempt(loser, winner)
    give(mesh, mesh.sent(HELLO, loser)[-1])
    assert winner.drops["hello_crossed"] == 1
    mesh.run(1.5)
    give(mesh, mesh.sent(HELLO, loser)[-1])
    assert len(mesh.sent(ANSWER, winner)) == 1


def test_it_is_the_newest_hello_that_counts_when_they_cross() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    silence(mesh)
    attempt(winner, loser)
    mesh.run(9.0)
    attempt(loser, winner)
    give(mesh, mesh.sent(HELLO, loser)[-1])
    assert winner.drops["hello_crossed"] == 1


def test_a_hello_for_which_gone_came_counts_as_not_sent() -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    mesh.meet(winner, loser)
    loser.disconnect()
    winner.ping(loser)
    mesh.run(0.1)
    assert winner.ping(loser) == "held"
    attempt(winner, loser)  # as a rekey would, although held back
    mesh.run(0.1)
    assert not pending(winner)
    loser.restart()
    loser.ping(winner)
    mesh.run(0.05)
    assert loser.confirmed(winner)


# -- bounds


def test_hellos_of_one_source_2_per_s_burst_8() -> None:
    mesh, a, b = pair()
    hellos = [make_hello(mesh, a, b) for _ in range(20)]
    for frame in hellos[:10]:
        give(mesh, frame)
    assert len(mesh.sent(ANSWER, b)) == 8
    mesh.run(1.0)
    for frame in hellos[10:]:
        give(mesh, frame)
    assert len(mesh.sent(ANSWER, b)) == 10
    assert b.drops["hello_rate"] == 10


def test_hellos_200_per_s_burst_400_in_all_and_256_half_open() -> None:
    mesh, a, b = pair()
    for i in range(500):
        mesh.hand_over(make_hello(mesh, a, b, source=i.to_bytes(16)))
    assert b.drops["hello_rate"] == 100
    assert b.drops["bad_handshake"] == 400, "another source is another prologue"
    mesh.run(2.0)
    assert not half_open(b)
    genuine = [stranger_hello(mesh, a, b, i.to_bytes(16)) for i in range(1, 301)]
    for frame in genuine:
        mesh.hand_over(frame)
    opened = half_open(b)
    assert len(opened) == handshake.MAX_HALF_OPEN == 256
    assert opened[0].remote == (45).to_bytes(16), "the oldest of all made room"


def test_at_most_4_half_open_of_one_source() -> None:
    mesh, a, b = pair()
    for _ in range(6):
        give(mesh, make_hello(mesh, a, b))
    answers = [frame.message[4:8] for frame in mesh.sent(ANSWER, b)]
    assert [half.index for half in half_open(b)] == answers[-4:]


def test_a_full_table_of_attempts_makes_room_only_for_those_nobody_waits_for() -> None:
    mesh, a, b = pair()
    silence(mesh)
    attempts = a.mesh.handshakes.attempt
    for i in range(handshake.MAX_ATTEMPTS):
        assert attempts(a.addresses[0], i.to_bytes(16), mesh.now) is not None
    assert attempt(a, b) is None
    assert a.drops["too_many_attempts"] == 1
    assert a.ping(b) == "held"
    mesh.run(2.0)
    assert a.ping(b) == "queued"
    assert not a.mesh.handshakes.pending(a.addresses[0], bytes(16))
    assert a.mesh.handshakes.pending(a.addresses[0], (1).to_bytes(16))


def test_sources_are_remembered_up_to_a_bound() -> None:
    mesh, a, b = pair()
    hello = make_hello(mesh, a, b)
    for i in range(5000):
        give(mesh, hello, source=i.to_bytes(16))
    assert len(b.mesh.handshakes._per_source) == handshake.MAX_REMEMBERED == 4096
    assert len(b.mesh.handshakes._seen) == 0


# -- failures leave no trace


@pytest.mark.parametrize("kind", [HELLO, ANSWER, FINISH])
@pytest.mark.parametrize("at", [8, 12, 40, 60, -1])
def test_a_tampered_message_leaves_what_is_pending_usable(kind: bytes, at: int) -> None:
    mesh, a, b = pair()

    def forward(frame: Frame) -> list[Frame]:
        if frame.kind != kind or b.drops["bad_handshake"] + a.drops["bad_handshake"]:
            return [frame]
        forged = bytearray(frame.message)
        forged[at if at > 8 or kind == HELLO else 12] ^= 1
        return [frame._replace(message=bytes(forged)), frame]

    mesh.relay.forward = forward
    a.ping(b, b"once")
    mesh.run(0.2)
    assert a.drops["bad_handshake"] + b.drops["bad_handshake"] == 1
    assert len(mesh.sent(HELLO)) == 1
    assert b.payloads == [b"once"]
    assert a.confirmed(b)


def test_nothing_of_a_session_changes_before_message_3_verifies() -> None:
    mesh, a, b = pair()
    mesh.meet(a, b)
    session = b.mesh.peers[a.device.static_public].sending
    mesh.relay.forward = lambda frame: () if frame.kind == FINISH else (frame,)
    for _ in range(3):
        mesh.hand_over(make_hello(mesh, a, b))
        finish = FINISH + bytes(4) + mesh.sent(ANSWER, b)[-1].message[4:8] + bytes(200)
        b.mesh.receive(a.addresses[0], b.addresses[0], memoryview(finish), mesh.now)
    peer = b.mesh.peers[a.device.static_public]
    assert peer.sessions == [session]
    assert peer.sending is session
    assert b.ping(a, b"still") == "sent"
    mesh.run(0.1)
    assert a.payloads == [b"still"]


def test_a_replayed_hello_is_dropped_whatever_its_index_says() -> None:
    mesh, a, b = pair()
    mesh.meet(a, b)
    hello = mesh.sent(HELLO, a)[0]
    answers = len(mesh.sent(ANSWER, b))
    give(mesh, hello)
    give(mesh, hello, message=hello.message[:4] + b"else" + hello.message[8:])
    mesh.run(179 - (mesh.now - hello.at))
    give(mesh, hello)
    assert b.drops["hello_replayed"] == 3
    assert len(mesh.sent(ANSWER, b)) == answers


def test_answer_and_finish_only_between_the_two_addresses() -> None:
    mesh, a, b = pair()

    def forward(frame: Frame) -> list[Frame]:
        if frame.kind not in (ANSWER, FINISH):
            return [frame]
        other = (b if frame.sender is b else a).addresses[1]
        own = (a if frame.sender is b else b).addresses[1]
        return [frame._replace(source=other), frame._replace(destination=own), frame]

    mesh.relay.forward = forward
    a.ping(b, b"once")
    mesh.run(0.2)
    assert (a.drops["wrong_address"], b.drops["wrong_address"]) == (2, 2)
    assert b.payloads == [b"once"]


def test_a_finish_of_another_handshake_is_not_this_one() -> None:
    mesh, a, b = pair()

    def forward(frame: Frame) -> list[Frame]:
        if frame.kind != FINISH:
            return [frame]
        return [frame._replace(message=FINISH + b"else" + frame.message[8:]), frame]

    mesh.relay.forward = forward
    a.ping(b, b"once")
    mesh.run(0.2)
    assert b.drops["wrong_address"] == 1
    assert b.payloads == [b"once"]


def test_a_reflected_handshake_goes_nowhere() -> None:
    mesh, a, b = pair()
    silence(mesh)
    a.ping(b)
    hello = mesh.sent(HELLO, a)[0]
    receive = partial(a.mesh.receive, data=memoryview(hello.message), now=mesh.now)
    receive(a.addresses[0], a.addresses[0])
    receive(a.addresses[0], b.addresses[0])
    assert a.drops["wrong_address"] == 2
    receive(b.addresses[0], a.addresses[0])
    assert a.drops["bad_handshake"] == 1, "another prologue"
    assert not half_open(a)


def test_a_device_does_not_talk_to_its_own_copy() -> None:
    mesh = MemoryMesh(1)
    (a,) = mesh.nodes
    twin = mesh.add("twin", "10.10.10.2/24", seed=a.seed)
    a.ping(twin)
    mesh.run(5.0)
    assert a.drops["bad_handshake"] >= 1
    assert not a.mesh.peers
    assert not twin.mesh.peers


def test_another_network_cannot_even_say_hello() -> None:
    mesh, a, b = pair()
    mesh.network = NetworkKeys(bytes(32))
    stranger = mesh.add("x", "10.10.10.1/24")
    attempt(stranger, b)
    mesh.relay.routes[b.addresses[0]] = b
    hello = mesh.sent(HELLO, stranger)[0]
    b.mesh.receive(stranger.addresses[0], b.addresses[0], memoryview(hello.message), mesh.now)
    assert b.drops["bad_handshake"] == 1
    assert not b.context.indices
    assert a.drops == {}


def test_messages_for_nobody_are_counted() -> None:
    mesh, a, b = pair()
    for message, reason in {
        b"": "bad_message",
        b"\x15\x00\x00\x00" + bytes(100): "bad_message",
        ANSWER + bytes(1300): "answer_unknown",
        FINISH + bytes(100): "finish_unknown",
        SEALED + bytes(10): "bad_sealed",
    }.items():
        before = b.drops[reason]
        b.mesh.receive(a.addresses[0], b.addresses[0], memoryview(message), mesh.now)
        assert b.drops[reason] == before + 1
    mesh.hand_over(make_hello(mesh, a, b)._replace(destination=b.addresses[0], source=b.addresses[1]))
    assert b.drops["wrong_address"] == 1
    assert not mesh.sent(sender=b)


@pytest.mark.parametrize(
    "records",
    [
        [],
        [(record.PACKET, b"packet")],
        [(record.JSON, Bye().encode())],
        [(record.JSON, b"{}")],
        [(record.JSON, b'{"type":"later"}')],
        "truncated",
    ],
    ids=str,
)
def test_a_handshake_payload_begins_with_an_info(
    records: list[tuple[int, bytes]] | str, monkeypatch: pytest.MonkeyPatch
) -> None:
    mesh, a, b = pair()
    payload = (
        b"\x03\x00\x00" if isinstance(records, str) else b"".join(record.pack(*each) for each in records)
    )
    monkeypatch.setattr(a.mesh.handshakes, "_finish_payload", lambda attempt: (payload, []))
    a.ping(b)
    mesh.run(0.2)
    assert b.drops["bad_handshake"] + b.drops["bad_message"] == 1
    assert not b.mesh.peers
    assert len(half_open(b)) == 1


def test_only_message_3_may_carry_more_than_the_info() -> None:
    mesh, a, b = pair()
    more = record.pack(record.JSON, b.local.info().encode()) + record.pack(record.PACKET, b"early")
    whole = record.pack
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "pack", lambda kind, body: more if len(body) > 60 else whole(kind, body))
        a.ping(b)
        mesh.run(0.02)
    assert a.drops["bad_handshake"] == 1
    assert not mesh.sent(FINISH)


def test_a_peer_without_our_version_is_a_downgrade() -> None:
    mesh, a, b = pair()
    info = b.local.info().encode().replace(b'"versions":[1]', b'"versions":[2]')
    with pytest.MonkeyPatch.context() as patch:
        whole = record.pack
        patch.setattr(record, "pack", lambda kind, body: whole(kind, info if kind == record.JSON else body))
        a.ping(b)
        mesh.run(0.02)
    assert a.drops["downgrade"] == 1
    assert not mesh.sent(FINISH)
    b.restart()
    give(mesh, mesh.sent(HELLO)[0])
    mesh.run(0.05)
    assert a.confirmed(b), "the hello is still good for another answer"


# -- who answers


def test_a_pinned_key_is_asked_for_in_both_roles() -> None:
    for begins in (0, 1):
        mesh = MemoryMesh(1)
        (b,) = mesh.nodes
        a = mesh.add("x", "10.10.10.9/24")
        a.context.trust = Trust(pins={b.ip(): fingerprint(bytes(32))})
        (a, b)[begins].ping((b, a)[begins])
        mesh.run(1.0)
        assert not a.mesh.peers
        assert "identity_refused" in a.event_names()


@pytest.mark.parametrize("impostor_begins", [False, True])
def test_an_impostor_that_does_not_name_the_pinned_ip_gets_no_packet(impostor_begins: bool) -> None:
    mesh, a, b = pair()
    pinned, stolen = b.ip(), b.addresses[0]
    a.context.trust = Trust(pins={pinned: fingerprint(bytes(32))})
    b.restart(with_ips(b.local, "fd00::2/64"))
    b.context.addresses[stolen] = b""
    mesh.relay.routes[stolen] = b
    b.mesh._own_ips |= {pinned}  # it takes whatever it gets
    if impostor_begins:
        mesh.relay.forward = dropping(HELLO, a)
    a.emit(packet(a.ip(), pinned, b"secret"))
    if impostor_begins:
        mesh.run(0.02)
        mesh.relay.forward = lambda frame: (frame,)
        b.mesh.handshakes.attempt(stolen, a.addresses[0], mesh.now)
    mesh.run(3.0)
    assert b.received == []
    assert [body[20:] for body in a.unreachable_packets] == [b"secret"]
    assert pinned not in {ip for peer in a.mesh.peers.values() for ip in peer.verified}


def make_hello(mesh: MemoryMesh, a: Node, b: Node, *, source: bytes | None = None) -> Frame:
    """A fresh hello from `a` to `b` that has not been sent; `source` only claims another sender."""
    end_attempts(a)
    at = len(mesh.log)
    attempt(a, b)
    end_attempts(a)
    (frame,) = mesh.log[at:]
    del mesh.log[at:]
    mesh._agenda.clear()
    return frame if source is None else frame._replace(source=source)


def stranger_hello(mesh: MemoryMesh, a: Node, b: Node, source: bytes) -> Frame:
    """A hello that is genuine for a source address that no node has."""
    a.mesh.handshakes.attempt(source, b.addresses[0], mesh.now)
    end_attempts(a)
    mesh._agenda.clear()
    return mesh.log.pop()


def end_attempts(node: Node) -> None:
    for each in list(node.mesh.handshakes._attempts.values()):
        node.mesh.handshakes._give_up(each, "test")
