"""Three devices, a relay and a bad link: they find each other, and find each other again after any loss."""

from __future__ import annotations

from itertools import pairwise, permutations

import pytest

from shadowmesh.testing.memory import Frame, Link, MemoryMesh, Node, by_address, dropping, met
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED

LOSSY = Link(loss=0.2, duplicate=0.1, delay=(0.005, 0.08))


def pair() -> tuple[MemoryMesh, Node, Node]:
    mesh = MemoryMesh(2)
    return mesh, mesh.nodes[0], mesh.nodes[1]


def times(frames: list[Frame]) -> list[float]:
    return [frame.at for frame in frames]


def test_all_meet_all_and_each_packet_comes_once() -> None:
    mesh = MemoryMesh(3)
    for one, other in permutations(mesh.nodes, 2):
        one.ping(other, f"{one} to {other}".encode())
        one.ping(other, f"{one} to {other} by IPv6".encode(), version=6)
    mesh.run(1.0)
    for node in mesh.nodes:
        others = [other for other in mesh.nodes if other is not node]
        words = [f"{other} to {node}{how}".encode() for other in others for how in ("", " by IPv6")]
        assert sorted(node.payloads) == sorted(words)
        assert not node.unreachable_packets


@pytest.mark.parametrize("seed", range(5))
def test_a_lossy_link_delays_but_parts_nobody(seed: int) -> None:
    mesh = MemoryMesh(3, seed=seed, link=LOSSY)
    sent = dict.fromkeys(mesh.nodes, 0)
    for second in range(400):
        for one, other in permutations(mesh.nodes, 2):
            sent[other] += one.ping(other, f"{second} {one}".encode()) in ("sent", "queued")
        mesh.run(1.0)
    for node in mesh.nodes:
        assert len(set(node.payloads)) == len(node.payloads)
        assert len(node.payloads) > 0.7 * sent[node]
        for other in mesh.nodes:
            assert node is other or node.confirmed(other)


@pytest.mark.parametrize("kind", [HELLO, ANSWER])
def test_a_lost_hello_or_answer_costs_half_a_second(kind: bytes) -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(kind, a if kind == HELLO else b, times=1)
    a.ping(b, b"kept")
    mesh.run(0.6)
    assert b.payloads == [b"kept"]
    assert len(mesh.sent(HELLO)) == 2


def test_the_finish_is_repeated_until_the_first_sealed_message() -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(FINISH, a)
    a.ping(b, b"kept")
    mesh.run(9.0)
    finishes = mesh.sent(FINISH)
    assert len({frame.message for frame in finishes}) == 1
    assert [round(at - finishes[0].at, 6) for at in times(finishes)] == [0.0, 0.5, 1.5, 3.5]
    assert not a.confirmed(b)


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_finish_is_made_good_by_the_next(lost: int) -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(FINISH, a, times=lost)
    a.ping(b, b"kept")
    mesh.run((0.6, 1.6, 3.6)[lost - 1])
    assert b.payloads == [b"kept"]
    assert a.confirmed(b)
    mesh.run(5.0)
    assert len(mesh.sent(FINISH)) == lost + 1
    assert all(frame.message for frame in mesh.log)


def test_four_lost_finishes_are_found_out_by_the_next_packets() -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(FINISH, a, times=4)
    a.ping(b)
    mesh.run(9.0)
    for _ in range(10):
        a.ping(b, b"later")
        mesh.run(1.0)
    assert b.payloads.count(b"later") >= 7
    assert a.confirmed(b)


def test_an_identical_finish_is_answered_once_a_second_and_delivered_once() -> None:
    mesh, a, b = pair()
    mesh.relay.forward = dropping(SEALED, b)
    a.ping(b, b"once")
    mesh.run(0.1)
    (finish,) = mesh.sent(FINISH)
    before = len(mesh.sent(SEALED, b))
    for _ in range(20):
        mesh.hand_over(finish)
        mesh.run(0.1)
    answers = times(mesh.sent(SEALED, b)[before:])
    assert len(answers) == 2
    assert all(later - earlier >= 1.0 for earlier, later in pairwise(answers))
    assert b.payloads == [b"once"]
    assert len(b.peer(a).sessions) == 1
    mesh.relay.forward = lambda frame: (frame,)
    mesh.run(5.0)
    assert a.confirmed(b)


def test_a_finish_with_one_other_byte_is_not_answered() -> None:
    mesh, _, b = met()
    (finish,) = mesh.sent(FINISH)
    at = len(mesh.log)
    mesh.hand_over(finish._replace(message=finish.message[:-1] + bytes((finish.message[-1] ^ 1,))))
    assert b.drops["finish_unknown"] == 1
    assert len(mesh.log) == at


