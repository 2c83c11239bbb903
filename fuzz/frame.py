"""A frame gets, unchanged and in order, to who holds its destination in its sender's network, or to nobody.

And only from an address that its sender holds; no address has two holders; every frame is accounted for; what
waits is bounded; a data frame, whatever is in it, never ends a joined client's connection. No exception is
allowed: none reaches the event loop.

The input is a program for four clients of one relay (`World.step`), whose connections are real but for TCP.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path

from fuzz.kit import START, Frozen, Input, Loop, Port, Program, Wire
from shadowmesh.config.relay import RelayConfig
from shadowmesh.crypto.join import sign_join, verify_join
from shadowmesh.errors import FrameError
from shadowmesh.net.server import Reject, Request
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.router import Member
from shadowmesh.relay.server import Server
from shadowmesh.testing.relay_client import address, key, public
from shadowmesh.testing.websocket import BINARY, CLOSE, PING, PONG, TEXT, UPGRADE
from shadowmesh.wire import control
from shadowmesh.wire.frame import MAX_FRAME, pack, unpack

MAX_SIZE = 1200
MAX_STEPS = 40
VECTORS = Path(__file__).parents[1] / "tests/vectors"
QUIET, LOGGING = (
    RelayConfig(
        log_connections=logging,
        log_routing=logging,
        frame_logging=logging,
        queue_size=3,
        max_connections=3,
        write_buffer_size=100,
    )
    for logging in (False, True)
)
MEMORY = 400
"""Bytes of all outboxes together, so few that inputs fill them."""
MAX_HELD, GONE_RATE, GONE_BURST, CLOSE_SECONDS = 64, 10.0, 32.0, 2.0  # of the protocol page
ADDRESSES = [address(name) for name in "pqrstuvw"]
WORDS = [*ADDRESSES, b"\x10" + ADDRESSES[2] + ADDRESSES[0], b'{"type":"addresses","add":["', b'"remove":["']
DEVICES = [
    (key("one"), key("a"), ADDRESSES[0:2]),
    (key("one"), key("b"), ADDRESSES[2:3]),
    (key("two"), key("c"), [ADDRESSES[0], ADDRESSES[3]]),
    (key("one"), key("d"), ADDRESSES[2:6]),
]
"""Network, device and wanted addresses of the four clients. The fourth wants what others have."""
REQUEST = UPGRADE.format(path="/relay?peer_id=x", more="").encode()

# What is pure and slow is worked out once: the same joins come in every program.
PURE = (verify_join, control.decode_claims, control.decode_from_client)
FROZEN = Frozen(*((function, lru_cache(1024)(function)) for function in PURE))


@lru_cache(1024)
def join(text: str, number: int, instance: int) -> bytes:
    """The answer of one of DEVICES to a challenge, in one of its processes."""
    challenge = control.decode_from_relay(text)
    assert isinstance(challenge, control.Challenge)
    network, device, addresses = DEVICES[number]
    claims = control.encode_claims(
        control.Claims(
            control.VERSION,
            public(network),
            public(device),
            bytes([instance]) * 16,
            "relay",
            tuple(addresses),
            "fuzz",
        )
    )
    return control.encode(control.Join(claims, *sign_join(challenge.nonce, claims, network, device))).encode()


def masked(kind: int, payload: bytes) -> bytes:
    """A WebSocket frame of a client, masked with zeros."""
    size = len(payload)
    length = bytes((0x80 | size,)) if size < 126 else b"\xfe" + size.to_bytes(2)
    return bytes((0x80 | kind,)) + length + bytes(4) + payload


class Socket:
    """A client's end of one connection. connection: the relay's, None if it was not let in."""

    def __init__(self, wire: Wire, connection: Connection | None) -> None:
        self.wire = wire
        self.connection = connection
        self.offered: list[bytes] = []
        """Frames that the relay is to pass on to this client."""
        self.frames: list[bytes] = []
        self.texts: list[str] = []
        self.draining = False
        """The relay has told it to come back later; what it sends from then on is for nobody."""
        self.code: int | None = None
        self._read = bytes(wire.sent).find(b"\r\n\r\n") + 4

    @property
    def member(self) -> Member[Connection] | None:
        """As which it has joined; None if it has not, or somebody has closed it."""
        connection = self.connection
        return None if connection is None or connection.closing else connection.member

    @property
    def held(self) -> set[bytes]:
        """The addresses that it holds."""
        return self.member.held if self.member else set()

    @property
    def network(self) -> object:
        """In which it is."""
        return self.member.network if self.member else None

    def read(self) -> None:
        """Take apart what the relay has sent."""
        sent = self.wire.sent
        while self.connection is not None and self._read < len(sent):
            kind, size = sent[self._read] & 15, sent[self._read + 1]
            at = self._read + 2
            if size == 126:
                size, at = int.from_bytes(sent[at : at + 2]), at + 2
            assert size < 126 or at == self._read + 4
            payload = bytes(sent[at : at + size])
            self._read = at + size
            assert self.code is None, "something behind a close"
            if kind == BINARY:
                self.frames.append(payload)
            elif kind == TEXT:
                self.texts.append(payload.decode())
            elif kind == CLOSE:
                self.code = int.from_bytes(payload[:2])
            else:
                assert kind in (PING, PONG)


class Client:
    """A device, by its number, and its newest connection. instance: counts its processes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.instance = 0
        self.socket: Socket


