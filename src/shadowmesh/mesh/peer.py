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

    def __repr__(self) -> str:
        return f"<Session {self.local_index.hex()} {'initiator' if self.initiator else 'responder'}>"


class Peer:
    """Another device. Counters are of sealed messages and of bytes inside the tunnel."""

    __slots__ = (
        "awaiting",
        "awaiting_armed",
        "bytes_in",
        "bytes_out",
        "fingerprint",
        "handshakes",
        "heard",
        "last_handshake",
        "messages_in",
        "messages_out",
        "owing",
        "owing_armed",
        "sending",
        "sessions",
        "static",
        "unanswered",
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

    def __repr__(self) -> str:
        return f"<Peer {self.fingerprint[:8]}>"

    @property
    def info(self) -> Info | None:
        """What it last said of itself, None without a session."""
        return self.sessions[-1].info if self.sessions else None

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
