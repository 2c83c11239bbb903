"""The connection to the relay: dial, join, watch, and dial again after any loss (docs/protocol.md, 3)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from shadowmesh import __version__
from shadowmesh.config.secret import ApiKey
from shadowmesh.crypto.join import sign_join
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.errors import ControlError
from shadowmesh.net.client import ConnectFailed, connect
from shadowmesh.net.websocket import WebSocket
from shadowmesh.wire import control, frame

AGENT = f"shadowmesh/{__version__}"
CONNECT_SECONDS = 10.0
JOIN_SECONDS = 10.0
SWEEP = 0.25  # seconds between looks at a connection's silence
ASK_AFTER = 1.0  # seconds of hearing nothing after having sent: ping
DEAD_AFTER = 2.0  # seconds without an answer to that, or 4 round trips if they are longer
DEAD_ROUND_TRIPS = 4
KEEPALIVE_GRACE = 5.0
MAX_WAITING = 1 << 20  # bytes; what is sent while more than this wait for the socket is dropped
REASK_ADDRESSES = (4.0, 6.0)  # seconds after a refusal
STABLE_AFTER = 5.0  # a connection that lasted this long starts the back-off anew
MAX_RETRY_AFTER = 60.0  # seconds that an HTTP answer may keep us waiting, beside the back-off
GOODBYE_SECONDS = 0.5  # at the end, for what was sent last to reach the relay

# First and longest wait, doubling in between, by what ended the last connection.
_USUAL = (0.2, 10.0)
_REFUSED = (30.0, 600.0)
_REFUSED_CODES = {control.CLOSE_JOIN_REFUSED, control.CLOSE_PROTOCOL, control.CLOSE_WITHDRAWN}
UNAUTHORIZED = 401
_UNKNOWN_KEY = (5.0, 600.0)  # the relay sees a new key within seconds
_REPLACED = (30.0, 60.0)


class Backoff:
    """How long to wait before the next try, with full jitter: clients of a lost relay must not be a crowd."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._failures = self._refusals = 0

    def reset(self) -> None:
        """The last connection was a good one."""
        self._failures = self._refusals = 0

    def next(self, code: int | None) -> float:
        """Seconds to wait after a connection that ended with this close code (None: no close frame), or that
        was answered with this HTTP status.
        """
        if code == control.CLOSE_REPLACED:
            return self._uniform(*_REPLACED)
        if code in _REFUSED_CODES or code == UNAUTHORIZED:
            ceiling = _doubled(*(_UNKNOWN_KEY if code == UNAUTHORIZED else _REFUSED), self._refusals)
            self._refusals += 1
            # A refusal is not a crowd: it waits at least half, or it would come back at once.
            return self._uniform(ceiling / 2, ceiling)
        ceiling = _doubled(*_USUAL, self._failures)
        self._failures += 1
        return self._uniform(0.0, ceiling)


