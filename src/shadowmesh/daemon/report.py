"""What this daemon says of itself: the facts of GET /status and /peers, gathered when somebody asks.

The hot path counts in plain ints, and this only reads them. What a counter cannot tell (when and why the
relay was lost, whose key has changed) comes as events, through `note`.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import IPv4Interface, IPv6Interface, ip_address, ip_network
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from shadowmesh import __version__
from shadowmesh.crypto.keys import fingerprint
from shadowmesh.daemon.diagnosis import diagnose, kind
from shadowmesh.mesh.context import Context, IPNetwork
from shadowmesh.mesh.lru import Lru
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Peer
from shadowmesh.mesh.routes import offered
from shadowmesh.tun.base import TunDevice
from shadowmesh.wire.control import Challenge

MAX_HISTORY = 10
MAX_REMEMBERED = 64
_STATES = ("connected", "joining", "connecting", "waiting")  # of several links the best counts


class Link(Protocol):
    """What is told of the connection to one relay (see `link.RelayLink`)."""

    url: str
    pinned: str
    state: str
    reason: str
    since: float
    connects: int
    relay: Challenge | None
    remote: str
    dropped: int
    refused: dict[bytes, str]

    @property
    def address(self) -> str:
        """Of the relay, "" while it is not known."""

    @property
    def rtt(self) -> float | None:
        """Seconds to the relay and back."""


class Traffic(Protocol):
    """What is told of the data path (see `engine.Engine`)."""

    packets_in: int
    packets_out: int


class Loss(NamedTuple):
    """A connection to a relay that ended or did not come about."""

    at: float  # monotonic
    time: str
    event: str  # "lost" or "unreachable"
    reason: str


class Totals(NamedTuple):
    """Counted over all peers, also those that are gone."""

    handshakes: int
    messages_in: int
    messages_out: int
    bytes_in: int
    bytes_out: int


class Report:
    """rtt: seconds to a peer and back, None if it was not measured. down: the operator wants no relay."""

    def __init__(
        self,
        context: Context,
        mesh: Mesh,
        traffic: Traffic,
        tun: TunDevice,
        links: Sequence[Link],
        events: Mapping[str, int],
        now: Callable[[], float],
        rtt: Callable[[Peer], float | None] = lambda peer: None,
    ) -> None:
        self.mesh = mesh
        self.traffic = traffic
        self.links = links
        self.events = events
        self.drops = context.drops
        self.down = False
        self.losses: Counter[tuple[str, str]] = Counter()
        """Lost connections by relay URL and coarse reason."""
        self._context = context
        self._tun = tun
        self._now = now
        self._rtt = rtt
        self._started = now()
        self._names: dict[str, str] = {}
        self._next: dict[str, str] | None = None
        self.use([context], mesh, links)
        # By URL and address; "" where its name has only one.
        self._history: Lru[tuple[str, str], deque[Loss]] = Lru(MAX_REMEMBERED)
        self._changed: Lru[bytes, bytes] = Lru(MAX_REMEMBERED)  # static key → overlay IP that had another
        self._refused: Lru[str, tuple[float, str]] = Lru(MAX_REMEMBERED)  # overlay IP → when, fingerprint
        self._contested: Lru[str, float] = Lru(MAX_REMEMBERED)  # own IP or name → when
        self._conflicts: Lru[str, float] = Lru(MAX_REMEMBERED)  # overlay IP → when
        self._unoffered: Lru[IPNetwork, bytes] = Lru(MAX_REMEMBERED)  # configured route → static key
        self._gone = Totals(0, 0, 0, 0, 0)

    def use(self, contexts: Sequence[Context], mesh: Mesh, links: Sequence[Link]) -> None:
        """Tell of these from now on; a second context is that of the network of encryption.next_key."""
        self.mesh, self.links, self._context = mesh, links, contexts[0]
        self._names = {
            address.hex(): str(ip_address(ip)) if ip else context.local.name
            for context in contexts
            for address, ip in context.addresses.items()
        }
        self._next = None
        for context in contexts[1:]:
            static = context.device.static_public
            self._next = {"network": context.network.network_id.hex(), "fingerprint": fingerprint(static)}

    def own(self, fact: object) -> object:
        """An own blind address as the IP or the name that it stands for; anything else as it is."""
        name = fact.hex() if isinstance(fact, bytes) else fact
        return self._names.get(name, fact) if isinstance(name, str) else fact

    def note(self, name: str, facts: Mapping[str, object]) -> None:
        """An event has happened."""
        now = self._now()
        match name, facts:
            case (("relay_lost" | "relay_unreachable"), {"relay": str(url), "reason": str(reason)}):
                event = name.removeprefix("relay_")
                if event == "lost":
                    self.losses[url, kind(reason)] += 1
                which = url, str(facts.get("ip") or "")
                self._history[which] = history = self._history.get(which, deque(maxlen=MAX_HISTORY))
                when = datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="seconds")
                history.append(Loss(now, when.replace("+00:00", "Z"), event, reason))
            case "address_contested", {"address": address}:
                self._contested[str(self.own(address))] = now
            case "address_reported", {"ip": bytes(ip)}:
                self._contested[str(ip_address(ip))] = now
            case "address_conflict", {"ip": bytes(ip)}:
                self._conflicts[str(ip_address(ip))] = now
            case "identity_refused", {"ip": bytes(ip), "static": bytes(static)}:
                self._refused[str(ip_address(ip))] = now, fingerprint(static)
            case "identity_changed", {"peer": Peer() as peer, "ip": bytes(ip)}:
                self._changed[peer.static] = ip
            case "route_not_offered", {"route": str(route), "peer": Peer() as peer}:
                self._unoffered[ip_network(route)] = peer.static
            case "peer_gone", {"peer": Peer() as peer}:
                self._gone = _sum(self._gone, peer)

    def trusted(self, ip: bytes) -> None:
        """The operator trusts whoever answers for this overlay IP."""
        self._refused.pop(str(ip_address(ip)), None)
        for static in [static for static, changed in self._changed.items() if changed == ip]:
            del self._changed[static]

    @property
    def interfaces(self) -> tuple[IPv4Interface | IPv6Interface, ...]:
        """The overlay IPs of this device."""
        return tuple(self._context.local.interfaces)

    @property
    def uptime(self) -> float:
        """Seconds since the start."""
        return self._now() - self._started

    @property
    def connected(self) -> int:
        """Peers that packets reach, as far as we know."""
        return sum(map(self.mesh.is_connected, self.mesh.peers.values()))

    def totals(self) -> Totals:
        """What was counted over all peers since the start."""
        totals = self._gone
        for peer in self.mesh.peers.values():
            totals = _sum(totals, peer)
        return totals

    # -- GET /status

    def status(self) -> dict[str, Any]:
        """The facts of GET /status."""
        facts = self._facts()
        return facts | {"diagnosis": self._diagnosis(facts), "peers": self.peers()}

    def diagnosis(self) -> list[dict[str, str]]:
        """What is wrong: as in `status`, at a cost that does not grow with the number of peers."""
        return self._diagnosis(self._facts())

    def _diagnosis(self, facts: dict[str, Any]) -> list[dict[str, str]]:
        now, peers = self._now(), self.mesh.peers
        changed = [self._peer(peer, now) for static in self._changed if (peer := peers.get(static))]
        return diagnose(facts | {"peers": changed, "not_offered": self._not_offered()})

    def _not_offered(self) -> list[dict[str, str]]:
        """Configured routes by a peer that is there and does still not offer them."""
        routes, peers, found = dict(self._context.local.routes), self.mesh.peers, []
        for prefix, static in self._unoffered.items():
            peer = peers.get(static)
            if peer and peer.info and routes.get(prefix) in peer.verified and not offered(prefix, peer.info):
                found.append({"route": str(prefix), "peer": peer.info.id})
        return found

    def _facts(self) -> dict[str, Any]:
        local, now = self._context.local, self._now()
        relays = [self._relay(link, now) for link in self.links]
        facts: dict[str, Any] = {
            "status": self.state,
            "reason": "",
            "diagnosis": [],
            "version": __version__,
            "uptime": round(self.uptime, 1),
            "name": local.name,
            "device": self._tun.name,
            "ips": [str(interface) for interface in local.interfaces],
            "mtu": self._tun.mtu,
            "offload": list(self._tun.offload),
            "fingerprint": fingerprint(self._context.device.static_public),
            "network": self._context.network.network_id.hex(),
            "relay": relays[0],
            "relays": relays,
            "peers": [],
            "handshakes": self.totals().handshakes,
            "packets_in": self.traffic.packets_in,
            "packets_out": self.traffic.packets_out,
            "drops": dict(self.drops),
            "events": dict(self.events),
            "contested": {name: round(now - at, 1) for name, at in self._contested.items()},
            "conflicts": {ip: round(now - at, 1) for ip, at in self._conflicts.items()},
            "identities_refused": {
                ip: {"fingerprint": text, "seconds_ago": round(now - at, 1)}
                for ip, (at, text) in self._refused.items()
            },
        }
        if self._next is not None:
            facts["next"] = self._next
        facts["reason"] = self._reason(relays)
        return facts

    def health(self) -> dict[str, Any]:
        """The facts of GET /health."""
        relays = [self._relay(link, self._now()) for link in self.links]
        return {
            "status": self.state,
            "reason": self._reason(relays),
            "uptime": round(self.uptime, 1),
            "version": __version__,
        }

    @property
    def state(self) -> str:
        """`connected` to a relay, `joining`, `connecting`, `waiting` before the next try, or `down`."""
        if self.down:
            return "down"
        states = [link.state for link in self.links]
        return next((state for state in _STATES if state in states), states[0])

    def _reason(self, relays: list[dict[str, Any]]) -> str:
        if self.down:
            return "switched off by `shadowmesh down`"
        if self.state != "connected":
            reasons = [each["reason"] for each in relays if each["reason"] and each["state"] != "standby"]
            return reasons[0] if reasons else ""
        refused = ", ".join(dict.fromkeys(name for relay in relays for name in relay["refused"]))
        return f"the relay gives to another device: {refused}" if refused else ""

    def _relay(self, link: Link, now: float) -> dict[str, Any]:
        return {
            "server": link.url,
            "address": link.address,
            "name": link.relay.server_name if link.relay else "",
            "region": link.relay.region if link.relay else "",
            "state": "down" if self.down else link.state,
            "reason": link.reason,
            "seconds": round(now - link.since, 1),
            "connects": link.connects,
            "reconnects": max(0, link.connects - 1),
            "rtt_ms": _milliseconds(link.rtt),
            "remote": link.remote,
            "dropped": link.dropped,
            "refused": {str(self.own(address)): code for address, code in link.refused.items()},
            "history": [
                {
                    "time": loss.time,
                    "seconds_ago": round(now - loss.at, 1),
                    "event": loss.event,
                    "kind": kind(loss.reason),
                    "reason": loss.reason,
                }
                for loss in self._losses(link)
            ],
        }

    def _losses(self, link: Link) -> list[Loss]:
        """What has happened to it, and to its name before that had several addresses; the last first."""
        found = [
            loss
            for (url, address), history in self._history.items()
            if url == link.url and address in ("", link.pinned or address)
            for loss in history
        ]
        return sorted(found, key=lambda loss: loss.at)[: -MAX_HISTORY - 1 : -1]

    # -- GET /peers

    def peers(self) -> list[dict[str, Any]]:
        """The facts of GET /peers."""
        now = self._now()
        return [self._peer(peer, now) for peer in self.mesh.peers.values()]

    def _peer(self, peer: Peer, now: float) -> dict[str, Any]:
        info = peer.info
        counted = [session.opener.missing() for session in peer.sessions]
        missing, sealed = sum(each[0] for each in counted), sum(each[1] for each in counted)
        return {
            "name": info.id if info else "",
            "ips": sorted(str(ip_address(ip)) for ip in peer.verified),
            "fingerprint": peer.fingerprint,
            "identity": self._identity(peer),
            "connected": self.mesh.is_connected(peer),
            "path": self.path(peer),
            "rtt_ms": _milliseconds(self._rtt(peer) or peer.rtt),
            "loss_percent": round(100 * missing / sealed, 2) if sealed else None,
            "heard": round(now - peer.heard, 1),
            "last_handshake": round(now - peer.last_handshake, 1),
            "handshakes": peer.handshakes,
            "rekeys": peer.handshakes - 1,
            "messages_in": peer.messages_in,
            "messages_out": peer.messages_out,
            "bytes_in": peer.bytes_in,
            "bytes_out": peer.bytes_out,
            "agent": info.agent if info else "",
            "mtu": info.mtu if info else 0,
            "offload": peer.offload,
            "routes": list(info.routes) if info else [],
        }

    def path(self, peer: Peer) -> str:
        """The name of the relay that messages to this peer go through; its URL while that is not known.

        With its address behind it where another relay has the same name, as all have that nobody has named.
        """
        via = peer.sending.via if peer.sending is not None else None
        link = next((link for link in self.links if link is via), self.links[0])
        if link.relay is None:
            return link.url
        name = link.relay.server_name
        if any(other.relay and other.relay.server_name == name for other in self.links if other is not link):
            return f"{name} ({link.pinned or urlsplit(link.url).netloc})"
        return name

    def _identity(self, peer: Peer) -> str:
        if peer.static in self._changed:
            return "changed"
        return "known"


def _sum(totals: Totals, peer: Peer) -> Totals:
    counted = (peer.handshakes, peer.messages_in, peer.messages_out, peer.bytes_in, peer.bytes_out)
    return Totals(*(a + b for a, b in zip(totals, counted, strict=True)))


def _milliseconds(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds * 1000, 2)
