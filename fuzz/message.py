"""Whatever comes from peers and relay, nobody speaks for another's IP, or to one that is not ours, or twice.

What does not verify changes no session and is answered by one message at most; every table keeps its bound
and fits the others. No exception is allowed, not even one of ours: the engine counts what it drops.

The input is a program for a hostile relay and a hostile member with a live session (`World.step`). The keys
of sessions are fixed, and ephemeral keys come from a small pool, so that a run costs a millisecond, not ten.
"""

from __future__ import annotations

import json
from collections import Counter
from functools import lru_cache
from ipaddress import ip_address, ip_network
from pathlib import Path
from random import Random
from typing import Any

from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from fuzz.kit import START, Input, Program
from reference import messages
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys, fingerprint
from shadowmesh.crypto.noise import XX_HFS_PSK0, Ephemerals, HandshakeState
from shadowmesh.crypto.session import Sealer
from shadowmesh.errors import MessageError, OffloadError
from shadowmesh.mesh.context import Context
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Session
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.hostile import check_state
from shadowmesh.testing.memory import SECRET, Frame, MemoryMesh, Node, Relay, local_settings, packet
from shadowmesh.wire import ip, message, offload, record

MAX_SIZE = 4000
MAX_STEPS = 40
VECTORS = Path(__file__).parents[1] / "tests/vectors"


class Network(NetworkKeys):
    """It works each blind address out once."""

    @lru_cache  # noqa: B019 - there is one network
    def ip_address(self, ip: bytes) -> bytes | None:
        return super().ip_address(ip)


NETWORK = Network(SECRET)
VICTIM, HONEST, HOSTILE, OTHER = (DeviceKeys(bytes([i]) * 32, NETWORK.network_id) for i in range(1, 5))
LINKS = ("near", "far")
"""What the victim's connections to two relays are called."""
LOCAL = local_settings(
    "victim",
    "10.10.10.1/24",
    "fd00::1/64",
    routes=[("172.16.0.0/12", "10.10.10.2"), ("10.99.0.0/16", "10.10.10.66")],
    advertise=["192.168.9.0/24"],
)
HONEST_LOCAL = local_settings("honest", "10.10.10.2/24", "fd00::2/64")
HOSTILE_LOCAL = local_settings("hostile", "10.10.10.66/24", "fd00::66/64")
# fmt: off
IPS = [ip_address(text).packed for text in (
    "10.10.10.66", "10.10.10.1", "10.10.10.2", "10.10.10.77",
    "10.10.10.255", "172.16.0.5", "10.99.0.5", "192.168.9.5",
    "fd00::66", "fd00::1", "fd00::2", "fd00::77",
    "127.0.0.1", "8.8.8.8", "::1", "ff02::1",
)]
# fmt: on
ADDRESSES = [NETWORK.ip_address(ip) or bytes([i]) * 16 for i, ip in enumerate(IPS)]
AT_HOSTILE, AT_VICTIM, AT_HONEST = ADDRESSES[:3]
NOT_HOSTILE = {*LOCAL.ips, *HONEST_LOCAL.ips}
"""Overlay IPs that the hostile member can never have: the victim's own, and the pinned ones."""
ROUTED_TO_HOSTILE = ip_network("10.99.0.0/16")
OURS = ip_network("192.168.9.0/24")
HONEST_FINGERPRINT = fingerprint(HONEST.static_public)
KEYS = {HOSTILE.static_public: (b"\1" * 32, b"\2" * 32), HONEST.static_public: (b"\3" * 32, b"\4" * 32)}
INDEX = {HOSTILE.static_public: b"\0\0\0\1", HONEST.static_public: b"\0\0\0\2"}
FINISH = message.pack_finish(b"\0\0\0\3", INDEX[HONEST.static_public], bytes(64))
WORDS = [
    *(message.HELLO, message.ANSWER, message.FINISH, message.SEALED, *INDEX.values(), record.KEEPALIVE),
    *(b"\x03\0\0\x0e" + b'{"type":"bye"}', b'{"type":"probe","id":1}', b'{"type":"info","seq":'),
    *(HOSTILE_LOCAL.info().encode(), packet(IPS[0], IPS[1], b"x"), packet(IPS[8], IPS[9], b"x")),
]


