"""A frame gets, unchanged and in order, to who holds its destination in its sender's network, or to nobody.

And only from an address that its sender holds; no address has two holders; every frame is accounted for; what
waits is bounded; a data frame, whatever is in it, never ends a joined client's connection unless it is too
long. No exception is allowed: none reaches the event loop.

Who holds what is known from a book of our own (`fuzz.book`), kept by what clients send and see. The input is
a program for four clients of one relay (`World.step`), whose connections are real but for TCP.
"""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

from fuzz.book import Book, Holder
from fuzz.kit import START, Frozen, Input, Loop, Port, Program, Wire, finished
from shadowmesh.apikey import key_text
from shadowmesh.config.relay import RelayConfig
from shadowmesh.crypto.join import sign_join, verify_join
from shadowmesh.errors import FrameError
from shadowmesh.net.server import Reject, Request
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.keys import Key, Keys
from shadowmesh.relay.server import Server
from shadowmesh.testing.relay_client import address, key, public
from shadowmesh.testing.websocket import BINARY, CLOSE, PING, PONG, TEXT, UPGRADE
from shadowmesh.wire import control
from shadowmesh.wire.frame import MAX_FRAME, pack, unpack

MAX_SIZE = 1200
MAX_STEPS = 40
VECTORS = Path(__file__).parents[1] / "tests/vectors"
LIMITED, RATED, WITH_KEYS = 1, 2, 3
"""What a relay has besides the bounds of every relay: only one of them, or nothing."""
PER_NETWORK, PER_KEY, RATE = 3, 4, 10_000
LIMITS: dict[int, dict[str, int]] = {
    LIMITED: {
        "addresses_per_network": PER_NETWORK,
        "connections_per_network": 2,
        "connections_per_source": 5,
    },
    RATED: {"device_bytes_per_second": RATE, "network_bytes_per_second": 3 * RATE},
}


def config(setup: int, *, logging: bool) -> RelayConfig:
    """A small relay."""
    return RelayConfig(
        log_connections=logging,
        log_routing=logging,
        frame_logging=logging,
        queue_size=3,
        max_connections=3,
        write_buffer_size=100,
        limits=LIMITS.get(setup, {}),  # type: ignore[arg-type]  # validated
    )


CONFIGS = {
    (setup, logging): config(setup, logging=logging) for setup in range(4) for logging in (False, True)
}
MEMORY = 400
"""Bytes of all outboxes together, so few that inputs fill them."""
GONE_RATE, GONE_BURST, CLOSE_SECONDS = 10.0, 32.0, 2.0  # of the protocol page
ADDRESSES = [address(name) for name in "pqrstuvw"]
WORDS = [*ADDRESSES, b"\x10" + ADDRESSES[2] + ADDRESSES[0], b'{"type":"addresses","add":["', b'"remove":["']
DEVICES = [
    (key("one"), key("a"), ADDRESSES[0:2]),
    (key("one"), key("b"), ADDRESSES[2:3]),
    (key("two"), key("c"), [ADDRESSES[0], ADDRESSES[3]]),
    (key("one"), key("d"), ADDRESSES[2:6]),
]
"""Network, device and wanted addresses of the four clients. The fourth wants what others have."""
TEXTS = [key_text(name * 8, bytes(32)) for name in "ab"]
KEYS = [
    Key(text[4:12], text[4:12], sha256(text.encode()).digest(), created=0, max_addresses=most)
    for text, most in zip(TEXTS, (PER_KEY, 0), strict=True)
]
KEYS = [replace(KEYS[0], bytes_per_second=RATE), replace(KEYS[1], max_connections=1)]
KEY_OF = (0, 0, 1, 0)
"""The API keys of the four, at a relay that asks for them."""
REQUESTS = [
    UPGRADE.format(path="/relay?peer_id=x", more=f"Authorization: Bearer {text}\r\n").encode()
    for text in TEXTS
]
LONGEST = bytes(MAX_FRAME)

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
    if size < 126:
        length = bytes((0x80 | size,))
    else:
        length = b"\xfe" + size.to_bytes(2) if size < 1 << 16 else b"\xff" + size.to_bytes(8)
    return bytes((0x80 | kind,)) + length + bytes(4) + payload


