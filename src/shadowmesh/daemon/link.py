"""The connection to the relay: dial, join, watch, and dial again after any loss (docs/protocol.md, 3)."""

from __future__ import annotations

import asyncio
import errno
import random
import socket
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

from shadowmesh import __version__
from shadowmesh.config.secret import ApiKey
from shadowmesh.crypto.join import sign_join
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.backoff import UNAUTHORIZED, Backoff, is_refusal
from shadowmesh.daemon.listener import Listener
from shadowmesh.daemon.words import another_version, in_words, unauthorized
from shadowmesh.errors import ControlError
from shadowmesh.net import READ_PER_TURN
from shadowmesh.net.client import ConnectFailed, Found, connect
from shadowmesh.net.proxy import Proxy
from shadowmesh.net.receivebuffer import ReceiveBuffer
from shadowmesh.net.sendbuffer import SendBuffer
from shadowmesh.net.websocket import WebSocket
from shadowmesh.wire import control, frame

AGENT = f"shadowmesh/{__version__}"
CONNECT_SECONDS = 10.0
JOIN_SECONDS = 10.0
SWEEP = 0.25  # seconds between looks at a connection's silence
ASK_AFTER = 0.5  # seconds of hearing nothing after having sent: ping
DEAD_AFTER = 2.0  # seconds without an answer to that, or 4 round trips if they are longer
DEAD_ROUND_TRIPS = 4
KEEPALIVE_GRACE = 5.0
TWIN_KNOWN_AFTER = 0.5  # seconds until what our own other connections say has been read, too
ASLEEP_AFTER = 1.0  # seconds by which a sweep is late when this process, or the host, was not running
MAX_WAITING = 1 << 20  # bytes; what is sent while more than this wait for the socket is dropped
REASK_ADDRESSES = (4.0, 6.0)  # seconds after a refusal
STABLE_AFTER = 5.0  # a connection that lasted this long starts the back-off anew
MAX_RETRY_AFTER = 60.0  # seconds that an HTTP answer may keep us waiting, beside the back-off
GOODBYE_SECONDS = 0.5  # at the end, for what was sent last to reach the relay
REDIAL_EVERY = 1.0  # seconds between dials that a change of the network causes


@dataclass(frozen=True)
class Identity:
    """What a join shows and proves. addresses: the blind addresses to hold, 16 bytes each."""

    network: NetworkKeys
    device: DeviceKeys
    instance: bytes
    addresses: tuple[bytes, ...]


