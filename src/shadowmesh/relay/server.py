"""What the connections of one relay share: tables, counters, admission, and the look at deadlines."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from dataclasses import replace
from hashlib import blake2b
from math import ceil
from random import randint
from time import monotonic
from typing import TYPE_CHECKING

from shadowmesh.net.server import Reject, Request
from shadowmesh.net.turn import TurnClock
from shadowmesh.net.websocket import CLOSE_SECONDS
from shadowmesh.observe.logging import get_logger
from shadowmesh.relay.admission import Admission
from shadowmesh.relay.admission import Refusal as NoRoom
from shadowmesh.relay.connection import CLOSE_FULL, CLOSE_RESTART, Connection, Draining
from shadowmesh.relay.counters import Counters
from shadowmesh.relay.gate import Gate
from shadowmesh.relay.keys import Refusal
from shadowmesh.relay.kinds import kind
from shadowmesh.relay.log import SHOWN, LimitedLog, RoutingLog
from shadowmesh.relay.outbox import Memory
from shadowmesh.relay.pacing import Paces
from shadowmesh.relay.router import Outcome, Router
from shadowmesh.relay.source import Proxies, origin_allowed, source_of, values
from shadowmesh.relay.sources import Sources
from shadowmesh.relay.timing import Timing
from shadowmesh.wire.control import (
    CLOSE_REPLACED,
    CLOSE_WITHDRAWN,
    REJOIN_HEADER,
    SUBPROTOCOL,
    Addresses,
    Claims,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from shadowmesh.config.relay import RelayConfig
    from shadowmesh.net.server import Server as Listener
    from shadowmesh.net.tls import Certificate
    from shadowmesh.observe.lag import LoopLag
    from shadowmesh.relay.delivery import Receiver
    from shadowmesh.relay.keys import Keys
    from shadowmesh.relay.router import Member

AWAY_PER_CONNECTION = 64
"""Bound on addresses in grace, for each allowed connection."""
FLUSH_SECONDS = 5.0
"""How long the end of the relay waits for clients to take what is queued for them."""
LOGGED_RATE = 50.0
"""Lines a second of each of the logs of frames and of routing."""
JOINS_PER_TURN = 4
"""Joins verified in one turn of the event loop, two signatures each; the others wait in a queue."""
CHECKS_PER_TURN = 256
"""Connections whose deadlines or rights are looked at in one turn."""
EXPIRED_PER_TURN = 256
"""Addresses whose grace ends in one turn."""
_FLUSH_TICK = 0.01
_AGENT = re.compile(r"shadowmesh/[0-9]{1,4}(\.[0-9]{1,4}){0,3}")
_PEER_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RETRY = {"Retry-After": "5"}
_AUTHENTICATE = {"WWW-Authenticate": 'Bearer realm="shadowmesh"'}
_CUT = Reject(503, "the relay restarts")
"""To a request that was read after its connection was cut (`net.server.Server.close`): nobody gets it."""
_FOREIGN = Reject(403, "this relay does not serve pages of this Origin")
_TOO_FAST = Reject(429, "too many new connections from this source", _RETRY)
_CROWDED = Reject(429, "too many connections from this source", _RETRY)
_REFUSED: dict[NoRoom, tuple[str, Reject]] = {
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
        self.admission: Admission[Connection] = Admission(config.max_connections)
        self.gate = Gate()
        self.sources = Sources(0, 0)
        self.paces = Paces()
        self.memory = Memory(config.queue_size, config.limits.queue_memory)
        self.clock = TurnClock()
        self.batches: list[tuple[Receiver, float, Receiver]] = []
        """Whom the read that goes on has short frames for; when it was made, and of which device."""
        self.router: Router[Connection] = Router(
            AWAY_PER_CONNECTION * config.max_connections,
            grace=self.timing.grace,
            probe_timeout=self.timing.probe,
            heard=lambda connection: connection.heard,
        )
        self.certificate: Certificate | None = None
        """That of the listening port, for its metrics."""
        self.lag: LoopLag | None = None
        self.draining = False
        self.frame_log: LimitedLog | None = None
        self.routing_log: RoutingLog | None = None
        self._listener: Listener | None = None
        self._joins: deque[Connection] = deque()
        self._verified = 0  # in this turn
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

    async def reconfigure(self, config: RelayConfig) -> int:
        """Let a new configuration hold for everything that lives.

        Only members of networks that are not served any more have to go; returns how many those are.
        """
        if config.connection_timeout != self.config.connection_timeout:
            new = Timing.for_idle_timeout(config.connection_timeout)
            self.timing = replace(self.timing, keepalive=new.keepalive, dead=new.dead)
        self.admission.resize(config.max_connections)
        self.router.resize(AWAY_PER_CONNECTION * config.max_connections)
        self._apply(config)
        if self._listener is not None:
            self._apply_to(self._listener)

        def unserved(connection: Connection) -> str | None:
            member, served = connection.member, self.config.allowed_networks
            if member is not None and served and member.network.id not in served:
                return "this relay serves this network no more"
            self.dress(connection)
            return None

        return await self._withdraw(unserved)

    def _apply(self, config: RelayConfig) -> None:
        self._flush_logs(last=True)
        self.config = config
        self._proxies = Proxies(config.trusted_proxies)
        self.frame_log = (self.frame_log or LimitedLog(LOGGED_RATE)) if config.frame_logging else None
        self.routing_log = (self.routing_log or RoutingLog(LOGGED_RATE)) if config.log_routing else None
        self._logs = config.frame_logging or config.log_routing
        limits, share = config.limits, config.limits.connections_per_source
        self.sources.rate = limits.connects_per_second
        self.sources.most = max(64, config.max_connections // 4) if share is None else share
        self.router.max_addresses = limits.addresses_per_network
        self.memory.resize(config.queue_size, limits.queue_memory)

    def _apply_to(self, listener: Listener) -> None:
        listener.clock, listener.log = self.clock, get_logger("relay")
        listener.trusted = self._proxies.trusts
        listener.source_of, listener.admits, listener.refuses = source_of, self.admits, self.refuses
        listener.refused = self.bad_request
        listener.read_buffer_size = self.config.read_buffer_size

    def dress(self, connection: Connection) -> None:
        """Let the rates that are set, and what is to be logged, hold for a connection."""
        if connection.done or isinstance(connection, Draining):
            return
        limits, member, grant = self.config.limits, connection.member, connection.grant
        wanted: list[tuple[object, float]] = []
        if member is not None:
            network = member.network.id
            wanted.append((network + member.device, limits.device_bytes_per_second))
            wanted.append((network, limits.network_bytes_per_second))
        if member is not None and grant is not None:
            wanted.append((grant.id, grant.bytes_per_second))
        paces = self.paces.take(wanted, monotonic())
        connection.__class__ = kind(logged=self._logs, paced=bool(paces))
        self.paces.release(connection.pace(paces))

    # Called by the listener

    def admits(self, ip: str) -> bool:
        """Whether a TCP connection is let in, as far as it is known yet from where it comes."""
        if (
            self._proxies.trusts(ip)
            or self._proxies.may_hide_many(ip)
            or self.sources.connects(source_of(ip), monotonic())
        ):
            return True
        self.refused("connect_rate", ip, "closed without an answer")
        return False

    def refuses(self, request: Request) -> Reject | None:
        """Say no to a request of a source that is barred, or that asks too often through a trusted proxy.

        That comes before all else, so that nobody learns by asking on whether an API key is good.
        """
        ip = self._proxies.client(request.remote, request.headers)[0]
        if self._proxies.may_hide_many(ip):
            return None
        source, now = source_of(ip), monotonic()
        # Who comes directly was counted by `admits`.
        slow_enough = not self._proxies.trusts(request.remote[0]) or self.sources.connects(source, now)
        if seconds := self.sources.barred(source, now):
            why, retry = "penalty", {"Retry-After": str(ceil(seconds))}
            answer = Reject(429, "too many failed joins from this source", retry)
        elif not slow_enough:
            why, answer = "connect_rate", _TOO_FAST
        else:
            return None
        self.refused(why, ip, answer.body)
        return answer

    def upgrade(self, request: Request) -> Connection | Reject:
        """Decide about an upgrade request that `refuses` has let pass: a connection, or an HTTP refusal."""
        if self.draining:
            return _CUT
        if request.path != "/relay":
            self.bad_request(404)
            return Reject(404, "not found; clients connect to /relay")
        peer_id = request.query.get("peer_id", "")
        if not _PEER_ID.fullmatch(peer_id):
            self.bad_request(400)
            return Reject(400, "peer_id: 1 to 64 of A-Z a-z 0-9 . _ - are required")
        client = self._proxies.client(request.remote, request.headers)
        grant = self.gate.admit(request.headers)
        if isinstance(grant, Refusal):
            self.refused("api_key", client[0], grant.why)
            if not grant.is_ours:
                self.failed(client[0])
            return Reject(401, grant.why, _AUTHENTICATE)
        if not origin_allowed(request.headers, self.config.allowed_origins):
            self.refused("origin", client[0], self._shown_origin(request))
            return _FOREIGN
        source = source_of(client[0])
        if refusal := self._refuses(request, client[0], source):
            why, answer = refusal
            self.refused(why, client[0], answer.body)
            return answer
        connection = kind(logged=self._logs, paced=False)(self, client, source, peer_id)
        connection.grant = grant
        if SUBPROTOCOL in request.subprotocols:
            connection.subprotocol = SUBPROTOCOL
        return connection

    def bad_request(self, status: int) -> None:
        """Count a request that asks for nothing a relay has, or that met a bug (status 500).

        No line of the log: load balancers and scanners come for ever.
        """
        self.counters.refused["internal_error" if status == 500 else "bad_request"] += 1

    def _refuses(self, request: Request, ip: str, source: str) -> tuple[str, Reject] | None:
        """Why there is no room for one more connection of this source, if so."""
        rejoin = values(request.headers, REJOIN_HEADER.lower()) == ["1"]
        shared = self._proxies.may_hide_many(ip)
        if self.sources.is_full(source) and not rejoin and not shared:
            return "too_many_from_source", _CROWDED
        refusal = self.admission.refuses(source, monotonic(), rejoin=rejoin, shared=shared)
        return _REFUSED[refusal] if refusal else None

    # Called by connections

    def opened(self, connection: Connection) -> None:
        """A WebSocket is up; it has not joined."""
        self.connections.add(connection)
        gone = self.admission.open(connection)
        self.sources.open(connection.source)
        if gone is not None:
            gone.guard(gone.end, CLOSE_FULL, "too many connections have not joined yet")

    def failed(self, ip: str) -> None:
        """Somebody from there was refused for what it showed."""
        if not self._proxies.may_hide_many(ip):
            self.sources.failed(source_of(ip), monotonic())

    def joining(self, connection: Connection) -> None:
        """Verify its join now, or in a later turn if there are many: frames must not wait for all of them.

        Later, too, where there may be a rate: who is paused for a debt must not be amid a read by then.
        """
        if not self._verified and not self._joins:
            asyncio.get_running_loop().call_soon(self._join_more)
        limits, grant = self.config.limits, connection.grant
        rated = limits.device_bytes_per_second or limits.network_bytes_per_second
        if self._verified >= JOINS_PER_TURN or rated or (grant is not None and grant.bytes_per_second):
            self._joins.append(connection)
            return
        self._verified += 1
        connection.join()

    def _join_more(self) -> None:
        self._verified = 0
        while self._joins and self._verified < JOINS_PER_TURN:
            connection = self._joins.popleft()
            if not connection.closing:
                self._verified += 1
                connection.guard(connection.join)
        if self._verified:
            asyncio.get_running_loop().call_soon(self._join_more)

    def refuses_join(self, connection: Connection, claims: Claims) -> tuple[str, str] | None:
        """Why there is no place for this device, in words and of `counters.REFUSALS`, if there is none.

        It may take the place of its own older connection.
        """
        old = self.router.joined(claims.network, claims.device)
        if old is None:
            share = self.config.limits.connections_per_network
            if self.admission.full:
                return "the relay is full", "full"
            if 0 < share <= self.router.members(claims.network):
                return "this network has its share of this relay", "network_full"
            # It may have come in by saying that it was here before.
            if self.sources.exceeds(connection.source) and not self._proxies.may_hide_many(
                connection.client[0]
            ):
                return _CROWDED.body, "too_many_from_source"
        if self.gate.is_full_for(connection.grant, old):
            return "this API key has as many connections as it may have", "full"
        return None

    def joined(self, connection: Connection, claims: Claims, outcome: Outcome[Connection]) -> None:
        """A join was accepted."""
        self.admission.leave_unjoined(connection)
        self.admission.joined += 1
        self.counters.joins += 1
        self.gate.joined(connection)
        self.dress(connection)
        log = self._connection_log
        if self.config.log_connections and log.ready():
            log.info(
                "client joined",
                **self.names(connection),
                source=self.shown_source(connection.client[0]),
                addresses=len(outcome.member.held),
                refused=len(outcome.refused),
                agent=self.shown_agent(claims.agent),
            )
        self._settle(outcome, set())

    def claim(self, member: Member[Connection], message: Addresses, now: float) -> Outcome[Connection]:
        """Do what an `addresses` message asks for."""
        before = set(member.held)
        most = self.gate.most_addresses(member.connection)
        outcome = self.router.claim(member, message.add, message.remove, now, most)
        self.gate.count(member.connection)
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
        self.sources.close(connection.source)
        self.paces.release(connection.pace(()))
        if member is None:
            self.admission.leave_unjoined(connection)
            return
        self.admission.joined -= 1
        self.gate.left(connection)
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

    async def use_keys(self, keys: Keys | None) -> int:
        """Let these API keys hold (None: everybody may come); how many connections had to go."""
        changed = self.gate.use(keys)

        def refused(connection: Connection) -> str | None:
            grant = connection.grant
            if changed is not None and grant is not None and grant.id not in changed:
                return None
            if self.gate.keys is None:
                self.gate.left(connection)  # for it may have joined since the keys went
            if (why := self.gate.renew(connection)) is None:
                self.dress(connection)
            return why

        return await self._withdraw(refused)

    async def expire_keys(self) -> None:
        """End the connections whose API keys have expired."""
        now = self.gate.clock()
        await self._withdraw(lambda c: self.gate.renew(c) if self.gate.expired(c, now) else None)

    async def _withdraw(self, why: Callable[[Connection], str | None]) -> int:
        """End the connections for which there are words why, and return their number."""
        gone = 0
        async for connection in self._each():
            if words := why(connection):
                connection.guard(connection.end, CLOSE_WITHDRAWN, words)
                gone += 1
        return gone

    async def _each(self) -> AsyncIterator[Connection]:
        """The connections of now that do not close, a few in a turn of the event loop."""
        for number, connection in enumerate(list(self.connections), 1):
            if not connection.closing:
                yield connection
            if not number % CHECKS_PER_TURN:
                await asyncio.sleep(0)

    async def watch(self) -> None:
        """Look at all deadlines, every tick, for ever."""
        while True:
            await asyncio.sleep(self.timing.tick)
            now = monotonic()
            self._flush_logs()
            while self.router.expire(now, EXPIRED_PER_TURN):
                await asyncio.sleep(0)
            self.paces.expire(now)
            async for connection in self._each():
                connection.guard(connection.check, monotonic())

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
        self._flush_logs(last=True)

    def _flush_logs(self, *, last: bool = False) -> None:
        for log in (self._refusal_log, self._connection_log, self.frame_log, self.routing_log):
            if log is not None:
                log.flush(last=last)

    # What is shown of clients

    def shown_source(self, ip: str) -> str:
        """An IP as logs show it: itself, or what stands for its source while this process runs."""
        if not self.config.zero_knowledge:
            return ip
        return self._hashed(source_of(ip))

    def _shown_origin(self, request: Request) -> str:
        origin = ", ".join(values(request.headers, "origin"))[:100]
        return self._hashed(origin) if self.config.zero_knowledge else origin

    def _hashed(self, text: str) -> str:
        return blake2b(text.encode(errors="replace"), key=self._source_key, digest_size=4).hexdigest()

    def shown_agent(self, agent: str) -> str:
        """What a client says of its program; as logs show it, nothing but what ours say."""
        return agent if not self.config.zero_knowledge or _AGENT.fullmatch(agent) else "other"

    def names(self, connection: Connection) -> dict[str, str]:
        """A joined client as logs show it: the first digits of its ids, or all of them."""
        member = connection.member
        assert member is not None
        digits = SHOWN if self.config.zero_knowledge else None
        names = {
            "device": member.device.hex()[:digits],
            "network": member.network.id.hex()[:digits],
            # Ours is random, but others may have written their name there.
            "peer_id": self._hashed(connection.peer_id) if digits else connection.peer_id,
        }
        grant = connection.grant
        return names if grant is None else names | {"key": grant.id if digits else grant.name}
