"""A relay that does what it wants: it can delay and prevent, but not read, change, inject, or repeat."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import permutations

import pytest

from shadowmesh.testing.hostile import HostileRelay, check_state
from shadowmesh.testing.memory import Frame, Node, packet
from shadowmesh.wire import record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED

ATTACKS = [attack.__name__ for attack in HostileRelay(0).all_attacks]


class Traffic:
    """Packets that name their way and are all different, so that every wrong one shows."""

    def __init__(self, relay: HostileRelay) -> None:
        self.relay = relay
        self.sent: set[bytes] = set()

    def send(self) -> None:
        """One packet of each version from each node to each other one."""
        for one, other in permutations(self.relay.mesh.nodes, 2):
            for version in (4, 6):
                payload = f"{len(self.sent)} from {one}".encode()
                self.sent.add(packet(one.ip(version), other.ip(version), payload))
                one.ping(other, payload, version=version)

    def check(self) -> None:
        """What has come was sent to this host, and came once; every engine is in a legal state."""
        for node in self.relay.mesh.nodes:
            assert len(node.received) == len(set(node.received))
            assert self.sent.issuperset(node.received)
            for each in node.received:
                destination = each[16:20] if each[0] >> 4 == 4 else each[24:40]
                assert destination in node.local.ips
            check_state(node)

    def recovers(self, within: float) -> None:
        """Left in peace, everybody reaches everybody."""
        self.relay.attacks = []
        self.relay.mesh.run(within)
        before = {node: len(node.received) for node in self.relay.mesh.nodes}
        self.send()
        self.relay.mesh.run(3.0)
        self.check()
        others = len(self.relay.mesh.nodes) - 1
        for node, count in before.items():
            assert len(node.received) >= count + 2 * others


@pytest.fixture
def met() -> Iterator[HostileRelay]:
    """Two devices that have a session, and a relay that has been honest up to now."""
    relay = HostileRelay(2)
    relay.mesh.meet(*relay.mesh.nodes)
    yield relay
    for node in relay.mesh.nodes:
        check_state(node)


def pair(relay: HostileRelay) -> tuple[Node, Node]:
    a, b = relay.mesh.nodes
    return a, b


# -- all of it, at random


@pytest.mark.parametrize("attack", ATTACKS)
def test_one_attack_at_a_time(attack: str) -> None:
    relay = HostileRelay(2, seed=len(attack))
    traffic = Traffic(relay)
    relay.attacks = [getattr(relay, attack)]
    for _ in range(40):
        traffic.send()
        relay.mesh.run(0.7)
        traffic.check()
    traffic.recovers(8.0)


@pytest.mark.parametrize("seed", range(2))
def test_all_attacks_at_once_with_restarts_and_rekeys(seed: int) -> None:
    relay = HostileRelay(3, seed=seed, chance=0.15)
    traffic = Traffic(relay)
    relay.attacks = relay.all_attacks
    for second in range(260):
        if second % 70 == 69:
            relay.mesh.nodes[second // 70 % 3].restart()
        traffic.send()
        relay.mesh.run(1.0)
        traffic.check()
    traffic.recovers(10.0)


# -- what it sees


def test_it_sees_no_plaintext_no_overlay_ip_and_no_name(met: HostileRelay) -> None:
    a, b = pair(met)
    for _ in range(20):
        a.ping(b, b"the plaintext of this packet")
        b.ping(a, b"the plaintext of this packet", version=6)
        met.mesh.run(10.0)
    everything = b"".join(frame.destination + frame.source + frame.message for frame in met.seen)
    for node in (a, b):
        for secret in (*node.local.ips[1:], b"the plaintext", node.device.static_public, b"shadowmesh/test"):
            assert secret not in everything
    assert met.mesh.network.peer_psk not in everything


# -- replays


def test_everything_ever_seen_is_worth_nothing_again(met: HostileRelay) -> None:
    """At once, after a restart of either, after the sessions have ended, and to the other address."""
    a, b = pair(met)
    for i in range(10):
        a.ping(b, bytes((i,)))
        b.ping(a, bytes((i,)))
        met.mesh.run(20.0)
    got = [list(node.received) for node in (a, b)]
    actions: list[Callable[[], None]] = [lambda: None, a.restart, b.restart, lambda: met.mesh.run(400)]
    for action in actions:
        old = list(met.seen)
        action()
        met.play(old)
        met.play(old, destination=a.addresses[1])
        met.mesh.run(1.0)
        assert [node.received for node in (a, b)] == got
        check_state(a)
        check_state(b)
    assert a.ping(b, b"new") in ("sent", "queued")
    met.mesh.run(12.0)
    assert b.payloads[-1] == b"new" or a.ping(b, b"new") in ("sent", "queued")
    met.mesh.run(1.0)
    assert b.payloads[-1] == b"new"


def test_a_hello_older_than_the_memory_gets_an_answer_and_nothing_else(met: HostileRelay) -> None:
    a, b = pair(met)
    hello = next(frame for frame in met.seen if frame.kind == HELLO)
    for _ in range(20):
        met.mesh.run(9.1)
        a.ping(b)
        b.ping(a)
    session = b.session(a)
    met.play([hello] * 50)
    met.mesh.run(0.005)
    assert len(b.mesh.handshakes._half_open) == 1
    assert b.drops["hello_replayed"] + b.drops["hello_rate"] == 49
    met.mesh.run(10.5)
    assert not b.mesh.handshakes._half_open
    assert b.session(a) is session


def test_a_sealed_message_is_delivered_once_and_only_in_its_session(met: HostileRelay) -> None:
    a, b = pair(met)
    a.ping(b, b"once")
    met.mesh.run(0.1)
    sealed = met.seen[-1]
    met.play([sealed] * 5)
    a.mesh.handshakes.attempt(a.addresses[0], b.addresses[0], met.mesh.now)
    met.mesh.run(1.0)
    for session in b.peer(a).sessions:
        met.play([sealed], message=sealed.message[:4] + session.local_index + sealed.message[8:])
    assert b.payloads == [b"once"]
    assert b.drops["bad_sealed"] == 5 + 2


def test_nothing_old_is_opened_when_the_session_has_ended(met: HostileRelay) -> None:
    """A message held back for three minutes is lost, whether or not there is another session by then."""
    a, b = pair(met)
    met.attacks, met.chance = [met.drop], 1.0
    a.ping(b, b"held")
    met.mesh.run(0.1)
    held = met.seen[-1]
    met.attacks = []
    met.mesh.run(181.0)
    met.play([held])
    assert b.payloads == []
    assert b.drops["sealed_unknown"] == 1


# -- changes


def test_every_byte_of_a_sealed_message_counts(met: HostileRelay) -> None:
    a, b = pair(met)
    met.attacks, met.chance = [met.drop], 1.0
    message = a.seal(b, (record.PACKET, packet(a.ip(), b.ip(), b"whole")))
    met.mesh.run(0.1)
    real = met.seen[-1]
    for at in range(len(message)):
        forged = message[:at] + bytes((message[at] ^ 0x40,)) + message[at + 1 :]
        met.play([real], message=forged)
        met.play([real], message=message[:at])
    met.play([real], message=message + bytes(1))
    met.play([real], message=message + bytes(131_000 - len(message)))
    assert b.received == []
    met.play([real])
    assert b.payloads == [b"whole"], "and no forgery has used its counter up"


@pytest.mark.parametrize("kind", [HELLO, ANSWER, FINISH])
def test_a_handshake_between_other_addresses_comes_to_nothing(kind: bytes) -> None:
    """The addresses are in the prologue: nobody can be made to shake hands in another's place."""
    relay = HostileRelay(3)
    a, b, c = relay.mesh.nodes
    relay.attacks, relay.chance = [relay.drop], 1.0
    a.ping(b, b"for b alone")
    for step in (HELLO, ANSWER, FINISH)[: (HELLO, ANSWER, FINISH).index(kind) + 1]:
        relay.mesh.run(0.05)
        real = relay.seen[-1]
        assert real.kind == step
        if step == kind:
            sender, receiver = (b, a) if kind == ANSWER else (a, b)
            for address in (*c.addresses, *sender.addresses[1:]):
                relay.play([real], source=address)
            for address in (*c.addresses, *receiver.addresses[1:]):
                relay.play([real], destination=address)
            assert not b.mesh.peers
            assert not c.context.indices
            assert bool(a.mesh.peers) is (kind == FINISH)
            assert bool(b.mesh.handshakes._half_open) is (kind != HELLO)
        relay.play([real])
    relay.attacks = []
    relay.mesh.run(3.0)
    assert b.payloads == [b"for b alone"]
    assert c.received == []
    assert len(a.mesh.peers) == len(b.mesh.peers) == 1


