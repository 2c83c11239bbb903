"""What the parts of one mesh engine share: keys, own addresses, the index table, timers, drop counters."""

from __future__ import annotations

import ipaddress
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.crypto.noise import Ephemerals
from shadowmesh.mesh.timers import Timers
from shadowmesh.mesh.trust import Trust
from shadowmesh.wire.record import LARGEST_PLAINTEXT, Info

if TYPE_CHECKING:
    from shadowmesh.mesh.handshake import HalfOpen, PendingHello
    from shadowmesh.mesh.peer import Session

IPInterface = ipaddress.IPv4Interface | ipaddress.IPv6Interface
IPNetwork = ipaddress.IPv4Network | ipaddress.IPv6Network

INDEX_SIZE = 4
VERSION = 1


class Output(Protocol):
    """What the engine tells the world. Called from within its methods; must not call back into them."""

    def send(self, destination: bytes, source: bytes, message: bytes, via: object = None) -> None:
        """Pass one peer message to the relay, from one blind address to another (16 bytes each).

        via: the link to send it by; None: all there are.
        """

    coalesces: bool
    """Whether UDP packets are to be joined before `deliver` (`wire.coalesce`)."""

    def deliver(self, kind: int, buffer: memoryview, start: int, end: int, packets: int = 1) -> None:
        """A packet for this host: the body of a record of kind PACKET or OFFLOAD, in buffer[start:end].

        Valid during the call only. The 10 bytes before `start` may be overwritten. packets: how many it was
        made of.
        """

    def unreachable(self, kind: int, body: bytes) -> None:
        """A packet of ours that waited for its peer is given up."""

    def event(self, name: str, /, **facts: object) -> None:
        """Something that a person or a metric wants to know."""


@dataclass(frozen=True)
class Local:
    """This device: its overlay interfaces, name, routes.

    routes: (prefix, overlay IP of the peer behind which it lies). advertise: prefixes this device offers.
    seq: grows when what peers are told changes.
    """

    interfaces: tuple[IPInterface, ...]
    name: str
    mtu: int
    agent: str
    routes: tuple[tuple[IPNetwork, bytes], ...] = ()
    advertise: tuple[IPNetwork, ...] = ()
    seq: int = 0

    @property
    def ips(self) -> tuple[bytes, ...]:
        """The own overlay IPs, network order."""
        return tuple(interface.ip.packed for interface in self.interfaces)

    def info(self) -> Info:
        """What peers are told."""
        return Info(
            seq=self.seq,
            id=self.name,
            ips=self.ips,
            routes=tuple(map(str, self.advertise)),
            agent=self.agent,
            mtu=self.mtu,
            versions=(VERSION,),
            max_plaintext=LARGEST_PLAINTEXT,
        )


@dataclass
class Context:
    """random: n → n unpredictable bytes. uniform: (low, high) → a number between, for jitter."""

    network: NetworkKeys
    device: DeviceKeys
    local: Local
    output: Output
    trust: Trust
    random: Callable[[int], bytes]
    uniform: Callable[[float, float], float]
    ephemerals: Ephemerals = field(default_factory=Ephemerals)
    timers: Timers = field(default_factory=Timers)
    drops: Counter[str] = field(default_factory=Counter)
    indices: dict[bytes, PendingHello | HalfOpen | Session] = field(default_factory=dict)
    addresses: dict[bytes, bytes] = field(init=False)  # own blind address → own IP, b"" for the name's
    refused: set[bytes] = field(default_factory=set)  # those of them that the relay does not give us

    def __post_init__(self) -> None:
        self.addresses = {}
        for ip in self.local.ips:
            address = self.network.ip_address(ip)
            if address is not None:
                self.addresses[address] = ip
        name = self.network.name_address(self.local.name)
        if name is not None:
            self.addresses[name] = b""

    def new_index(self) -> bytes:
        """An index that is not in use."""
        while (index := self.random(INDEX_SIZE)) in self.indices:
            pass
        return index

    def ips_at(self, info: Info, address: bytes) -> list[bytes]:
        """Those overlay IPs of an info record whose blind address is this one: none or one of them."""
        return [ip for ip in info.ips if self.network.ip_address(ip) == address]