class Socket(Holder):
    """A client's end of one connection. connection: the relay's, None if it was not let in."""

    def __init__(self, loop: Loop, wire: Wire, number: int, connection: Connection | None) -> None:
        network, device, _ = DEVICES[number]
        super().__init__(public(network), public(device), KEY_OF[number])
        self.wire = wire
        self.connection = connection
        self.offered: list[bytes] = []
        """Frames that the relay is to pass on to this client."""
        self.frames: list[bytes] = []
        self.texts: list[str] = []
        self.draining = False
        """The relay has told it to come back later; what it sends from then on is for nobody."""
        self.code: int | None = None
        self._loop = loop
        self._read = bytes(wire.sent).find(b"\r\n\r\n") + 4

    @property
    def there(self) -> bool:
        """Whether it is open, as far as its client sees."""
        return self.connection is not None and self.code is None and not self.wire.closing

    @property
    def gone(self) -> bool:
        """Whether its connection is no more."""
        return self.connection is None or self.wire.lost

    def feed(self, data: bytes) -> None:
        """The client sends something, unless it has to wait because the relay does not read."""
        if not self.wire.deaf:
            self.unanswered = None
            self.wire.feed([data])

    def said(self, kind: str) -> list[dict[str, Any]]:
        """The messages of a kind, of all that the relay has sent."""
        return [found for found in map(json.loads, self.texts) if found["type"] == kind]

    def read(self) -> None:
        """Take apart what the relay has sent."""
        sent = self.wire.sent
        while self.connection is not None and self._read < len(sent):
            kind, size = sent[self._read] & 15, sent[self._read + 1]
            at = self._read + 2
            if size > 125:
                end = at + (2 if size == 126 else 8)
                size, at = int.from_bytes(sent[at:end]), end
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
                if kind == PING and self.unanswered is None:
                    self.unanswered = self._loop.now


