"""The mesh engine: who is where, what may be sent to whom, and what may come in from whom.

Bytes and `now` (monotonic seconds) go in; messages, packets and events come out through `Output`, and
`next_deadline` says when `tick` is due. The hot path is `session` (sending) and `receive` (sealed).
"""

from __future__ import annotations

from hashlib import sha256

from shadowmesh.crypto.session import OVERHEAD
from shadowmesh.errors import MessageError, SealedError
from shadowmesh.mesh.context import Context, Local
from shadowmesh.mesh.handshake import FINISH_AGAIN, Handshakes, Record
from shadowmesh.mesh.lru import Lru
from shadowmesh.mesh.paths import SUSPECT_AFTER, Paths
from shadowmesh.mesh.peer import (
    MAX_SESSIONS,
    REKEY_AFTER,
    REKEY_AFTER_MESSAGES,
    REKEY_WHEN_RECEIVING,
    Flow,
    Peer,
    Session,
)
from shadowmesh.mesh.routes import MAX_FLOWS, Routes, within
from shadowmesh.mesh.trust import Verdict
from shadowmesh.wire import ip, message, offload, record
from shadowmesh.wire.coalesce import MIN_COUNT, coalesce
from shadowmesh.wire.record import Bye, Conflict, Info, Probe

KEEPALIVE_AFTER = 10.0  # seconds since a packet came and nothing was sent
HELLO_AFTER = 15.0  # seconds since a packet was sent and nothing was heard
CONFLICT_AFTER = 30.0  # seconds of silence after which another device may take an IP over
HOLD_BACK = (0.5, 1.0, 2.0)  # seconds for which an absent address is left alone, growing
FINISH_ANSWER_EVERY = 1.0
CONFIRM_WITHIN = 5.0  # seconds after which a session whose finish seems lost no longer stops the next rekey
MAX_PEERS = 4096
MAX_REMEMBERED = 4096
MAX_SOURCES = 2 * record.MAX_IPS  # relay addresses remembered for one session

_HEADROOM = 16  # in front of the plaintext: `deliver` may write a virtio_net_hdr before the first body