class Pool(Ephemerals):
    """Few key pairs, again and again. A ciphertext stays random: nothing depends on its bytes."""

    def __init__(self) -> None:
        self._next = 0

    def x25519(self) -> X25519PrivateKey:
        self._next += 1
        return _x25519(self._next % 8)

    def mlkem768(self) -> MLKEM768PrivateKey:
        return _mlkem768(self._next % 8)

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        return _encapsulate(public_key)


_x25519 = lru_cache(lambda number: X25519PrivateKey.from_private_bytes(bytes([number]) * 32))
_mlkem768 = lru_cache(lambda number: MLKEM768PrivateKey.from_seed_bytes(bytes([number]) * 64))
_encapsulate = lru_cache(64)(Ephemerals().encapsulate)


class World(MemoryMesh):
    """The victim, its sessions with both members, and all that it has sent, which goes nowhere."""

    def __init__(self) -> None:
        self.now = START
        self.network = NETWORK
        self.relay = Relay()
        self.log: list[Frame] = []
        self.heard: list[tuple[bytes, bytes, bytes]] = []
        """Every message that the victim got: source, destination, bytes."""
        self.speaker = b""
        """Static key of the device whose message the victim is reading, if it is anybody's."""
        self.honest: Counter[bytes] = Counter()
        """Packets that the honest member has sent and that have not come out."""
        self.node = Victim(self)
        self.node.connected = True
        self.sealers: list[Sealer] = []
        """Of the honest member's session, and of those of the hostile one, the newest at the end."""
        for device, local, at in ((HONEST, HONEST_LOCAL, AT_HONEST), (HOSTILE, HOSTILE_LOCAL, AT_HOSTILE)):
            static = device.static_public
            initiator = device is HOSTILE
            self.sealers.append(Sealer(KEYS[static][initiator], INDEX[static]))
            self.node.mesh.established(
                initiator=initiator,
                local=AT_VICTIM,
                remote=at,
                indices=(INDEX[static], b"\0\0\0\3"),
                keys=KEYS[static],
                static=static,
                info=local.info(),
                finish=FINISH,
                records=[],
                now=self.now,
            )
        self.answers: dict[bytes, tuple[DeviceKeys, HandshakeState]] = {}
        self.finisher = b""
        """Static key of the device whose finish the victim may be reading."""
        self.via: str | None = None
        """The one of LINKS by which everything comes, None while the victim has a single one."""

    def fork(self, name: str) -> Random:
        """One random is enough here."""
        return Random(0)

    def transmit(self, frame: Frame) -> None:
        """The victim sends something."""
        self.log.append(frame)

    def step(self, program: Input) -> None:
        """What happens, and a number, in one byte, and the arguments of that."""
        what = program.byte()
        number = what >> 4
        match what & 15:
            case 0:
                ends = program.byte()
                self.raw(ADDRESSES[ends & 15], ADDRESSES[ends >> 4], program.chunk())
            case 1:
                self.seal(number, program.chunk())
            case 2:
                self.seal(
                    number,
                    padded(record.pack(program.byte(), program.chunk()) for _ in range(program.byte() & 7)),
                )
            case 3:
                ends = program.byte()
                body = packet_between(IPS[ends & 15], IPS[ends >> 4], program.chunk())
                self.seal(0, padded([record.pack(record.PACKET, body)]))
            case 4:
                ends = program.byte()
                body = program.take(offload.HEADER_SIZE).ljust(offload.HEADER_SIZE, b"\0")
                body += packet_between(IPS[ends & 15], IPS[ends >> 4], program.chunk())
                self.seal(0, padded([record.pack(record.OFFLOAD, body)]))
            case 5:
                self.speak(number, program.chunk())
            case 6:
                self.replay(program)
            case 7:
                self.wait((number + 1) * program.byte() / 4)
            case 8:
                self.emit(number, program.chunk())
            case 9:
                self.node.mesh.gone(ADDRESSES[number], self.now, self.via)
            case 10:
                self.hello(number)
            case 11:
                self.finish(program.chunk())
            case 12:
                self.answer(program.chunk())
            case 13:
                seq, first, second = program.byte(), program.byte(), program.byte()
                ips = [ip for i, ip in enumerate(IPS) if (first << 8 | second) >> i & 1]
                self.seal(number, padded([info(seq, *ips)]))
            case 14:
                refused = {each for i, each in enumerate(self.node.addresses) if number >> i & 1}
                self.node.mesh.joined(self.now, self.via)
                self.node.mesh.refused(refused, self.via)
            case 15 if 1 <= number <= 6:
                self.via = LINKS[number & 1]
                if number <= 2:
                    self.node.mesh.joined(self.now, self.via)
                elif number <= 4:
                    self.node.mesh.lost(self.via, self.now)
            case 15 if number == 15:
                self.node.mesh.bye()
            case 15:
                self.sealers.insert(1, self.sealers.pop())

    def receive(self, source: bytes, destination: bytes, data: bytes) -> None:
        """A message reaches the victim."""
        self.heard.append((source, destination, data))
        session = self.node.context.indices.get(data[4:8]) if data[:4] == message.SEALED else None
        self.speaker = session.peer.static if isinstance(session, Session) else b""
        self.node.mesh.receive(source, destination, memoryview(data), self.now, self.via)

    def raw(self, source: bytes, destination: bytes, data: bytes) -> None:
        """Any bytes, from the relay or through it: nothing but an echo of old ones can verify."""
        new = all(data != old for _, _, old in self.heard)
        before, sent = self.sessions(), len(self.log)
        self.receive(source, destination, data)
        assert len(self.log) <= sent + 1
        assert not new or self.sessions() == before
        try:
            unpacked = message.unpack_handshake(data)
        except MessageError:
            return
        assert data == data[:4] + b"".join(unpacked)

    def sessions(self) -> object:
        """What only those may change who hold keys."""
        mesh = self.node.mesh
        sessions = [each for peer in mesh.peers.values() for each in peer.sessions]
        state = [
            (each.local_index, each.confirmed, sorted(each.verified), sorted(each.sources))
            for each in sessions
        ]
        vias = [peer.via for peer in mesh.peers.values()]
        return state, vias, dict(mesh._owners), dict(self.node.trust.known)

    def seal(self, at: int, plaintext: bytes) -> None:
        """The hostile member says something in its session, from some address."""
        if len(plaintext) <= 4096:
            self.same_records(plaintext)
        self.receive(ADDRESSES[at], AT_VICTIM, self.sealers[-1].seal(plaintext))

    def same_records(self, plaintext: bytes) -> None:
        """Both implementations read the same records."""
        try:
            expected = messages.records(plaintext)
        except messages.FormatError:
            expected = None
        try:
            found = record.split(memoryview(plaintext), len(plaintext))
        except MessageError:
            assert expected is None
        else:
            assert [(kind, plaintext[start:end]) for kind, start, end in found] == expected

    def speak(self, number: int, payload: bytes) -> None:
        """The honest member sends a packet."""
        body = packet(IPS[2], IPS[1], len(self.heard).to_bytes(2) + payload)
        self.honest[body] += 1
        self.receive(AT_HONEST, AT_VICTIM, self.sealers[0].seal(padded([record.pack(record.PACKET, body)])))

    def replay(self, program: Input) -> None:
        """Something from before comes again, as it was or changed in one byte, from and to wherever."""
        which, ends, at, change = program.byte(), program.byte(), program.byte(), program.byte()
        old = [*self.heard, *((frame.source, frame.destination, frame.message) for frame in self.log)]
        data = bytearray(old[which % len(old)][2]) if old else bytearray()
        if data:
            data[at % len(data)] ^= change
            self.receive(ADDRESSES[ends & 15], ADDRESSES[ends >> 4], bytes(data))

    def wait(self, seconds: float) -> None:
        """Time passes."""
        end, mesh = self.now + seconds, self.node.mesh
        while (due := mesh.next_deadline) is not None and due <= end:
            self.now = max(self.now, due)
            mesh.tick(self.now)
        self.now = end

    def emit(self, number: int, payload: bytes) -> None:
        """A program on the victim's host sends a packet."""
        target = IPS[number]
        own = self.node.ip(4 if len(target) == 4 else 6)
        assert self.node.emit(packet(own, target, payload)) in ("sent", "queued", "held", "no route")

    def hello(self, number: int) -> None:
        """The hostile member begins a handshake, with one of its two keys, from some address."""
        device = OTHER if number & 8 else HOSTILE
        data, state = hello(number & 3, device is OTHER)
        sent = len(self.log)
        self.receive(ADDRESSES[number & 3], AT_VICTIM, data)
        for frame in self.log[sent:]:
            if frame.kind == message.ANSWER:
                self.answers[frame.message] = device, state

    def finish(self, payload: bytes) -> None:
        """It ends the newest of them that was answered."""
        for answer, (device, state) in [*self.answers.items()][-1:]:
            self.finisher = device.static_public
            unpacked = message.unpack_handshake(answer)
            assert isinstance(unpacked, message.Answer)
            noise = state.copy()
            noise.read_message(unpacked.noise)
            finish = message.pack_finish(unpacked.receiver, unpacked.sender, noise.write_message(payload))
            source = next(frame.destination for frame in self.log if frame.message == answer)
            self.receive(source, AT_VICTIM, finish)
            self.adopt(unpacked.sender, noise.split()[0])

    def answer(self, payload: bytes) -> None:
        """It answers the victim's newest hello, whomever that was for."""
        for frame in [frame for frame in self.log if frame.kind == message.HELLO][-1:]:
            data, state = answer(frame.message, frame.source, frame.destination, payload)
            sent = len(self.log)
            self.receive(frame.destination, frame.source, data)
            for finish in [each for each in self.log[sent:] if each.kind == message.FINISH]:
                noise = state.copy()
                noise.read_message(finish.message[12:])
                self.adopt(frame.message[4:8], noise.split()[1])

    def adopt(self, index: bytes, key: bytes) -> None:
        """Speak in a new session from now on, if the victim has it."""
        session = self.node.context.indices.get(index)
        if isinstance(session, Session) and all(index not in sealer._prefix for sealer in self.sealers):
            self.sealers.append(Sealer(key, index))


