"""Invariant: each packet arrives at most once and never wrong, and a healed link carries packets again.

Whatever a peer, a relay or a stranger sends, nothing raises, and the tables of an engine stay sound.
"""

from __future__ import annotations

import json
from itertools import permutations

from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.errors import MessageError
from shadowmesh.mesh.peer import Session
from shadowmesh.testing.hostile import check_state
from shadowmesh.testing.memory import Link, MemoryMesh, met, packet, with_ips
from shadowmesh.wire import record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED

HEALED_WITHIN = (
    25.0  # seconds: 15 of silence until a hello, or 10 while a lost one is pending, and its answer
)

SETTINGS = settings(max_examples=40)


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
            check_state(node)

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
        check_state(b)


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
    check_state(b)
    sessions = {index: entry for index, entry in b.context.indices.items() if isinstance(entry, Session)}
    assert sessions == before
    assert b.ping(a, b"still here") == "sent"


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=6), inner, max_size=4),
    max_leaves=10,
)


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
