"""What the connections of one relay share: tables, counters, admission, and the look at deadlines."""

from __future__ import annotations

import asyncio
import random
import re
import secrets
from hashlib import blake2b
from time import monotonic
from typing import TYPE_CHECKING

from shadowmesh.net.server import Reject, Request
from shadowmesh.observe.logging import get_logger
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.relay.admission import Admission, source_of
from shadowmesh.relay.connection import CLOSE_RESTART, Connection
from shadowmesh.relay.counters import Counters
from shadowmesh.relay.outbox import Memory
from shadowmesh.relay.router import Outcome, Router
from shadowmesh.relay.timing import Timing
from shadowmesh.wire.control import CLOSE_REPLACED, SUBPROTOCOL, Claims, Drain, encode

if TYPE_CHECKING:
    from shadowmesh.config.relay import RelayConfig
    from shadowmesh.net.server import Server as Listener

RECONNECT_MS = (500, 3000)
"""Clients come back at a random time between these after a restart, so that they do not come all at once."""
_PEER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RETRY = {"Retry-After": "5"}
AWAY_PER_CONNECTION = 64
"""Bound on addresses in grace, for each allowed connection."""


class Server:
    """One relay, without its sockets."""

    def __init__(self, config: RelayConfig, timing: Timing | None = None) -> None:
        self.config = config
        self.timing = timing or Timing.for_idle_timeout(config.connection_timeout)
        self.started_at = monotonic()
        self.counters = Counters(self.started_at)
        self.admission = Admission(config.max_connections)
        self.memory = Memory()
        self.router: Router[Connection] = Router(
            AWAY_PER_CONNECTION * config.max_connections,
            grace=self.timing.grace,
            probe_timeout=self.timing.probe,
        )
        self.connections: set[Connection] = set()
        self.listener: Listener | None = None
        """The listening port, once it is open; here for its counters."""
        self.draining = False
        self._log = get_logger("relay")
        # Client addresses are shown only through a hash whose key dies with this process.
        self._source_key = secrets.token_bytes(16)
        self._refusal_log = TokenBucket(1.0, 10.0)
        # A network can be made up, so whoever joins and leaves in a loop must not fill the disk. All clients
        # of a large relay coming back after a restart fit.
        self._connection_log = TokenBucket(2.0, 4000.0)
        self._unlogged = 0

    def upgrade(self, request: Request) -> Connection | Reject:
        """Decide about an upgrade request: a connection, or an HTTP refusal."""
        if request.path != "/relay":
            return Reject(404, "not found; clients connect to /relay")
        peer_id = request.query.get("peer_id", "")
        if not _PEER_ID.fullmatch(peer_id):
            return Reject(400, "peer_id: 1 to 64 of A-Z a-z 0-9 . _ - are required")
        source = source_of(request.remote[0])
        status = 503 if self.draining else self.admission.refuses(source)
        if status == 429:
            self.refused("too_many_from_source", source)
            return Reject(429, "too many connections from this source have not joined yet", _RETRY)
        if status == 503:
            self.refused("draining" if self.draining else "full", source)
            return Reject(503, "the relay is full or restarts", _RETRY)
        connection = Connection(self, source, peer_id)
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
        full = self.admission.joined >= self.admission.max_connections
        return full and not self.router.is_joined(claims.network, claims.device)

    def settle(self, outcome: Outcome[Connection]) -> None:
        """Do what a claim means for other connections."""
        if outcome.replaced is not None:
            outcome.replaced.end(CLOSE_REPLACED, "replaced by a newer connection of this device")
        for connection in outcome.dead:
            connection.abandon()
        for connection in outcome.probe:
            connection.probe()
        for connection, address in outcome.tell:
            connection.tell_conflict(address)

    def joined(self, connection: Connection, claims: Claims, outcome: Outcome[Connection]) -> None:
        """A join was accepted."""
        self.admission.leave_unjoined(connection.source)
        self.admission.joined += 1
        if self._logs_connection():
            self._log.info(
                "client joined",
                **self._names(connection),
                source=self.source_hash(connection.source),
                addresses=len(outcome.member.held),
                refused=len(outcome.refused),
                agent=claims.agent,
            )

    def left(self, connection: Connection, reason: str) -> None:
        """A connection has ended for us: give its place and addresses back. Comes once for each."""
        if connection.member is None:
            self.admission.leave_unjoined(connection.source)
            return
        self.admission.joined -= 1
        now = monotonic()
        self.router.leave(connection.member, now)
        if self._logs_connection():
            seconds = round(now - connection.opened_at, 1)
            self._log.info("client left", **self._names(connection), reason=reason, seconds=seconds)

    def _logs_connection(self) -> bool:
        return self.config.log_connections and self._connection_log.take(monotonic())

    def closed(self, connection: Connection) -> None:
        """The WebSocket of a connection that has left is gone."""
        self.connections.discard(connection)

    def refused(self, kind: str, source: str, detail: str = "") -> None:
        """Count somebody who was not let in; log it, unless there are many."""
        self.counters.refused[kind] += 1
        if not self._refusal_log.take(monotonic()):
            self._unlogged += 1
            return
        unlogged = {"unlogged_before": self._unlogged} if self._unlogged else {}
        self._unlogged = 0
        self._log.info("client refused", why=kind, detail=detail, source=self.source_hash(source), **unlogged)

    # Called by the program

    async def watch(self) -> None:
        """Look at all deadlines, every tick, for ever."""
        while True:
            await asyncio.sleep(self.timing.tick)
            now = monotonic()
            self.router.expire(now)
            for connection in [c for c in self.connections if not c.closing]:
                connection.guard(connection.check, now)

    async def drain(self, patience: float = 1.5) -> None:
        """Tell all clients to come back soon, close, and wait until they are gone, at most `patience` s."""
        self.draining = True
        for connection in list(self.connections):
            if connection.member is not None and not connection.done:
                connection.send_text(encode(Drain(random.randint(*RECONNECT_MS))))
            connection.end(CLOSE_RESTART, "the relay restarts")
        deadline = monotonic() + patience
        while self.connections and monotonic() < deadline:
            await asyncio.sleep(0.01)
        for connection in self.connections:
            connection.abort()

    def source_hash(self, source: str) -> str:
        """What logs show instead of an IP address: the same for the same source while this process runs."""
        return blake2b(source.encode(), key=self._source_key, digest_size=4).hexdigest()

    @staticmethod
    def _names(connection: Connection) -> dict[str, str]:
        assert connection.member is not None
        return {
            "device": connection.member.device.hex()[:8],
            "network": connection.member.network.id.hex()[:8],
            "peer_id": connection.peer_id,
        }