class Victim(Node):
    """An engine that looks at whatever it gives to the host."""

    world: World

    def __init__(self, world: World) -> None:
        pins = dict.fromkeys(HONEST_LOCAL.ips, HONEST_FINGERPRINT)
        super().__init__(world, LOCAL, bytes(32), Trust({HOSTILE_LOCAL.ips[0]: HOSTILE.static_public}, pins))

    def boot(self) -> None:
        """The keys are there already."""
        random = Random(0)
        self.device = VICTIM
        self.context = Context(
            NETWORK, VICTIM, LOCAL, self, self.trust, random.randbytes, random.uniform, Pool()
        )
        self.mesh = Mesh(self.context)

    def deliver(self, kind: int, buffer: memoryview, start: int, end: int, packets: int = 1) -> None:
        """A packet for the host: may whoever said it say it?"""
        body = bytes(buffer[start:end])
        at = offload.HEADER_SIZE if kind == record.OFFLOAD else 0
        key = ip.flow_key(body, at, len(body))
        half = len(key) // 2
        source, destination = key[:half], key[half:]
        assert destination in LOCAL.ips or ip_address(destination) in OURS
        if self.world.speaker == HONEST.static_public:
            assert self.world.honest[body] > 0, "nobody said this, or not so often"
            self.world.honest[body] -= 1
        else:
            verified = self.mesh.peers[self.world.speaker or self.world.finisher].verified
            assert source not in NOT_HOSTILE
            assert source in verified or (ip_address(source) in ROUTED_TO_HOSTILE and IPS[0] in verified)
        if kind == record.OFFLOAD:
            try:
                offload.sanitize(memoryview(bytearray(body)))
            except OffloadError:
                return
        super().deliver(kind, buffer, start, end)


