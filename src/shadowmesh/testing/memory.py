"""A mesh in memory: real engines, a manual clock, a lossy link, a relay that sees addresses and nothing else.

    mesh = MemoryMesh(3, seed=7, link=Link(loss=0.2, delay=(0.005, 0.1)))
    a, b, _ = mesh.nodes
    a.ping(b, b"hello")
    mesh.run(1.0)
    assert b.payloads == [b"hello"]

The same seed gives the same run. Nothing here opens a socket, sleeps or reads a clock. A hostile relay is a
`Relay` with another `forward`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import ip_address, ip_interface, ip_network
from itertools import count
from random import Random
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.crypto.noise import Ephemerals
from shadowmesh.mesh.context import Context, Local
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Peer, Session
from shadowmesh.mesh.trust import Trust
from shadowmesh.wire import ip as ip_header
from shadowmesh.wire import offload, record

START = 1000.0
SECRET = bytes(range(32))


class Frame(NamedTuple):
    """One peer message on its way: when and by whom it was sent, between which blind addresses."""

    at: float
    sender: Node
    destination: bytes
    source: bytes
    message: bytes
    via: Relay | None = None  # the relay that carries it, where there are several

    @property
    def kind(self) -> bytes:
        """Its type: HELLO, ANSWER, FINISH or SEALED of `wire.message`."""
        return self.message[:4]


@dataclass(frozen=True)
class Link:
    """How frames travel. loss, duplicate: probabilities. delay: (least, most) seconds; a range reorders."""

    loss: float = 0.0
    duplicate: float = 0.0
    delay: tuple[float, float] = (0.01, 0.01)

    def delays(self, random: Random) -> list[float]:
        """The travelling times of a frame's copies; none if it is lost."""
        if random.random() < self.loss:
            return []
        copies = 2 if random.random() < self.duplicate else 1
        return [random.uniform(*self.delay) for _ in range(copies)]


class Relay:
    """Passes frames to whoever holds their destination. Blind: all it has are addresses and sizes.

    forward: what becomes of a frame that has reached the relay: itself, nothing, or whatever else. link: how
    far away it is, if not as far as the mesh says. cut: the nodes whose connection is a black hole.
    """

    def __init__(
        self,
        forward: Callable[[Frame], Iterable[Frame]] = lambda frame: (frame,),
        link: Link | None = None,
    ) -> None:
        self.routes: dict[bytes, Node] = {}
        self.forward = forward
        self.link = link
        self.cut: set[Node] = set()


def dropping(kind: bytes, sender: Node, times: int = 10**9) -> Callable[[Frame], Iterable[Frame]]:
    """A `forward` that loses the next messages of one kind from one node."""
    left = count(times, -1)
    return lambda frame: () if frame.kind == kind and frame.sender is sender and next(left) > 0 else (frame,)


class SeededEphemerals(Ephemerals):
    """Key pairs from a seeded random. Encapsulation stays random: no schedule depends on its bytes."""

    def __init__(self, random: Random) -> None:
        self._random = random

    def x25519(self) -> X25519PrivateKey:
        """The next X25519 key pair."""
        return X25519PrivateKey.from_private_bytes(self._random.randbytes(32))

    def mlkem768(self) -> MLKEM768PrivateKey:
        """The next ML-KEM-768 key pair."""
        return MLKEM768PrivateKey.from_seed_bytes(self._random.randbytes(64))