def test_the_index_in_a_finish_cannot_be_changed() -> None:
    """It is not under Noise; a responder that took another would seal for a session that does not exist."""
    relay = HostileRelay(2)
    a, b = relay.mesh.nodes

    def other_index(frame: Frame) -> list[Frame]:
        forged = frame._replace(message=frame.message[:4] + b"else" + frame.message[8:])
        return [forged, frame] if frame.kind == FINISH else [frame]

    relay.attacks, relay.chance = [other_index], 1.0
    a.ping(b, b"once")
    relay.mesh.run(0.2)
    assert b.drops["wrong_address"] == 1
    assert b.payloads == [b"once"]
    assert a.confirmed(b)


def test_an_address_it_makes_up_gives_nobody_anything(met: HostileRelay) -> None:
    """Sealed messages from wrong sources verify, but V takes only what the device itself has said."""
    a, b = pair(met)
    for i in range(100):
        message = b.seal(a, (record.PACKET, packet(b.ip(), a.ip(), bytes((i,)))))
        frame = met.mesh.log[-1]
        met.play([frame], source=met.random.randbytes(16))
        assert message == frame.message
    met.mesh.run(0.1)
    assert a.payloads == [bytes((i,)) for i in range(100)]
    assert a.peer(b).verified == set(b.local.ips)
    assert a.session(b).remote == b.addresses[0], "and we answer where we did"


