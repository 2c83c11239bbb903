"""The addresses of a relay's name: with several, each is taken for a relay of its own.

Relays behind one name share nothing, so devices that DNS spreads over them would not meet; each device keeps
a connection to each one instead. Where the addresses are one relay's after all, `links` notices.
"""

from __future__ import annotations

import asyncio
import socket
from ipaddress import ip_address
from urllib.parse import urlsplit

from shadowmesh.daemon.link import RelayLink
from shadowmesh.net.client import Found

GONE_AFTER = 10.0  # seconds for which an address must be missing, or one bad answer would cost a connection
ALL = ("",)
"""What is wanted of a name with one address: one link, which tries IPv4 and IPv6."""


class Entry:
    """One entry of the list of relays, and its links: one for each address, one alone for a single address.

    several: the addresses when there are several; wanted: those that are to have a link.
    """

    def __init__(self, link: RelayLink) -> None:
        self.links = [link]
        url = urlsplit(link.url)
        self.host, self.port = link.host, url.port or (443 if url.scheme == "wss" else 80)
        self.several: tuple[str, ...] = ()
        self.wanted: tuple[str, ...] = ALL
        self.look = asyncio.Event()
        """To look the name up now."""
        self._all: set[str] = set()
        self._missing: dict[str, float] = {}  # address of a connection → since when it is not found

    @property
    def left_out(self) -> tuple[str, ...]:
        """Addresses for which there is no room."""
        return tuple(address for address in self.several if address not in self.wanted)

    def answered(self, found: list[Found], now: float) -> bool:
        """A look at the name has found this. Returns whether an address in use has begun to be missing."""
        self._all = {info[4][0] for info in found}
        self.several = several(found)
        before = self._missing
        self._missing = {
            link.address: before.get(link.address, now)
            for link in self.links
            if link.ready and link.address not in self._all
        }
        return not self._missing.keys() <= before.keys()

    def spread(self, now: float, dialling: RelayLink | None) -> tuple[list[RelayLink], list[str]]:
        """Give the wanted addresses to the links. Returns links that get none, addresses that no link has.

        dialling: the link that has asked, which goes on with what it gets.
        """
        free, left = list(self.wanted), []
        for link in sorted(self.links, key=lambda link: (not link.ready, link.address not in self._all)):
            place: str | None = link.address
            if self.wanted == ALL:
                place = None if self._is_gone(link, now) else ""
            if place in free:
                free.remove(place)
                self._pin(link, place, dialling)
            else:
                left.append(link)
        for link in [link for link in left if not link.ready][: len(free)]:
            left.remove(link)
            self._pin(link, free.pop(0), dialling)
        missing = self._missing
        return [each for each in left if each.address not in missing or self._is_gone(each, now)], free

    def _is_gone(self, link: RelayLink, now: float) -> bool:
        return link.ready and now - self._missing.get(link.address, now) >= GONE_AFTER

    def _pin(self, link: RelayLink, place: str, dialling: RelayLink | None) -> None:
        if link.pinned == place:
            return
        link.pinned = place
        if place and not link.ready and link is not dialling:
            link.take_over()
            link.redial("its name leads elsewhere now")


def several(found: list[Found]) -> tuple[str, ...]:
    """The addresses of a name that has several, in an order that is the same on all devices, else none.

    Those of IPv4, unless it has none or this host has no way to them: one relay is mostly there in both.
    """
    ipv4, ipv6 = (
        sorted({info[4][0] for info in found if info[0] == family}, key=ip_address)
        for family in (socket.AF_INET, socket.AF_INET6)
    )
    addresses = ipv6 if not ipv4 or (ipv6 and not _has_way(ipv4[0])) else ipv4
    return tuple(addresses) if len(addresses) > 1 else ()


def located(address: str, port: int) -> Found:
    """As if a name had been found to have this address."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.SOCK_STREAM, socket.IPPROTO_TCP, "", (address, port)


def _has_way(address: str) -> bool:
    """Whether this host has a route to an IPv4 address; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))
        except OSError:
            return False
    return True
