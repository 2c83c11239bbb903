"""One client of the relay: challenge, join, then data frames and control messages.

    waiting   one TEXT, the join, within 10 s; anything else is a protocol error
    joined    frames are routed, control messages answered; silence is answered by a ping, then by an end
    closed    nothing in, nothing out; the WebSocket is gone within two seconds

The data path is `on_binary` of the sender and `deliver` of the receiver, called straight from the event loop.
"""

from __future__ import annotations

import secrets
from time import monotonic
from typing import TYPE_CHECKING

from shadowmesh.crypto.join import verify_join
from shadowmesh.errors import ControlError, JoinError
from shadowmesh.net.websocket import WebSocket
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.relay.admission import GoneLimiter
from shadowmesh.relay.outbox import Outbox
from shadowmesh.relay.router import MAX_HELD, Member, Outcome
from shadowmesh.wire.control import (
    CLOSE_JOIN_REFUSED,
    CLOSE_JOIN_TIMEOUT,
    CLOSE_PROTOCOL,
    VERSION,
    Addresses,
    AddressesResult,
    Challenge,
    Claims,
    Gone,
    Join,
    Joined,
    Limits,
    Problem,
    Refused,
    decode_claims,
    decode_from_client,
    encode,
)
from shadowmesh.wire.frame import DATA, HEADER_SIZE, MAX_FRAME, MIN_FRAME

if TYPE_CHECKING:
    from shadowmesh.relay.server import Server

CLOSE_POLICY = 1008
CLOSE_RESTART = 1012
CLOSE_FULL = 1013
_REFUSALS = {
    CLOSE_JOIN_REFUSED: "join_refused",
    CLOSE_JOIN_TIMEOUT: "join_timeout",
    CLOSE_FULL: "full",
    CLOSE_RESTART: "draining",
}
CONTROL_RATE, CONTROL_BURST = 10.0, 30.0
CONTROL_ROOM = 32 * 1024
"""Bytes of answers that may wait for a client, behind the frame that its socket has taken in part."""
SAMPLE_EVERY = 16
"""Of the frames that the kernel takes at once, one in 16 is measured, and counts for 16: to measure each
would take a tenth of a small frame's whole time. Those that wait are all measured."""


