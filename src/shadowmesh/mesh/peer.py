"""A peer is one static key; a session is one set of keys with it; a flow is one pair of overlay IPs."""

from __future__ import annotations

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.crypto.session import Opener, Sealer
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.wire import frame
from shadowmesh.wire.record import Info

REKEY_AFTER = 120.0  # the initiator, when sending
REKEY_WHEN_RECEIVING = 165.0  # the initiator, when it only receives
REKEY_AFTER_MESSAGES = 2**60
SESSION_LIFETIME = 180.0
JSON_RATE, JSON_BURST = 10, 30  # JSON records per second: they are slow to read, and a probe makes us answer
MAX_SESSIONS = 3  # per peer: the current, the previous, and one that is being confirmed


class Session:
    """The keys that one handshake gave, and what may come in under them.

    local, remote: the two blind addresses (16 bytes) that the handshake was made between.
    verified: the overlay IPs that this session may send from ("V" in docs/protocol.md).
    confirmed: the other side is known to have the keys too.
    """

    __slots__ = (
        "accepted",
        "confirmed",
        "contested",
        "control",
        "created",
        "expires",
        "finish",
        "finish_answered",
        "heard",
        "info",
        "initiator",
        "local",
        "local_index",
        "opener",
        "peer",
        "remote",
        "sealer",
        "sources",
        "verified",
    )

    def __init__(
        self,
        peer: Peer,
        *,
        initiator: bool,
        local: bytes,
        remote: bytes,
        local_index: bytes,
        remote_index: bytes,
        keys: tuple[bytes, bytes],
        info: Info,
        now: float,
    ) -> None:
        send, receive = keys if initiator else (keys[1], keys[0])
        self.peer = peer
        self.initiator = initiator
        self.local = local
        self.remote = remote
        self.local_index = local_index
        self.sealer = Sealer(send, remote_index)
        self.opener = Opener(receive)
        self.created = self.heard = now
        self.expires = now + SESSION_LIFETIME
        self.confirmed = not initiator
        self.info = info
        self.verified: set[bytes] = set()
        self.sources: set[bytes] = set()  # relay addresses it has been heard from
        self.contested: set[bytes] = set()  # overlay IPs of its info that another peer has at the moment
        self.control = TokenBucket(JSON_RATE, JSON_BURST)
        self.accepted: set[bytes] = set()  # flow keys that passed cryptokey routing: a cache of the hot path
        self.finish = (
            b""  # message 3 to send again (initiator), or the SHA-256 of the one received (responder)
        )
        self.finish_answered = 0.0

    @property
    def via(self) -> object:
        """The relay link that its messages are sent by, None with a single one: that of the peer."""
        return self.peer.via

    def __repr__(self) -> str:
        return f"<Session {self.local_index.hex()} {'initiator' if self.initiator else 'responder'}>"


class Path:
    """One relay link to one peer. rtt: seconds there and back, None before the first answer.

    absent: its relay had nobody there. failed: when it last did not carry what it should. barred: until when
    it is chosen last, for that; failures: how often so far. wins: how often in a row it was the nearest.
    """

    __slots__ = ("absent", "barred", "failed", "failures", "rtt", "wins")

    def __init__(self) -> None:
        self.rtt: float | None = None
        self.absent = False
        self.failed = -1e9
        self.barred = 0.0
        self.failures = 0
        self.wins = 0


class Round:
    """One measurement of all paths to a peer. sent: probe → link, not answered yet; took: link → seconds.

    suspect: the path in use is left unless it answers.
    """

    __slots__ = ("began", "sent", "suspect", "took")

    def __init__(self, now: float, *, suspect: bool) -> None:
        self.began = now
        self.suspect = suspect
        self.sent: dict[int, object] = {}
        self.took: dict[object, float] = {}


class Peer:
    """Another device. Counters are of messages with content and of bytes inside the tunnel.

    via: the relay link to it, None with a single one. What `mesh.paths` keeps: moved: since when it is that
    one; paths: what is known of each; vouched: when the one in use last answered a probe; measured, carried:
    when the last round ended, and the bytes until then; hurry: another round is due soon.
    """

    __slots__ = (
        "awaiting",
        "awaiting_armed",
        "bytes_in",
        "bytes_out",
        "carried",
        "fingerprint",
        "handshakes",
        "heard",
        "hurry",
        "last_handshake",
        "measured",
        "messages_in",
        "messages_out",
        "moved",
        "next_round",
        "offload",
        "owing",
        "owing_armed",
        "paths",
        "round",
        "sending",
        "sessions",
        "static",
        "unanswered",
        "via",
        "vouched",
    )

    def __init__(self, static: bytes) -> None:
        self.static = static
        self.fingerprint = fingerprint(static)
        self.sessions: list[Session] = []  # oldest first
        self.sending: Session | None = None
        self.heard = -1e9  # when anything authenticated last came
        self.awaiting = 0.0  # since when we have sent something and heard nothing; 0: not
        self.awaiting_armed = False
        self.unanswered = -1e9  # when that had last become too long
        self.owing = 0.0  # since when we have heard something and sent nothing; 0: not
        self.owing_armed = False
        self.messages_in = self.messages_out = self.bytes_in = self.bytes_out = 0
        self.handshakes = 0
        self.last_handshake = 0.0
        self.via: object = None
        self.paths: dict[object, Path] = {}
        self.round: Round | None = None
        self.hurry = False
        self.carried = 0
        self.moved = self.vouched = self.measured = self.next_round = -1e9
        self.offload = False  # whether it has sent us several segments as one packet

    def __repr__(self) -> str:
        return f"<Peer {self.fingerprint[:8]}>"

    def count(self, size: int, *, sent: bool) -> None:
        """A message with `size` bytes inside the tunnel went, or came."""
        if sent:
            self.messages_out += 1
            self.bytes_out += size
        else:
            self.messages_in += 1
            self.bytes_in += size

    @property
    def info(self) -> Info | None:
        """What it last said of itself, None without a session."""
        return self.sessions[-1].info if self.sessions else None

    @property
    def rtt(self) -> float | None:
        """Seconds to it and back by the path in use, None if that was not measured."""
        path = self.paths.get(self.via)
        return path.rtt if path is not None else None

    @property
    def verified(self) -> set[bytes]:
        """All overlay IPs that its sessions may send from."""
        return set().union(*(session.verified for session in self.sessions))


class Flow:
    """Where packets with one source and destination IP go. Cached by both; void after any change of routes.

    next_hop: the overlay IP of the device they go to. header: the 33 bytes in front of every frame.
    peer: None until a handshake with the next hop has been made.
    """

    __slots__ = ("destination", "header", "next_hop", "peer", "source")

    def __init__(self, next_hop: bytes, source: bytes, destination: bytes, peer: Peer | None) -> None:
        self.next_hop = next_hop
        self.source = source
        self.destination = destination
        self.header = bytes((frame.DATA,)) + destination + source
        self.peer = peer
