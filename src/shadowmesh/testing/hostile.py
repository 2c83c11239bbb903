"""A relay and a member that keep to no rule: what tests attack with (docs/security.md says what must hold).

    relay = HostileRelay(2)
    a, b = relay.mesh.nodes
    relay.attacks = [relay.replay, relay.flip]
    a.ping(b, b"hello")
    relay.mesh.run(1.0)

The relay is blind as the real one is. The member holds the network key; its engine is a real one, so that it
gets sessions, and what it says in them is up to the test.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import ip_address
from random import Random
from time import monotonic
from typing import Any, TypeAlias

from websockets.sync.client import ClientConnection

from shadowmesh.crypto.join import sign_join
from shadowmesh.crypto.keys import NetworkKeys
from shadowmesh.crypto.noise import XX_HFS_PSK0, HandshakeState
from shadowmesh.mesh.context import Local
from shadowmesh.mesh.handshake import (
    MAX_ATTEMPTS,
    MAX_HALF_OPEN,
    MAX_HALF_OPEN_PER_SOURCE,
    MAX_REMEMBERED,
    QUEUE_BYTES,
    QUEUE_TOTAL,
)
from shadowmesh.mesh.peer import MAX_SESSIONS
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.memory import Frame, MemoryMesh, Node, Relay, local_settings
from shadowmesh.testing.packets import ip_packet, tcp_packet, udp_packet, unfinished
from shadowmesh.wire import control, message
from shadowmesh.wire.frame import HEADER_SIZE, MAX_FRAME, pack, unpack
from shadowmesh.wire.record import Info

Attack: TypeAlias = Callable[[Frame], list[Frame]]

_LONGEST = MAX_FRAME - HEADER_SIZE


class HostileRelay(Relay):
    """Does to each frame, with the probability `chance`, each of its `attacks`.

    An attack gets a frame and returns what is handed over instead. seen: every frame that came by.
    """

    def __init__(self, nodes: int = 2, *, seed: int = 0, chance: float = 0.5) -> None:
        super().__init__(self._treat)
        self.attacks: list[Attack] = []
        self.chance = chance
        self.seen: list[Frame] = []
        self.random = Random(seed)
        self._kept: list[Frame] = []
        self.mesh = MemoryMesh(nodes, seed=seed, relay=self)

    def _treat(self, frame: Frame) -> list[Frame]:
        self.seen.append(frame)
        frames = [frame]
        for attack in self.attacks:
            if self.random.random() < self.chance:
                frames = [out for each in frames for out in attack(each)]
        return frames

    def play(self, frames: list[Frame], **changes: bytes) -> None:
        """Hand old frames over now, with other fields if any are given."""
        for frame in frames:
            self.mesh.hand_over(frame._replace(**changes))  # type: ignore[arg-type]

    def drop(self, frame: Frame) -> list[Frame]:
        """Nothing arrives."""
        return []

    def delay(self, frame: Frame) -> list[Frame]:
        """It arrives late: within the life of a handshake, or of a session, or after both."""
        wait = self.random.choice((0.3, 3.0, 9.0, 30.0, 170.0, 400.0)) * self.random.random()
        self.mesh.at(self.mesh.now + wait, lambda: self.mesh.hand_over(frame))
        return []

    def reorder(self, frame: Frame) -> list[Frame]:
        """Four at a time, the last one first."""
        self._kept.append(frame)
        if len(self._kept) < 4:
            return []
        frames, self._kept = self._kept[::-1], []
        return frames

    def duplicate(self, frame: Frame) -> list[Frame]:
        """It arrives three times."""
        return [frame] * 3

    def replay(self, frame: Frame) -> list[Frame]:
        """Something from before comes along."""
        return [frame, self.random.choice(self.seen)]

    def graft(self, frame: Frame) -> list[Frame]:
        """Something from before comes along under the index of this one: into another session."""
        old = self.random.choice(self.seen)
        return [frame._replace(message=old.message[:4] + frame.message[4:8] + old.message[8:]), frame]

    def reflect(self, frame: Frame) -> list[Frame]:
        """Its sender gets it too, as if the other had sent it, or with its addresses as they were."""
        back = frame._replace(source=frame.destination, destination=frame.source)
        holder = self.routes.get(frame.source)
        if holder is not None:
            holder.mesh.receive(frame.source, frame.destination, memoryview(frame.message), self.mesh.now)
        return [back, frame]

    def flip(self, frame: Frame) -> list[Frame]:
        """A bit of it changes on the way; the real one follows."""
        at = self.random.randrange(len(frame.message))
        forged = bytearray(frame.message)
        forged[at] ^= 1 << self.random.randrange(8)
        return [frame._replace(message=bytes(forged)), frame]

    def swap_source(self, frame: Frame) -> list[Frame]:
        """It seems to come from elsewhere; the real one follows."""
        return [frame._replace(source=self._address()), frame]

    def swap_destination(self, frame: Frame) -> list[Frame]:
        """Somebody else gets it, or another address of the same; the real one follows."""
        return [frame._replace(destination=self._address()), frame]

    def forge_gone(self, frame: Frame) -> list[Frame]:
        """Its sender hears that nobody is there, and is none the wiser whether it arrived."""
        frame.sender.mesh.gone(frame.destination, self.mesh.now)
        return [frame]

    def truncate(self, frame: Frame) -> list[Frame]:
        """It is cut short; the real one follows."""
        size = self.random.randrange(len(frame.message))
        return [frame._replace(message=frame.message[:size]), frame]

    def oversize(self, frame: Frame) -> list[Frame]:
        """It is longer than it was, up to the largest frame; the real one follows."""
        more = self.random.choice((1, 16, 1000, _LONGEST - len(frame.message)))
        return [frame._replace(message=frame.message + bytes(more)), frame]

    @property
    def all_attacks(self) -> list[Attack]:
        """Every attack there is."""
        return [
            self.drop,
            self.delay,
            self.reorder,
            self.duplicate,
            self.replay,
            self.graft,
            self.reflect,
            self.flip,
            self.swap_source,
            self.swap_destination,
            self.forge_gone,
            self.truncate,
            self.oversize,
        ]

    def _address(self) -> bytes:
        """A blind address: of somebody, or of nobody."""
        return self.random.choice([*self.routes, self.random.randbytes(16)])


class HonestRelay(Relay):
    """Passes on only what comes from an address of its sender, as the real one does."""

    def __init__(self) -> None:
        super().__init__(self._check)

    def _check(self, frame: Frame) -> list[Frame]:
        return [frame] if self.routes.get(frame.source) is frame.sender else []


@dataclass(frozen=True)
class LyingLocal(Local):
    """Settings of which peers are told otherwise. lies: other fields of the info. raw: another body."""

    lies: Mapping[str, Any] = field(default_factory=dict)
    raw: bytes = b""

    def info(self) -> Info:
        """What peers are told."""
        lie: Info = replace(super().info(), **self.lies)
        return _RawInfo(**vars(lie), raw=self.raw) if self.raw else lie


@dataclass(frozen=True)
class _RawInfo(Info):
    raw: bytes = b""

    def encode(self) -> bytes:
        return self.raw


class HostileMember(Node):
    """A device with the network key. `seal` of Node sends any records in a session, from any address."""

    @classmethod
    def joined(cls, mesh: MemoryMesh, name: str, *interfaces: str) -> HostileMember:
        """A member of this mesh, connected to its relay."""
        seed = mesh.fork(f"device {name}").randbytes(32)
        member = cls(mesh, local_settings(name, *interfaces), seed, Trust())
        mesh.nodes.append(member)
        member.connect()
        return member

    def lie(self, raw: bytes = b"", **lies: Any) -> None:
        """Tell peers something else of itself from now on: other fields of the info, or another body."""
        settings = {name: getattr(self.local, name) for name in Local.__dataclass_fields__}
        self.local = self.context.local = LyingLocal(**settings, lies=lies, raw=raw)

    def claim(self, ip: str) -> bool:
        """Ask the relay for the address of an overlay IP; whether it is given, for it may be somebody's."""
        address = self.world.network.ip_address(ip_address(ip).packed)
        assert address is not None
        return self.claim_address(address)

    def claim_address(self, address: bytes) -> bool:
        """Ask the relay for a blind address."""
        return self.world.relay.routes.setdefault(address, self) is self and self._listen(address)

    def seize(self, ip: bytes) -> bytes:
        """Get the address of an overlay IP from a relay that is an accomplice, whoever had it."""
        address = self.world.network.ip_address(ip)
        assert address is not None
        self.world.relay.routes[address] = self
        self._listen(address)
        return address

    def _listen(self, address: bytes) -> bool:
        self.context.addresses.setdefault(address, b"")
        return True

    def hello(self, target: bytes, source: bytes | None = None) -> bytes:
        """A genuine hello for these two addresses, that nothing waits for."""
        noise = HandshakeState(
            XX_HFS_PSK0,
            initiator=True,
            prologue=b"shadowmesh/v1 peer\0"
            + self.world.network.network_id
            + (source or self.addresses[0])
            + target,
            static=self.device.static_private,
            psk=self.world.network.peer_psk,
            ephemerals=self.context.ephemerals,
        )
        return message.pack_hello(self.context.random(4), noise.write_message(b""))

    def keepalive_from_everywhere(self, other: Node) -> None:
        """Show another node all addresses that the relay gives."""
        for address in self.context.addresses:
            self.seal(other, source=address)

    def begin(self, target: bytes, source: bytes | None = None) -> None:
        """Want a session between two addresses."""
        self.mesh.handshakes.attempt(source or self.addresses[0], target, self.world.now)