class Mesh:
    """One device's part in one network. All methods are called by one thread."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self.peers: dict[bytes, Peer] = {}  # by static key
        self.handshakes = Handshakes(context, self)
        self.paths = Paths(context, self)
        self._routes = Routes(context)
        self.flow = self._routes.flow
        self.may_send = self._routes.may_send
        self._owners = self._routes.owners
        self._flows = self._routes.flows
        self._held: Lru[bytes, tuple[float, int]] = Lru(MAX_REMEMBERED)  # address → (until, step)
        self._own_ips = frozenset(context.local.ips)
        self._look_after = HELLO_AFTER  # seconds without an answer
        self._plain = memoryview(bytearray(_HEADROOM + record.LARGEST_PLAINTEXT))[_HEADROOM:]
        self._whole = memoryview(self._plain.obj)

    # -- time

    @property
    def next_deadline(self) -> float | None:
        """When `tick` is due, None if nothing is under way."""
        return self.context.timers.next

    def tick(self, now: float) -> None:
        """Do all that is due."""
        self.context.timers.run(now)

    # -- sending

    def session(self, flow: Flow, now: float) -> Session | None:
        """The session to seal messages of this flow in, None if they have to wait (see `enqueue`)."""
        peer = flow.peer
        if peer is None:
            return None
        session = peer.sending
        if session is None or now >= session.expires:
            return None
        if self._held and self._is_held(flow.destination, now):
            return None
        old = session.initiator and now - session.created >= REKEY_AFTER
        if old or session.sealer.counter >= REKEY_AFTER_MESSAGES:
            self._rekey(session, now)
        return session

    def sent(self, session: Session, size: int, now: float) -> None:
        """A message with packets, `size` bytes of plaintext, was sealed in this session and sent."""
        peer = session.peer
        peer.messages_out += 1
        peer.bytes_out += size
        peer.owing = 0.0
        if not peer.awaiting:
            peer.awaiting = now
            if not peer.awaiting_armed:
                peer.awaiting_armed = True
                self.context.timers.at(now + self._look_after, self._check_awaiting, peer)

    def enqueue(self, flow: Flow, kind: int, body: bytes, now: float) -> bool:
        """Keep a packet that `session` had nothing for, and ask for a session.

        False if the peer is not there at the moment: nothing is kept, the sender is to be told.
        """
        if self._is_held(flow.destination, now):
            self.context.drops["held_back"] += 1
            return False
        attempt = self.handshakes.attempt(flow.source, flow.destination, now)
        if attempt is not None:
            self.handshakes.enqueue(attempt, kind, body, now)
        return attempt is not None

    def _is_held(self, address: bytes, now: float) -> bool:
        held = self._held.get(address)
        return held is not None and now < held[0]

    def _send_records(self, session: Session, records: list[Record], now: float) -> None:
        """Seal packets that had waited, as few messages as they fit in."""
        plaintext = bytearray()
        for kind, body in [*records, (record.PAD, b"")]:
            last = kind == record.PAD
            size = record.padded_size(len(plaintext) + record.HEADER_SIZE + len(body))
            if plaintext and (last or size > record.MAX_PLAINTEXT):
                plaintext += record.padding(len(plaintext))
                self._send_sealed(session, bytes(plaintext))
                self.sent(session, len(plaintext), now)
                plaintext.clear()
            if not last:
                plaintext += record.pack(kind, body)

    def _send_sealed(
        self, session: Session, plaintext: bytes, source: bytes | None = None, via: object = None
    ) -> None:
        via = session.peer.via if via is None else via
        self.context.output.send(session.remote, source or session.local, session.sealer.seal(plaintext), via)

    def _send_json(self, session: Session, body: bytes, via: object = None) -> None:
        plaintext = record.pack(record.JSON, body)
        self._send_sealed(session, plaintext + record.padding(len(plaintext)), via=via)

    def probe(self, session: Session, number: int, via: object = None) -> None:
        """Ask a peer for an answer (the event `probe_ack`), on its path by default."""
        self._send_json(session, Probe(number, ack=False).encode(), via)

    def keep(self, session: Session, now: float) -> None:
        """Have a new session in time though no packets go to this peer: somebody asks it for answers."""
        if now - session.created >= (REKEY_AFTER if session.initiator else REKEY_WHEN_RECEIVING):
            self._rekey(session, now)

    def keepalive(self, session: Session, source: bytes | None = None) -> None:
        """Say nothing, from an own address (the handshake's by default)."""
        self._send_sealed(session, record.KEEPALIVE, source)
        session.peer.owing = 0.0

    def bye(self) -> None:
        """Tell every peer that our sessions end, and end them."""
        for session in [session for peer in self.peers.values() for session in peer.sessions]:
            self._send_json(session, Bye().encode())
            self._close(session)

    def recheck(self) -> None:
        """Part with every peer whose key is refused by the rules of trust, which have changed."""
        check = self.context.trust.check
        for peer in list(self.peers.values()):
            if any(check(overlay_ip, peer.static) is Verdict.REFUSED for overlay_ip in peer.verified):
                for session in list(peer.sessions):
                    self._close(session)

    def use(self, local: Local) -> None:
        """Route and offer other prefixes from now on; a higher `seq` is told to live peers."""
        told, self.context.local = self.context.local.seq, local
        self._flows.clear()
        for peer in self.peers.values():
            self._routes.check_offers(peer, peer.sessions[-1].info, peer.verified)
            for session in peer.sessions:
                session.accepted.clear()
                if session.confirmed and local.seq > told:
                    self._send_json(session, local.info().encode())

    def is_connected(self, peer: Peer) -> bool:
        """Whether, as far as we know, packets reach this peer."""
        session = peer.sending
        answers = peer.heard >= peer.unanswered
        return session is not None and session.confirmed and answers and session.remote not in self._held

    # -- the relay's words

    def joined(self, now: float, via: object = None) -> None:
        """The way to a relay is there (again): show live peers where we are, ask at once for others.

        via: the link, where there are several.
        """
        self._held.clear()
        if via is not None:
            self.paths.opened(via, now)
            self._look_after = SUSPECT_AFTER if self.paths.several else HELLO_AFTER
        else:
            for peer in self.peers.values():
                peer.via = None  # there may have been several before a reload
                if peer.sending is not None and now < peer.sending.expires:
                    self.keepalive(peer.sending)
        self.handshakes.again(now)

    def lost(self, via: object, now: float) -> None:
        """One of several links is not there any more."""
        self.paths.closed(via, now)
        self._look_after = SUSPECT_AFTER if self.paths.several else HELLO_AFTER

    def refused(self, addresses: set[bytes], via: object = None) -> None:
        """The relay gives us all own addresses but these; what it gives only now is shown to live peers."""
        if via is not None:
            addresses = self.paths.refused(addresses, via)
        granted = self.context.refused - addresses
        self.context.refused = addresses
        for peer in self.peers.values():
            for address in granted:
                if peer.sending is not None:
                    self.keepalive(peer.sending, address)

    def gone(self, address: bytes, now: float, via: object = None) -> None:
        """The relay has nobody at this address: a hint. Sessions stay; packets are held back for a moment.

        Of several relays, all must have said so.
        """
        if via is not None and not self.paths.gone(address, via, now):
            return
        self.handshakes.gone(address)
        if not self._is_held(address, now):
            _, step = self._held.get(address, (0.0, 0))
            self._held[address] = (now + HOLD_BACK[step], min(step + 1, len(HOLD_BACK) - 1))

    # -- receiving

    def receive(
        self, source: bytes, destination: bytes, data: memoryview, now: float, via: object = None
    ) -> None:
        """One peer message that came by relay, from one blind address to another (16 bytes each).

        via: the link that it came by, where there are several.
        """
        if data[:4] != message.SEALED:
            self.handshakes.receive(source, destination, bytes(data), now, via)
            return
        session = self.context.indices.get(bytes(data[4:8]))
        if session.__class__ is Session:
            self._on_sealed(session, source, data, now, via)
        elif session is not None:
            self.context.drops["sealed_too_early"] += 1
        elif len(data) >= OVERHEAD:
            self.handshakes.solicit(source, destination, now)
        else:
            self.context.drops["bad_sealed"] += 1

    def _on_sealed(self, session: Session, source: bytes, data: memoryview, now: float, via: object) -> None:
        drops = self.context.drops
        plain, whole = self._plain, self._whole
        if now >= session.expires:
            drops["expired"] += 1
            return
        try:
            size = session.opener.open_into(data, plain)
            records = record.split(plain, size)
        except SealedError:
            drops["bad_sealed"] += 1
            return
        except MessageError:
            drops["bad_records"] += 1
            return
        peer = session.peer
        session.heard = peer.heard = now
        if not session.confirmed:
            self._confirm(session, now)
        if source not in session.sources:
            self._new_source(session, source, now)
        if self._held:
            self._held.pop(source, None)
        accepted, output = session.accepted, self.context.output
        joined: dict[int, int] = {}
        if len(records) >= MIN_COUNT and output.coalesces:
            records, joined = coalesce(plain, records)
        counts = probing = False
        for kind, start, end in records:
            if kind == record.PACKET:
                key = ip.flow_key(plain, start, end)
            elif kind == record.OFFLOAD:
                key = ip.flow_key(plain, start + offload.HEADER_SIZE, end)
                peer.offload = True
            else:
                if kind:
                    counts = True
                    if kind == record.JSON:
                        probing = self._on_json(session, source, bytes(plain[start:end]), now, via)
                        if session not in peer.sessions:  # that was a bye
                            peer.awaiting = 0.0
                            return
                continue
            counts = True
            if key in accepted or self._accept(session, key):
                output.deliver(kind, whole, start + _HEADROOM, end + _HEADROOM, joined.get(start, 1))
        if probing:
            return  # that says nothing of the way that packets take
        peer.awaiting = 0.0
        if via is not peer.via:
            self.paths.heard(session, int.from_bytes(data[8:16], "little"), via, now)
        if counts:
            peer.messages_in += 1
            peer.bytes_in += size
            if not peer.owing:
                peer.owing = now
                if not peer.owing_armed:
                    peer.owing_armed = True
                    self.context.timers.at(now + KEEPALIVE_AFTER, self._check_owing, peer)
            if session.initiator and now - session.created >= REKEY_WHEN_RECEIVING:
                self._rekey(session, now)

    def _accept(self, session: Session, key: bytes) -> bool:
        """Cryptokey routing: is the source this peer's, and the destination ours?"""
        source, destination = key[: len(key) // 2], key[len(key) // 2 :]
        if not key:
            self.context.drops["bad_packet"] += 1
        elif source not in session.verified and not self._routes.leads_to(session.peer, source):
            self.context.drops["foreign_source"] += 1
        elif destination not in self._own_ips and not within(destination, self.context.local.advertise):
            self.context.drops["foreign_destination"] += 1
        else:
            if len(session.accepted) >= MAX_FLOWS:
                session.accepted.clear()
            session.accepted.add(key)
            return True
        return False

    def _on_json(self, session: Session, source: bytes, body: bytes, now: float, via: object) -> bool:
        """Handle a JSON record; whether it is a probe or an answer to one."""
        if not session.control.take(now):
            self.context.drops["json_rate"] += 1
            return False
        try:
            value = record.decode_json(body)
        except MessageError:
            self.context.drops["bad_records"] += 1
            return False
        match value:
            case Info():
                if value.seq >= session.info.seq:
                    session.info = value
                    self._routes.check_offers(session.peer, value, session.verified)
                    self._disown(session, session.verified.difference(value.ips))
                    session.sources.clear()
                    self._new_source(session, source, now)
            case Probe(ack=False):
                self._send_json(session, Probe(value.id, ack=True).encode(), via)
            case Probe():
                if not self.paths.answered(session.peer, value.id, via, now):
                    self.context.output.event("probe_ack", peer=session.peer, id=value.id)
            case Conflict():
                if value.ip in self._own_ips:
                    self.context.output.event("address_reported", ip=value.ip, peer=session.peer)
            case Bye():
                # What was not heard since is of a run of the peer that has ended without a word.
                for old in [s for s in session.peer.sessions if s.heard < session.created]:
                    self._close(old)
                self._close(session)
        return isinstance(value, Probe)

    # -- sessions

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
        carried: int = 0,
        now: float,
        via: object = None,
    ) -> None:
        """A handshake has verified (see `handshake.Handshaken`)."""
        peer = self.peers.get(static)
        if peer is None:
            peer = self._new_peer(static)
        session = Session(
            peer,
            initiator=initiator,
            local=local,
            remote=remote,
            local_index=indices[0],
            remote_index=indices[1],
            keys=keys,
            info=info,
            now=now,
        )
        session.finish = finish if initiator else sha256(finish).digest()
        self.context.indices[session.local_index] = session
        self.context.timers.at(session.expires, self._expire, session)
        age = now - peer.sessions[-1].created if peer.sessions else 0.0
        rekey = bool(peer.sessions) and not CONFIRM_WITHIN < age < REKEY_AFTER
        peer.sessions.append(session)
        if len(peer.sessions) > MAX_SESSIONS:
            self._close(peer.sessions[0])
        if via is not None:
            self.paths.established(session, via, now)
        peer.handshakes += 1
        peer.last_handshake = peer.heard = now
        self._held.pop(remote, None)
        self.handshakes.solicited[remote] = now
        self._new_source(session, remote, now)

        if carried:
            peer.count(carried, sent=initiator)
        if initiator:
            for wait in FINISH_AGAIN:
                self.context.timers.at(now + wait, self._finish_again, session)
            if peer.sending is None or now >= peer.sending.expires:
                self._send_in(session, records, now)
            else:
                # The other side may not have these keys yet; the session before is still good.
                self._send_records(peer.sending, records, now)
        else:
            self.keepalive(session)
            # What waits for the IP at this address is for a session that has this IP.
            self._send_in(session, self.handshakes.take_queue(local, remote, bool(session.verified)), now)
            self._show_addresses(session)
            plain = self._plain
            for kind, body in records:
                plain[: len(body)] = body
                self._deliver_early(session, kind, len(body))
            self.context.output.event("session", peer=peer, rekey=rekey)

    def _new_peer(self, static: bytes) -> Peer:
        if len(self.peers) >= MAX_PEERS:
            # Whoever holds the network key can make up devices; the one silent for longest makes room.
            for session in list(min(self.peers.values(), key=lambda peer: peer.heard).sessions):
                self._close(session)
        peer = self.peers[static] = Peer(static)
        return peer

    def _deliver_early(self, session: Session, kind: int, size: int) -> None:
        """A packet that came in the finish."""
        start = offload.HEADER_SIZE if kind == record.OFFLOAD else 0
        if kind in (record.PACKET, record.OFFLOAD):
            key = ip.flow_key(self._plain, start, size)
            if key in session.accepted or self._accept(session, key):
                self.context.output.deliver(kind, self._whole, _HEADROOM, _HEADROOM + size)

    def finish_repeated(self, data: bytes, index: bytes, now: float) -> bool:
        """Whether this is the finish that made a session, come once more; it is answered by a keepalive."""
        session = self.context.indices.get(index)
        if not isinstance(session, Session) or session.initiator or session.finish != sha256(data).digest():
            return False
        if now - session.finish_answered >= FINISH_ANSWER_EVERY:
            session.finish_answered = now
            self.keepalive(session)
        return True

    def _finish_again(self, session: Session, now: float) -> None:
        if not session.confirmed and self.context.indices.get(session.local_index) is session:
            self.context.output.send(session.remote, session.local, session.finish)

    def _send_in(self, session: Session, records: list[Record], now: float) -> None:
        session.peer.sending = session
        self._send_records(session, records, now)

    def _confirm(self, session: Session, now: float) -> None:
        """The first sealed message came: the responder has the keys."""
        session.confirmed = True
        session.finish = b""
        session.peer.sending = session
        self._show_addresses(session)
        self.context.output.event("session", peer=session.peer, rekey=len(session.peer.sessions) > 1)

    def _show_addresses(self, session: Session) -> None:
        """Show the peer our other addresses, so that their IPs enter its V."""
        for address in self.context.addresses:
            if address != session.local and address not in self.context.refused:
                self.keepalive(session, address)

    def _new_source(self, session: Session, source: bytes, now: float) -> None:
        """Something authenticated came from this relay address: the IP behind it is this session's."""
        if len(session.sources) >= MAX_SOURCES:
            session.sources.clear()
        session.sources.add(source)
        for overlay_ip in self.context.ips_at(session.info, source):
            if overlay_ip in session.verified or overlay_ip in self._own_ips:
                continue
            # A peer that says it is a host of our LAN or of the Internet must not be able to speak for it.
            if self._routes.next_hop(overlay_ip) == overlay_ip:
                self._verify(session, overlay_ip, now)

    def _verify(self, session: Session, overlay_ip: bytes, now: float) -> None:
        context, peer = self.context, session.peer
        verdict = context.trust.check(overlay_ip, peer.static)
        if verdict is Verdict.REFUSED:
            context.output.event("identity_refused", ip=overlay_ip, static=peer.static)
            return
        owner = self._owners.get(overlay_ip)
        if owner is not None and owner is not peer:
            if now - owner.heard < CONFLICT_AFTER:
                if overlay_ip not in session.contested:
                    session.contested.add(overlay_ip)
                    context.output.event("address_conflict", ip=overlay_ip, holder=owner, claimant=peer)
                    for each in filter(None, (owner.sending, peer.sending or session)):
                        self._send_json(each, Conflict(overlay_ip).encode())
                    again = owner.heard + CONFLICT_AFTER
                    context.timers.at(again, self._look_again, (session, overlay_ip))
                return
            for other in owner.sessions:
                other.verified.discard(overlay_ip)
                other.accepted.clear()
                other.sources.clear()  # so that its next message claims the IP again
        if verdict is Verdict.CHANGED:
            context.output.event("identity_changed", ip=overlay_ip, peer=peer)
        elif verdict is Verdict.NEW:
            context.output.event("identity_new", ip=overlay_ip, peer=peer)
        context.trust.remember(overlay_ip, peer.static)
        self._routes.check_offers(peer, session.info, {overlay_ip})
        session.verified.add(overlay_ip)
        self._owners[overlay_ip] = peer
        self._flows.clear()

    def _look_again(self, claim: tuple[Session, bytes], now: float) -> None:
        session, overlay_ip = claim
        session.contested.discard(overlay_ip)
        session.sources.clear()

    def _disown(self, session: Session, ips: set[bytes]) -> None:
        session.verified -= ips
        peer = session.peer
        for each in (session, *peer.sessions):
            each.accepted.clear()
        for overlay_ip in ips - peer.verified:
            if self._owners.get(overlay_ip) is peer:
                del self._owners[overlay_ip]
        self._flows.clear()

    def _close(self, session: Session) -> None:
        """Forget a session; the peer with it, if it was the last."""
        peer = session.peer
        if len(peer.sessions) == 1:
            self.context.output.event("peer_gone", peer=peer)  # while its name and IPs are known
        peer.sessions.remove(session)
        del self.context.indices[session.local_index]
        self._disown(session, set(session.verified))
        if peer.sending is session:
            usable = [s for s in peer.sessions if s.confirmed] or peer.sessions
            peer.sending = usable[-1] if usable else None
        if not peer.sessions:
            del self.peers[peer.static]

    def _expire(self, session: Session, now: float) -> None:
        if self.context.indices.get(session.local_index) is session:
            self._close(session)

    def _rekey(self, session: Session, now: float) -> None:
        newest = session.peer.sessions[-1]
        young = REKEY_AFTER if newest.confirmed else CONFIRM_WITHIN
        if newest is session or now - newest.created >= young:
            self.handshakes.attempt(session.local, session.remote, now)

    # -- silence

    def _check_awaiting(self, peer: Peer, now: float) -> None:
        """We have sent packets and heard nothing: perhaps the other side has forgotten us."""
        peer.awaiting_armed = False
        if not peer.awaiting or not peer.sessions:
            return
        due = peer.awaiting + HELLO_AFTER
        if now >= due:
            self.paths.silent(peer, peer.awaiting, now)
            peer.awaiting = 0.0
            peer.unanswered = now
            newest = peer.sessions[-1]
            self.handshakes.attempt(newest.local, newest.remote, now)
        else:
            if now >= peer.awaiting + SUSPECT_AFTER:
                self.paths.suspect(peer, now)
            peer.awaiting_armed = True
            again = now if now >= peer.awaiting + self._look_after else peer.awaiting
            self.context.timers.at(min(due, again + self._look_after), self._check_awaiting, peer)

    def _check_owing(self, peer: Peer, now: float) -> None:
        """Packets came and none went back: say that we are here."""
        peer.owing_armed = False
        if not peer.owing or peer.sending is None:
            return
        due = peer.owing + KEEPALIVE_AFTER
        if now >= due:
            self.keepalive(peer.sending)
        else:
            peer.owing_armed = True
            self.context.timers.at(due, self._check_owing, peer)