class Listener(Protocol):
    """Who uses the link."""

    def on_frame(self, data: memoryview) -> None:
        """One data frame; the view is valid during the call only."""

    def joined(self) -> None:
        """Frames can be sent from now on."""

    def gone(self, address: bytes) -> None:
        """The relay has nobody at this address."""

    def refused(self, addresses: set[bytes]) -> None:
        """The relay gives us all own addresses but these."""

    def pause(self) -> None:
        """The socket takes no more for now."""

    def resume(self) -> None:
        """The socket takes more."""


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
    called with a name and facts for what a person wants to know. state: "connecting", "joining", "connected"
    or "waiting"; reason: why the last connection ended, in words.
    """

    def __init__(
        self,
        url: str,
        host: str,
        identity: Identity,
        peer_id: str,
        events: Callable[..., None],
        api_key: ApiKey | None = None,
    ) -> None:
        self._url = f"{url}?peer_id={peer_id}&shard={identity.network.network_id[0]:02x}"
        self.url = url
        self._host = host
        self._identity = identity
        self._event = events
        self._api_key = api_key
        self._loop = asyncio.get_running_loop()
        self._backoff = Backoff(random.uniform)
        self._ws: _Connection | None = None
        self.listener: Listener
        self.ready = False
        self.state = "connecting"
        self.since = self._loop.time()
        self.reason = ""
        self.connects = 0
        self.relay: control.Challenge | None = None
        self.remote = ""
        self.refused: dict[bytes, str] = {}
        self.dropped = 0  # frames given up because the relay did not read
        self.send_frame: Callable[[memoryview | bytes], None] = _drop

    @property
    def rtt(self) -> float | None:
        """Seconds of the last ping to the relay and back."""
        return self._ws.rtt if self._ws is not None else None

    async def run(self) -> None:
        """Connect again and again until cancelled; then close."""
        try:
            while True:
                wait = await self._once()
                self._become("waiting")
                await asyncio.sleep(wait)
        finally:
            ws = self._ws
            if ws is not None:
                ws.close(1000, "going away")
                with suppress(TimeoutError):
                    async with asyncio.timeout(GOODBYE_SECONDS):
                        await ws.lasted()
                ws.abort()

    async def _once(self) -> float:
        """One connection, from dialling to its end. Returns the seconds to wait before the next."""
        self._become("connecting")
        ws = _Connection(self, self._identity, self._host)
        try:
            await connect(
                self._url,
                ws,
                max_frame=frame.MAX_FRAME,
                subprotocol=control.SUBPROTOCOL,
                headers=self._headers(),
                timeout=CONNECT_SECONDS,
            )
        except ConnectFailed as failure:
            reason = failure.reason
            if failure.status == UNAUTHORIZED:
                reason = _unauthorized(reason, asked=self._api_key is None)
            if reason != self.reason:
                self._event("relay_unreachable", relay=self.url, reason=reason)
            self.reason = reason
            return min(failure.retry_after or 0.0, MAX_RETRY_AFTER) + self._backoff.next(failure.status)
        code, self.reason = await ws.lasted()
        wait = ws.drain + self._backoff.next(code)
        self._event("relay_lost", relay=self.url, code=code, reason=self.reason, retry_in=round(wait, 1))
        return wait

    def _headers(self) -> dict[str, str]:
        headers = {control.REJOIN_HEADER: "1"} if self.connects else {}
        if self._api_key is not None:
            headers["Authorization"] = f"Bearer {self._api_key.reveal()}"
        return headers

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
        if self.ready and self._loop.time() - self.since >= STABLE_AFTER:
            self._backoff.reset()
        self._ws = None
        self.ready = False
        self.send_frame = _drop
        self.refused.clear()
        self._become("waiting")

    def on_joined(self, ws: _Connection, joined: control.Joined) -> None:
        """The relay accepted the join."""
        self.relay = ws.challenge
        self.remote = joined.remote
        self.connects += 1
        self.ready = True
        self.reason = ""
        self._become("connected")
        self.send_frame = ws.send_data
        self._event("relay_joined", relay=self.url, name=ws.server_name, addresses=len(joined.held))
        self.listener.joined()

    def on_refused(self, refused: tuple[control.Refused, ...]) -> None:
        """Those of our addresses that the relay does not give us; they are asked for again."""
        for each in refused:
            if self.refused.get(each.address) != each.code:
                self._event("address_refused", address=each.address, code=each.code)
        now_refused = {each.address: each.code for each in refused}
        for address in self.refused.keys() - now_refused.keys():
            self._event("address_granted", address=address)
        self.refused = now_refused
        self.listener.refused(set(now_refused))

    def on_problem(self, problem: control.Problem) -> None:
        """The relay complains."""
        if problem.code == "address_in_use":
            self._event("address_contested", address=problem.detail)
        else:
            self._event("relay_problem", code=problem.code, detail=problem.detail)


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
        self._blocked: tuple[float, int] | None = (
            None  # since when the socket takes no more, at which `_reached`
        )
        self._since = self._last_heard = self._loop.time()
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._reask_timer: asyncio.TimerHandle | None = None
        self.challenge: control.Challenge | None = None
        self.drain = 0.0
        """Seconds that the relay wants us to stay away."""

    @property
    def server_name(self) -> str:
        return self.challenge.server_name if self.challenge is not None else ""

    async def lasted(self) -> tuple[int | None, str]:
        """Wait for the end: (close code, reason in words)."""
        return await asyncio.shield(self._ended)

    def send_data(self, data: memoryview | bytes) -> None:
        self._sent = True
        # The TUN device is not read any more then, but handshakes and keepalives go on.
        if self._blocked is not None and self.write_buffer_size() > MAX_WAITING:
            self._link.dropped += 1
        else:
            self.send_binary(data)

    # -- hooks of WebSocket

    def on_open(self) -> None:
        self.set_write_limits(0, 0)  # packets wait in the kernel's queue for the device, not here
        self._since = self._last_heard = self._loop.time()
        self._sweep_timer = self._loop.call_later(SWEEP, self._sweep)
        self._link.on_open(self)

    def on_binary(self, data: memoryview) -> None:
        if self._joined:
            self._link.listener.on_frame(data)

    def on_text(self, text: str) -> None:
        try:
            message = control.decode_from_relay(text)
        except ControlError as error:
            self._fail(f"the relay breaks the protocol: {error.what}")
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
            case control.Problem():
                self._link.on_problem(message)
            case control.Drain():
                self.drain = message.reconnect_after_ms / 1000
            case None:
                pass
            case _:
                self._fail("the relay breaks the protocol: a message out of order")

    def on_closed(self, code: int | None, reason: str) -> None:
        for timer in (self._sweep_timer, self._reask_timer):
            if timer is not None:
                timer.cancel()
        self._link.on_lost()
        self._ended.set_result((code, self._why or _in_words(code, reason)))
        if self._joined:
            self._link.listener.resume()  # what is read now is refused in words instead of piling up

    def pause_writing(self) -> None:
        self._blocked = self._loop.time(), self._acknowledged()
        if self._joined:
            self._link.listener.pause()

    def resume_writing(self) -> None:
        self._blocked = None
        if self._joined:
            self._link.listener.resume()

    # -- the rest

    def _join(self, challenge: control.Challenge) -> None:
        if challenge.version != control.VERSION:
            self._fail("the relay speaks another version of the protocol")
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
        if self.heard:
            self._waiting = self._sent  # which of the two came first is not known
            self._asked = None
            self._last_heard = now
        elif self._sent:
            self._waiting = True
        self.heard = self._sent = False
        if not self._joined and now - self._since >= JOIN_SECONDS:
            asked = "the join" if self.challenge else "with a challenge"
            self._fail(f"the relay does not answer {asked}")
        elif self._joined and self._is_dead(now):
            self._fail("the relay does not answer any more")
        elif self._joined and self._is_stuck(now):
            self._fail("the relay takes no data")
        else:
            self._sweep_timer = self._loop.call_later(SWEEP, self._sweep)

    def _is_dead(self, now: float) -> bool:
        """Ping a relay that has been silent for too long; whether it leaves that unanswered for too long."""
        assert self.challenge is not None
        keepalive = self.challenge.keepalive_s
        sending = self._waiting or self.write_buffer_size() > 0  # a full socket stops us from sending more
        if self._asked is None:
            if now - self._last_heard >= (ASK_AFTER if sending else keepalive):
                self._asked = now
                self.ping()
                self._reached, self._target = self.delivered() or (0, 0)
            return False
        reached = self._acknowledged()
        if self._reached < reached < self._target:
            # The ping still waits behind what was sent before it, and that gets through: a slow uplink.
            self._reached = reached
            self._asked = now
        patience = keepalive + KEEPALIVE_GRACE
        if sending and self.rtt is not None:
            patience = min(patience, max(DEAD_AFTER, DEAD_ROUND_TRIPS * self.rtt))
        return now - self._asked >= patience

    def _is_stuck(self, now: float) -> bool:
        """Whether the relay has not read anything for as long as silence would be borne, whatever it says."""
        if self._blocked is None:
            return False
        since, reached = self._blocked
        if self._acknowledged() > reached:
            self._blocked = now, self._acknowledged()
            return False
        assert self.challenge is not None
        return now - since >= 2 * self.challenge.keepalive_s + KEEPALIVE_GRACE

    def _acknowledged(self) -> int:
        """Bytes that the relay's TCP has acknowledged; 0 where the system does not tell."""
        return (self.delivered() or (0, 0))[0]

    def _fail(self, why: str) -> None:
        self._why = why
        self.abort()


def _doubled(first: float, longest: float, times: int) -> float:
    return min(longest, first * 2.0 ** min(times, 16))


def _drop(data: memoryview | bytes) -> None:
    """What sends frames while there is no relay."""


def _unauthorized(reason: str, *, asked: bool) -> str:
    """What HTTP 401 means for us; reason: with the relay's own words behind the colon."""
    if asked:
        return "the relay asks for an API key: write it as relay.api_key"
    _, _, why = reason.partition(": ")
    return f"the relay refuses our API key: {why or reason}"


def _in_words(code: int | None, reason: str) -> str:
    words = {
        None: "the connection was lost",
        control.CLOSE_REPLACED: "duplicate_device: another process uses this device's key",
        control.CLOSE_JOIN_REFUSED: "the relay refused the join",
        control.CLOSE_JOIN_TIMEOUT: "the relay gave up waiting for the join",
        control.CLOSE_WITHDRAWN: "the relay withdrew our access",
        1012: "the relay stops or restarts",
        1013: "the relay has no place for us",
    }.get(code, f"the relay closed the connection ({code})")
    return (
        f"{words}: {control.printable(reason, 123)}" if reason not in ("", words) and code != 1012 else words
    )