class RelayLink:
    """Keeps one joined connection to one relay.

    url: as dialled, host: its host as the join names it; api_key: for a relay that asks for one. events:
    called with a name and facts for what a person wants to know. proxy: gives the one to go through; ca_file:
    certificates trusted beside the system's. state: "connecting", "joining", "connected", "waiting" or
    "standby" (beside another link to the same relay); reason: why the last connection ended, in words.
    pinned: the one of the name's addresses that this is the link to, "" for all of them. `Links` sets what it
    asks: choose, which of the addresses found to dial; twin, which other link has replaced this one at the
    relay, if one has; ended, told when a connection has ended or did not come about.
    """

    def __init__(
        self,
        url: str,
        host: str,
        identity: Identity,
        peer_id: str,
        events: Callable[..., None],
        api_key: ApiKey | None = None,
        *,
        proxy: Callable[[], Proxy | None] = lambda: None,
        ca_file: str | None = None,
    ) -> None:
        self._url = f"{url}?peer_id={peer_id}&shard={identity.network.network_id[0]:02x}"
        self.url = url
        self.host = host
        self._peer_id = peer_id
        self._identity = identity
        self.event = events
        self._api_key = api_key
        self._proxy = proxy
        self._ca_file = ca_file
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff(random.uniform)
        self._ws: _Connection | None = None
        self._dialling: asyncio.Task[None] | None = None
        self._dialled = -REDIAL_EVERY
        self._wake = asyncio.Event()
        self._stand_by = asyncio.Event()
        self.pinned = ""
        self.proxied = False  # the last dial: the name was the proxy's to look up
        self.instead: RelayLink | None = None  # the other link to the same relay, while that is used
        self.twin: Callable[[RelayLink], RelayLink | None] = lambda link: None
        self.choose: Callable[[RelayLink, list[Found]], list[Found]] = lambda link, found: found
        self.ended: Callable[[RelayLink], None] = lambda link: None
        self.listener: Listener
        self.last_rtt: float | None = None  # of the connection before
        self.ready = False
        self.state = "connecting"
        self.since = self._loop.time()
        self.reason = ""
        self.connects = 0
        self.relay: control.Challenge | None = None
        self.max_frame = frame.MIN_MAX_FRAME
        self.remote = ""
        self.refused: dict[bytes, str] = {}
        self.contested: dict[bytes, float] = {}  # own address → when another device last asked for it
        self.dropped = 0  # frames given up because the relay did not read
        self.send_frame: Callable[..., None] = _drop

    @property
    def rtt(self) -> float | None:
        """Seconds of the last ping to the relay and back."""
        return self._ws.rtt if self._ws is not None else None

    @property
    def links(self) -> tuple[RelayLink, ...]:
        """This one alone (see `Links`)."""
        return (self,)

    @property
    def address(self) -> str:
        """The IP address that is, or is to be, connected to; "" while it is not known."""
        if self.proxied:
            return ""
        return self._ws.remote[0] if self._ws is not None else self.pinned

    @property
    def title(self) -> str:
        """The URL, with the address where its name has several."""
        return f"{self.url} ({self.pinned})" if self.pinned else self.url

    def another(self) -> RelayLink:
        """A link to the same name."""
        return RelayLink(
            self.url,
            self.host,
            self._identity,
            self._peer_id,
            self.event,
            self._api_key,
            proxy=self._proxy,
            ca_file=self._ca_file,
        )

    async def run(self) -> None:
        """Connect again and again until cancelled; then close."""
        try:
            while True:
                wait = await self._once()
                self.ended(self)
                self._become("waiting")
                await self._pause(*wait)
        finally:
            ws = self._ws
            if ws is not None:
                ws.close(1000, "going away")
                with suppress(TimeoutError):
                    async with asyncio.timeout(GOODBYE_SECONDS):
                        await ws.lasted()
                ws.abort()

    def check(self, reason: str) -> None:
        """Something about the network has changed: is the relay still there?

        It has two seconds (or four round trips) to answer; without a connection it is dialled at once.
        """
        ws = self._ws
        if ws is None or not ws.is_local():
            self.redial(reason)
        elif self.ready:
            ws.check()

    def redial(self, reason: str) -> None:
        """Give up the connection, if there is one, and dial at once: at most once per second."""
        if self._ws is not None:
            self._backoff.reset()
            self._ws.fail(reason, hopeless=True)
        elif self._dialling is not None and self._loop.time() - self._dialled >= REDIAL_EVERY:
            self._dialling.cancel()
        self._wake.set()

    async def _pause(self, least: float, more: float) -> None:
        """Wait for `least` seconds, and for `more` unless the network changes meanwhile."""
        await asyncio.sleep(least)
        with suppress(TimeoutError):
            async with asyncio.timeout(more):
                await self._wake.wait()
                await asyncio.sleep(self._dialled + REDIAL_EVERY - self._loop.time())

    async def _once(self) -> tuple[float, float]:
        """One connection, from dialling to its end. Returns the waits before the next (see `_pause`)."""
        self._become("connecting")
        self.instead = None
        self._wake.clear()
        self._dialled = self._loop.time()
        ws = _Connection(self, self._identity, self.host)
        proxy = self._proxy()
        self.proxied = proxy is not None
        self._dialling = self._loop.create_task(
            connect(
                self._url,
                ws,
                max_frame=frame.MAX_FRAME,
                subprotocol=control.SUBPROTOCOL,
                headers=self._headers(),
                timeout=CONNECT_SECONDS,
                proxy=proxy,
                ca_file=self._ca_file,
                choose=partial(self.choose, self),
            )
        )
        try:
            await self._dialling
        except asyncio.CancelledError:
            me = asyncio.current_task()
            if me is None or me.cancelling():
                raise
            return 0.0, 0.0  # `redial`
        except ConnectFailed as failure:
            return self._failed(failure)
        finally:
            self._dialling = None
        code, self.reason = await ws.lasted()
        if code == control.CLOSE_REPLACED and await self._stood_by():
            return 0.0, 0.0
        wait = (ws.drain, 0.0) if ws.hopeless else self._waits(ws.drain, code)
        self._own_event("relay_lost", code=code, reason=self.reason, retry_in=round(sum(wait), 1))
        return wait

    async def _stood_by(self) -> bool:
        """Whether it was another of our links that has replaced this one; then until that one is lost."""
        await asyncio.sleep(TWIN_KNOWN_AFTER)
        used = self.twin(self)
        if used is None:
            return False
        self.event("relay_twin", relay=self.title, used=used.title)
        self._stand_by.clear()
        self.stand_by(used)
        self._become("standby")
        await self._stand_by.wait()
        return True

    def stand_by(self, used: RelayLink) -> None:
        """Leave the relay to another link."""
        self.instead = used
        self.reason = f"the same relay as {used.title}, which is used"

    def take_over(self) -> None:
        """Stand by no more."""
        self.instead = None
        self._stand_by.set()

    @property
    def full(self) -> bool:
        """Whether the socket takes no more."""
        return self._ws is not None and self._ws.full

    def _failed(self, failure: ConnectFailed) -> tuple[float, float]:
        reason = failure.reason
        if failure.status == UNAUTHORIZED:
            reason = unauthorized(reason, asked=self._api_key is None)
        if reason != self.reason:
            self._own_event("relay_unreachable", reason=reason)
        self.reason = reason
        return self._waits(min(failure.retry_after or 0.0, MAX_RETRY_AFTER), failure.status)

    def _waits(self, least: float, code: int | None) -> tuple[float, float]:
        """What is waited for in any case, and for how long at most unless the network changes."""
        wait = self._backoff.next(code, self._loop.time() - self.since)
        if is_refusal(code):
            return least + wait, 0.0
        return least, wait

    def _headers(self) -> dict[str, str]:
        headers = {control.REJOIN_HEADER: "1"} if self.connects else {}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.reveal()}"
        return headers

    def _own_event(self, name: str, /, **facts: object) -> None:
        self.event(name, relay=self.url, ip=self.pinned or None, **facts)

    def _become(self, state: str) -> None:
        was_ready = self.state == "connected"
        self.state = state
        if (state == "connected") != was_ready:
            self.since = self._loop.time()

    # -- called by the connection

    def on_open(self, ws: _Connection) -> None:
        """The relay can be spoken to; `connect` returns some turns of the event loop later only."""
        self._ws = ws
        self._become("joining")

    def on_lost(self) -> None:
        """The connection is gone."""
        was_ready = self.ready
        if was_ready and self._loop.time() - self.since >= STABLE_AFTER:
            self._backoff.reset()
        self.last_rtt = self.rtt
        self._ws = None
        self.ready = False
        self.send_frame = _drop
        self.refused.clear()
        self.contested.clear()
        self._become("waiting")
        if was_ready:
            self.listener.lost()

    def on_joined(self, ws: _Connection, joined: control.Joined) -> None:
        """The relay accepted the join."""
        self.relay = ws.challenge
        self.max_frame = joined.limits.max_frame
        self.remote = joined.remote
        self.connects += 1
        self.ready = True
        self.reason = ""
        self._become("connected")
        self.send_frame = ws.send_data
        self._own_event(
            "relay_joined", name=ws.challenge.server_name if ws.challenge else "", addresses=len(joined.held)
        )
        self.listener.joined()

    def on_refused(self, refused: tuple[control.Refused, ...]) -> None:
        """Those of our addresses that the relay does not give us; they are asked for again."""
        for each in refused:
            if self.refused.get(each.address) != each.code:
                self.event("address_refused", address=each.address, code=each.code)
        now_refused = {each.address: each.code for each in refused}
        for address in self.refused.keys() - now_refused.keys():
            self.event("address_granted", address=address)
        self.refused = now_refused
        self.listener.refused(set(now_refused))

    def on_problem(self, problem: control.Problem) -> None:
        """The relay complains."""
        if problem.code == "address_in_use":
            with suppress(ValueError):
                address = bytes.fromhex(problem.detail)
                if address in self._identity.addresses:
                    self.contested[address] = self._loop.time()
            self.event("address_contested", address=problem.detail)
        else:
            self.event("relay_problem", code=problem.code, detail=problem.detail)