@pytest.mark.parametrize("first", [0.0, 0.005, 0.012, 0.025])
def test_hellos_that_cross_at_any_moment(first: float) -> None:
    for begin in (0, 1):
        mesh = MemoryMesh(2)
        one, other = by_address(*mesh.nodes)[:: 1 if begin == 0 else -1]
        one.ping(other, b"1")
        mesh.run(first)
        other.ping(one, b"2")
        mesh.run(0.5)
        assert one.payloads == [b"2"]
        assert other.payloads == [b"1"]
        assert len(mesh.sent(HELLO)) <= 2
        assert one.ping(other) == other.ping(one) == "sent"


@pytest.mark.parametrize("kind", [HELLO, ANSWER, FINISH])
@pytest.mark.parametrize("from_winner", [True, False])
def test_crossing_hellos_with_one_loss(kind: bytes, from_winner: bool) -> None:
    mesh, a, b = pair()
    winner, loser = by_address(a, b)
    mesh.relay.forward = dropping(kind, winner if from_winner else loser, times=1)
    winner.ping(loser, b"from the winner")
    loser.ping(winner, b"from the loser")
    mesh.run(1.2)
    assert winner.payloads == [b"from the loser"]
    assert loser.payloads == [b"from the winner"]


# -- restarts


@pytest.mark.parametrize("restarted", [0, 1])
def test_a_restarted_peer_is_found_in_one_round_trip(restarted: int) -> None:
    mesh, a, b = met()
    mesh.run(20)
    gone, stays = (a, b) if restarted == 0 else (b, a)
    gone.restart()
    mesh.run(1.0)
    assert stays.ping(gone, b"lost") == "sent"
    mesh.run(0.05)  # the packet, the hello, the answer, the finish: 10 ms each
    assert stays.ping(gone, b"found") == "sent"
    mesh.run(0.02)
    assert gone.payloads == [b"found"]
    assert len(mesh.sent(HELLO, gone, since=mesh.now - 1)) == 1


def test_a_restarted_peer_speaks_first() -> None:
    mesh, a, b = met()
    b.restart()
    b.ping(a, b"here again")
    mesh.run(0.1)
    assert a.payloads == [b"here again"]
    assert a.ping(b, b"welcome") == "sent"
    mesh.run(0.1)
    assert b.payloads == [b"welcome"]


def test_both_restart() -> None:
    mesh, a, b = met()
    a.restart()
    b.restart()
    a.ping(b, b"1")
    b.ping(a, b"2")
    mesh.run(0.1)
    assert (a.payloads, b.payloads) == ([b"2"], [b"1"])


@pytest.mark.parametrize("lost", [HELLO, ANSWER, FINISH])
def test_a_loss_while_a_restarted_peer_is_found(lost: bytes) -> None:
    mesh, a, b = met()
    mesh.run(20)
    b.restart()
    mesh.relay.forward = dropping(lost, a if lost == ANSWER else b, times=1)
    for second in range(20):
        a.ping(b, bytes((second,)))
        mesh.run(1.0)
    assert b.payloads[-1] == bytes((19,))
    assert len(b.payloads) >= 8, "the hello is repeated by the next message after 10 s at the latest"


def test_a_restart_in_the_middle_of_a_handshake() -> None:
    for moment in (0.005, 0.015, 0.025, 0.035):
        for who in (0, 1):
            mesh, a, b = pair()
            a.ping(b)
            mesh.run(moment)
            mesh.nodes[who].restart()
            for second in range(20):
                a.ping(b, bytes((second,)))
                b.ping(a, bytes((second,)))
                mesh.run(1.0)
            assert a.payloads[-1] == b.payloads[-1] == bytes((19,))


def test_a_new_device_with_the_same_ip_is_reached_after_the_conflict() -> None:
    mesh, a, b = met()
    b.seed = bytes(32)
    b.restart()
    for second in range(45):
        a.ping(b, bytes((second,)))
        b.ping(a, bytes((second,)))
        mesh.run(1.0)
    assert a.payloads[-1] == b.payloads[-1] == bytes((44,))
    assert "address_conflict" in a.event_names()
    assert "identity_changed" in a.event_names()


def test_a_relay_that_was_away_parts_nobody() -> None:
    mesh, a, b = met(3)
    for away in (1.0, 20.0, 100.0, 300.0):
        a.disconnect()
        for _ in range(int(away)):
            a.ping(b)
            b.ping(a)
            mesh.run(1.0)
        a.connect()
        mesh.run(2.5)
        for second in range(2):
            a.ping(b, f"{away} {second}".encode())
            b.ping(a, f"{away} {second}".encode())
            mesh.run(0.2)
        assert a.payloads[-1] == b.payloads[-1] == f"{away} 1".encode()


def test_nothing_is_left_when_all_is_quiet() -> None:
    mesh = MemoryMesh(3, seed=3, link=LOSSY)
    for one, other in permutations(mesh.nodes, 2):
        one.ping(other)
    mesh.run(400)
    at = len(mesh.log)
    for node in mesh.nodes:
        assert not node.mesh.peers
        assert not node.context.indices
        assert not node.mesh._owners
        assert node.mesh.next_deadline is None
        assert node.mesh.handshakes._queued == 0
    mesh.run(10_000)
    assert len(mesh.log) == at