def hostile_records(source: str, destination: str) -> dict[str, bytes]:
    """Offload records between two overlay IPs as no kernel makes them: what each tries → its body."""
    tcp = unfinished(tcp_packet(source, destination, bytes(3000)), 1000)
    udp = unfinished(udp_packet(source, destination, bytes(3000)), 1000)
    small = unfinished(tcp_packet(source, destination, bytes(100)))
    ping = bytearray(10) + ip_packet(source, destination, 1 if "." in source else 58, b"\x08\x00" + bytes(6))
    six = ":" in source
    tcp_type = 4 if six else 1
    packet, l4 = 10, 10 + (40 if six else 20)
    length, protocol = (packet + 4, packet + 6) if six else (packet + 2, packet + 9)
    records: dict[str, bytes] = {}

    def add(name: str, base: bytearray, *changes: tuple[int, int]) -> None:
        record = bytearray(base)
        for at, value in changes:
            record[at] = value
        records[name] = bytes(record)

    for base, kind in ((tcp, "tcp"), (udp, "udp"), (small, "small"), (ping, "ping")):
        for flags in (0, 1, 2, 3, 4, 8, 0xFF):
            add(f"{kind}: flags {flags}", base, (0, flags))
        for gso in (0, 1, 2, 3, 4, 5, 6, 0x80, 0x80 | tcp_type, 0x85, 0xFF):
            add(f"{kind}: gso type {gso}", base, (1, gso))
        for gso_size in (0, 1, 23, 0xFFFF):
            add(f"{kind}: gso_size {gso_size}", base, (4, gso_size & 0xFF), (5, gso_size >> 8))
        for name, at in (("hdr_len", 2), ("csum_start", 6), ("csum_offset", 8)):
            for value in (0, 1, 7, 39, 41, 2999, 3060, 0x7FFF, 0xFFFE, 0xFFFF):
                add(f"{kind}: {name} {value}", base, (at, value & 0xFF), (at + 1, value >> 8))
        for number in (0, 1, 6, 17, 43, 44, 47, 51, 58, 60, 132, 253):
            add(f"{kind}: protocol {number}", base, (protocol, number))
        for value in (0, 1, 0xFF):
            add(f"{kind}: IP length {value:02x}..", base, (length, value))
        for value in (0x00, 0x40, 0x44, 0x4F, 0x54, 0x60, 0xFF):
            add(f"{kind}: version and header length {value:02x}", base, (packet, value))
        for end in (0, 1, 9, 10, 11, 29, 30, 31, 49, 50, 51, 58, len(base) - 1):
            records[f"{kind}: cut to {end}"] = bytes(base[:end])
        records[f"{kind}: a byte more"] = bytes(base) + b"\0"
    for value in (0x00, 0x40, 0x60, 0xF0):
        add(f"tcp: data offset {value:02x}", tcp, (l4 + 12, value))
    for flags in (0x02, 0x03, 0x06, 0x12, 0x29, 0xFF):
        add(f"tcp: TCP flags {flags:02x} with gso", tcp, (l4 + 13, flags))
        add(f"small: TCP flags {flags:02x}", small, (l4 + 13, flags))
    for value in (0, 7, 8, 0xFFFF):
        add(f"udp: UDP length {value}", udp, (l4 + 4, value >> 8), (l4 + 5, value & 0xFF))
    if not six:
        for value in (0x20, 0x80, 0x1F, 0x3F, 0xFF):
            add(f"tcp: fragment {value:02x}", tcp, (packet + 6, value))
            add(f"udp: fragment {value:02x}", udp, (packet + 6, value))
    longest = 65_535 - (0 if six else 20) - 20
    records["tcp: 64 KiB in 1-byte segments"] = bytes(
        unfinished(tcp_packet(source, destination, bytes(longest)), 1)
    )
    records["tcp: 64 KiB in 128 segments"] = bytes(
        unfinished(tcp_packet(source, destination, bytes(longest)), 512)
    )
    return records


