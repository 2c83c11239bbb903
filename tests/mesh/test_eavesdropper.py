"""Who has the network key, and all that ever came by a relay, opens nothing between two others.

Nor does who gets the keys of both devices afterwards: a laptop that was stolen tells nothing of before.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shadowmesh.crypto.noise import XX_HFS_PSK0, HandshakeState
from shadowmesh.crypto.session import OVERHEAD, Opener
from shadowmesh.errors import HandshakeError, SealedError
from shadowmesh.mesh import handshake
from shadowmesh.testing import memory
from shadowmesh.testing.hostile import HostileMember, HostileRelay
from shadowmesh.testing.memory import Frame, Node, SeededEphemerals
from shadowmesh.wire.message import FINISH, SEALED, Answer, Finish, Hello, unpack_handshake

PLAINTEXT = b"for nobody else"


@dataclass
class Spied:
    """Two devices that have talked through rekeys, a member, and all that the relay has seen of the two."""

    relay: HostileRelay
    a: Node
    b: Node
    m: HostileMember
    ephemerals: list[tuple[X25519PrivateKey, MLKEM768PrivateKey]] = field(default_factory=list)
    """Each one that anybody made: what is forgotten when a handshake is over. For the counter-proof only."""

    @property
    def seen(self) -> list[Frame]:
        """What a and b have sent each other."""
        ends = {*self.a.addresses, *self.b.addresses}
        return [each for each in self.relay.seen if {each.source, each.destination} <= ends]

    @property
    def sealed(self) -> list[bytes]:
        return [each.message for each in self.seen if each.kind == SEALED]


@pytest.fixture
def spied(monkeypatch: pytest.MonkeyPatch) -> Spied:
    made: dict[type, list[object]] = defaultdict(list)

    class Kept(SeededEphemerals):
        def x25519(self) -> X25519PrivateKey:
            made[X25519PrivateKey].append(key := super().x25519())
            return key

        def mlkem768(self) -> MLKEM768PrivateKey:
            made[MLKEM768PrivateKey].append(key := super().mlkem768())
            return key

    monkeypatch.setattr(memory, "SeededEphemerals", Kept)
    relay = HostileRelay(2)
    a, b = relay.mesh.nodes
    m = HostileMember.joined(relay.mesh, "m", "10.10.10.66/24", "fd00::66/64")
    spied = Spied(relay, a, b, m)
    for one, other in ((a, b), (m, a), (m, b)):
        relay.mesh.meet(one, other)
    for _ in range(30):
        a.ping(b, PLAINTEXT)
        b.ping(a, PLAINTEXT, version=6)
        relay.mesh.run(10.0)
    assert len([each for each in spied.seen if each.kind == FINISH]) >= 3, "it was keyed anew"
    assert len(spied.sealed) > 50
    spied.ephemerals = [(x, k) for x in made[X25519PrivateKey] for k in made[MLKEM768PrivateKey]]  # type: ignore[misc]
    return spied


def handshakes(spied: Spied) -> list[tuple[Frame, Hello, Answer, Finish]]:
    """The finished handshakes of a and b."""
    found = []
    parsed = [(each, unpack_handshake(each.message)) for each in spied.seen if each.kind != SEALED]
    for frame, hello in parsed:
        for _, answer in parsed:
            for _, finish in parsed:
                if (
                    isinstance(hello, Hello)
                    and isinstance(answer, Answer)
                    and isinstance(finish, Finish)
                    and (answer.receiver, finish.receiver) == (hello.sender, answer.sender)
                ):
                    found.append((frame, hello, answer, finish))
    assert len(found) >= 3
    return found


def state(spied: Spied, hello: Frame, static: X25519PrivateKey, *, initiator: bool) -> HandshakeState:
    """A side of a handshake, as whoever has K can begin it."""
    network = spied.m.context.network
    prologue = handshake._PROLOGUE + network.network_id + hello.source + hello.destination
    return HandshakeState(
        XX_HFS_PSK0, initiator=initiator, prologue=prologue, static=static, psk=network.peer_psk
    )


def after_hello(
    spied: Spied,
    frame: Frame,
    hello: Hello,
    static: X25519PrivateKey,
    ephemeral: X25519PrivateKey,
    kem: MLKEM768PrivateKey,
) -> HandshakeState:
    """The initiator of a recorded handshake as it was after its hello, but for its ephemeral keys."""
    read = state(spied, frame, static, initiator=False)
    read.read_message(hello.noise)
    mine = state(spied, frame, static, initiator=True)
    mine.write_message(b"")
    mine._symmetric = read._symmetric
    mine._e, mine._e1 = ephemeral, kem
    return mine


def opens(key: bytes, message: bytes) -> bool:
    try:
        Opener(key).open_into(memoryview(message), memoryview(bytearray(len(message) - OVERHEAD)))
    except SealedError:
        return False
    return True


def session_keys(
    spied: Spied, static: X25519PrivateKey, tries: list[tuple[X25519PrivateKey, MLKEM768PrivateKey]]
) -> list[bytes]:
    """The keys of those recorded sessions whose answers are readable with one of these ephemeral keys."""
    keys: list[bytes] = []
    for frame, hello, answer, _ in handshakes(spied):
        for ephemeral, kem in tries:
            mine = after_hello(spied, frame, hello, static, ephemeral, kem)
            try:
                mine.read_message(answer.noise)
            except HandshakeError:
                continue
            mine.write_message(b"")
            keys += mine.split()
            break
    return keys


def test_a_member_with_the_whole_recording_opens_nothing_of_two_others(spied: Spied) -> None:
    """With K it reads hellos, which are ephemeral public keys; but no answer, no finish, no message."""
    m, own = spied.m, spied.m.device
    fresh = (X25519PrivateKey.generate(), MLKEM768PrivateKey.generate())
    assert session_keys(spied, own.static_private, [fresh, (own.static_private, fresh[1])]) == []
    for frame, hello, answer, finish in handshakes(spied):
        as_responder = state(spied, frame, own.static_private, initiator=False)
        assert as_responder.read_message(hello.noise) == b"", "it has K"
        as_responder.write_message(b"")
        for recorded in (finish.noise, answer.noise):
            with pytest.raises(HandshakeError):
                as_responder.read_message(recorded)
    network = m.context.network
    keys = [network.peer_psk, memory.SECRET, network.network_id]
    assert not any(opens(key, message) for key in keys for message in spied.sealed)
    # Nor does its engine, which has sessions with both, make anything of it, whoever it is said to be from.
    got, sessions = list(m.received), {id(each) for peer in m.mesh.peers.values() for each in peer.sessions}
    for frame in spied.seen:
        for source in (frame.source, spied.a.addresses[0], spied.b.addresses[0]):
            for destination in (frame.destination, m.addresses[0]):
                m.mesh.receive(source, destination, memoryview(frame.message), spied.relay.mesh.now)
    assert m.received == got
    assert {id(each) for peer in m.mesh.peers.values() for each in peer.sessions} <= sessions


@pytest.mark.parametrize("whose", ["a", "b", "both"])
def test_stolen_devices_open_nothing_that_was_recorded_before(spied: Spied, whose: str) -> None:
    """K, the seeds and the static keys of one or both: the ephemeral keys of the sessions are gone."""
    stolen = [
        node.device.static_private for node in (spied.a, spied.b) if whose in ("both", "ab"[node is spied.b])
    ]
    fresh = MLKEM768PrivateKey.generate()
    for static in stolen:
        tries = [(each, fresh) for each in (*stolen, X25519PrivateKey.generate())]
        assert session_keys(spied, static, tries) == []
        for frame, hello, _, finish in handshakes(spied):
            as_responder = state(spied, frame, static, initiator=False)
            as_responder.read_message(hello.noise)
            as_responder.write_message(b"")
            with pytest.raises(HandshakeError):
                as_responder.read_message(finish.noise)


def test_the_same_with_the_ephemeral_keys_opens_everything(spied: Spied) -> None:
    """The counter-proof: what the tests above try is what would work."""
    initiators = [node.device.static_private for node in (spied.a, spied.b)]
    keys = [key for static in initiators for key in session_keys(spied, static, spied.ephemerals)]
    sealed = spied.sealed
    assert sum(any(opens(key, message) for key in keys) for message in sealed) > len(sealed) // 2


def test_half_of_the_hybrid_is_not_enough(spied: Spied) -> None:
    """Who breaks one of X25519 and ML-KEM-768, but not the other, opens nothing."""
    static = spied.a.device.static_private
    x25519 = [(x, MLKEM768PrivateKey.generate()) for x in {id(x): x for x, _ in spied.ephemerals}.values()]
    kem = [(X25519PrivateKey.generate(), k) for k in {id(k): k for _, k in spied.ephemerals}.values()]
    assert session_keys(spied, static, x25519) == []
    assert session_keys(spied, static, kem) == []