class World:
    """A relay, two clients that have joined and two that have not."""

    def __init__(self, loop: Loop, config: RelayConfig) -> None:
        self.loop = loop
        self.relay = Server(config)
        self.relay.memory.limit = MEMORY
        self.port = Port(loop, self.upgrade, MAX_FRAME)
        self.upgraded: Connection | None = None
        self.sockets: list[Socket] = []
        self.clients = [Client(number) for number in range(len(DEVICES))]
        for client in self.clients:
            client.socket = Socket(Wire(loop), None)
        for client in self.clients[:2]:
            self.connect(client)
            self.join(client)

    def upgrade(self, request: Request) -> Connection | Reject:
        """See who is let in."""
        answer = self.relay.upgrade(request)
        self.upgraded = answer if isinstance(answer, Connection) else None
        return answer

    def step(self, program: Input) -> None:
        """The number of a client and of what happens, in one byte, and the arguments of that."""
        what = program.byte()
        client = self.clients[what >> 4 & 3]
        match what & 15:
            case 0:
                ends = program.byte()
                self.send(client, pack(ADDRESSES[ends & 7], ADDRESSES[ends >> 4 & 7], program.chunk()))
            case 1:
                self.send(client, program.chunk())
            case 2:
                self.text(client, program.chunk())
            case 3:
                add, remove = (
                    tuple(address for i, address in enumerate(ADDRESSES) if bits >> i & 1)
                    for bits in (program.byte(), program.byte())
                )
                self.text(client, control.encode(control.Addresses(add, remove)).encode())
            case 4:
                client.socket.wire.room = 2 * program.byte()
            case 5:
                client.socket.wire.take()
            case 6:
                self.wait(program.byte() / 4)
            case 7:
                client.instance += what >> 6 & 1
                self.connect(client)
                self.join(client)
            case 8:
                client.socket.wire.lose()
            case 9:
                kind = (PING, PONG, CLOSE)[program.byte() % 3]
                client.socket.wire.feed([masked(kind, program.chunk()[:125])])
            case 10:
                self.connect(client)
            case 11:
                self.relay.reconfigure(LOGGING if what >> 4 & 1 else QUIET)
                self.relay.memory.limit = MEMORY
            case 12 if client.socket.member is not None:
                client.socket.draining = True
                client.socket.member.connection.drain(1000)
        for socket in self.sockets:
            socket.read()

    def connect(self, client: Client) -> None:
        """A new WebSocket of a client, beside its old ones."""
        self.upgraded = None
        wire = self.port.dial()
        wire.feed([REQUEST])
        client.socket = Socket(wire, self.upgraded)
        if self.upgraded is not None:
            client.socket.read()
            self.sockets.append(client.socket)

    def join(self, client: Client) -> None:
        """Join with the client's own addresses."""
        if client.socket.texts:
            self.text(client, join(client.socket.texts[0], client.number, client.instance & 7))

    def text(self, client: Client, text: bytes) -> None:
        """A control message of the client: it ends the connection, or is answered by what is so."""
        socket = client.socket
        before, code = len(socket.texts), socket.code
        socket.wire.feed([masked(TEXT, text)])
        socket.read()
        assert socket.code in (code, 1007, 1008, 1013, 4001, 4003)
        for said in map(json.loads, socket.texts[before:] if socket.network else []):
            if "held" in said:
                assert {bytes.fromhex(each) for each in said["held"]} == socket.held

    def send(self, client: Client, frame: bytes) -> None:
        """A data frame of the client."""
        socket, network = client.socket, client.socket.network
        receiver = self.receiver(client, frame)
        before = [len(each.frames) for each in self.sockets]
        free = receiver is not None and not receiver.wire.waiting
        socket.wire.feed([masked(BINARY, frame)])
        for each in self.sockets:
            each.read()
        grown = [each for each, size in zip(self.sockets, before, strict=True) if len(each.frames) > size]
        if receiver is None:
            assert not grown
        else:
            receiver.offered.append(frame)
            assert grown == [receiver] or not (free or grown)
            assert not grown or receiver.frames[-1] == frame
        assert socket.network is network, "a frame ended its connection"

    def receiver(self, client: Client, frame: bytes) -> Socket | None:
        """Who is to get this frame."""
        try:
            destination, source, _ = unpack(frame)
        except FrameError:
            return None
        socket = client.socket
        if socket.draining or source not in socket.held or destination in socket.held:
            return None
        holders = [
            each for each in self.sockets if each.network is socket.network and destination in each.held
        ]
        assert len(holders) <= 1
        return holders[0] if holders else None

    def wait(self, seconds: float) -> None:
        """Time passes, and the relay looks at its deadlines."""
        self.loop.run(seconds)
        self.relay.router.expire(self.loop.now)
        for connection in [each for each in self.relay.connections if not each.closing]:
            connection.guard(connection.check, self.loop.now)

    def check(self) -> None:
        """What holds after every step."""
        relay, counters = self.relay, self.relay.counters
        assert not self.loop.errors, self.loop.errors
        assert relay.memory.used <= MEMORY
        assert counters.frames_in == counters.frames_out + counters.drops.total() + relay.memory.frames
        assert relay.admission.joined <= relay.config.max_connections
        holders = [(id(each.network), address) for each in self.sockets for address in each.held]
        assert len(set(holders)) == len(holders), "an address has two holders"

    def end(self) -> None:
        """Everybody leaves; nothing is left."""
        relay, elapsed = self.relay, self.loop.now - START
        joined = [each for each in relay.connections if each.member and not each.done]
        assert relay.admission.joined == len(joined)
        for socket in self.sockets:
            assert len(socket.held) <= MAX_HELD
            rest = iter(socket.offered)
            assert all(frame in rest for frame in socket.frames), "not what was sent, or not in order"
            gone = sum('"gone"' in text for text in socket.texts)
            assert gone <= GONE_BURST + GONE_RATE * elapsed
            socket.wire.lose()
        self.loop.run(CLOSE_SECONDS)
        self.check()
        assert not relay.connections
        assert relay.memory.used == relay.memory.frames == 0
        assert relay.admission.joined == relay.admission.unjoined == 0
        self.port.end()
        relay.router.expire(self.loop.now + relay.timing.grace)
        assert not relay.router.networks