def check_state(node: Node) -> None:
    """Whatever has happened to an engine, each of its tables fits the others and keeps its bound."""
    mesh, context, handshakes = node.mesh, node.context, node.mesh.handshakes
    now, own = node.world.now, set(node.local.ips)
    sessions = [session for peer in mesh.peers.values() for session in peer.sessions]
    attempts = handshakes._attempts
    pending = {hello.index: hello for each in attempts.values() for hello in each.hellos}
    known = {session.local_index: session for session in sessions}
    assert context.indices == known | pending | dict(handshakes._half_open)
    assert len(context.indices) == len(sessions) + len(pending) + len(handshakes._half_open)

    for static, peer in mesh.peers.items():
        assert static == peer.static != node.device.static_public
        assert 1 <= len(peer.sessions) <= MAX_SESSIONS
        assert peer.sending in peer.sessions
        assert all(session.peer is peer for session in peer.sessions)
    verified = [(ip, peer) for peer in mesh.peers.values() for ip in peer.verified]
    assert dict(verified) == mesh._owners, "an IP is in one peer's V"
    assert len(verified) == len(mesh._owners)
    for session in sessions:
        assert session.verified <= set(session.info.ips) - own
        assert session.expires > now
        assert session.confirmed or (session.initiator and session.finish)
    assert all(flow.peer is mesh._owners.get(flow.next_hop) for flow in mesh._flows.values())

    for (local, remote), attempt in attempts.items():
        assert (attempt.local, attempt.remote, attempt.done) == (local, remote, False)
        assert attempt.hellos
        assert attempt.queued == sum(len(body) for _, _, body in attempt.queue) <= QUEUE_BYTES
    assert handshakes._queued == sum(attempt.queued for attempt in attempts.values()) <= QUEUE_TOTAL
    assert len(attempts) <= MAX_ATTEMPTS
    assert len(handshakes._half_open) <= MAX_HALF_OPEN
    sources = Counter(half.remote for half in handshakes._half_open.values())
    assert all(number <= MAX_HALF_OPEN_PER_SOURCE for number in sources.values())
    assert max(len(mesh._held), len(handshakes.solicited), len(handshakes._seen)) <= MAX_REMEMBERED