class Node:
    """One device: its engine, which a restart replaces, and all that came out of it."""

    def __init__(self, world: MemoryMesh, local: Local, seed: bytes, trust: Trust) -> None:
        self.world = world
        self.local = local
        self.seed = seed
        self.trust = trust
        self.received: list[bytes] = []  # IP packets; of offload packets without their header
        self.unreachable_packets: list[bytes] = []
        self.events: list[tuple[str, dict[str, object]]] = []
        self.connected = False
        self.relays: list[Relay] = []  # those it is connected to, where there are several
        self.boots = 0
        self.boot()

    def __repr__(self) -> str:
        return f"<Node {self.local.name}>"

    def boot(self) -> None:
        """Start anew with nothing but the device seed, the settings and the known peers."""
        random = self.world.fork(f"{self.local.name} {self.boots}")
        self.boots += 1
        self.device = DeviceKeys(self.seed, self.world.network.network_id)
        self.context = Context(
            self.world.network,
            self.device,
            self.local,
            self,
            self.trust,
            random.randbytes,
            random.uniform,
            SeededEphemerals(random),
        )
        self.mesh = Mesh(self.context)

    @property
    def drops(self) -> Counter[str]:
        """What the engine has dropped since it was started, by reason."""
        return self.context.drops

    @property
    def addresses(self) -> list[bytes]:
        """The own blind addresses, that of the first IP in front."""
        return list(self.context.addresses)

    @property
    def payloads(self) -> list[bytes]:
        """What the packets received carry behind the headers that `packet` writes."""
        return [
            each[ip_header.IPV4_HEADER if each[0] >> 4 == 4 else ip_header.IPV6_HEADER :]
            for each in self.received
        ]

    def event_names(self) -> list[str]:
        """The names of the events so far."""
        return [name for name, _ in self.events]

    def knows(self, other: Node) -> bool:
        """Whether there is any session with another device."""
        return other.device.static_public in self.mesh.peers

    def peer(self, other: Node) -> Peer:
        """What this engine has of another device. KeyError if that is nothing."""
        return self.mesh.peers[other.device.static_public]

    def session(self, other: Node) -> Session:
        """The session in which this node sends to another one. KeyError if there is none."""
        session = self.peer(other).sending
        assert session is not None
        return session

    def confirmed(self, other: Node) -> bool:
        """Whether there is a session with another device that both sides are known to have."""
        return self.knows(other) and any(session.confirmed for session in self.peer(other).sessions)

    # -- what programs on this host do

    def ip(self, version: int = 4) -> bytes:
        """The first own overlay IP of a version."""
        return next(ip for ip in self.local.ips if len(ip) == (4 if version == 4 else 16))

    def ping(self, other: Node, payload: bytes = b"", *, version: int = 4) -> str:
        """Send a packet to another node; returns what `emit` says."""
        return self.emit(packet(self.ip(version), other.ip(version), payload))

    def emit(self, body: bytes, kind: int = record.PACKET) -> str:
        """Send a packet as the daemon does: "sent", "queued", "held" (not there now) or "no route"."""
        now = self.world.now
        start = offload.HEADER_SIZE if kind == record.OFFLOAD else 0
        flow = self.mesh.flow(ip_header.flow_key(body, start, len(body)))
        if flow is None:
            return "no route"
        session = self.mesh.session(flow, now)
        if session is None:
            return "queued" if self.mesh.enqueue(flow, kind, body, now) else "held"
        plaintext = record.pack(kind, body)
        plaintext += record.padding(len(plaintext))
        self.send(flow.destination, flow.source, session.sealer.seal(plaintext), session.via)
        self.mesh.sent(session, len(plaintext), now)
        return "sent"

    def seal(self, other: Node, *records: tuple[int, bytes], source: bytes | None = None) -> bytes:
        """Send a message of any records (kind, body) in the current session; returns it."""
        session = self.session(other)
        plaintext = b"".join(record.pack(kind, body) for kind, body in records)
        message = session.sealer.seal(plaintext + record.padding(len(plaintext)))
        self.send(session.remote, source or session.local, message, session.via)
        return message

    # -- the relay connection

    def join(self, *relays: Relay) -> None:
        """Join some of several relays with all own addresses."""
        for relay in relays:
            self.relays.append(relay)
            for address in self.context.addresses:
                relay.routes[address] = self
            self.mesh.joined(self.world.now, relay)

    def leave(self, *relays: Relay, noticed: bool = True) -> None:
        """Lose some of several relays. noticed: otherwise only the relay has lost this node."""
        for relay in relays:
            for address in [address for address, node in relay.routes.items() if node is self]:
                del relay.routes[address]
            if noticed:
                self.relays.remove(relay)
                self.mesh.lost(relay, self.world.now)

    def connect(self) -> None:
        """Join the relay with all own addresses."""
        self.connected = True
        for address in self.context.addresses:
            self.world.relay.routes[address] = self
        self.mesh.joined(self.world.now)

    def disconnect(self) -> None:
        """Lose the relay: frames on their way here are lost, and `gone` is the answer to new ones."""
        self.connected = False
        routes = self.world.relay.routes
        for address in [address for address, node in routes.items() if node is self]:
            del routes[address]

    def restart(self, local: Local | None = None) -> None:
        """A new process with the same device seed and known peers, without a goodbye."""
        self.disconnect()
        self.local = local or self.local
        self.boot()
        self.connect()

    # -- the mesh's Output

    def send(self, destination: bytes, source: bytes, message: bytes, via: object = None) -> None:
        """See mesh.context.Output."""
        if self.connected:
            self.world.transmit(Frame(self.world.now, self, destination, source, message))
        for relay in self.relays:
            if via is None or relay is via:
                self.world.transmit(Frame(self.world.now, self, destination, source, message, relay))

    coalesces = False

    def deliver(self, kind: int, buffer: memoryview, start: int, end: int, packets: int = 1) -> None:
        """See mesh.context.Output."""
        if kind == record.OFFLOAD:
            start += offload.HEADER_SIZE
        self.received.append(bytes(buffer[start:end]))

    def unreachable(self, kind: int, body: bytes) -> None:
        """See mesh.context.Output."""
        self.unreachable_packets.append(body)

    def event(self, name: str, /, **facts: object) -> None:
        """See mesh.context.Output."""
        self.events.append((name, facts))


