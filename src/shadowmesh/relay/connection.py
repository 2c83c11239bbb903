"""One client of the relay: challenge, join, then data frames and control messages.

    waiting   one TEXT, the join, within 10 s; anything else is a protocol error
    joined    frames are routed, control messages answered; silence is answered by a ping, then by an end
    draining  the relay stops: frames of this client are dropped, what waits for it still goes out
    closed    nothing in, nothing out; the WebSocket is gone within two seconds

The data path is `on_binary` of the sender and `deliver` of the receiver (`relay.delivery`), called
straight from the event loop. What only some connections or some relays do (`Draining`, and those of
`relay.kinds`) is a class of its own, and a connection changes its class: so it costs the others nothing.
"""

from __future__ import annotations

import secrets
import socket
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, cast

from shadowmesh.crypto.join import verify_join
from shadowmesh.errors import ControlError, JoinError
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.relay.admission import GoneLimiter
from shadowmesh.relay.delivery import Receiver
from shadowmesh.relay.outbox import FRAME_COST
from shadowmesh.relay.pacing import Pace, Pacing, Reader, receive_buffer
from shadowmesh.relay.router import MAX_HELD, Member, Outcome
from shadowmesh.wire.control import (
    CLOSE_JOIN_REFUSED,
    CLOSE_JOIN_TIMEOUT,
    CLOSE_PROTOCOL,
    CLOSE_WITHDRAWN,
    VERSION,
    Addresses,
    AddressesResult,
    Challenge,
    Claims,
    Drain,
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
    from shadowmesh.relay.keys import Grant
    from shadowmesh.relay.server import Server

CLOSE_POLICY = 1008
CLOSE_INTERNAL = 1011
CLOSE_RESTART = 1012
CLOSE_FULL = 1013
_REFUSALS = {
    CLOSE_JOIN_REFUSED: "join_refused",
    CLOSE_JOIN_TIMEOUT: "join_timeout",
    CLOSE_WITHDRAWN: "api_key",
    CLOSE_FULL: "full",
    CLOSE_RESTART: "draining",
    CLOSE_INTERNAL: "internal_error",
}
CONTROL_RATE, CONTROL_BURST = 10.0, 30.0
WATCHED = 64 * 1024
"""Bytes sent to a client in a tick from which on we look that no long queue of them grows on the way."""


class _Limits:
    """What bounds a client that does more than send frames which arrive; most never need it."""

    __slots__ = ("control", "gone", "problems")

    def __init__(self) -> None:
        self.control = TokenBucket(CONTROL_RATE, CONTROL_BURST)
        self.gone = GoneLimiter()
        self.problems: dict[str, float] = {}
        """When the client was told of each kind of bad frame."""


class Connection(Receiver):
    """A WebSocket connection of a client; `server` has what all of them share.

    client: its address and port (0: not known), also behind a trusted proxy; source: what counts as one
    source; grant: what its API key allows, None without one. The four numbers of `counters.Traffic` are kept
    here.
    """

    __slots__ = (
        "_asked",
        "_limits",
        "_nonce",
        "_pacing",
        "_pinged",
        "_progress",
        "_progress_at",
        "_unfinished",
        "_unfinished_at",
        "_watched",
        "bytes_in",
        "client",
        "done",
        "frames_in",
        "grant",
        "heard_at",
        "member",
        "opened_at",
        "peer_id",
        "source",
    )

    def __init__(self, server: Server, client: tuple[str, int], source: str, peer_id: str) -> None:
        super().__init__(server)
        self.peer_id = peer_id
        self.client = client
        self.source = source
        self.grant: Grant | None = None
        self.opened_at = self.heard_at = monotonic()
        self.member: Member[Connection] | None = None
        self.done = False
        self.frames_in = self.bytes_in = 0
        self._nonce = secrets.token_bytes(32)
        self._asked: Join | None = None
        """The join, while it waits for being verified."""
        self._pacing: Pacing | None = None
        self._limits: _Limits | None = None
        self._pinged = False
        self._unfinished = 0
        """Bytes of a message whose fragments have not all come, since `_unfinished_at`."""
        self._unfinished_at = 0.0
        self._watched = 0
        """`bytes_out` when it was last looked at."""
        self._progress = -1
        """Bytes that the client's TCP had acknowledged at `_progress_at`; watched while it takes no more."""
        self._progress_at = 0.0

    # Life

    def on_open(self) -> None:
        """Send the challenge."""
        self._server.opened(self)
        # At 0 we hear of the first byte that the kernel does not take, and of when it has taken them all.
        # Were write_buffer_size the transport's own mark, nobody would say when the frames below it are gone,
        # and their latency would be that of handing them over. So the mark is kept here, as `_room`.
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
            if self._asked is not None or not isinstance(message, Join):
                return self._end_early()
            self._asked = message
            return self._server.joining(self)
        now = monotonic()
        if not self._bounds().control.take(now):
            return self.end(CLOSE_PROTOCOL, "too many control messages")
        if isinstance(message, Join):
            return self.end(CLOSE_PROTOCOL, "joined already")
        if not self.may_answer():
            return self.end(CLOSE_POLICY, "asks without reading the answers")
        if isinstance(message, Addresses):
            held, refused = _answer(self._server.claim(self.member, message, now))
            answer = encode(AddressesResult(held, refused))
            if self._blocked:
                self._behind += len(answer) + FRAME_COST
                if not self._server.memory.charge(len(answer) + FRAME_COST):
                    return self.end(CLOSE_POLICY, "asks without reading the answers")
            self.send_text(answer)

    def on_unfinished(self, size: int) -> None:
        """Its fragments are memory of the relay, and have a deadline."""
        if self.member is None:
            return
        grown, self._unfinished = size - self._unfinished, size
        if size and size == grown:
            self._unfinished_at = monotonic()
        if not self._server.memory.charge(grown) and size:
            self.end(CLOSE_POLICY, "no memory for a message in fragments")

    def on_pong(self, payload: bytes) -> None:
        """The client lives, and keeps its addresses."""
        if self.member is not None:
            self.member.heard_at = monotonic()

    def on_closed(self, code: int | None, reason: str) -> None:
        """The WebSocket is gone: closed by us, by its own rules or by the client, or just lost."""
        self._closed(code, reason)
        self._server.closed(self)

    def end(self, code: int, reason: str, kind: str = "") -> None:
        """Close, and give up addresses and place at once. kind: of `counters.REFUSALS`, if not the code's."""
        if self.closing:
            self._closed(self._code, self._reason)  # this code was or will be sent, and no other
        else:
            self._count(code, reason, kind)
            self.close(code, reason)
            self._finish(f"closed with {code}: {reason}")

    def _closed(self, code: int | None, reason: str) -> None:
        if code is not None and self.closed_here and not self.done:
            self._count(code, reason)
            self._finish(f"closed with {code}: {reason}")
        else:
            self._finish("connection lost" if code is None else f"closed by the client ({code})")

    def fail(self, error: Exception) -> None:
        """Report a bug, and end this connection."""
        super().fail(error)
        self.end(CLOSE_INTERNAL, "internal error")

    def _end_early(self) -> None:
        waits = self._asked is not None
        self.end(
            CLOSE_PROTOCOL,
            "nothing may follow a join unanswered" if waits else "the first message must be a join",
        )

    def _count(self, code: int, reason: str, kind: str = "") -> None:
        self._counters.closes[code] += 1
        if self.member is None:
            self._server.refused(kind or _REFUSALS.get(code, "protocol"), self.client[0], reason)
            if code in (CLOSE_JOIN_REFUSED, CLOSE_PROTOCOL):
                self._server.failed(self.client[0])

    def _finish(self, reason: str) -> None:
        if not self.done:
            self.done = True
            self._free_behind()
            self._server.memory.used -= self._unfinished
            self._unfinished = 0
            if self._buffer is not None:
                self._buffer.close()
            if self._outbox is not None:
                self._outbox.clear("receiver_left")
            self._resume()
            self._server.left(self, reason)

    def check(self, now: float) -> None:
        """Look at the deadlines. Called every tick."""
        if self.bytes_out - self._watched >= WATCHED:
            self._send_buffer().watch()
        self._watched = self.bytes_out
        timing = self._server.timing
        if self.heard:
            self.heard, self.heard_at, self._pinged = False, now, False
            if self.member is not None:
                self.member.heard_at = now
        if self.member is None:
            if now - self.opened_at >= timing.join and self._asked is None:
                self.end(CLOSE_JOIN_TIMEOUT, "no join in time")
        elif now - self.heard_at >= timing.dead:
            self.end(CLOSE_POLICY, "no answer to pings")
        elif self._unfinished and now - self._unfinished_at >= timing.join:
            self.end(CLOSE_POLICY, "the fragments of a message come too slowly")
        elif self._blocked and now - self._last_progress(now) >= timing.dead:
            self.end(CLOSE_POLICY, "takes no data")
        elif now - self.heard_at >= timing.keepalive and not self._pinged:
            self._pinged = True
            self.ping()

    def _last_progress(self, now: float) -> float:
        """When it was last seen that the client takes what waits for it, however slowly."""
        acknowledged, _ = self.delivered() or (self.frames_out, 0)
        if acknowledged != self._progress:
            self._progress, self._progress_at = acknowledged, now
        return self._progress_at

    def probe(self) -> None:
        """Another device wants an address of this client: ask whether it is still there."""
        self.heard = False  # what came before the ping proves nothing
        self.ping()

    def abandon(self) -> None:
        """Another device has an address of this silent client now: start afresh, so that both sides agree."""
        self.end(CLOSE_POLICY, "no answer to a ping while another device claimed its address")

    def drain(self, reconnect_after_ms: int) -> None:
        """The relay stops: tell the client when to come back, and take no more frames of it."""
        if self.member is None:
            self.end(CLOSE_RESTART, "the relay restarts")
        else:
            self.send_text(encode(Drain(reconnect_after_ms)))
            self._server.paces.release(self.pace(()))
            self.__class__ = Draining

    def flushed(self) -> bool:
        """Whether the client has all that was meant for it, or TCP at least as far as the system tells."""
        if self._outbox is not None or self._blocked:
            return False
        reached, given = self.delivered() or (0, 0)
        return reached >= given

    # Join

    def join(self) -> None:
        """Verify the join that was asked for, and answer it."""
        server, message, now = self._server, self._asked, monotonic()
        if message is None or self.closing:
            return
        self._asked = None
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
            server.gate.check(self.grant, claims)
            if refusal := server.refuses_join(self, claims):
                return self.end(CLOSE_FULL, *refusal)
            old = server.router.joined(claims.network, claims.device)
            outcome = server.router.join(
                self,
                claims.network,
                claims.device,
                claims.instance,
                claims.addresses,
                now,
                server.gate.most_addresses(self, old),
            )
        except (ControlError, JoinError) as error:
            return self.end(CLOSE_JOIN_REFUSED, str(error))
        self.member = outcome.member
        self._nonce = b""
        server.joined(self, claims, outcome)
        self.raise_limit()
        held, refused = _answer(outcome)
        host, port = self.client
        remote = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        self.send_text(encode(Joined(remote, held, refused, Limits(MAX_HELD, MAX_FRAME))))

    def _check_claims(self, claims: Claims) -> None:
        config = self._server.config
        if claims.version != VERSION:
            older = "the relay" if claims.version > VERSION else "the client"
            raise JoinError(
                f"protocol version {claims.version}; this relay speaks {VERSION}: upgrade {older}"
            )
        if config.public_names and claims.relay not in config.public_names:
            raise JoinError("this relay has another name than the one dialled")
        if config.allowed_networks and claims.network not in config.allowed_networks:
            raise JoinError("this relay does not serve this network")

    # Data

    def on_binary(self, frame: memoryview) -> None:
        """Pass a data frame on to the connection that holds its destination."""
        member = self.member
        if member is None:
            return self._end_early()
        size = len(frame)
        self.frames_in += 1
        self.bytes_in += size
        if size < MIN_FRAME or frame[0] != DATA:
            return self._drop("bad_frame")
        header = bytes(frame[:HEADER_SIZE])
        if header[17:] not in member.held:
            return self._drop("foreign_source")
        receiver = member.routes.get(header[1:17])
        if receiver is None:
            return self._absent(header[1:17], member)
        if receiver is self:
            return self._drop("own_destination")
        try:
            clock = self._server.clock
            receiver.deliver(frame, clock.at or clock.begin(), self)
        except Exception as error:
            self._counters.drops["internal_error"] += 1
            receiver.fail(error)

    def on_read_end(self) -> None:
        """Send on what came with this read."""
        if batches := self._server.batches:
            self._server.batches = []
            for receiver, read_at, sender in batches:
                receiver.flush(read_at, sender)

    def _drop(self, reason: str) -> None:
        self.lose(reason)
        now, told = monotonic(), self._bounds().problems
        if now - told.get(reason, -1e9) >= self._server.timing.problem_every:
            told[reason] = now
            self._tell(Problem(reason))

    def _absent(self, destination: bytes, member: Member[Connection]) -> None:
        reason = "disconnected" if self._server.router.is_away(member, destination) else "not_here"
        self.lose(reason, destination)
        if self._bounds().gone.allows(destination, monotonic()):
            self._tell(Gone(destination, reason))

    def tell_conflict(self, address: bytes) -> None:
        """Another device has asked for an address of this client."""
        self._tell(Problem("address_in_use", address.hex()))

    def _tell(self, hint: Problem | Gone) -> None:
        """Send what is only a hint, unless the client does not read anyway."""
        if not self._blocked:
            self.send_text(encode(hint))

    def _bounds(self) -> _Limits:
        if self._limits is None:
            self._limits = _Limits()
        return self._limits

    def pace(self, paces: tuple[Pace, ...]) -> tuple[Pace, ...]:
        """Be read from no faster than `paces` allow, from now on; return those of until now.

        With paces the class is `Paced` by now. Not to be called from a hook that reads.
        """
        old, now = self._pacing, monotonic()
        if old is not None:
            old.spend(self.bytes_in, now)
        if old is None or paces != old.paces:
            self._pacing = None
            if old is not None and old.stop():
                self.heard_at = now
                self.resume_reading()
            if paces:
                self._pacing = Pacing(cast(Reader, self), paces, self.bytes_in)
                self._pacing.start(now)
        changed = bool(paces or old is not None) and not self.closing
        if changed and (size := receive_buffer(min((pace.rate for pace in paces), default=inf))):
            with suppress(OSError):  # the connection is lost, and we have not heard of it yet
                self.tcp_socket().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        return () if old is None else old.paces


class Draining(Connection):
    """A joined client of a relay that stops."""

    __slots__ = ()

    def on_binary(self, frame: memoryview) -> None:
        """Count and drop: nobody would wait for it."""
        self.frames_in += 1
        self.bytes_in += len(frame)
        self._counters.drops["draining"] += 1


def _answer(outcome: Outcome[Connection]) -> tuple[tuple[bytes, ...], tuple[Refused, ...]]:
    """(held, refused) for the client."""
    return tuple(sorted(outcome.member.held)), tuple(Refused(*each) for each in outcome.refused)