def packet_between(source: bytes, destination: bytes, payload: bytes) -> bytes:
    """A packet between IPs of one version; the source decides."""
    if len(source) != len(destination):
        destination = LOCAL.ips[len(source) == 16]
    return packet(source, destination, payload)


def padded(records: Any) -> bytes:
    """Records and their padding."""
    plaintext = b"".join(records)
    return plaintext + record.padding(len(plaintext))


def info(seq: int, *ips: bytes) -> bytes:
    """The record in which the hostile member says what its overlay IPs are."""
    fields = json.loads(HOSTILE_LOCAL.info().encode()) | {
        "seq": seq,
        "ips": [str(ip_address(ip)) for ip in ips],
    }
    return record.pack(record.JSON, json.dumps(fields).encode())


def handshake(device: DeviceKeys, initiator: bool, source: bytes, destination: bytes) -> HandshakeState:
    """A device's side of a handshake that `source` begins."""
    return HandshakeState(
        XX_HFS_PSK0,
        initiator=initiator,
        prologue=messages.prologue(NETWORK.network_id, source, destination),
        static=device.static_private,
        psk=NETWORK.peer_psk,
        ephemerals=Pool(),
    )


@lru_cache
def hello(number: int, other: bool) -> tuple[bytes, HandshakeState]:
    """A hello from one of ADDRESSES, and what is to be done with its answer."""
    state = handshake(OTHER if other else HOSTILE, True, ADDRESSES[number], AT_VICTIM)
    return message.pack_hello(bytes([9, 9, other, number]), state.write_message(b"")), state


