"""Invariant: every input in every state of a session leaves the engine in a legal state, and it recovers.

Legal is what `check_state` says; no input raises anything. Random sequences: test_mesh.py.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest

from shadowmesh.testing.hostile import HostileRelay, check_state
from shadowmesh.testing.memory import Frame, Node, packet
from shadowmesh.wire import record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED
from shadowmesh.wire.record import Bye, Probe

KINDS = {"hello": HELLO, "answer": ANSWER, "finish": FINISH, "sealed": SEALED}


class Scene:
    """a is looked at; b is its peer; the relay keeps what it sees and loses whatever a state asks it to."""

    def __init__(self) -> None:
        self.relay = HostileRelay(2, chance=1.0)
        self.mesh = self.relay.mesh
        self.a, self.b = self.mesh.nodes
        self.lost: set[tuple[bytes, Node]] = set()
        self.relay.attacks = [lambda frame: [] if (frame.kind, frame.sender) in self.lost else [frame]]

    def check(self) -> None:
        check_state(self.a)
        check_state(self.b)

    def meet(self) -> None:
        self.mesh.meet(self.a, self.b)
        self.mesh.run(1.0)

    def attempt(self, node: Node, other: Node) -> None:
        node.mesh.handshakes.attempt(node.addresses[0], other.addresses[0], self.mesh.now)

    def lose(self, *names: str) -> None:
        self.lost = {(KINDS[name], node) for name in names for node in self.mesh.nodes}

    def recovers(self) -> None:
        """With an honest relay packets pass in both directions again; in silence everything ends."""
        self.lost.clear()
        for node in self.mesh.nodes:
            if not node.connected:
                node.connect()
        for second in range(26):
            self.a.ping(self.b, b"again")
            self.b.ping(self.a, b"again")
            self.mesh.run(0.7)
            self.check()
            if second > 3 and self.a.payloads[-1:] == self.b.payloads[-1:] == [b"again"]:
                break
        else:
            raise AssertionError("they do not find each other again")
        self.mesh.run(400)
        assert self.a.context.indices == self.b.context.indices == {}
        assert self.mesh._next() == float("inf")


def hello_sent(scene: Scene) -> None:
    scene.lose("answer")
    scene.a.ping(scene.b, b"waits")
    scene.mesh.run(0.1)


def hello_answered(scene: Scene) -> None:
    scene.lose("finish")
    scene.b.ping(scene.a, b"waits")
    scene.mesh.run(0.1)


def unconfirmed(scene: Scene) -> None:
    scene.lost = {(SEALED, scene.b)}
    scene.a.ping(scene.b)
    scene.mesh.run(0.1)


def responder(scene: Scene) -> None:
    scene.mesh.meet(scene.b, scene.a)
    scene.mesh.run(1.0)


def rekeying(scene: Scene) -> None:
    scene.meet()
    scene.lose("finish")
    scene.mesh.run(60.0)
    scene.a.ping(scene.b)
    scene.mesh.run(61.0)
    scene.a.ping(scene.b)
    scene.mesh.run(0.1)


def crossing(scene: Scene) -> None:
    scene.lose("answer")
    scene.a.ping(scene.b)
    scene.b.ping(scene.a)
    scene.mesh.run(0.1)


def three_sessions(scene: Scene) -> None:
    for _ in range(4):
        scene.attempt(scene.a, scene.b)
        scene.mesh.run(1.0)


def held_back(scene: Scene) -> None:
    scene.meet()
    scene.a.mesh.gone(scene.b.addresses[0], scene.mesh.now)


def nearly_expired(scene: Scene) -> None:
    scene.meet()
    scene.mesh.run(178.0)


def forgotten_by_b(scene: Scene) -> None:
    scene.meet()
    scene.b.restart()


def without_relay(scene: Scene) -> None:
    scene.meet()
    scene.a.disconnect()


STATES: dict[str, Callable[[Scene], None]] = {
    "fresh": lambda scene: None,
    "session": Scene.meet,
    **{
        state.__name__: state
        for state in (
            hello_sent,
            hello_answered,
            unconfirmed,
            responder,
            rekeying,
            crossing,
            three_sessions,
            held_back,
            nearly_expired,
            forgotten_by_b,
            without_relay,
        )
    },
}


def old(scene: Scene, kind: bytes, change: Callable[[Frame], Frame] = lambda frame: frame) -> None:
    """Every message of a kind that has come by, to both sides, changed."""
    for frame in [frame for frame in scene.relay.seen if frame.kind == kind]:
        scene.relay.play([change(frame)])


def cut(frame: Frame) -> Frame:
    return frame._replace(message=frame.message[: len(frame.message) * 2 // 3])


def changed(frame: Frame) -> Frame:
    return frame._replace(message=frame.message[:-1] + bytes((frame.message[-1] ^ 1,)))


def reflected(frame: Frame) -> Frame:
    return frame._replace(source=frame.destination, destination=frame.source)


def said(scene: Scene, *records: tuple[int, bytes]) -> None:
    """b says something in the session that it has, if it has one."""
    if scene.b.knows(scene.a) and scene.b.peer(scene.a).sending is not None:
        scene.b.seal(scene.a, *records)


def all_bytes(scene: Scene) -> None:
    for head in (*KINDS.values(), b"", b"\x15\0\0\0", b"\x24\0\0\0"):
        for size in (0, 1, 3, 4, 8, 28, 32, 1252, 17_600):
            for index in (b"", *scene.a.context.indices):
                data = memoryview(head + index + bytes(size))
                scene.a.mesh.receive(scene.b.addresses[0], scene.a.addresses[0], data, scene.mesh.now)


def gone_of_all(scene: Scene) -> None:
    for address in scene.relay.routes:
        scene.a.mesh.gone(address, scene.mesh.now)


INPUTS: dict[str, Callable[[Scene], object]] = {
    "a sends": lambda scene: scene.a.ping(scene.b, b"x"),
    "b sends": lambda scene: scene.b.ping(scene.a, b"x"),
    "a begins": lambda scene: scene.attempt(scene.a, scene.b),
    "b begins": lambda scene: scene.attempt(scene.b, scene.a),
    "gone": lambda scene: scene.a.mesh.gone(scene.b.addresses[0], scene.mesh.now),
    "gone of all": gone_of_all,
    "joined": lambda scene: scene.a.mesh.joined(scene.mesh.now),
    "a leaves": lambda scene: scene.a.disconnect(),
    "b leaves": lambda scene: scene.b.disconnect(),
    "a restarts": lambda scene: scene.a.restart(),
    "b restarts": lambda scene: scene.b.restart(),
    "a says bye": lambda scene: scene.a.mesh.bye(),
    "b says bye": lambda scene: said(scene, (record.JSON, Bye().encode())),
    "probe": lambda scene: said(scene, (record.JSON, Probe(1, ack=False).encode())),
    "info": lambda scene: said(scene, (record.JSON, scene.b.local.info().encode())),
    "packet": lambda scene: said(scene, (record.PACKET, packet(scene.b.ip(), scene.a.ip()))),
    "nothing": lambda scene: said(scene),
    "bad records": lambda scene: said(scene, (record.JSON, b"{"), (record.OFFLOAD, b""), (255, b"")),
    "any bytes": all_bytes,
    "a moment": lambda scene: scene.mesh.run(0.6),
    "5 s": lambda scene: scene.mesh.run(5.0),
    "16 s": lambda scene: scene.mesh.run(16.0),
    "180 s": lambda scene: scene.mesh.run(180.0),
    "a good line": lambda scene: scene.lost.clear(),
    "no line": lambda scene: scene.lose(*KINDS),
    **{f"old {name}": partial(old, kind=kind) for name, kind in KINDS.items()},
    **{
        f"{change.__name__} {name}": partial(old, kind=kind, change=change)
        for name, kind in KINDS.items()
        for change in (cut, changed, reflected)
    },
}


@pytest.mark.parametrize("state", STATES)
def test_the_product(state: str) -> None:
    for name, act in INPUTS.items():
        scene = Scene()
        STATES[state](scene)
        scene.check()
        act(scene)
        try:
            scene.check()
            scene.mesh.run(0.05)
            scene.check()
            scene.recovers()
        except AssertionError as error:
            raise AssertionError(f"{name} in the state {state}") from error