def one(data: bytes) -> object:
    """The first byte says whether the relay logs, the rest is the program. Returns what it has counted."""
    program = Input(data)
    with FROZEN as loop:
        world = World(loop, LOGGING if program.byte() & 1 else QUIET)
        for _ in range(MAX_STEPS):
            if not program:
                break
            world.step(program)
            world.check()
        world.end()
    counters = world.relay.counters
    return counters.frames_in, counters.frames_out, +counters.drops, +counters.closes


def seeds() -> dict[str, bytes]:
    """A program for each thing that may become of a frame, and the frames of the vectors."""
    a_to_b, b_to_a, b_to_d = (
        Program(who, ends).chunk(b"x").data for who, ends in ((0, 2), (16, 32), (16, 34))
    )
    d = 3 << 4
    found = {
        "a pair": a_to_b + b_to_a,
        "another address of one's own": Program(0, 1 << 4).chunk(b"x").data,
        "a foreign source": Program(0, 0x22).chunk(b"x").data,
        "into another network": bytes((0x27,))
        + Program(0, 3).chunk(b"x").data
        + Program(0x20, 0).chunk(b"x").data,
        "absent ones": Program(0, 6).chunk(b"x").data * 5,
        "before the join": bytes((d | 10,)) + Program(d, 2).chunk(b"x").data,
        "a slow reader": bytes((0x14, 10)) + a_to_b * 9 + bytes((0x15,)) + a_to_b,
        "a large frame for a slow reader": bytes((0x14, 0))
        + Program(0, 2).chunk(bytes(390)).data * 3
        + a_to_b,
        "a slow reader leaves": bytes((0x14, 0)) + a_to_b * 3 + bytes((0x18,)) + a_to_b,
        "a slow reader is given up": bytes((0x14, 0)) + a_to_b * 3 + bytes((6, 255)) + a_to_b,
        "a client comes again": bytes((0x17,)) + a_to_b + b_to_a,
        "a client comes back": bytes((0x18,)) + a_to_b + bytes((0x17,)) + a_to_b,
        "grace": bytes((0x18,)) + bytes((d | 7,)) + a_to_b + bytes((6, 121, d | 3, 4, 0)) + a_to_b,
        "one that wants what another has": bytes((0x08, d | 7, d | 3, 4, 0, 0x16, 13, d | 3, 4, 0)),
        "a silent holder": bytes((0x08, d | 7, d | 3, 4, 0, 6, 13, d | 3, 4, 0)) + b_to_d,
        "addresses": bytes((3, 0xF0, 2))
        + Program(0x10, 0x24).chunk(b"x").data
        + bytes((3, 0, 0xFF))
        + a_to_b,
        "too many controls": bytes((3, 1, 1)) * 31,
        "a close": Program(9, 2).chunk(b"\x03\xe8").data + a_to_b + b_to_a,
        "a ping": Program(9, 0).chunk(b"x").data,
        "a second join": Program(2).chunk(b'{"type":"join"}').data,
        "unjoined ones": bytes((d | 10,)) * 20,
        "text": Program(2).chunk(b'{"type":"addresses","add":["00000000000000000000000000000000"]}').data,
        "not text": Program(2).chunk(b"[").data,
        "a cloned device": bytes((0x57,)) * 4 + a_to_b,
        "asks without reading": bytes((4, 0)) + bytes((3, 0, 0)) * 29 + bytes((5,)),
        "another configuration": bytes((0x1B,)) + a_to_b + bytes((0x0B,)) + a_to_b,
        "the relay stops": bytes((12,)) + a_to_b + b_to_a,
        "full": bytes((0x27, d | 7, d | 7)),
        "silence": bytes((d | 10, 6, 100, 6, 100)),
    }
    for case in (vectors := json.loads((VECTORS / "frames.json").read_text()))["accepted"] + vectors[
        "refused"
    ]:
        found[f"vector, {case['what']}"] = Program(1).chunk(bytes.fromhex(case["frame"])).data
    return {name: bytes((i % 2,)) + data for i, (name, data) in enumerate(found.items())}