@lru_cache(64)
def answer(hello: bytes, source: bytes, destination: bytes, payload: bytes) -> tuple[bytes, HandshakeState]:
    """An answer to the victim's hello, with any payload, and what is to be done with the finish."""
    state = handshake(HOSTILE, False, source, destination)
    state.read_message(hello[8:])
    return message.pack_answer(b"\x09\x09\x09\x09", hello[4:8], state.write_message(payload)), state


def one(data: bytes) -> object:
    """Returns what the engine has counted."""
    program = Input(data)
    world = World()
    for _ in range(MAX_STEPS):
        if not program:
            break
        world.step(program)
    node = world.node
    check_state(node)
    return dict(node.drops), node.event_names(), [frame.kind for frame in world.log], len(node.received)


def seeds() -> dict[str, bytes]:
    """A program for each part of the engine, and the plaintexts, infos and messages of the vectors."""
    say, hear, ask = (Program(*what).chunk(b"x").data for what in ((3, 0x10), (5,), (8,)))
    early = info(0, IPS[0]) + record.pack(record.PACKET, packet(IPS[0], IPS[1], b"early"))
    bye, probe = (record.pack(record.JSON, text) for text in (b'{"type":"bye"}', b'{"type":"probe","id":7}'))
    leave = Program(1).chunk(padded([bye])).data
    found = {
        "packets": say + hear + Program(0x81).chunk(b"").data + Program(3, 0x98).chunk(b"x").data,
        "routed packets": Program(3, 0x16).chunk(b"x").data + Program(3, 0x70).chunk(b"x").data,
        "of the honest one": Program(3, 0x12).chunk(b"x").data + Program(3, 0x15).chunk(b"x").data,
        "to others": Program(3, 0x20).chunk(b"x").data + Program(3, 0xD0).chunk(b"x").data,
        "offload": Program(4, 0x10).byte(*bytes(10)).chunk(b"x").data,
        "bad offload": Program(4, 0x10).byte(*b"\1\1\x28\0\1\0\x14\0\x10\0").chunk(bytes(300)).data,
        "replays": hear + say + bytes((6, 0, 0x12, 0, 0, 6, 1, 0x10, 0, 0, 6, 0, 0x12, 40, 1)),
        "reflected": bytes((10, 6, 255, 0x10, 0, 0, 6, 2, 0x01, 0, 0)),
        "bye": leave + say + ask,
        "every address": b"".join(Program(number << 4 | 1).chunk(b"").data for number in range(16)) + say,
        "many IPs": Program(13, 1, 0, 0xFF).data
        + bytes((0x21, 0, 0, 0x31, 0, 0))
        + say
        + Program(13, 2, 0xFF, 0).data,
        "no IPs": Program(13, 1, 0, 0).data + say,
        "an old info": Program(13, 5, 0, 1).data + Program(13, 4, 0, 0).data + say,
        "probes": Program(1).chunk(padded([probe] * 40)).data,
        "a handshake": bytes((10,)) + Program(11).chunk(early).data + say + Program(11).chunk(early).data,
        "a handshake that says nothing": bytes((10,)) + Program(11).chunk(b"").data,
        "many hellos": b"".join(bytes((number << 4 | 10,)) for number in range(12)) * 3,
        "another device with the same IP": bytes((0x8A,))
        + Program(11).chunk(early).data
        + say
        + bytes((0x17, 60))
        + say,
        "another device when the first is silent": bytes((7, 124, 0x8A))
        + Program(11).chunk(early).data
        + say
        + bytes((0x0F,))
        + say,
        "the victim ends": bytes((0xFF,)) + say,
        "an answer": leave + ask * 2 + Program(12).chunk(info(0, IPS[0])).data + say,
        "an answer with more": leave + ask + Program(12).chunk(early).data,
        "an answer of somebody else": leave + ask + Program(12).chunk(info(0, IPS[3])).data,
        "an answer for the honest one": bytes((0xF7, 60, 0x28, 0, 0))
        + Program(12).chunk(info(0, IPS[2])).data,
        "an answer for who is away": bytes((0x38, 0, 0)) + Program(12).chunk(info(0, IPS[3])).data,
        "hellos that nobody answers": bytes((0x38, 0, 0, 0xF7, 30)),
        "nobody there": bytes((0x38, 0, 0, 0x39, 7, 4, 0x38, 0, 0)),
        "the end of a session": bytes((0xF7, 30)) + say + hear + bytes((0xF7, 20)) + say + ask,
        "rekey": say + bytes((0xF7, 30)) + ask + Program(12).chunk(info(0, IPS[0])).data + hear,
        "rekey when receiving": say + bytes((0xF7, 42)) + say + bytes((10,)) + Program(11).chunk(early).data,
        "keepalives": say + bytes((7, 60)) + Program(0x28).chunk(b"x").data + bytes((0x17, 60)),
        "the relay is back": bytes((0x1E,)) + say + bytes((0x0E,)) + say,
        "two relays": bytes((0x1F, 0x2F))
        + say
        + bytes((7, 4))
        + hear
        + bytes((0x5F,))
        + say
        + bytes((0x4F,))
        + ask,
        "two relays, measured": bytes((0x1F, 0x2F, 7, 4)) + ask + bytes((7, 8, 0x5F, 7, 16)) + ask,
        "both relays lost": bytes((0x1F, 0x2F, 0x3F)) + say + bytes((0x4F,)) + ask + bytes((0x1F,)) + say,
        "gone at both": bytes((0x1F, 0x2F, 0x09, 0x19, 0x29, 0x5F, 0x09, 0x19, 0x29)) + ask + say,
        "an unknown session": Program(0, 0x10).chunk(message.SEALED + bytes(40)).data,
        "a finish again": Program(0, 0x12).chunk(FINISH).data,
        "other versions": Program(0, 0x10).chunk(b"\x24\0\0\0" + bytes(40)).data,
    }
    for step in json.loads((VECTORS / "handshake.json").read_text())["cases"][0]["messages"]:
        data = bytes.fromhex(step["message"])
        found[f"vector, {data[0]:02x}"] = Program(0, 0x10).chunk(data).data
    vectors = json.loads((VECTORS / "records.json").read_text())
    for case in vectors["accepted"] + vectors["refused"]:
        if case["times"] == 1:
            found[f"vector, {case['what']}"] = Program(1).chunk(bytes.fromhex(case["plaintext"])).data
    for case in json.loads((VECTORS / "info.json").read_text())["accepted"]:
        body = str(case["text"]).encode()
        if len(body) < 600 and "spaces" not in case:
            found[f"vector, {case['what']}"] = Program(2, 1, record.JSON).chunk(body).data + say
    return found
