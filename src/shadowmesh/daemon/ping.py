"""Round trips to peers by probes inside the session, so they work where ICMP is filtered.

A probe is a sealed JSON record that the other side answers at once, on the path it came by. It is sent when
somebody asks, and every so often to peers that we send packets to: an idle peer is left alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from ipaddress import ip_address
from typing import Any, NamedTuple

from shadowmesh.mesh.context import Context
from shadowmesh.mesh.lru import Lru
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Peer

ANSWER_SECONDS = 2.0  # how long an answer, or a session to ask in, is waited for
BETWEEN = 0.2  # least seconds between the probes of one ping
EVERY = 15.0  # seconds between those nobody asked for
MAX_UNDER_WAY = 256
MAX_COUNT = 20
NO_RELAY = "a connection to a relay"
NO_SESSION = "a session with this peer: is it switched on, with the same key and the same relay?"
_ID_BYTES = 6  # of a random number, so that none can be answered before it was sent


class UnknownPeer(Exception):
    """Nobody can be meant by a name or IP; `str()` says why."""


class _Probe(NamedTuple):
    peer: Peer
    sent: float
    answer: asyncio.Future[float] | None


class Pinger:
    """Sends probes and notes how long the answers take. ready: whether there is a way to a relay."""

    def __init__(
        self, context: Context, mesh: Mesh, now: Callable[[], float], ready: Callable[[], bool]
    ) -> None:
        self._context = context
        self._mesh = mesh
        self._now = now
        self._ready = ready
        self._under_way: Lru[int, _Probe] = Lru(MAX_UNDER_WAY)
        self._rtts: Lru[bytes, float] = Lru(4096)  # static key → seconds
        self._sent_before: dict[bytes, int] = {}  # static key → messages sent until the last look

    def use(self, context: Context, mesh: Mesh) -> None:
        """Look for peers there from now on."""
        self._context, self._mesh = context, mesh

    def rtt(self, peer: Peer) -> float | None:
        """Seconds to this peer and back, when it was measured last in this session."""
        return self._rtts.get(peer.static)

    def note(self, name: str, facts: Mapping[str, object]) -> None:
        """An event of the mesh has happened."""
        match name, facts:
            case "probe_ack", {"peer": Peer() as peer, "id": int(number)}:
                self._answered(peer, number)
            case "peer_gone", {"peer": Peer() as peer}:
                self._rtts.pop(peer.static, None)
                self._sent_before.pop(peer.static, None)
                for number in [number for number, probe in self._under_way.items() if probe.peer is peer]:
                    del self._under_way[number]

    def _answered(self, peer: Peer, number: int) -> None:
        probe = self._under_way.get(number)
        if probe is None or probe.peer is not peer:
            return  # nobody asked that
        del self._under_way[number]
        took = self._rtts[peer.static] = self._now() - probe.sent
        if probe.answer is not None and not probe.answer.done():
            probe.answer.set_result(took)

    async def run(self) -> None:
        """Probe peers with traffic, until cancelled."""
        while True:
            await asyncio.sleep(EVERY)
            self.look()

    def look(self) -> None:
        """Probe the peers that we have sent packets to since the last look.

        Probes themselves do not count, or two idle peers would keep each other awake for ever.
        """
        before, self._sent_before = self._sent_before, {}
        for peer in list(self._mesh.peers.values()):
            self._sent_before[peer.static] = peer.messages_out
            if peer.messages_out != before.get(peer.static, 0):
                self._probe(peer, None)

    async def ping(self, who: str, count: int = 1) -> dict[str, Any]:
        """Probe a peer by its name or overlay IP, `count` times one after the other.

        rtt_ms holds None for what was not answered in time; then waiting_for says what there was none of.
        Raises UnknownPeer if nobody in this network can have that name or IP.
        """
        address = self._address(who)
        took: list[float | None] = []
        waiting_for = ""
        peer: Peer | None = None
        for number in range(count):
            began = self._now()
            peer, rtt, waiting_for = await self._once(who, address)
            took.append(None if rtt is None else round(rtt * 1000, 2))
            if number + 1 < count:
                await asyncio.sleep(max(0.0, BETWEEN - (self._now() - began)))
        return {
            "peer": who,
            "name": peer.info.id if peer is not None and peer.info is not None else "",
            "ips": sorted(str(ip_address(ip)) for ip in peer.verified) if peer is not None else [],
            "rtt_ms": took,
            "waiting_for": waiting_for,
        }

    async def _once(self, who: str, address: bytes) -> tuple[Peer | None, float | None, str]:
        deadline = self._now() + ANSWER_SECONDS
        peer = await self._session(who, address, deadline)
        if peer is None:
            return None, None, NO_SESSION if self._ready() else NO_RELAY
        answer: asyncio.Future[float] = asyncio.get_running_loop().create_future()
        if not self._probe(peer, answer):
            return peer, None, NO_SESSION
        try:
            async with asyncio.timeout(max(0.05, deadline - self._now())):
                return peer, await answer, ""
        except TimeoutError:
            return peer, None, "an answer to the probe" if self._ready() else NO_RELAY

    async def _session(self, who: str, address: bytes, deadline: float) -> Peer | None:
        """The peer with a session, made if need be; None if that fails until the deadline."""
        asked = False
        while (peer := self.find(who)) is None:
            now = self._now()
            if now >= deadline:
                return None
            if not asked and self._ready():
                asked = True
                self._mesh.handshakes.attempt(next(iter(self._context.addresses)), address, now, retry=False)
            await asyncio.sleep(0.02)
        return peer

    def find(self, who: str) -> Peer | None:
        """The peer with this name or overlay IP, if there is a session with it."""
        ip = _ip(who)
        for peer in self._mesh.peers.values():
            if peer.sending is None or not peer.sending.confirmed:
                continue
            name = peer.info.id.lower() if peer.info is not None else ""
            if ip in peer.verified if ip is not None else name == who.lower():
                return peer
        return None

    def _address(self, who: str) -> bytes:
        ip = _ip(who)
        if ip is None:
            address = self._context.network.name_address(who)
        elif any(ip_address(ip) in interface.network for interface in self._context.local.interfaces):
            address = self._context.network.ip_address(ip)
        else:
            raise UnknownPeer(f"{who} is in none of this device's overlay networks")
        if address is None:
            raise UnknownPeer(f"{who} cannot be the name of a peer, and is no IP address")
        if address in self._context.addresses:
            raise UnknownPeer(f"{who} is this device itself")
        return address

    def _probe(self, peer: Peer, answer: asyncio.Future[float] | None) -> bool:
        if peer.sending is None:
            return False
        number = int.from_bytes(self._context.random(_ID_BYTES), "big")
        self._under_way[number] = _Probe(peer, self._now(), answer)
        self._mesh.probe(peer.sending, number)
        if answer is not None:
            self._mesh.keep(peer.sending, self._now())
        return True


def _ip(text: str) -> bytes | None:
    try:
        return ip_address(text).packed
    except ValueError:
        return None