class MemoryMesh:
    """`nodes` devices a, b, c … with 10.10.10.1, .2, .3 … and fd00::1, ::2, ::3 …, connected to one relay.

    log: every frame sent so far, also those lost. `link` may be replaced at any time.
    """

    def __init__(
        self, nodes: int = 3, *, seed: int = 0, link: Link | None = None, relay: Relay | None = None
    ) -> None:
        self.now = START
        self.network = NetworkKeys(SECRET)
        self.link = link or Link()
        self.relay = relay or Relay()
        self.nodes: list[Node] = []
        self.log: list[Frame] = []
        self._seed = seed
        self._random = self.fork("link")
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        for i in range(nodes):
            self.add("abcdefgh"[i], f"10.10.10.{i + 1}/24", f"fd00::{i + 1}/64")

    def fork(self, name: str) -> Random:
        """A random of its own for one part, so that one part's use of it does not change another's."""
        return Random(f"{self._seed} {name}")

    def add(
        self,
        name: str,
        *interfaces: str,
        routes: Sequence[tuple[str, str]] = (),
        advertise: Sequence[str] = (),
        trust: Trust | None = None,
        seed: bytes | None = None,
        relays: Sequence[Relay] = (),
    ) -> Node:
        """A further node, connected: to the mesh's relay, or to some of several.

        routes: (prefix, overlay IP of the peer behind which it lies).
        """
        local = local_settings(name, *interfaces, routes=routes, advertise=advertise)
        node = Node(self, local, seed or self.fork(f"device {name}").randbytes(32), trust or Trust())
        self.nodes.append(node)
        if relays:
            node.join(*relays)
        else:
            node.connect()
        return node

    # -- time

    def at(self, when: float, action: Callable[[], None]) -> None:
        """Have something done during a later `run`."""
        heapq.heappush(self._agenda, (when, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Let time pass, doing all that is due on the way."""
        end = self.now + seconds
        while (due := self._next()) <= end:
            self._step(due)
        self.now = end

    def run_until(self, condition: Callable[[], bool], within: float) -> None:
        """Let time pass until the condition holds. AssertionError if it does not within so many seconds."""
        end = self.now + within
        while not condition():
            due = self._next()
            assert due <= end, f"not within {within} s"
            self._step(due)

    def _next(self) -> float:
        deadlines = [due for node in self.nodes if (due := node.mesh.next_deadline) is not None]
        return min([*deadlines, *(entry[0] for entry in self._agenda[:1])], default=float("inf"))

    def _step(self, due: float) -> None:
        self.now = max(self.now, due)
        while self._agenda and self._agenda[0][0] <= self.now:
            heapq.heappop(self._agenda)[2]()
        for node in self.nodes:
            node.mesh.tick(self.now)

    def meet(self, one: Node, other: Node) -> None:
        """Bring about a session that `one` begins, with nothing left under way and nothing received."""
        one.ping(other)
        self.run(0.2)
        other.received.clear()
        assert one.confirmed(other)
        assert other.confirmed(one)

    # -- frames

    def transmit(self, frame: Frame) -> None:
        """Put a frame on the link to the relay."""
        self.log.append(frame)
        relay = frame.via or self.relay
        if frame.sender not in relay.cut:
            for delay in (relay.link or self.link).delays(self._random):
                self.at(self.now + delay, partial(self._at_relay, frame))

    def _at_relay(self, frame: Frame) -> None:
        for each in (frame.via or self.relay).forward(frame):
            self.hand_over(each)

    def hand_over(self, frame: Frame) -> None:
        """Give a frame to the holder of its destination now, or tell its sender that there is none."""
        relay, via = frame.via or self.relay, frame.via
        node = relay.routes.get(frame.destination)
        if node is not None:
            if node not in relay.cut:
                node.mesh.receive(frame.source, frame.destination, memoryview(frame.message), self.now, via)
        elif frame.sender.connected or (via in frame.sender.relays and frame.sender not in relay.cut):
            frame.sender.mesh.gone(frame.destination, self.now, via)

    def sent(self, kind: bytes | None = None, sender: Node | None = None, since: float = 0.0) -> list[Frame]:
        """Frames sent so far: of one kind, by one node, from some time on."""
        return [
            frame
            for frame in self.log
            if kind in (None, frame.kind) and sender in (None, frame.sender) and frame.at >= since
        ]


def local_settings(
    name: str,
    *interfaces: str,
    routes: Sequence[tuple[str, str]] = (),
    advertise: Sequence[str] = (),
) -> Local:
    """The settings of a device from text, as they stand in a configuration file."""
    return Local(
        tuple(map(ip_interface, interfaces)),
        name,
        1400,
        "shadowmesh/test",
        tuple((ip_network(prefix), ip_address(via).packed) for prefix, via in routes),
        tuple(map(ip_network, advertise)),
    )


def packet(source: bytes, destination: bytes, payload: bytes = b"") -> bytes:
    """An IP packet (protocol 253, for experiments) between two addresses of 4 or 16 bytes."""
    if len(source) == 4:
        size = ip_header.IPV4_HEADER + len(payload)
        head = b"\x45\x00" + size.to_bytes(2) + bytes(4) + b"\x40\xfd\x00\x00"
    else:
        head = b"\x60\x00\x00\x00" + len(payload).to_bytes(2) + b"\xfd\x40"
    return head + source + destination + payload


def met(nodes: int = 2, *, seed: int = 0) -> tuple[MemoryMesh, Node, Node]:
    """A mesh whose first two nodes have a session, begun by the first, with nothing left under way."""
    mesh = MemoryMesh(nodes, seed=seed)
    mesh.meet(mesh.nodes[0], mesh.nodes[1])
    return mesh, mesh.nodes[0], mesh.nodes[1]


def by_address(one: Node, other: Node) -> tuple[Node, Node]:
    """Two nodes, the one that wins when their hellos cross in front."""
    return (one, other) if one.addresses[0] < other.addresses[0] else (other, one)


def with_ips(local: Local, *interfaces: str) -> Local:
    """The same settings with other overlay IPs."""
    return replace(local, interfaces=tuple(map(ip_interface, interfaces)))