class Connection(WebSocket):
    """A WebSocket connection of a client; `server` has what all of them share."""

    def __init__(self, server: Server, source: str, peer_id: str) -> None:
        super().__init__()
        self.peer_id = peer_id
        self.source = source
        self.opened_at = self.heard_at = monotonic()
        self.member: Member[Connection] | None = None
        self.done = False
        self._server = server
        self._counters = server.counters
        self._nonce = secrets.token_bytes(32)
        self._control = TokenBucket(CONTROL_RATE, CONTROL_BURST)
        self._gone = GoneLimiter()
        self._problems: dict[str, float] = {}
        self._pinged = False
        self._outbox = Outbox(server.config.queue_size, server.counters.drops, server.memory)
        self._blocked_since: float | None = None
        self._partly_sent: float | None = None
        """When the frame was read whose last bytes the kernel has not taken yet."""

    # Life

    def on_open(self) -> None:
        """Send the challenge."""
        self._server.opened(self)
        # With 0 we hear of the first byte that the kernel does not take: all else waits in the outbox.
        self.set_write_limits(0, 0)
        config = self._server.config
        self.send_text(
            encode(
                Challenge(
                    VERSION,
                    self._nonce,
                    config.server_name,
                    config.region,
                    MAX_FRAME,
                    self._server.timing.keepalive,
                )
            )
        )

    def on_text(self, text: str) -> None:
        """The join, or a control message of a joined client."""
        try:
            message = decode_from_client(text)
        except ControlError as error:
            return self.end(CLOSE_PROTOCOL, str(error))
        if self.member is None:
            if not isinstance(message, Join):
                return self.end(CLOSE_PROTOCOL, "the first message must be a join")
            return self._join(message)
        now = monotonic()
        if not self._control.take(now):
            return self.end(CLOSE_PROTOCOL, "too many control messages")
        if isinstance(message, Join):
            return self.end(CLOSE_PROTOCOL, "joined already")
        if self.write_buffer_size() > MAX_FRAME + CONTROL_ROOM:
            return self.end(CLOSE_POLICY, "asks without reading the answers")
        if isinstance(message, Addresses):
            outcome = self._server.router.claim(self.member, message.add, message.remove, now)
            self._server.settle(outcome)
            held, refused = _answer(outcome)
            self.send_text(encode(AddressesResult(held, refused)))

    def on_pong(self, payload: bytes) -> None:
        """The client lives, and keeps its addresses."""
        if self.member is not None:
            self.member.heard_at = monotonic()

    def on_closed(self, code: int | None, reason: str) -> None:
        """The WebSocket is gone: closed by us, by its own rules or by the client, or just lost."""
        if code is not None and self.closed_here and not self.done:
            self._count(code, reason)
            self._finish(f"closed with {code}: {reason}")
        else:
            self._finish("connection lost" if code is None else f"closed by the client ({code})")
        self._server.closed(self)

    def end(self, code: int, reason: str) -> None:
        """Close, and give up addresses and place at once."""
        if not self.done:
            self._count(code, reason)
            self.close(code, reason)
            self._finish(f"closed with {code}: {reason}")

    def _count(self, code: int, reason: str) -> None:
        self._counters.closes[code] += 1
        if self.member is None:
            self._server.refused(_REFUSALS.get(code, "protocol"), self.source, reason)

    def _finish(self, reason: str) -> None:
        if not self.done:
            self.done = True
            self._outbox.clear("receiver_left")
            self._server.left(self, reason)

    def check(self, now: float) -> None:
        """Look at the deadlines. Called every tick."""
        timing = self._server.timing
        if self.heard:
            self.heard, self.heard_at, self._pinged = False, now, False
            if self.member is not None:
                self.member.heard_at = now
        if self.member is None:
            if now - self.opened_at >= timing.join:
                self.end(CLOSE_JOIN_TIMEOUT, "no join in time")
        elif now - self.heard_at >= timing.dead:
            self.end(CLOSE_POLICY, "no answer to pings")
        elif self._blocked_since is not None and now - self._blocked_since >= timing.dead:
            self.end(CLOSE_POLICY, "takes no data")
        elif now - self.heard_at >= timing.keepalive and not self._pinged:
            self._pinged = True
            self.ping()

    def probe(self) -> None:
        """Another device wants an address of this client: ask whether it is still there."""
        self.heard = False  # what came before the ping proves nothing
        self.ping()

    def abandon(self) -> None:
        """Another device has an address of this silent client now: start afresh, so that both sides agree."""
        self.end(CLOSE_POLICY, "no answer to a ping while another device claimed its address")

    # Join

    def _join(self, message: Join) -> None:
        server, now = self._server, monotonic()
        try:
            claims = decode_claims(message.claims)
            verify_join(
                self._nonce,
                message.claims,
                claims.network,
                claims.device,
                message.network_signature,
                message.device_signature,
            )
            self._check_claims(claims)
            if server.is_full_for(claims):
                return self.end(CLOSE_FULL, "the relay is full")
            outcome = server.router.join(
                self, claims.network, claims.device, claims.instance, claims.addresses, now
            )
        except (ControlError, JoinError) as error:
            return self.end(CLOSE_JOIN_REFUSED, str(error))
        self.member = outcome.member
        server.joined(self, claims, outcome)
        self.raise_limit()
        server.settle(outcome)
        held, refused = _answer(outcome)
        host, port = self.remote
        remote = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.send_text(encode(Joined(remote, held, refused, Limits(MAX_HELD, MAX_FRAME))))

    def _check_claims(self, claims: Claims) -> None:
        config = self._server.config
        if claims.version != VERSION:
            raise JoinError(f"protocol version {claims.version}; this relay speaks {VERSION}")
        if config.public_names and claims.relay not in config.public_names:
            raise JoinError("this relay has another name than the one dialled")
        if config.allowed_networks and claims.network not in config.allowed_networks:
            raise JoinError("this relay does not serve this network")

    # Data

    def on_binary(self, frame: memoryview) -> None:
        """Pass a data frame on to the connection that holds its destination."""
        member = self.member
        if member is None:
            return self.end(CLOSE_PROTOCOL, "the first message must be a join")
        now = monotonic()
        self._counters.frames_in += 1
        if len(frame) < MIN_FRAME or frame[0] != DATA:
            return self._drop("bad_frame", now)
        header = bytes(frame[:HEADER_SIZE])
        if header[17:] not in member.held:
            return self._drop("foreign_source", now)
        receiver = member.routes.get(header[1:17])
        if receiver is None:
            return self._absent(header[1:17], member, now)
        if receiver is self:
            return self._drop("own_destination", now)
        return receiver.deliver(frame, now)

    def deliver(self, frame: memoryview, read_at: float) -> None:
        """Send a frame to this client, or queue a copy while its socket takes no more."""
        counters = self._counters
        if self.closing:
            counters.drops["receiver_left"] += 1
            return
        if self._blocked_since is not None:
            self._outbox.push(bytes(frame), read_at)
            return
        counters.frames_out += 1
        counters.bytes_out += len(frame)
        self.send_binary(frame)
        if self._blocked_since is not None:
            self._partly_sent = read_at
        elif not counters.frames_out % SAMPLE_EVERY:
            now = monotonic()
            counters.latency.record(now - read_at, now, SAMPLE_EVERY)

    def pause_writing(self) -> None:
        """The kernel takes no more: queue from here on."""
        self._blocked_since = monotonic()

    def resume_writing(self) -> None:
        """The kernel has taken everything: send what waits until it is full again."""
        now = monotonic()
        counters, outbox = self._counters, self._outbox
        self._blocked_since = None
        if self._partly_sent is not None:
            counters.latency.record(now - self._partly_sent, now)
            self._partly_sent = None
        while len(outbox) and not self.closing:
            frame, read_at = outbox.pop()
            counters.frames_out += 1
            counters.bytes_out += len(frame)
            self.send_binary(frame)
            if self._blocked_since is not None:
                self._partly_sent = read_at
                return
            counters.latency.record(monotonic() - read_at, now)

    def _drop(self, reason: str, now: float) -> None:
        self._counters.drops[reason] += 1
        if now - self._problems.get(reason, -1e9) >= self._server.timing.problem_every:
            self._problems[reason] = now
            self._tell(Problem(reason))

    def _absent(self, destination: bytes, member: Member[Connection], now: float) -> None:
        away = self._server.router.is_away(member, destination)
        self._counters.drops["disconnected" if away else "not_here"] += 1
        if self._gone.allows(destination, now):
            self._tell(Gone(destination, "disconnected" if away else "not_here"))

    def tell_conflict(self, address: bytes) -> None:
        """Another device has asked for an address of this client."""
        self._tell(Problem("address_in_use", address.hex()))

    def _tell(self, hint: Problem | Gone) -> None:
        """Send what is only a hint, unless the client does not read anyway."""
        if self._blocked_since is None:
            self.send_text(encode(hint))


def _answer(outcome: Outcome[Connection]) -> tuple[tuple[bytes, ...], tuple[Refused, ...]]:
    """(held, refused) for the client."""
    return tuple(sorted(outcome.member.held)), tuple(Refused(*each) for each in outcome.refused)
