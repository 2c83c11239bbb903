"""What the connections of one relay share: tables, counters, admission, and the look at deadlines."""

from __future__ import annotations

import asyncio
import re
import secrets
from dataclasses import replace
from hashlib import blake2b
from random import randint
from time import monotonic
from typing import TYPE_CHECKING

from shadowmesh.net.server import Reject, Request
from shadowmesh.net.websocket import CLOSE_SECONDS
from shadowmesh.relay.admission import Admission, Refusal
from shadowmesh.relay.connection import CLOSE_RESTART, Connection, Draining, Logged
from shadowmesh.relay.counters import Counters
from shadowmesh.relay.log import SHOWN, LimitedLog, RoutingLog
from shadowmesh.relay.outbox import Memory
from shadowmesh.relay.router import Outcome, Router
from shadowmesh.relay.source import Proxies, origin_allowed, source_of, values
from shadowmesh.relay.timing import Timing
from shadowmesh.relay.turn import Turn
from shadowmesh.wire.control import CLOSE_REPLACED, REJOIN_HEADER, SUBPROTOCOL, Addresses, Claims

if TYPE_CHECKING:
    from shadowmesh.config.relay import RelayConfig
    from shadowmesh.net.server import Server as Listener
    from shadowmesh.net.tls import Certificate
    from shadowmesh.observe.lag import LoopLag
    from shadowmesh.relay.router import Member

AWAY_PER_CONNECTION = 64
"""Bound on addresses in grace, for each allowed connection."""
FLUSH_SECONDS = 5.0
"""How long the end of the relay waits for clients to take what is queued for them."""
LOGGED_RATE = 50.0
"""Lines a second of each of the logs of frames and of routing."""
_FLUSH_TICK = 0.01
_PEER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RETRY = {"Retry-After": "5"}
_DRAINING = Reject(503, "the relay restarts; come again in a moment", _RETRY)
_FOREIGN = Reject(403, "this relay does not serve pages of this Origin")
_REFUSED: dict[Refusal, tuple[str, Reject]] = {
    "too_many_from_source": (
        "too_many_from_source",
        Reject(429, "too many connections from this source have not joined yet", _RETRY),
    ),
    "too_many_unjoined": ("full", Reject(503, "too many connections have not joined yet", _RETRY)),
    "full": ("full", Reject(503, "the relay is full", _RETRY)),
}


