"""Invariant: each packet arrives at most once and never wrong, and a healed link carries packets again.

Whatever a peer, a relay or a stranger sends, nothing raises, and the tables of an engine stay sound.
"""

from __future__ import annotations

import json
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.errors import MessageError
from shadowmesh.mesh.handshake import HalfOpen, PendingHello
from shadowmesh.mesh.peer import MAX_SESSIONS, Session
from shadowmesh.testing.memory import Frame, Link, MemoryMesh, Node, met, packet, with_ips
from shadowmesh.wire import record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED, unpack_handshake

HEALED_WITHIN = (
    25.0  # seconds: 15 of silence until a hello, or 10 while a lost one is pending, and its answer
)

SETTINGS = settings(deadline=None, max_examples=40)


def assert_legal(node: Node) -> None:
    """The tables of an engine agree with each other and keep their bounds."""
    mesh = node.mesh
    sessions = [session for peer in mesh.peers.values() for session in peer.sessions]
    attempts = mesh.handshakes._attempts
    hellos = [hello for attempt in attempts.values() for hello in attempt.hellos]
    half_open = list(mesh.handshakes._half_open.values())
    indices = node.context.indices
    assert len(indices) == len(sessions) + len(hellos) + len(half_open)
    assert all(indices[session.local_index] is session for session in sessions)
    assert all(isinstance(h, PendingHello) and indices[h.index] is h for h in hellos)
    assert all(isinstance(h, HalfOpen) and indices[h.index] is h for h in half_open)
    for static, peer in mesh.peers.items():
        assert peer.static == static
        assert 1 <= len(peer.sessions) <= MAX_SESSIONS
        assert peer.sending in peer.sessions
        for session in peer.sessions:
            assert session.peer is peer
            assert session.verified <= set(session.info.ips)
            assert all(mesh._owners[ip] is peer for ip in session.verified)
    for ip, peer in mesh._owners.items():
        assert ip in peer.verified
        assert mesh.peers[peer.static] is peer
    for flow in mesh._flows.values():
        assert flow.peer is mesh._owners.get(flow.next_hop)
    assert mesh.handshakes._queued == sum(attempt.queued for attempt in attempts.values())
    for attempt in attempts.values():
        assert attempt.hellos
        assert attempt.queued == sum(len(body) for _, _, body in attempt.queue)
    assert len(node.context.timers._heap) < 200


actions = st.lists(
    st.one_of(
        st.tuples(st.just("ping"), st.integers(0, 5)),
        st.tuples(st.just("ping"), st.integers(0, 5)),
        st.tuples(st.just("wait"), st.sampled_from((0.01, 0.3, 2.0, 6.0, 12.0, 50.0, 125.0))),
        st.tuples(st.just("restart"), st.integers(0, 2)),
        st.tuples(st.just("leave"), st.integers(0, 2)),
        st.tuples(st.just("join"), st.integers(0, 2)),
        st.tuples(st.just("bye"), st.integers(0, 2)),
        st.tuples(st.just("replay"), st.integers(0, 1000)),
        st.tuples(st.just("tamper"), st.integers(0, 100_000)),
        st.tuples(st.just("gone"), st.integers(0, 8)),
    ),
    max_size=40,
)
links = st.builds(
    Link,
    loss=st.sampled_from((0.0, 0.1, 0.4, 0.8)),
    duplicate=st.sampled_from((0.0, 0.3)),
    delay=st.sampled_from(((0.01, 0.01), (0.001, 0.2), (0.01, 3.0))),
)