class Client:
    """A device, by its number, and its newest connection. instance: counts its processes."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.instance = 0
        self.socket: Socket


class World:
    """A relay, two clients that have joined and two that have not."""

    def __init__(self, loop: Loop, setup: int) -> None:
        self.loop = loop
        self.setup = setup >> 1 & 3
        self.relay = Server(CONFIGS[self.setup, bool(setup & 1)])
        self.relay.memory.limit = MEMORY
        if self.setup == WITH_KEYS:
            self.relay.gate.use(Keys(KEYS))
        self.book = Book(
            PER_NETWORK if self.setup == LIMITED else None, {0: PER_KEY} if self.setup == WITH_KEYS else {}
        )
        self.gone = 0
        """Hints that were to be."""
        self.port = Port(loop, self.upgrade, MAX_FRAME)
        self.upgraded: Connection | None = None
        self.sockets: list[Socket] = []
        self.clients = [Client(number) for number in range(len(DEVICES))]
        for client in self.clients:
            client.socket = Socket(loop, Wire(loop), client.number, None)
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
        began = self.loop.now
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
                client.socket.feed(masked(kind, program.chunk()[:125]))
            case 10:
                self.connect(client)
            case 11:
                finished(self.relay.reconfigure(CONFIGS[self.setup, bool(what >> 4 & 1)]))
                self.relay.memory.limit = MEMORY
            case 12 if client.socket.joined and client.socket.there:
                client.socket.draining = True
                assert client.socket.connection is not None
                client.socket.connection.drain(1000)
            case 13 if self.setup == WITH_KEYS:
                revoked = what >> 4 & 1
                keys = [replace(KEYS[0], revoked=1), KEYS[1]] if revoked else KEYS
                finished(self.relay.use_keys(Keys(keys)))
                self.loop.run()
                self.settle(began)
                assert not revoked or not any(each.joined and each.key == 0 for each in self.there())
            case 14:
                ends, less = program.byte(), program.byte()
                header = pack(ADDRESSES[ends & 7], ADDRESSES[ends >> 4 & 7], b"")
                self.send(client, header + LONGEST[: MAX_FRAME - len(header) + 2 - less])
        self.settle(began)

    def there(self) -> list[Socket]:
        """Those that are open."""
        return [each for each in self.sockets if each.there]

    def settle(self, began: float) -> None:
        """Look at what clients have got since `began`."""
        for socket in self.sockets:
            socket.read()
            if not socket.there:
                self.book.ended(socket, began, self.loop.now)

    def connect(self, client: Client) -> None:
        """A new WebSocket of a client, beside its old ones."""
        self.upgraded = None
        wire = self.port.dial()
        wire.feed([REQUESTS[KEY_OF[client.number]]])
        client.socket = Socket(self.loop, wire, client.number, self.upgraded)
        if self.upgraded is not None:
            client.socket.read()
            self.sockets.append(client.socket)
        self.settle(self.loop.now)

    def join(self, client: Client) -> None:
        """Join with the client's own addresses."""
        if client.socket.texts:
            self.text(client, join(client.socket.texts[0], client.number, client.instance & 7))

    def text(self, client: Client, text: bytes) -> None:
        """A control message of the client: it ends the connection, or is answered by what is so."""
        socket = client.socket
        before, code = len(socket.texts), socket.code
        told = {id(each): len(each.said("problem")) for each in self.sockets}
        held = {id(each): self.book.held(each) for each in self.sockets}
        socket.feed(masked(TEXT, text))
        for each in self.sockets:
            each.read()
        assert socket.code in (code, 1007, 1008, 1013, 4001, 4003)
        if socket.joined and code is None and socket.code == 1008:
            asked = control.decode_from_client(text)
            assert isinstance(asked, control.Addresses)
            self.book.unanswered(socket, asked.add + asked.remove, self.loop.now)
        for said in map(json.loads, socket.texts[before:]):
            if said["type"] == "joined":
                old = self.book.joins(socket, DEVICES[client.number][2], said, self.loop.now)
                assert old is None or not old.there, "a replaced connection stays"
            elif said["type"] == "addresses":
                asked = control.decode_from_client(text)
                assert isinstance(asked, control.Addresses)
                self.book.claims(socket, asked.add, asked.remove, said, self.loop.now)
        for each in self.sockets:
            for problem in each.said("problem")[told[id(each)] :]:
                assert each is not socket
                assert problem["code"] == "address_in_use"
                assert bytes.fromhex(problem["detail"]) in held[id(each)]

    def send(self, client: Client, frame: bytes) -> None:
        """A data frame of the client."""
        socket = client.socket
        if socket.wire.deaf:
            return
        there = [each for each in self.sockets if each.there]
        before = [len(each.frames) for each in self.sockets]
        hints = len(socket.said("gone"))
        receiver = self.receiver(socket, frame)
        free = receiver is not None and not receiver.wire.waiting
        socket.feed(masked(BINARY, frame))
        for each in self.sockets:
            each.read()
        grown = [each for each, size in zip(self.sockets, before, strict=True) if len(each.frames) > size]
        if receiver is None:
            assert not grown
        else:
            receiver.offered.append(frame)
            assert grown == [receiver] or not (free or grown)
            assert not grown or receiver.frames[-1] == frame
        for hint in socket.said("gone")[hints:]:
            self.gone += 1
            assert self.absent(socket, frame) in (hint["reason"], "either")
            assert hint["address"] == frame[1:17].hex()
        ended = [each for each in there if not each.there]
        too_long = len(frame) > MAX_FRAME
        assert not ended or ended == [socket], "a frame ended another's connection"
        assert not ended or too_long or not socket.joined, "a frame ended its connection"
        assert not too_long or socket.code is not None or socket not in there

    def receiver(self, socket: Socket, frame: bytes) -> Socket | None:
        """Who is to get this frame."""
        try:
            destination, source, _ = unpack(frame)
        except FrameError:
            return None
        held = self.book.held(socket)
        if socket.draining or source not in held or destination in held or len(frame) > MAX_FRAME:
            return None
        holder = self.book.holder(socket, destination)
        assert holder is None or isinstance(holder, Socket)
        return holder

    def absent(self, socket: Socket, frame: bytes) -> str | None:
        """What the relay is to say of the frame's destination, if anything."""
        try:
            destination, source, _ = unpack(frame)
        except FrameError:
            return None
        if source not in self.book.held(socket):
            return None
        return self.book.absent(socket, destination, self.loop.now)

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
        held = sum(len(self.book.held(each)) for each in self.sockets)
        assert held <= relay.router.addresses <= held + self.book.closing()
        assert sum(len(each.said("gone")) for each in self.sockets) == self.gone
        for number, each_key in enumerate(KEYS if self.setup == WITH_KEYS else []):
            of_key = sum(len(self.book.held(each)) for each in self.sockets if each.key == number)
            assert of_key <= relay.gate._addresses[each_key.id] <= of_key + self.book.closing(number)

    def end(self) -> None:
        """Everybody leaves; nothing is left."""
        relay, elapsed = self.relay, self.loop.now - START
        joined = [each for each in relay.connections if each.member and not each.done]
        assert relay.admission.joined == len(joined)
        for socket in self.sockets:
            rest = iter(socket.offered)
            assert all(frame in rest for frame in socket.frames), "not what was sent, or not in order"
            gone = sum('"gone"' in text for text in socket.texts)
            assert gone <= GONE_BURST + GONE_RATE * elapsed
            socket.wire.lose()
        self.loop.run(CLOSE_SECONDS)
        self.settle(self.loop.now)
        self.check()
        assert not relay.connections
        assert relay.memory.used == relay.memory.frames == 0
        assert relay.admission.joined == relay.admission.unjoined == 0
        self.port.end()
        relay.router.expire(self.loop.now + relay.timing.grace)
        assert not relay.router.networks