class Server:
    """One relay, without its sockets."""

    def __init__(self, config: RelayConfig, timing: Timing | None = None) -> None:
        self.config = config
        self.timing = timing or Timing.for_idle_timeout(config.connection_timeout)
        self.started_at = monotonic()
        self.connections: set[Connection] = set()
        self.counters = Counters(self.started_at, self.connections)
        self.admission = Admission(config.max_connections)
        self.memory = Memory(config.queue_size, self.counters.drops)
        self.turn = Turn()
        self.router: Router[Connection] = Router(
            AWAY_PER_CONNECTION * config.max_connections,
            grace=self.timing.grace,
            probe_timeout=self.timing.probe,
        )
        self.certificate: Certificate | None = None
        """That of the listening port, for its metrics."""
        self.lag: LoopLag | None = None
        self.draining = False
        self.frame_log: LimitedLog | None = None
        self.routing_log: RoutingLog | None = None
        self._listener: Listener | None = None
        # Client addresses are shown only through a hash whose key dies with this process.
        self._source_key = secrets.token_bytes(16)
        self._refusal_log = LimitedLog(1.0, 10.0)
        # A network can be made up, so whoever joins and leaves in a loop must not fill the disk. All clients
        # of a large relay coming back after a restart fit.
        self._connection_log = LimitedLog(2.0, 4000.0)
        self._apply(config)

    @property
    def listener(self) -> Listener | None:
        """The listening port, once it is open."""
        return self._listener

    @listener.setter
    def listener(self, listener: Listener) -> None:
        self._listener = listener
        self._apply_to(listener)

    # Configuration

    def reconfigure(self, config: RelayConfig) -> None:
        """Let a new configuration hold for everything that lives; nobody who is here has to go."""
        if config.connection_timeout != self.config.connection_timeout:
            new = Timing.for_idle_timeout(config.connection_timeout)
            self.timing = replace(self.timing, keepalive=new.keepalive, dead=new.dead)
        self.admission.resize(config.max_connections)
        self.router.resize(AWAY_PER_CONNECTION * config.max_connections)
        self.memory.max_frames = config.queue_size
        self._apply(config)
        for connection in self.connections:
            if not isinstance(connection, Draining):
                connection.__class__ = self._kind
        if self._listener is not None:
            self._apply_to(self._listener)

    def _apply(self, config: RelayConfig) -> None:
        self.config = config
        self._proxies = Proxies(config.trusted_proxies)
        self.frame_log = (self.frame_log or LimitedLog(LOGGED_RATE)) if config.frame_logging else None
        self.routing_log = (self.routing_log or RoutingLog(LOGGED_RATE)) if config.log_routing else None
        self._kind = Logged if config.frame_logging or config.log_routing else Connection

    def _apply_to(self, listener: Listener) -> None:
        listener.trusted = self._proxies.trusts
        listener.read_buffer_size = self.config.read_buffer_size

    # Called by the listener

    def upgrade(self, request: Request) -> Connection | Reject:
        """Decide about an upgrade request: a connection, or an HTTP refusal."""
        if request.path != "/relay":
            return Reject(404, "not found; clients connect to /relay")
        peer_id = request.query.get("peer_id", "")
        if not _PEER_ID.fullmatch(peer_id):
            return Reject(400, "peer_id: 1 to 64 of A-Z a-z 0-9 . _ - are required")
        client = self._proxies.client(request.remote, request.headers)
        if not origin_allowed(request.headers, self.config.allowed_origins):
            self.refused("origin", client[0])
            return _FOREIGN
        if self.draining:
            self.refused("draining", client[0])
            return _DRAINING
        source = source_of(client[0])
        rejoin = values(request.headers, REJOIN_HEADER.lower()) == ["1"]
        refusal = self.admission.refuses(source, rejoin)
        if refusal is not None:
            kind, answer = _REFUSED[refusal]
            self.refused(kind, client[0], answer.body)
            return answer
        connection = self._kind(self, client, source, peer_id)
        if SUBPROTOCOL in request.subprotocols:
            connection.subprotocol = SUBPROTOCOL
        return connection

    # Called by connections

    def opened(self, connection: Connection) -> None:
        """A WebSocket is up; it has not joined."""
        self.connections.add(connection)
        self.admission.open(connection.source)

    def is_full_for(self, claims: Claims) -> bool:
        """Whether there is no place for this device, which may take that of its own older connection."""
        return self.admission.full and not self.router.is_joined(claims.network, claims.device)

    def joined(self, connection: Connection, claims: Claims, outcome: Outcome[Connection]) -> None:
        """A join was accepted."""
        self.admission.leave_unjoined(connection.source)
        self.admission.joined += 1
        self.counters.joins += 1
        log = self._connection_log
        if self.config.log_connections and log.ready():
            log.info(
                "client joined",
                **self.names(connection),
                source=self.shown_source(connection.client[0]),
                addresses=len(outcome.member.held),
                refused=len(outcome.refused),
                agent=claims.agent,
            )
        self._settle(outcome, set())

    def claim(self, member: Member[Connection], message: Addresses, now: float) -> Outcome[Connection]:
        """Do what an `addresses` message asks for."""
        before = set(member.held)
        outcome = self.router.claim(member, message.add, message.remove, now)
        self._settle(outcome, before)
        return outcome

    def _settle(self, outcome: Outcome[Connection], before: set[bytes]) -> None:
        """Do what a claim means for other connections; a bug met there is not the claimant's."""
        if self.routing_log is not None:
            self.routing_log.claims(self.names(outcome.member.connection), before, outcome)
        old = outcome.replaced
        if old is not None:
            old.guard(old.end, CLOSE_REPLACED, "replaced by a newer connection of this device")
        for connection in outcome.dead:
            connection.guard(connection.abandon)
        for connection in outcome.probe:
            connection.guard(connection.probe)
        for connection, address in outcome.tell:
            connection.guard(connection.tell_conflict, address)

    def left(self, connection: Connection, reason: str) -> None:
        """A connection has ended for us: give its place and addresses back. Comes once for each."""
        member = connection.member
        if member is None:
            self.admission.leave_unjoined(connection.source)
            return
        self.admission.joined -= 1
        now = monotonic()
        if self.routing_log is not None:
            self.routing_log.leaves(self.names(connection), member.held)
        self.router.leave(member, now)
        log = self._connection_log
        if self.config.log_connections and log.ready():
            log.info(
                "client left",
                **self.names(connection),
                reason=reason,
                seconds=round(now - connection.opened_at, 1),
                frames_in=connection.frames_in,
                bytes_in=connection.bytes_in,
                frames_out=connection.frames_out,
                bytes_out=connection.bytes_out,
            )

    def closed(self, connection: Connection) -> None:
        """The WebSocket of a connection that has left is gone."""
        self.connections.discard(connection)
        self.counters.retire(connection)

    def refused(self, kind: str, ip: str, detail: str = "") -> None:
        """Count somebody who was not let in; log it, unless there are many."""
        self.counters.refused[kind] += 1
        log = self._refusal_log
        if log.ready():
            log.info("client refused", why=kind, detail=detail, source=self.shown_source(ip))

    # Called by the program

    async def watch(self) -> None:
        """Look at all deadlines, every tick, for ever."""
        while True:
            await asyncio.sleep(self.timing.tick)
            now = monotonic()
            self.router.expire(now)
            for connection in [c for c in self.connections if not c.closing]:
                connection.guard(connection.check, now)

    async def drain(self, flush: float = FLUSH_SECONDS) -> None:
        """Send all clients away: say when to come back, let them take what is queued, close.

        Takes at most `flush` seconds and those of a closing handshake.
        """
        self.draining = True
        window = 1000 * self.config.drain_window
        for connection in list(self.connections):
            connection.guard(connection.drain, randint(0, window))
        deadline = monotonic() + flush
        while remaining := [c for c in self.connections if not c.closing]:
            for connection in remaining:
                # Until then it is read from, and what it sends dropped: a socket closed with input unread
                # resets the connection, and what TCP has not delivered by then is lost.
                if connection.flushed() or monotonic() >= deadline:
                    connection.guard(connection.end, CLOSE_RESTART, "the relay restarts")
            await asyncio.sleep(_FLUSH_TICK)
        deadline = monotonic() + CLOSE_SECONDS
        while self.connections and monotonic() < deadline:
            await asyncio.sleep(_FLUSH_TICK)
        for connection in self.connections:
            connection.abort()

    # What is shown of clients

    def shown_source(self, ip: str) -> str:
        """An IP as logs show it: itself, or what stands for its source while this process runs."""
        if not self.config.zero_knowledge:
            return ip
        return blake2b(source_of(ip).encode(), key=self._source_key, digest_size=4).hexdigest()

    def names(self, connection: Connection) -> dict[str, str]:
        """A joined client as logs show it: the first digits of its ids, or all of them."""
        member = connection.member
        assert member is not None
        digits = SHOWN if self.config.zero_knowledge else None
        return {
            "device": member.device.hex()[:digits],
            "network": member.network.id.hex()[:digits],
            "peer_id": connection.peer_id,
        }
