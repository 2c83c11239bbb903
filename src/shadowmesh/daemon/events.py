"""What the mesh and the link report, as log lines and counters: one place decides how loud each is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from ipaddress import ip_address

from structlog.typing import FilteringBoundLogger

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.daemon.link import RelayLink
from shadowmesh.mesh.lru import Lru
from shadowmesh.mesh.peer import Peer
from shadowmesh.ratelimit import TokenBucket

QUIET_FOR = 60.0  # seconds before the same about the same thing is logged again
COMINGS_AND_GOINGS = 5  # of one thing, logged before that applies
RATE, BURST = 1, 60  # lines per second for one event, whoever makes up new facts
MAX_REMEMBERED = 256

# Every event: its level and what it says.
_EVENTS = {
    "session": ("info", "session with peer"),
    "peer_gone": ("info", "no session with peer any more"),
    "identity_new": ("info", "met this peer for the first time"),
    "identity_changed": ("warning", "another device answers for this overlay IP (peers.verify: warn)"),
    "identity_refused": ("warning", "refused a device that answers for this overlay IP with another key"),
    "address_conflict": ("warning", "two devices use this overlay IP: give each its own network.local_ip"),
    "address_refused": (
        "warning",
        "the relay gives this address to another device: is local_ip or peer.id used twice, or was this "
        "device set up anew? (then it is free after 30 s)",
    ),
    "address_granted": ("info", "the relay gives us this address now"),
    "address_contested": (
        "warning",
        "another device asks for this address of ours: is local_ip or peer.id used twice?",
    ),
    "address_reported": (
        "warning",
        "a peer hears another device with this overlay IP of ours: give each its own network.local_ip",
    ),
    "path_changed": ("info", "messages to this peer go by another relay"),
    "relay_twin": (
        "info",
        "two entries of relay.servers, or addresses of a name, are one relay: one stands by",
    ),
    "relay_left_out": ("warning", "a relay's name has more addresses than four: these are not connected to"),
    "route_not_offered": (
        "warning",
        "the peer of a configured route does not offer it: add it to network.advertise there",
    ),
    "relay_joined": ("info", "connected to the relay"),
    "relay_lost": ("warning", "lost the relay"),
    "relay_unreachable": ("warning", "cannot reach the relay"),
    "relay_problem": ("warning", "the relay complains"),
    "probe_ack": ("debug", "probe answered"),
}
_COMES_AND_GOES = {"path_changed", "session", "peer_gone", "relay_joined", "relay_lost"}
_VARIES = {"retry_in"}  # facts that do not make it another event


class Events:
    """Called with an event's name and facts. counts: how often each has happened."""

    def __init__(self, log: FilteringBoundLogger, now: Callable[[], float]) -> None:
        self._log = log
        self._now = now
        self._same: Lru[str, TokenBucket] = Lru(MAX_REMEMBERED)
        self._all = {name: TokenBucket(RATE, BURST) for name in _EVENTS}
        self.counts: Counter[str] = Counter()

    def __call__(self, name: str, /, **facts: object) -> None:
        """Count an event and log it, repeated ones about the same thing at most once a minute."""
        self.counts[name] += 1
        level, words = _EVENTS[name]
        if facts.pop("rekey", False):
            level = "debug"  # every two minutes for each peer: new keys, no news
        told = {key: _told(key, value) for key, value in facts.items() if value is not None}
        if self._is_new(name, level, told):
            getattr(self._log, level)(words, **told)

    def _is_new(self, name: str, level: str, told: dict[str, object]) -> bool:
        now = self._now()
        about = f"{name} {level} {sorted((key, told[key]) for key in told.keys() - _VARIES)}"
        same = self._same.get(about)
        if same is None:
            burst = COMINGS_AND_GOINGS if name in _COMES_AND_GOES else 1
            same = self._same[about] = TokenBucket(1 / QUIET_FOR, burst)
        return same.take(now) and self._all[name].take(now)


def _told(key: str, value: object) -> object:
    if isinstance(value, Peer):
        name = value.info.id if value.info is not None else ""
        ips = ",".join(str(ip_address(ip)) for ip in sorted(value.verified))
        return " ".join(filter(None, (name, ips, value.fingerprint)))
    if isinstance(value, RelayLink):
        return value.title
    if key == "ip" and isinstance(value, bytes):
        return str(ip_address(value))
    if key == "static" and isinstance(value, bytes):
        return fingerprint(value)
    return value.hex() if isinstance(value, bytes) else value