def one(data: bytes) -> object:
    """The first byte says how the relay is set up, the rest is the program. Returns what it has counted."""
    program = Input(data)
    with FROZEN as loop:
        world = World(loop, program.byte())
        for _ in range(MAX_STEPS):
            if not program:
                break
            world.step(program)
            world.check()
        world.end()
    counters = world.relay.counters
    return counters.frames_in, counters.frames_out, +counters.drops, +counters.closes


SEEDED = (
    *(
        "a pair",
        "a client comes again",
        "grace",
        "grace ends",
        "one that wants what another has",
        "a silent holder",
    ),
    *(
        "addresses",
        "more addresses",
        "the longest",
        "beyond a rate",
        "debt stays",
        "a key is revoked",
        "full",
    ),
)


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
        "the longest": bytes((14, 2, 2, 14, 2, 0, 0x1E, 0x20, 3)),
        "beyond a rate": bytes((14, 2, 2) * 3 + (6, 20, 14, 2, 2, 6, 200)) + a_to_b,
        "a key is revoked": bytes((0x1D,)) + a_to_b + bytes((7, 0x17, 0x0D, 7, 0x17)) + a_to_b,
        "more addresses": bytes((3, 0xF0, 0, 0x13, 0xF8, 0, 3, 0, 0x10, 0x13, 0x08, 0, 7, 0x17)),
        "grace ends": bytes((0x18, 6, 119, d | 7, d | 3, 4, 0, 6, 2, d | 3, 4, 0)) + b_to_d,
        "debt stays": bytes((14, 2, 2) * 3 + (7, 14, 2, 2, 8, 7, 14, 2, 2, 6, 255)),
    }
    for case in (vectors := json.loads((VECTORS / "frames.json").read_text()))["accepted"] + vectors[
        "refused"
    ]:
        found[f"vector, {case['what']}"] = Program(1).chunk(bytes.fromhex(case["frame"])).data
    return {name: bytes((i % 8,)) + data for i, (name, data) in enumerate(found.items())} | {
        f"{name}, {setup}": bytes((number << 1,)) + found[name]
        for number, setup in ((LIMITED, "limited"), (RATED, "rated"), (WITH_KEYS, "with keys"))
        for name in SEEDED
    }
