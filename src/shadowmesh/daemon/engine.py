"""The data path of the daemon: TUN device ↔ mesh ↔ relay link, in callbacks of the event loop.

Per packet there is no task and no queue. What makes it fast in Python is doing less per byte: a TUN device
with offload gives up to 64 KiB at a time, and that is one record, one sealed message, one frame. Whatever
one wake-up of the device gave for one peer goes into one message; no timer ever waits for more.

A link that takes nothing for a while is a slow one. Then the device is read on, into a queue that is fair and
short (`daemon.queue`), and what the link takes comes from there, until it has been quick for a second. Where
there are several links, each has its queue, and the device is read on at once: the others take more.
And what goes to an address for which a relay has much waiting has a queue of its own until that is less:
nothing has to be lost, and what is small goes past it.
And while little is sent, for whatever reason, large packets go in pieces: what is slow may be farther on.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from ipaddress import IPv4Network
from math import inf

from shadowmesh.daemon.holds import Holds
from shadowmesh.daemon.listener import Link
from shadowmesh.daemon.queue import LONG_MESSAGE, PacketQueue
from shadowmesh.errors import OffloadError, TunError
from shadowmesh.mesh.context import Context
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Flow, Session
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.tun.base import MAX_RECORD, TunDevice
from shadowmesh.wire import frame, ip, offload, record
from shadowmesh.wire.message import SEALED_OVERHEAD

MAX_READS = 128  # packets per wake-up, so that what comes in is not kept waiting
FULL = LONG_MESSAGE  # a batch this large is sent at once, but for a bulk transfer to a peer that takes more
REST = 1400  # the room in a message for which more of a bulk transfer is read: the short end of a write
BIG = 8 * 1024  # a packet this large is not copied to another peer's batch but begins a new one
BULK = 1024  # of a batch with more, a relay does not send ahead what is small (`relay.outbox`)
LONE = 256  # a packet below this goes past it as a message of its own
UNREACHABLE_RATE = 10  # ICMP errors per second
READ_ON = 0.004  # seconds for which a link may take nothing before it is a slow one
STALL = 0.1  # the same for a link that was fast: a process on the way may have waited for its core
FAST = 25e6  # bytes per second
SLOW_FOR = 1.0  # seconds for which it stays one
LINK_GRACE = 2.0  # seconds without a relay after which senders are told instead of left waiting

_HEADER = record.HEADER_SIZE
_VNET = offload.HEADER_SIZE
_PADDING = record.MOST_PADDING
_ROOM = record.MAX_PLAINTEXT - _PADDING  # for the records of a message, whatever padding they need
_SEALED = frame.HEADER_SIZE + SEALED_OVERHEAD
_WINDOW = record.LARGEST_PLAINTEXT + _HEADER + MAX_RECORD + _PADDING


class Engine:
    """Reads the TUN device whenever the link takes more, and writes to it what peers send.

    It is the mesh's `Output`. events: called with the name and the facts of each event of the mesh, and with
    `tun_lost` and the TunError as `error` when the device is gone: then the engine has stopped.
    """

    def __init__(
        self, tun: TunDevice, link: Link, loop: asyncio.AbstractEventLoop, events: Callable[..., None]
    ) -> None:
        self._tun = tun
        self.coalesces = "uso" in tun.offload
        self._link = link
        self._loop = loop
        self._now = self.now = loop.time
        self.event = events
        self.packets_in = self.packets_out = 0  # from peers; to peers, with those that wait for a session
        self._stashes: dict[Flow, bytearray] = {}
        self._window = memoryview(bytearray(_WINDOW))
        self._frame = memoryview(bytearray(_SEALED + record.LARGEST_PLAINTEXT))
        self._errors = TokenBucket(UNREACHABLE_RATE, UNREACHABLE_RATE)
        self._timer: asyncio.TimerHandle | None = None
        self._due: float | None = None  # when it fires
        self._reading = False
        self._stopped = False
        self._queue = PacketQueue(self._drop)  # of the link that is alone
        self._queues: dict[object, PacketQueue] = {}  # of several
        self._lanes: Mapping[bytes, object] = {}
        self._slow: dict[PacketQueue, None] = {}  # where packets have to wait
        self._read_on: asyncio.TimerHandle | None = None
        self._holds = Holds(loop, self._drop, self._drain)
        self._held = self._holds.queues
        self._mesh: Mesh

    def start(self, context: Context) -> Mesh:
        """Make the mesh engine, with this as its output, and begin to read the TUN device."""
        self._mesh = Mesh(context)
        self._drops = context.drops
        self._broadcasts = {
            net.broadcast_address.packed
            for net in (interface.network for interface in context.local.interfaces)
            if isinstance(net, IPv4Network) and net.prefixlen < 31
        }
        self.resume()
        return self._mesh

    def use(
        self,
        link: Link,
        mesh: Mesh,
        lanes: Mapping[bytes, object] | None = None,
        full: Collection[object] = (),
    ) -> None:
        """Send by another link, and in another mesh or several, from now on.

        lanes: where there are several networks, by own address what names the link that is alone in its
        network. full: which links take no more, by these names; None: that of the only network.
        """
        before, lanes = set(self._lanes.values()), lanes or {}
        self._link, self._mesh, self._lanes = link, mesh, lanes
        now = self._now()
        for queue in (self._queue, *self._queues.values()):
            # A flow is of a network, which may have ended.
            batch, queue.flow, queue.batch = queue.batch, None, bytearray()
            self._push(queue, memoryview(batch), now)
        left = [self._queues.pop(lane) for lane in before.difference(lanes.values())]
        for lane in set(lanes.values()) - before:
            self.opened(lane)
        if any(left):
            self._wait(self._queue)
        for lane in (*before, None):
            self._holds.forget(lane)
        for lane in (*set(lanes.values()), None):
            (self.pause if lane in full else self.resume)(lane)
        for queue in left:
            queue.open, queue.slow_until = True, now
            self._slow.pop(queue, None)
            self._drain(queue, now)  # to the queues that there are now
        self._arm()

    def arm(self) -> None:
        """Somebody else than this has called the mesh."""
        self._arm()

    def stop(self) -> None:
        """Read and tick no more."""
        self._stopped = True
        self._leave()
        for timer in (self._timer, self._read_on):
            if timer is not None:
                timer.cancel()
        self._holds.stop()

    @property
    def drops(self) -> Counter[str]:
        """Dropped packets and messages by reason."""
        return self._drops

    def opened(self, via: object) -> None:
        """There is this link, beside others (None: alone)."""
        if via is not None:
            self._queues[via] = PacketQueue(self._drop)

    def closed(self, via: object) -> None:
        """It is there no more."""
        self._holds.forget(via)
        queue = self._queues.pop(via, None)
        if queue is not None:
            self._slow.pop(queue, None)
            if queue:
                self._drops["no_relay"] += len(queue)

    def pause(self, via: object = None) -> None:
        """The link takes no more: if it is alone, leave packets in the kernel's queue, for a moment."""
        queue = self._queue if via is None else self._queues.get(via)
        if queue is None:
            return
        queue.open = False
        queue.blocked_at = self._now()
        if via is not None:
            self._wait(queue)
        elif not queue.waits:
            self._leave()
            if self._read_on is None and not self._stopped:
                self._read_on = self._loop.call_at(queue.blocked_at + READ_ON, self._check_blocked)

    def resume(self, via: object = None) -> None:
        """The link takes more."""
        queue = self._queue if via is None else self._queues.get(via)
        if queue is None:
            return
        queue.open = True
        if queue.waits:
            now = self._now()
            if now - queue.blocked_at >= READ_ON:
                queue.slow_until = now + SLOW_FOR
            self._drain(queue, now)
            self._arm()
        if self._held:
            self._holds.drain()
        if via is None:
            self._read()

    def hold(self, address: bytes, via: object = None) -> None:
        """A relay has much waiting for this address."""
        link = self._queue if via is None else self._queues.get(via)
        if link is not None:
            self._holds.hold(address, via, link)

    def release(self, address: bytes, via: object = None) -> None:
        """It has little any more."""
        self._holds.release(address, via)
        self._arm()

    def _wait(self, queue: PacketQueue) -> None:
        queue.waits = True
        self._slow[queue] = None

    def _read(self) -> None:
        if not self._reading and not self._stopped:
            self._reading = True
            self._loop.add_reader(self._tun.fileno(), self._on_tun)

    def _leave(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._tun.fileno())

    def _check_blocked(self) -> None:
        """Some time after the only link has stopped taking more, then or since."""
        queue, self._read_on = self._queue, None
        if queue.open:
            return
        now = self._now()
        if now < (due := queue.blocked_at + (READ_ON if queue.rate < FAST else STALL)):
            self._read_on = self._loop.call_at(due, self._check_blocked)
        else:
            self._wait(queue)
            self._read()

    def _drop(self, reason: str) -> None:
        self._drops[reason] += 1

    # -- TUN → relay

    def _on_tun(self) -> None:
        """Read all that waits, and send it as one message for each flow.

        plain[:at] holds the records of `flow`, in place as they were read; `_stashes` gathers those of other
        flows, by a copy.
        """
        now = self._now()
        tun, mesh, plain = self._tun, self._mesh, self._window
        most = self._queue.most
        full = FULL if most > FULL else most
        several, lanes = self._queues, self._lanes
        flow: Flow | None = None
        at = 0
        try:
            for _ in range(MAX_READS):
                if not self._reading:
                    break  # the link takes no more
                start = at + _HEADER
                size = tun.read_into(plain[start:])
                if not size:
                    break
                end = start + size
                kind = offload.from_tun(plain[start:end])
                if kind == record.PACKET:
                    end -= _VNET
                    plain[start:end] = plain[start + _VNET : end + _VNET]
                    key = ip.flow_key(plain, start, end)
                else:
                    key = ip.flow_key(plain, start + _VNET, end)
                    if kind == offload.KIND_SPLIT:
                        size = _WINDOW  # too much for one piece, however small it is
                to = mesh.flow(key) if key else None
                if to is None:
                    self._no_flow(kind, key, plain[start:end], now)
                    continue
                if several and to.peer is not None:
                    via = to.peer.via
                    most = several.get(lanes.get(to.source) if via is None else via, self._queue).most
                    full = FULL if most > FULL else most
                if size > most and kind != record.PACKET and plain[start + 1]:
                    if flow is not None:
                        start, end = self._send_before(flow, at, start, end, now)
                    flow, at = None, 0
                    self._split(to, plain[start:end], most, now)
                    continue
                if to is not flow:
                    if flow is not None and end - start < BIG:
                        self._stash(to, kind, plain[start:end], now)
                        continue
                    if flow is not None:
                        start, end = self._send_before(flow, at, start, end, now)
                        at = 0
                    if self._stashes:
                        self._send_stash(to, now)  # what came first goes first
                    flow = to
                elif most < MAX_RECORD and self._goes_alone(plain, at, kind, end):
                    self._stash(to, kind, plain[start:end], now)
                    self._send_stash(to, now)
                    continue
                elif end > _ROOM and end > self._room(flow):
                    start, end = self._send_before(flow, at, start, end, now)
                    at = 0
                record.header.pack_into(plain, at, kind << 24 | (end - start))
                at = end
                self.packets_out += 1
                if at >= full:
                    if end - start >= BIG and full == FULL and _ROOM < self._room(flow) >= at + REST:
                        continue
                    self._send(flow, plain[: at + _PADDING], at, now)
                    flow, at = None, 0
        except OffloadError:
            self._drops["bad_offload"] += 1
        except TunError as error:
            self.stop()
            self.event("tun_lost", error=error)
        if flow is not None:
            self._send(flow, plain[: at + _PADDING], at, now)
        for to in list(self._stashes):
            self._send_stash(to, now)
        if self._slow:
            for queue in list(self._slow):
                self._drain(queue, now)
        self._arm()

    @staticmethod
    def _goes_alone(plain: memoryview, at: int, kind: int, end: int) -> bool:
        """Whether a small packet is not to wait on a slow line, where that is, with the bulk before it.

        The records plain[:at] are a batch; of its own connection there must be none, which it would overtake.
        """
        start = at + _HEADER
        if end - start >= LONE or at <= BULK:
            return False
        own = ip.connection_key(plain, start + (_VNET if kind == record.OFFLOAD else 0))
        begin = 0
        while begin < at:
            (word,) = record.header.unpack_from(plain, begin)
            begin += _HEADER
            if ip.connection_key(plain, begin + (_VNET if word >> 24 == record.OFFLOAD else 0)) == own:
                return False
            begin += word & 0xFFFFFF
        return True

    def _send_before(self, flow: Flow, at: int, start: int, end: int, now: float) -> tuple[int, int]:
        """Send plain[:at] while a packet has been read behind it, which is moved to the front: where to."""
        plain = self._window
        behind = bytes(plain[at : at + _PADDING])  # where the padding goes
        self._send(flow, plain[: at + _PADDING], at, now)
        plain[at : at + _PADDING] = behind
        plain[_HEADER : _HEADER + end - start] = plain[start:end]
        return _HEADER, _HEADER + end - start

    def _send(
        self, flow: Flow, plain: memoryview, size: int, now: float, waited: PacketQueue | None = None
    ) -> None:
        """Seal and send plain[:size], which has room for padding behind it, or let it wait for its link.

        waited: where it has waited.
        """
        session = self._mesh.session(flow, now)
        if session is None or not self._link.ready:
            self._cannot_send(flow, session is None, plain[:size], now)
            return
        via, lane = session.via, self._lane(session)
        queue = self._queues.get(lane, self._queue)
        if self._held and waited is None and (held := self._held.get((flow.destination, lane))) is not None:
            self._hold_back(held, flow, plain[:size], now)
            return
        if queue.waits and not (waited is queue and queue.open):
            self._push(queue, plain[:size], now)
            return
        padding = record.padding(size)
        plain[size : size + len(padding)] = padding
        size += len(padding)
        data = self._frame
        data[: frame.HEADER_SIZE] = flow.header
        sealed = session.sealer.seal_into(plain[:size], data[frame.HEADER_SIZE :])
        self._link.send_frame(data[: frame.HEADER_SIZE + sealed], via)
        self._mesh.sent(session, size, now)
        queue.sent(size, now)

    def _lane(self, session: Session) -> object:
        """What names the link to a peer; None: it is alone."""
        return session.via if session.via is not None or not self._lanes else self._lanes.get(session.local)

    def _room(self, flow: Flow) -> int:
        """Bytes of the records that one message to a peer may have at the moment."""
        session = flow.peer.sending if flow.peer is not None else None
        if session is None:
            return _ROOM
        queue = self._queues.get(self._lane(session), self._queue)
        takes = min(session.info.max_plaintext, self._link.max_frame - _SEALED)
        return max(_ROOM, min(takes, queue.message) - _PADDING)

    def _stash(self, flow: Flow, kind: int, body: memoryview | bytes, now: float) -> None:
        stash = self._stashes.get(flow)
        if stash is None:
            stash = self._stashes[flow] = bytearray()
        elif record.padded_size(len(stash) + _HEADER + len(body)) > record.MAX_PLAINTEXT:
            self._send_stash(flow, now)
            stash = self._stashes[flow] = bytearray()
        stash += record.header.pack(kind << 24 | len(body))
        stash += body
        self.packets_out += 1

    def _send_stash(self, flow: Flow, now: float) -> None:
        stash = self._stashes.pop(flow, None)
        if stash:
            size = len(stash)
            stash += bytes(_PADDING)
            self._send(flow, memoryview(stash), size, now)

    def _split(self, flow: Flow, whole: memoryview, most: int, now: float) -> None:
        """A packet that no peer would take as it is (more than 128 segments), or a large one: its pieces."""
        for kind, body in offload.split(whole, most):
            self._stash(flow, kind, body, now)
            if most < MAX_RECORD:
                self._send_stash(flow, now)

    # -- queue → relay

    def _push(self, queue: PacketQueue, plain: memoryview, now: float) -> None:
        """Let packets wait for a link."""
        for kind, start, end in record.split(plain, len(plain)):
            self.packets_out -= 1
            try:
                queue.push(kind, plain[start:end], now)
            except OffloadError:
                self._drops["bad_offload"] += 1

    def _hold_back(self, queue: PacketQueue, flow: Flow, plain: memoryview, now: float) -> None:
        """Let packets wait for a relay to have less for them, small ones only behind those of their own."""
        ahead = bytearray()
        for kind, start, end in record.split(plain, len(plain)):
            body = plain[start:end]
            if len(body) <= BULK and queue.may_pass(body, kind):
                ahead += record.header.pack(kind << 24 | len(body))
                ahead += body
            else:
                self._push(queue, plain[start - _HEADER : end], now)
        self._holds.bound()
        if ahead:
            size = len(ahead)
            ahead += bytes(_PADDING)
            self._send(flow, memoryview(ahead), size, now, queue)

    def _drain(self, queue: PacketQueue, now: float, most: float = inf) -> None:
        """Send from a queue until the link takes no more, as messages that take it a few milliseconds.

        most: bytes, and a packet.
        """
        while most > 0 and queue.passable and (packet := queue.pop(now)) is not None:
            key, kind, whole = packet
            size = len(whole) - _PADDING
            most -= size
            flow = self._mesh.flow(key)
            if flow is None:
                self._no_flow(kind, key, whole[_HEADER:size], now)
                continue
            room = queue.message if queue.message <= FULL else min(queue.message, self._room(flow))
            if queue.batch and (flow is not queue.flow or len(queue.batch) + size > room):
                self._send_batch(queue, now)
            self.packets_out += 1
            if size >= (room if room <= FULL else room - BIG) and queue.passable:
                self._send(flow, memoryview(whole), size, now, queue)
            else:
                queue.flow = flow
                queue.batch += memoryview(whole)[:size]
        if queue.passable and queue.batch:
            self._send_batch(queue, now)
        if queue.link is None and queue.open and (now >= queue.slow_until or queue.rate >= FAST):
            queue.waits = False
            self._slow.pop(queue, None)

    def _send_batch(self, queue: PacketQueue, now: float) -> None:
        flow, batch = queue.flow, queue.batch
        assert flow is not None
        queue.flow, queue.batch = None, bytearray()
        size = len(batch)
        batch += bytes(_PADDING)
        self._send(flow, memoryview(batch), size, now, queue)

    def _cannot_send(self, flow: Flow, waiting: bool, plain: memoryview, now: float) -> None:
        """There is no session yet (waiting), or no relay: keep the packets, or say that they cannot go."""
        link = self._link
        late = not link.ready and now - link.since > LINK_GRACE
        for kind, start, end in record.split(plain, len(plain)):
            body = plain[start:end]
            if waiting and not late:
                if self._mesh.enqueue(flow, kind, bytes(body), now):
                    continue
            else:
                self._drops["no_relay"] += 1
            self.packets_out -= 1
            if waiting or late:
                self._tell(kind, body, ip.Unreachable.HELD_BACK, now)

    def _no_flow(self, kind: int, key: bytes, body: ip.Bytes, now: float) -> None:
        target = key[len(key) // 2 :]
        if not key:
            self._drops["bad_packet"] += 1
        elif ip.is_unroutable(target) or target in self._broadcasts:
            self._drops["multicast"] += 1  # what the kernel sends unasked; an answer would help nobody
        elif not self._mesh.may_send(key[: len(key) // 2]):
            self._drops["foreign_own_source"] += 1
        else:
            self._drops["no_route"] += 1
            self._tell(kind, body, ip.Unreachable.NO_ROUTE, now)

    def _tell(self, kind: int, body: ip.Bytes, why: ip.Unreachable, now: float) -> None:
        """Give the sender of a packet an ICMP error, so that its program fails at once instead of hanging."""
        error = ip.unreachable(body if kind == record.PACKET else body[_VNET:], why)
        if error is not None and self._errors.take(now):
            self._tun.write_packet(error)

    # -- relay → TUN

    def on_frame(self, data: memoryview, via: object = None) -> None:
        """One data frame from the relay. via: the connection, where there are several."""
        if len(data) < frame.MIN_FRAME or data[0] != frame.DATA:
            self._drops["bad_frame"] += 1
            return
        self._mesh.receive(bytes(data[17:33]), bytes(data[1:17]), data[33:], self._now(), via)
        if self._reading and len(data) < BIG:
            self._on_tun()  # the host's answer is often there already: it goes a turn of the loop earlier
        else:
            self._arm()

    def joined(self, via: object = None) -> None:
        """The link has become ready, or one of several has."""
        self.opened(via)
        self._mesh.joined(self._now(), via)
        self._arm()

    def lost(self, via: object = None) -> None:
        """The link is not ready any more, or one of several is not."""
        if via is not None:
            self._mesh.lost(via, self._now())
            self.closed(via)
            self._arm()

    def draining(self) -> None:
        """The relay leaves in a moment; with a single one there is no other way meanwhile."""

    def gone(self, address: bytes, via: object = None) -> None:
        """The relay has nobody at this address."""
        self._mesh.gone(address, self._now(), via)
        self._arm()

    def refused(self, addresses: set[bytes], via: object = None) -> None:
        """The relay gives us all own addresses but these."""
        self._mesh.refused(addresses, via)

    # -- the mesh's Output

    def send(self, destination: bytes, source: bytes, message: bytes, via: object = None) -> None:
        """See mesh.context.Output."""
        if self._link.ready:
            self._link.send_frame(frame.pack(destination, source, message), via)

    def deliver(self, kind: int, buffer: memoryview, start: int, end: int, packets: int = 1) -> None:
        """See mesh.context.Output."""
        if kind == record.PACKET:
            start -= _VNET
            buffer[start : start + _VNET] = offload.PLAIN
        else:
            try:
                offload.sanitize(buffer[start:end])
            except OffloadError:
                self._drops["bad_offload"] += 1
                return
        if self._tun.write(buffer[start:end]):
            self.packets_in += packets
        else:
            self._drops["tun_refused"] += packets

    def unreachable(self, kind: int, body: bytes) -> None:
        """See mesh.context.Output."""
        self._tell(kind, body, ip.Unreachable.HELD_BACK, self._now())

    event: Callable[..., None]

    # -- time

    def _arm(self) -> None:
        """Have `_tick` called when the mesh wants it; cheap when nothing has changed."""
        due = self._mesh.next_deadline
        if self._timer is not None:
            if due == self._due:
                return
            self._timer.cancel()
        self._due = due
        self._timer = None if due is None or self._stopped else self._loop.call_at(due, self._tick)

    def _tick(self) -> None:
        self._timer = None
        try:
            self._mesh.tick(self._now())
        finally:
            self._arm()  # also after a bug: the other timers must not stop with one