class RelayedMesh(MemoryMesh):
    """Nodes behind one connection to a real relay, in real time: `pump` sends, receives and ticks."""

    def __init__(self, connection: ClientConnection, secret: bytes) -> None:
        super().__init__(0)
        self.network = NetworkKeys(secret)
        self.connection = connection
        self.now = monotonic()

    def join(self, node: Node) -> None:
        """Join the relay with the addresses that this node has."""
        challenge = control.decode_from_relay(self.connection.recv())
        assert isinstance(challenge, control.Challenge)
        claims = control.encode_claims(
            control.Claims(
                version=control.VERSION,
                network=self.network.network_id,
                device=node.device.device_id,
                instance=bytes(16),
                relay="relay",
                addresses=tuple(node.context.addresses),
                agent="hostile/1",
            )
        )
        signatures = sign_join(challenge.nonce, claims, self.network.signing_key, node.device.signing_key)
        self.connection.send(control.encode(control.Join(claims, *signatures)))
        joined = control.decode_from_relay(self.connection.recv())
        assert isinstance(joined, control.Joined)
        assert set(joined.held) == set(node.context.addresses)

    def transmit(self, sent: Frame) -> None:
        """Send a frame to the real relay."""
        self.log.append(sent)
        self.connection.send(pack(sent.destination, sent.source, sent.message))

    def pump(self, condition: Callable[[], bool], within: float) -> None:
        """Receive and tick until the condition holds; AssertionError if not within so many seconds."""
        end = monotonic() + within
        while not condition():
            self.now = monotonic()
            assert self.now < end, f"not within {within} s"
            try:
                data = self.connection.recv(timeout=0.01)
            except TimeoutError:
                data = ""
            if isinstance(data, bytes):
                destination, source, payload = unpack(data)
                for node in self.nodes:
                    node.mesh.receive(source, destination, payload, self.now)
            for node in self.nodes:
                node.mesh.tick(self.now)