class Schedule:
    """Three nodes that do as they are told, and what they should have received."""

    def __init__(self, link: Link, seed: int) -> None:
        self.mesh = MemoryMesh(3, seed=seed, link=link)
        self.pairs = list(permutations(self.mesh.nodes, 2))
        self.sent = 0

    def ping(self, number: int) -> bytes:
        """Send a packet whose payload says between whom it goes, and which it is."""
        one, other = self.pairs[number]
        self.sent += 1
        payload = b"%s %s %d" % (one.local.name.encode(), other.local.name.encode(), self.sent)
        one.ping(other, payload, version=6 if self.sent % 5 == 0 else 4)
        return payload

    def do(self, action: str, value: float) -> None:
        """One action of a schedule."""
        mesh, number = self.mesh, int(value)
        node = mesh.nodes[number % 3]
        match action:
            case "ping":
                self.ping(number)
            case "wait":
                mesh.run(value)
            case "restart":
                node.restart()
            case "leave":
                node.disconnect()
            case "join":
                node.connect()
            case "bye":
                node.mesh.bye()
            case "gone":
                node.mesh.gone(mesh.nodes[number // 3].addresses[0], mesh.now)
            case "replay" | "tamper" if mesh.log:
                frame = mesh.log[number % len(mesh.log)]
                message = bytearray(frame.message)
                if action == "tamper":
                    message[number % 7919 % len(message)] ^= 1 << number % 8
                mesh.hand_over(frame._replace(message=bytes(message)))

    def check(self) -> None:
        """No packet came twice, or to somebody else; all tables are sound."""
        for node in self.mesh.nodes:
            payloads = node.payloads
            assert len(set(payloads)) == len(payloads)
            assert all(payload.split()[1] == node.local.name.encode() for payload in payloads)
            assert_legal(node)

    def heal(self, flows: tuple[int, ...]) -> None:
        """With a good link these pairs exchange packets again, and go on doing so."""
        mesh = self.mesh
        mesh.link = Link()
        for node in mesh.nodes:
            node.connect()
        end = mesh.now + HEALED_WITHIN
        while mesh.now < end:
            for number in flows:
                self.ping(number)
            mesh.run(0.5)
            self.check()
        for _ in range(2):
            payloads = {number: self.ping(number) for number in flows}
            mesh.run(0.1)
            for number, payload in payloads.items():
                assert payload in self.pairs[number][1].payloads


@SETTINGS
@given(
    link=links,
    seed=st.integers(0, 2**32),
    todo=actions,
    flows=st.sampled_from(((0, 1, 2, 3, 4, 5), (0, 1, 3), (2, 4, 5), (4,))),
)
def test_packets_come_once_and_right_and_flow_again_when_the_link_heals(
    link: Link, seed: int, todo: list[tuple[str, float]], flows: tuple[int, ...]
) -> None:
    schedule = Schedule(link, seed)
    for action, value in todo:
        schedule.do(action, value)
        schedule.check()
    schedule.heal(flows)


# -- every state × every input

STATES = ("fresh", "hello sent", "half open", "unconfirmed", "met", "old", "rekeying", "held back", "expired")
INPUTS = ("hello", "answer", "finish", "sealed", "unknown", "junk", "gone", "joined", "ping", "late", "bye")


def in_state(state: str) -> tuple[MemoryMesh, Node, Node, list[Frame]]:
    """A mesh whose second node is in this state towards the first, and all frames so far."""
    mesh, a, b = met()
    a.ping(b)
    lose: bytes | None = None
    if state in ("fresh", "hello sent", "half open", "unconfirmed"):
        for node in (a, b):
            node.restart()
        lose = {"hello sent": HELLO, "half open": FINISH, "unconfirmed": SEALED}.get(state)
        mesh.relay.forward = lambda frame: () if frame.kind == lose else (frame,)
        if state == "half open":
            a.ping(b)
        elif state != "fresh":
            b.ping(a)
    elif state in ("old", "rekeying"):
        mesh.run(170.0)
        if state == "rekeying":
            mesh.relay.forward = lambda frame: () if frame.kind in (ANSWER, FINISH) else (frame,)
            b.ping(a)
            a.ping(b)
    elif state == "held back":
        b.mesh.gone(a.addresses[0], mesh.now)
    elif state == "expired":
        mesh.run(179.0)
        mesh.now += 5.0
    mesh.run(0.1 if state != "expired" else 0.0)
    mesh.relay.forward = lambda frame: (frame,)
    return mesh, a, b, mesh.log[:]


def feed(mesh: MemoryMesh, a: Node, b: Node, frames: list[Frame], what: str) -> None:
    kinds = {"hello": HELLO, "answer": ANSWER, "finish": FINISH, "sealed": SEALED}
    match what:
        case "hello" | "answer" | "finish" | "sealed":
            for frame in frames:
                if frame.kind == kinds[what] and frame.sender is a:
                    mesh.hand_over(frame)
                    mesh.hand_over(frame._replace(message=frame.message[:-1] + b"\x00"))
        case "unknown" | "junk":
            message = SEALED + bytes(60) if what == "unknown" else b"\x15" * 60
            b.mesh.receive(a.addresses[0], b.addresses[0], memoryview(message), mesh.now)
        case "gone":
            b.mesh.gone(a.addresses[0], mesh.now)
        case "joined":
            b.mesh.joined(mesh.now)
        case "ping":
            b.ping(a)
        case "late":
            mesh.now += 11.0
        case "bye":
            a.mesh.bye()


def test_every_input_in_every_state_ends_legal_and_able_to_talk() -> None:
    for state in STATES:
        for what in INPUTS:
            mesh, a, b, frames = in_state(state)
            feed(mesh, a, b, frames, what)
            assert_legal(b)
            mesh.run(0.5)
            feed(mesh, a, b, frames, what)
            for _ in range(26):
                a.ping(b)
                b.ping(a)
                mesh.run(1.0)
                assert_legal(a)
                assert_legal(b)
            a.ping(b, b"%s, %s" % (state.encode(), what.encode()))
            b.ping(a, b"%s, %s" % (state.encode(), what.encode()))
            mesh.run(0.1)
            assert a.payloads[-1] == b.payloads[-1] == b"%s, %s" % (state.encode(), what.encode())


# -- hostile peers and strangers

INFO = MemoryMesh(1).nodes[0].local.info()
bodies = st.one_of(
    st.binary(max_size=60),
    st.sampled_from(
        (
            b'{"type":"bye"}',
            b'{"type":"probe","id":1}',
            b'{"type":"probe_ack","id":1}',
            INFO.encode(),
            with_ips(MemoryMesh(1).nodes[0].local, "10.10.10.2/24", "10.10.10.3/24").info().encode(),
            with_ips(MemoryMesh(1).nodes[0].local, "255.255.255.255/0", "ff02::1/64").info().encode(),
            packet(b"\x0a\x0a\x0a\x01", b"\x0a\x0a\x0a\x02"),
            packet(b"\x0a\x0a\x0a\x03", b"\x0a\x0a\x0a\x02"),
        )
    ),
)


@SETTINGS
@given(
    messages=st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from((0, 1, 2, 3, 9)), bodies), max_size=5),
            st.integers(0, 5),
            st.sampled_from((0.0, 1.0, 40.0, 170.0)),
        ),
        max_size=6,
    )
)
def test_whatever_an_authenticated_peer_seals_nothing_raises(
    messages: list[tuple[list[tuple[int, bytes]], int, float]],
) -> None:
    mesh, a, b = met(3)
    sources = [address for node in mesh.nodes for address in node.addresses]
    for records, source, wait in messages:
        mesh.run(wait)
        if not a.knows(b):
            mesh.meet(a, b)
        a.seal(b, *records, source=sources[source])
        mesh.run(0.1)
        assert_legal(b)


