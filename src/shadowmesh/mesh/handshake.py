"""Handshakes: hellos we send until answered, and half-open ones that we answered (docs/protocol.md, 4).

Every failure is a counted drop that leaves what was pending as it was. Nothing of an existing session
changes before message 3 has been verified.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from hashlib import sha256
from typing import Protocol

from shadowmesh.crypto.noise import XX_HFS_PSK0, HandshakeState
from shadowmesh.errors import HandshakeError, MessageError
from shadowmesh.mesh.context import VERSION, Context
from shadowmesh.mesh.lru import Lru
from shadowmesh.mesh.trust import Verdict
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.wire import message, record
from shadowmesh.wire.record import Info

RETRIES = (0.5, 1.0, 2.0, 4.0, 5.0)  # seconds after each hello; the last one repeats
JITTER = (0.9, 1.1)
GIVE_UP = 90.0  # seconds of unanswered hellos; the next packet starts anew
ANSWERABLE = 10.0  # seconds for which an answer, and on the other side a finish, is waited for
SOLICIT_EVERY = 5.0  # seconds after a session with, or a hello to, the source of messages nobody can open
SOLICIT_RATE, SOLICIT_BURST = 20, 20  # per second, in all
CROSSING = 5.0  # seconds for which our unanswered hello counts against one that crosses it
FINISH_AGAIN = (0.5, 1.5, 3.5)  # seconds after the first finish, while nothing sealed has come

SOURCE_RATE, SOURCE_BURST = 2, 8  # hellos per second from one address
ALL_RATE, ALL_BURST = 200, 400
MAX_HALF_OPEN = 256
MAX_HALF_OPEN_PER_SOURCE = 4
REPLAY_MEMORY = 180.0
MAX_REMEMBERED = 4096
MAX_ATTEMPTS = 256

QUEUE_BYTES = 256 * 1024  # per attempt
QUEUE_TOTAL = 16 * 1024 * 1024
QUEUE_SECONDS = 2.0

_PROLOGUE = b"shadowmesh/v1 peer\x00"

Record = tuple[int, bytes]  # kind, body


class Attempt:
    """We want a session between two addresses. Packets for it wait in `queue` as (deadline, kind, body).

    next_hello: when the next one is due; a timer that fires before it is one that was overtaken.
    """

    __slots__ = (
        "done",
        "expiring",
        "hellos",
        "local",
        "next_hello",
        "queue",
        "queued",
        "remote",
        "retry",
        "started",
        "tries",
    )

    def __init__(self, local: bytes, remote: bytes, now: float, *, retry: bool) -> None:
        self.local = local
        self.remote = remote
        self.started = now
        self.retry = retry
        self.tries = 0
        self.next_hello = now
        self.hellos: list[PendingHello] = []
        self.queue: deque[tuple[float, int, bytes]] = deque()
        self.queued = 0
        self.expiring = False
        self.done = False


class PendingHello:
    """One hello of an attempt: its ephemeral keys, waiting for the answer."""

    __slots__ = ("attempt", "index", "noise", "sent")

    def __init__(self, attempt: Attempt, index: bytes, noise: HandshakeState, now: float) -> None:
        self.attempt = attempt
        self.index = index
        self.noise = noise
        self.sent = now


class HalfOpen:
    """A hello that we answered, waiting for the finish. vias: the links that the answer went by."""

    __slots__ = ("answer", "index", "local", "noise", "opened", "remote", "remote_index", "vias")

    def __init__(
        self,
        index: bytes,
        remote_index: bytes,
        local: bytes,
        remote: bytes,
        noise: HandshakeState,
        now: float,
    ) -> None:
        self.index = index
        self.remote_index = remote_index
        self.local = local
        self.remote = remote
        self.noise = noise
        self.opened = now
        self.answer = b""
        self.vias: set[object] = set()


class Handshaken(Protocol):
    """Who gets the result of a handshake."""

    def established(
        self,
        *,
        initiator: bool,
        local: bytes,
        remote: bytes,
        indices: tuple[bytes, bytes],
        keys: tuple[bytes, bytes],
        static: bytes,
        info: Info,
        finish: bytes,
        records: list[Record],
        carried: int,
        now: float,
        via: object,
    ) -> None:
        """A handshake verified. indices: (ours, theirs). finish: the message 3. records: still to be handled:
        packets to send (initiator), what else message 3 held (responder). carried: bytes of packets in it."""

    def finish_repeated(self, data: bytes, index: bytes, now: float) -> bool:
        """Whether this is the finish that made a session, come once more; it is answered by a keepalive."""


class Handshakes:
    """All handshakes of one engine, in both roles."""

    def __init__(self, context: Context, result: Handshaken) -> None:
        self._context = context
        self._result = result
        self._attempts: dict[tuple[bytes, bytes], Attempt] = {}
        self._half_open: OrderedDict[bytes, HalfOpen] = OrderedDict()
        self._per_source: Lru[bytes, TokenBucket] = Lru(MAX_REMEMBERED)
        self._all = TokenBucket(ALL_RATE, ALL_BURST)
        # Hello → when it came, and the index of what it was answered with.
        self._seen: Lru[bytes, tuple[float, bytes]] = Lru(MAX_REMEMBERED)
        self._queued = 0
        self.solicited: Lru[bytes, float] = Lru(
            MAX_REMEMBERED
        )  # address → last session or hello of this kind
        self._solicit_all = TokenBucket(SOLICIT_RATE, SOLICIT_BURST)

    # -- as initiator

    def attempt(self, local: bytes, remote: bytes, now: float, *, retry: bool = True) -> Attempt | None:
        """Want a session between two addresses; the first hello goes out at once.

        retry: keep asking for 90 s; otherwise one hello. None when too many attempts are under way, all so
        young that packets may wait for them.
        """
        attempt = self._attempts.get((local, remote))
        if attempt is not None:
            if retry and not attempt.retry:
                attempt.retry = True
                self._due(attempt, attempt.hellos[-1].sent + RETRIES[0])
            return attempt
        if len(self._attempts) >= MAX_ATTEMPTS:
            # A scan of absent addresses must not keep live peers from a rekey.
            oldest = next(iter(self._attempts.values()))
            if now - oldest.started < QUEUE_SECONDS:
                self._context.drops["too_many_attempts"] += 1
                return None
            self._give_up(oldest, "no_answer")
        attempt = self._attempts[(local, remote)] = Attempt(local, remote, now, retry=retry)
        self._hello(attempt, now)
        return attempt

    def solicit(self, source: bytes, destination: bytes, now: float) -> None:
        """Someone seals for a session that we do not have (any more): one hello finds us a new one."""
        self._context.drops["sealed_unknown"] += 1
        if destination not in self._context.addresses or source in self._context.addresses:
            return
        if self.pending(destination, source) or now - self.solicited.get(source, -1e9) < SOLICIT_EVERY:
            return
        if self._solicit_all.take(now):
            self.solicited[source] = now
            self.attempt(destination, source, now, retry=False)

    def pending(self, local: bytes, remote: bytes) -> bool:
        """Whether an attempt between these addresses is under way."""
        return (local, remote) in self._attempts

    def enqueue(self, attempt: Attempt, kind: int, body: bytes, now: float) -> None:
        """Keep a packet until the attempt succeeds; the oldest make room for it."""
        while attempt.queue and attempt.queued + len(body) > QUEUE_BYTES:
            self._give_up_oldest(attempt, "queue_full")
        if self._queued + len(body) > QUEUE_TOTAL:
            self._context.drops["queue_full"] += 1
            self._context.output.unreachable(kind, body)
            return
        if not attempt.expiring:
            attempt.expiring = True
            self._context.timers.at(now + QUEUE_SECONDS, self._expire_queue, attempt)
        attempt.queue.append((now + QUEUE_SECONDS, kind, body))
        attempt.queued += len(body)
        self._queued += len(body)

    def take_queue(self, local: bytes, remote: bytes, wanted: bool) -> list[Record]:
        """End the attempt between two addresses, which is not needed any more.

        Returns what waited for it. With wanted=False that is given up: the peer is not the one it waits for.
        """
        attempt = self._attempts.get((local, remote))
        if attempt is None:
            return []
        if not wanted:
            self._give_up(attempt, "wrong_peer")
            return []
        return self._end(attempt)

    def gone(self, address: bytes) -> None:
        """The relay has nobody at this address: our hellos to it count as not sent, nothing waits for it."""
        for attempt in [a for a in self._attempts.values() if a.remote == address]:
            self._give_up(attempt, "not_here")

    def again(self, now: float) -> None:
        """The way to the relay is new: ask again at once."""
        for attempt in self._attempts.values():
            attempt.tries = 0
            self._due(attempt, now)

    def _due(self, attempt: Attempt, when: float) -> None:
        attempt.next_hello = when
        self._context.timers.at(when, self._again, attempt)

    def _hello(self, attempt: Attempt, now: float) -> None:
        context = self._context
        noise = HandshakeState(
            XX_HFS_PSK0,
            initiator=True,
            prologue=self._prologue(attempt.local, attempt.remote),
            static=context.device.static_private,
            psk=context.network.peer_psk,
            ephemerals=context.ephemerals,
        )
        first = noise.write_message(b"")
        hello = PendingHello(attempt, context.new_index(), noise, now)
        for old in [h for h in attempt.hellos if now - h.sent >= ANSWERABLE]:
            self._forget(old)
        attempt.hellos.append(hello)
        context.indices[hello.index] = hello
        wait = RETRIES[min(attempt.tries, len(RETRIES) - 1)] * context.uniform(*JITTER)
        attempt.tries += 1
        self._due(attempt, now + (wait if attempt.retry else ANSWERABLE))
        context.output.send(attempt.remote, attempt.local, message.pack_hello(hello.index, first))

    def _again(self, attempt: Attempt, now: float) -> None:
        if attempt.done or now < attempt.next_hello:
            return
        if now - attempt.started >= (GIVE_UP if attempt.retry else ANSWERABLE):
            self._give_up(attempt, "no_answer")
        else:
            self._hello(attempt, now)

    def _end(self, attempt: Attempt) -> list[Record]:
        attempt.done = True
        del self._attempts[(attempt.local, attempt.remote)]
        for hello in list(attempt.hellos):
            self._forget(hello)
        self._queued -= attempt.queued
        return [(kind, body) for _, kind, body in attempt.queue]

    def _forget(self, hello: PendingHello) -> None:
        hello.attempt.hellos.remove(hello)
        del self._context.indices[hello.index]

    def _give_up(self, attempt: Attempt, reason: str) -> None:
        while attempt.queue:
            self._give_up_oldest(attempt, reason)
        self._end(attempt)

    def _give_up_oldest(self, attempt: Attempt, reason: str) -> None:
        _, kind, body = attempt.queue.popleft()
        attempt.queued -= len(body)
        self._queued -= len(body)
        self._context.drops[reason] += 1
        self._context.output.unreachable(kind, body)

    def _expire_queue(self, attempt: Attempt, now: float) -> None:
        while attempt.queue and attempt.queue[0][0] <= now and not attempt.done:
            self._give_up_oldest(attempt, "no_answer")
        attempt.expiring = bool(attempt.queue) and not attempt.done
        if attempt.expiring:
            self._context.timers.at(attempt.queue[0][0], self._expire_queue, attempt)

    # -- messages

    def receive(self, source: bytes, destination: bytes, data: bytes, now: float, via: object = None) -> None:
        """A peer message that is not sealed, by relay from one address to one of ours.

        via: the link that it came by, and by which it is answered.
        """
        try:
            match message.unpack_handshake(data):
                case message.Hello() as hello:
                    self._on_hello(source, destination, hello, now, via)
                case message.Answer() as answer:
                    self._on_answer(source, destination, answer, now, via)
                case message.Finish() as finish:
                    self._on_finish(source, destination, finish, data, now, via)
        except MessageError:
            self._context.drops["bad_message"] += 1
        except HandshakeError:
            self._context.drops["bad_handshake"] += 1

    def _on_hello(
        self, source: bytes, destination: bytes, hello: message.Hello, now: float, via: object
    ) -> None:
        context = self._context
        if destination not in context.addresses or source in context.addresses:
            context.drops["wrong_address"] += 1
            return
        digest = sha256(source + destination + hello.noise).digest()
        when, answered = self._seen.get(digest) or (-REPLAY_MEMORY, b"")
        if now - when < REPLAY_MEMORY:
            self._hello_again(answered, via)
            return
        bucket = self._per_source.get(source)
        if bucket is None:
            bucket = self._per_source[source] = TokenBucket(SOURCE_RATE, SOURCE_BURST)
        if not bucket.take(now) or not self._all.take(now):
            context.drops["hello_rate"] += 1
            return
        noise = HandshakeState(
            XX_HFS_PSK0,
            initiator=False,
            prologue=self._prologue(source, destination),
            static=context.device.static_private,
            psk=context.network.peer_psk,
            ephemerals=context.ephemerals,
        )
        noise.read_message(hello.noise)  # its size leaves no room for a payload
        self._seen[digest] = now, b""
        if self._we_win_crossing(destination, source, now):
            context.drops["hello_crossed"] += 1
            return
        second = noise.write_message(record.pack(record.JSON, context.local.info().encode()))
        half = HalfOpen(context.new_index(), hello.sender, destination, source, noise, now)
        self._make_room(source)
        self._half_open[half.index] = half
        context.indices[half.index] = half
        context.timers.at(now + ANSWERABLE, self._expire_half_open, half)
        half.answer = message.pack_answer(half.index, hello.sender, second)
        half.vias.add(via)
        self._seen[digest] = now, half.index
        context.output.send(source, destination, half.answer, via)

    def _hello_again(self, index: bytes, via: object) -> None:
        """Where there are several relays it comes by each of them, and not each of them leads back."""
        half = self._half_open.get(index)
        if half is not None and via not in half.vias:
            half.vias.add(via)
            self._context.output.send(half.remote, half.local, half.answer, via)
        else:
            self._context.drops["hello_replayed"] += 1

    def _we_win_crossing(self, local: bytes, remote: bytes, now: float) -> bool:
        """Of two hellos that cross, the one from the smaller address stands; the other side keeps quiet."""
        attempt = self._attempts.get((local, remote))
        if attempt is None:
            return False
        if now - attempt.hellos[-1].sent >= CROSSING:
            return False
        if local < remote:
            return True
        if attempt.retry:
            self._due(attempt, now + CROSSING)
        return False

    def _make_room(self, source: bytes) -> None:
        same = [half for half in self._half_open.values() if half.remote == source]
        if len(same) >= MAX_HALF_OPEN_PER_SOURCE:
            self._close_half_open(same[0])
        elif len(self._half_open) >= MAX_HALF_OPEN:
            self._close_half_open(next(iter(self._half_open.values())))

    def _close_half_open(self, half: HalfOpen) -> None:
        del self._half_open[half.index]
        del self._context.indices[half.index]

    def _expire_half_open(self, half: HalfOpen, now: float) -> None:
        if half.index in self._half_open:
            self._close_half_open(half)

    def _on_answer(
        self, source: bytes, destination: bytes, answer: message.Answer, now: float, via: object
    ) -> None:
        context = self._context
        hello = context.indices.get(answer.receiver)
        if not isinstance(hello, PendingHello) or now - hello.sent >= ANSWERABLE:
            context.drops["answer_unknown"] += 1
            return
        attempt = hello.attempt
        if (destination, source) != (attempt.local, attempt.remote):
            context.drops["wrong_address"] += 1
            return
        noise = hello.noise.copy()  # what follows may fail and must then not have happened
        info, rest = self._read_payload(noise.read_message(answer.noise))
        if rest:
            raise HandshakeError("an answer holds more than the info record")
        self._check_identity(noise.remote_static, info, source)
        if attempt.queue and not context.ips_at(info, source):
            # Also what keeps an impostor from evading a pin by not naming the pinned IP.
            raise HandshakeError("packets wait for an IP that the answering device does not have")
        if max(set(info.versions) & {VERSION}, default=0) != VERSION:
            # The transcript covers this list, so nobody on the way can have lowered the choice.
            context.drops["downgrade"] += 1
            return
        payload, late = self._finish_payload(attempt)
        finish = message.pack_finish(hello.index, answer.sender, noise.write_message(payload))
        local, remote = attempt.local, attempt.remote
        waited = self._end(attempt)
        context.output.send(remote, local, finish, via)
        self._result.established(
            initiator=True,
            local=local,
            remote=remote,
            indices=(hello.index, answer.sender),
            keys=noise.split(),
            static=noise.remote_static,
            info=info,
            finish=finish,
            records=late,
            carried=_size(waited[: len(waited) - len(late)]),
            now=now,
            via=via,
        )

    def _finish_payload(self, attempt: Attempt) -> tuple[bytes, list[Record]]:
        """The info record and as many of the waiting packets as fit, in order; and those that come later."""
        payload = record.pack(record.JSON, self._context.local.info().encode())
        waiting = [(kind, body) for _, kind, body in attempt.queue]
        for i, (kind, body) in enumerate(waiting):
            if len(payload) + record.HEADER_SIZE + len(body) > message.MAX_HANDSHAKE_PAYLOAD:
                return payload, waiting[i:]
            payload += record.pack(kind, body)
        return payload, []

    def _on_finish(
        self,
        source: bytes,
        destination: bytes,
        finish: message.Finish,
        data: bytes,
        now: float,
        via: object,
    ) -> None:
        context = self._context
        half = context.indices.get(finish.receiver)
        if not isinstance(half, HalfOpen) or now - half.opened >= ANSWERABLE:
            if not self._result.finish_repeated(data, finish.receiver, now):
                context.drops["finish_unknown"] += 1
            return
        if (destination, source, finish.sender) != (half.local, half.remote, half.remote_index):
            context.drops["wrong_address"] += 1
            return
        noise = half.noise.copy()
        info, rest = self._read_payload(noise.read_message(finish.noise))
        self._check_identity(noise.remote_static, info, source)
        self._close_half_open(half)
        self._result.established(
            initiator=False,
            local=half.local,
            remote=half.remote,
            indices=(half.index, half.remote_index),
            keys=noise.split(),
            static=noise.remote_static,
            info=info,
            finish=data,
            records=rest,
            carried=_size(rest),
            now=now,
            via=via,
        )

    def _read_payload(self, payload: bytes) -> tuple[Info, list[Record]]:
        """(info, the records after it). Raises MessageError, HandshakeError if there is no info in front."""
        view = memoryview(payload)
        records = [(kind, payload[start:end]) for kind, start, end in record.split(view, len(view))]
        if not records or records[0][0] != record.JSON:
            raise HandshakeError("a handshake payload does not begin with an info record")
        info = record.decode_json(records[0][1])
        if not isinstance(info, Info):
            raise HandshakeError("a handshake payload does not begin with an info record")
        return info, records[1:]

    def _check_identity(self, static: bytes, info: Info, remote: bytes) -> None:
        context = self._context
        if static == context.device.static_public:
            raise HandshakeError("our own handshake came back")
        for ip in context.ips_at(info, remote):
            if context.trust.check(ip, static) is Verdict.REFUSED:
                context.output.event("identity_refused", ip=ip, static=static)
                raise HandshakeError("the key for this address is not the one that is trusted")

    def _prologue(self, initiator: bytes, responder: bytes) -> bytes:
        return _PROLOGUE + self._context.network.network_id + initiator + responder


def _size(records: list[Record]) -> int:
    """Bytes inside the tunnel of the packets among these."""
    return sum(
        record.HEADER_SIZE + len(body) for kind, body in records if kind in (record.PACKET, record.OFFLOAD)
    )
