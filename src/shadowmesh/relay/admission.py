"""Who may connect: bounds on joined and unjoined connections, and on hints to one client. Pure."""

from __future__ import annotations

import ipaddress
from collections import Counter, OrderedDict
from typing import Literal

from shadowmesh.ratelimit import TokenBucket

MAX_UNJOINED_PER_SOURCE = 16
GONE_RATE, GONE_BURST = 10.0, 32.0
GONE_EVERY = 1.0
# Within a second at most rate + burst hints leave, so a longer memory would hold nothing that still counts.
_GONE_REMEMBERED = 64


def source_of(ip: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one (commonly one host)."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


class Admission:
    """Counts connections. `max_connections` bounds the joined ones; the unjoined have bounds of their own."""

    def __init__(self, max_connections: int) -> None:
        self.max_connections = max_connections
        self.max_unjoined = max(64, max_connections // 4)
        self.joined = 0
        self.unjoined = 0
        self._sources: Counter[str] = Counter()

    @property
    def utilization_percent(self) -> float:
        """Joined connections in percent of `max_connections`."""
        return 100.0 * self.joined / self.max_connections

    def refuses(self, source: str) -> Literal[429, 503] | None:
        """The HTTP status with which one more connection of this source is refused, or None."""
        if self._sources.get(source, 0) >= MAX_UNJOINED_PER_SOURCE:
            return 429
        return 503 if self.unjoined >= self.max_unjoined else None

    def open(self, source: str) -> None:
        """A new connection, not joined yet."""
        self._sources[source] += 1
        self.unjoined += 1

    def leave_unjoined(self, source: str) -> None:
        """A connection of `open` has joined or ended."""
        self.unjoined -= 1
        self._sources[source] -= 1
        if not self._sources[source]:
            del self._sources[source]


class GoneLimiter:
    """Decides whether one connection is told again that a destination is absent."""

    __slots__ = ("_bucket", "_last")

    def __init__(self) -> None:
        self._bucket = TokenBucket(GONE_RATE, GONE_BURST)
        self._last: OrderedDict[bytes, float] = OrderedDict()

    def allows(self, destination: bytes, now: float) -> bool:
        """True at most once a second per destination, and 10 times a second (burst 32) in all."""
        last = self._last.get(destination)
        if (last is not None and now - last < GONE_EVERY) or not self._bucket.take(now):
            return False
        self._last[destination] = now
        self._last.move_to_end(destination)
        if len(self._last) > _GONE_REMEMBERED:
            self._last.popitem(last=False)
        return True