class _Connection(WebSocket):
    """One connection: challenge → join → joined, then frames both ways; a sweep watches for silence."""

    def __init__(self, link: RelayLink, identity: Identity, host: str) -> None:
        super().__init__()
        self._link = link
        self._identity = identity
        self._host = host
        self._loop = asyncio.get_running_loop()
        self._ended: asyncio.Future[tuple[int | None, str]] = self._loop.create_future()
        self._why = ""
        self._joined = False
        self._sent = False  # a frame, since the last sweep
        self._waiting = False  # for a sign of the relay, as we have sent since it was heard last
        self._asked: float | None = None  # when a ping was sent that is not answered yet
        self._reached = self._target = 0  # bytes the relay's TCP has acknowledged, and must for that ping
        # Since when the socket takes no more, at which `_reached`.
        self._blocked: tuple[float, int] | None = None
        self._since = self._last_heard = self._swept = self._loop.time()
        self._hurry = False  # it has to answer that ping within seconds
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._reask_timer: asyncio.TimerHandle | None = None
        self.challenge: control.Challenge | None = None
        self.drain = 0.0
        """Seconds that the relay wants us to stay away."""
        self.hopeless = False
        """Given up for what has happened on this side: the relay need not be spared."""

    @property
    def full(self) -> bool:
        return self._blocked is not None

    async def lasted(self) -> tuple[int | None, str]:
        """Wait for the end: (close code, reason in words)."""
        return await asyncio.shield(self._ended)

    def send_data(self, data: memoryview | bytes, via: object = None) -> None:
        self._sent = True
        # Packets wait in the engine or the kernel then, but handshakes and keepalives go on.
        if self._blocked is not None and self.write_buffer_size() > MAX_WAITING:
            self._link.dropped += 1
        else:
            self.send_binary(data)

    # -- hooks of WebSocket

    def on_open(self) -> None:
        self.set_write_limits(0, 0)  # packets wait in the kernel's queue for the device, not here
        self._since = self._last_heard = self._swept = self._loop.time()
        self._sweep_timer = self._loop.call_later(SWEEP, self._sweep)
        self._buffer = SendBuffer(self.tcp_socket(), self._loop)
        self._receive_buffer = ReceiveBuffer(self.tcp_socket())
        self._link.on_open(self)

    def on_binary(self, data: memoryview) -> None:
        self.bulk |= len(data) > READ_PER_TURN
        if self._joined:
            self._link.listener.on_frame(data)

    def on_text(self, text: str) -> None:
        try:
            message = control.decode_from_relay(text)
        except ControlError as error:
            self.fail(f"the relay breaks the protocol: {error.what}")
            return
        match message:
            case control.Challenge() if self.challenge is None:
                self._join(message)
            case control.Joined() if self.challenge is not None and not self._joined:
                self._joined = True
                self._link.on_joined(self, message)
                self._on_refused(message.refused)
                self.ping()  # to know the round trip before it matters
            case control.AddressesResult() if self._joined:
                self._on_refused(message.refused)
            case control.Gone() if self._joined:
                self._link.listener.gone(message.address)
            case control.Pause() if self._joined:
                self._link.listener.hold(message.address)
            case control.Resume() if self._joined:
                self._link.listener.release(message.address)
            case control.Problem():
                self._link.on_problem(message)
            case control.Drain():
                self.drain = message.reconnect_after_ms / 1000
                self._link.listener.draining()
            case _ if message is not None:
                self.fail("the relay breaks the protocol: a message out of order")

    def on_closed(self, code: int | None, reason: str) -> None:
        for timer in (self._sweep_timer, self._reask_timer):
            if timer is not None:
                timer.cancel()
        self._buffer.close()
        self._link.on_lost()
        self._ended.set_result((code, self._why or in_words(code, reason)))
        if self._joined:
            self._link.listener.resume()  # what is read now is refused in words instead of piling up

    def pause_writing(self) -> None:
        self._blocked = self._loop.time(), self.acknowledged()
        self._buffer.blocked()
        if self._joined:
            self._link.listener.pause()

    def resume_writing(self) -> None:
        self._blocked = None
        self._buffer.unblocked()
        if self._joined:
            self._link.listener.resume()

    # -- the rest

    def _join(self, challenge: control.Challenge) -> None:
        if challenge.version != control.VERSION:
            self.fail(another_version(challenge.version))
            return
        self.challenge = challenge
        identity = self._identity
        claims = control.encode_claims(
            control.Claims(
                version=control.VERSION,
                network=identity.network.network_id,
                device=identity.device.device_id,
                instance=identity.instance,
                relay=self._host,
                addresses=identity.addresses,
                agent=AGENT,
            )
        )
        signatures = sign_join(
            challenge.nonce, claims, identity.network.signing_key, identity.device.signing_key
        )
        self.send_text(control.encode(control.Join(claims, *signatures)))

    def _on_refused(self, refused: tuple[control.Refused, ...]) -> None:
        """Ask again, later, for those of our addresses that were refused."""
        refused = tuple(each for each in refused if each.address in self._identity.addresses)
        self._link.on_refused(refused)
        if self._reask_timer is not None:
            self._reask_timer.cancel()
        if refused:
            message = control.encode(control.Addresses(add=tuple(each.address for each in refused)))
            wait = random.uniform(*REASK_ADDRESSES)
            self._reask_timer = self._loop.call_later(wait, self.send_text, message)

    def _sweep(self) -> None:
        """Notice a relay that has gone silent: within seconds while we send, with keepalives otherwise."""
        now = self._loop.time()
        if now - self._swept >= SWEEP + ASLEEP_AFTER:
            self._since += now - self._swept
            if self._joined:
                self.check()
        self._swept = now
        if self.heard:
            self._receive_buffer.look()
            self._waiting = self._sent  # which of the two came first is not known
            self._asked, self._hurry = None, False
            self._last_heard = now
        elif self._sent:
            self._waiting = True
        if self._sent:
            self._buffer.watch()
        self.heard = self._sent = False
        if not self._joined and now - self._since >= JOIN_SECONDS:
            asked = "the join" if self.challenge else "with a challenge"
            self.fail(f"the relay does not answer {asked}")
        elif self._joined and self._is_dead(now):
            self.fail(f"the relay does not answer any more{self.about_silence()}", hopeless=self._hurry)
        elif self._joined and self._is_stuck(now):
            self.fail("the relay takes no data")
        else:
            self._sweep_timer = self._loop.call_later(SWEEP, self._sweep)

    def _is_dead(self, now: float) -> bool:
        """Ping a relay that has been silent for too long; whether it leaves that unanswered for too long."""
        assert self.challenge is not None
        keepalive = self.challenge.keepalive_s
        sending = self._waiting or self.write_buffer_size() > 0  # a full socket stops us from sending more
        if self._asked is None:
            if now - self._last_heard >= (ASK_AFTER if sending else keepalive):
                self._ask(now)
            return False
        reached = self.acknowledged()
        if self._reached < reached < self._target:
            # The ping still waits behind what was sent before it, and that gets through: a slow uplink.
            self._reached = reached
            self._asked = now
        patience = keepalive + KEEPALIVE_GRACE
        if self._hurry or (sending and self.rtt is not None):
            patience = min(patience, max(DEAD_AFTER, DEAD_ROUND_TRIPS * (self.rtt or 0.0)))
        return now - self._asked >= patience

    def _is_stuck(self, now: float) -> bool:
        """Whether the relay has not read anything for as long as silence would be borne, whatever it says."""
        if self._blocked is None:
            return False
        since, reached = self._blocked
        if self.acknowledged() > reached:
            self._blocked = now, self.acknowledged()
            return False
        assert self.challenge is not None
        return now - since >= 2 * self.challenge.keepalive_s + KEEPALIVE_GRACE

    def acknowledged(self) -> int:
        """Bytes that the relay's TCP has acknowledged; 0 where the system does not tell."""
        return (self.delivered() or (0, 0))[0]

    def check(self) -> None:
        """Ping now, and give up without an answer within seconds."""
        if self._hurry:
            return
        self._hurry = True
        self.heard = False  # what came before this does not count
        self._ask(self._loop.time())
        if self._blocked is not None:
            self._blocked = self._loop.time(), self.acknowledged()

    def _ask(self, now: float) -> None:
        self._asked = now
        self.ping()
        self._reached, self._target = self.delivered() or (0, 0)

    def is_local(self) -> bool:
        """Whether the address that this connection is from is still one of this host's."""
        host = self.local[0].partition("%")[0]
        try:
            with socket.socket(
                socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM
            ) as probe:
                probe.bind((host, 0))
        except OSError as error:
            return error.errno != errno.EADDRNOTAVAIL
        return True

    def fail(self, why: str, *, hopeless: bool = False) -> None:
        """Cut the connection."""
        self._why, self.hopeless = why, hopeless
        self.abort()


def _drop(data: memoryview | bytes, via: object = None) -> None:
    """What sends frames while there is no relay."""