@SETTINGS
@given(
    kind=st.sampled_from((HELLO, ANSWER, FINISH, SEALED, b"")),
    tail=st.binary(max_size=80),
    size=st.sampled_from((0, 4, 8, 16, 32, 76, 1212, 1256, 20_000)),
    source=st.binary(min_size=16, max_size=16),
)
def test_whatever_a_stranger_sends_changes_no_session(
    kind: bytes, tail: bytes, size: int, source: bytes
) -> None:
    mesh, a, b = met()
    before = dict(b.context.indices)
    for message in (kind + tail, (kind + tail).ljust(size, b"\x00")):
        for sender in (source, a.addresses[0], b.addresses[0]):
            for destination in (b.addresses[0], source):
                b.mesh.receive(sender, destination, memoryview(message), mesh.now)
    assert_legal(b)
    sessions = {index: entry for index, entry in b.context.indices.items() if isinstance(entry, Session)}
    assert sessions == before
    assert b.ping(a, b"still here") == "sent"


@SETTINGS
@given(st.binary(max_size=3000))
def test_decoders_of_messages_and_records_raise_message_errors_only(data: bytes) -> None:
    for head in (b"", HELLO, ANSWER, FINISH):
        try:
            message = unpack_handshake((head + data)[:1256].ljust(1256 if head == HELLO else 0, b"\x00"))
            assert len(message.sender) == 4
        except MessageError:
            pass
    try:
        for _, start, end in record.split(memoryview(data), len(data)):
            assert 4 <= start <= end <= len(data)
    except MessageError:
        pass


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)
fields = st.fixed_dictionaries(
    {"type": st.sampled_from(("info", "probe", "probe_ack", "bye", "later"))},
    optional=dict.fromkeys(("seq", "id", "ips", "routes", "agent", "mtu", "versions"), json_values),
)


@SETTINGS
@given(
    st.one_of(
        st.binary(max_size=300),
        st.text(max_size=300).map(str.encode),
        fields.map(lambda f: json.dumps(f).encode()),
    )
)
def test_json_records_raise_message_errors_only(body: bytes) -> None:
    try:
        value = record.decode_json(body)
    except MessageError:
        return
    if value is not None:
        assert record.decode_json(value.encode()) == value


@SETTINGS
@given(
    change=st.dictionaries(
        st.sampled_from(("seq", "id", "ips", "routes", "agent", "mtu", "versions")), json_values, max_size=2
    )
)
def test_a_mutated_info_is_read_or_refused(change: dict[str, object]) -> None:
    body = json.dumps(json.loads(INFO.encode()) | change).encode()
    try:
        value = record.decode_json(body)
    except MessageError:
        return
    assert isinstance(value, record.Info)
    assert record.decode_json(value.encode()) == value