# -- words


def test_forged_gone_holds_packets_back_for_2_s_at_most(met: HostileRelay) -> None:
    a, b = pair(met)
    for _ in range(30):
        for address in (*b.addresses, *a.addresses, met.random.randbytes(16)):
            a.mesh.gone(address, met.mesh.now)
        assert a.ping(b) == "held"
        met.mesh.run(0.1)
    session = a.session(b)
    met.mesh.run(2.0)
    assert a.ping(b, b"after") == "sent"
    met.mesh.run(0.1)
    assert b.payloads[-1] == b"after"
    assert a.session(b) is session


def test_forged_gone_during_a_handshake_costs_one_try(met: HostileRelay) -> None:
    a, b = pair(met)
    b.restart()
    met.mesh.run(181)
    met.chance, met.attacks = 1.0, [met.forge_gone]
    a.ping(b, b"1")
    met.mesh.run(1.0)
    met.attacks = []
    met.mesh.run(2.0)
    a.ping(b, b"2")
    met.mesh.run(0.2)
    assert b.payloads[-1] == b"2"


def test_frames_of_nobody_make_us_send_little(met: HostileRelay) -> None:
    """What the relay makes up costs it more than us: 20 hellos per second, to addresses that it names."""
    a, _ = pair(met)
    at = len(met.mesh.log)
    begin = met.mesh.now
    while met.mesh.now - begin < 3.0:
        for _ in range(50):
            junk = SEALED + met.random.randbytes(44)
            a.mesh.receive(met.random.randbytes(16), a.addresses[0], memoryview(junk), met.mesh.now)
        met.mesh.run(0.1)
        check_state(a)
    assert len(met.mesh.log) - at <= 20 + 3 * 20


def test_reflected_messages_are_nobodys(met: HostileRelay) -> None:
    a, b = pair(met)
    begin = met.mesh.now
    met.chance, met.attacks = 1.0, [met.reflect]
    for i in range(100):
        a.ping(b, bytes((i,)))
        met.mesh.run(0.2)
    assert a.received == []
    assert b.payloads == [bytes((i,)) for i in range(100)]
    # They are taken for those of a session that we have forgotten: one hello in 5 s.
    assert len(met.mesh.sent(HELLO, a, since=begin)) <= 5
