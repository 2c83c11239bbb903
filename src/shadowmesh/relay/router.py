"""Who holds which address: the ownership rules of protocol section 3, without any I/O.

An entry belongs to one device of one network; a live entry is also in its network's `routes`, where the
data path finds the destination's connection with one dict lookup. The life of an entry:

    free     → live     somebody claims it
    live     → live     the same device joins again and claims it: at once; the old connection is replaced
    live     → away     its connection ended: nobody else gets it for `GRACE` seconds
    live     → free     its connection released it, or its device joined again without claiming it
    live     → live     another device claims it and the holder has not answered a ping within `PROBE_TIMEOUT`
    away     → live     its device claims it again
    away     → free     `GRACE` is over, or its device joined again without claiming it

Everybody else's claim is refused and changes nothing.
"""

from __future__ import annotations

import sys
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

from shadowmesh.crowd import Crowd
from shadowmesh.errors import JoinError

MAX_HELD = 64
GRACE = 30.0
PROBE_TIMEOUT = 3.0
TELL_HOLDER_EVERY = 60.0
REPLACEMENTS = 3
REPLACEMENT_WINDOW = 60.0

C = TypeVar("C")
RefusalCode = Literal["address_in_use", "too_many"]


class Member(Generic[C]):
    """One joined connection, as the router knows it.

    `held` and `routes` (network-wide: address → connection) are changed in place only, so a connection may
    keep direct references to both for its data path. Whoever owns the connection sets `heard_at` on every
    input.
    """

    __slots__ = ("connection", "device", "heard_at", "held", "instance", "network", "probed_at", "routes")

    def __init__(
        self, connection: C, network: _Network[C], device: bytes, instance: bytes, now: float
    ) -> None:
        self.connection = connection
        self.network = network
        self.device = device
        self.instance = instance
        self.routes = network.routes
        self.held: set[bytes] = set()
        self.heard_at = now
        self.probed_at: float | None = None


class _Entry(Generic[C]):
    __slots__ = ("address", "device", "expires", "member", "network", "since", "told_at")

    def __init__(self, network: _Network[C], address: bytes, member: Member[C], now: float) -> None:
        self.network = network
        self.address = address
        self.device = member.device
        self.member: Member[C] | None = member
        self.since = now
        self.expires = 0.0
        self.told_at = -TELL_HOLDER_EVERY


class _Network(Generic[C]):
    __slots__ = ("devices", "entries", "id", "joined", "routes")

    def __init__(self, network_id: bytes) -> None:
        self.id = network_id
        self.joined = 0
        self.routes: dict[bytes, C] = {}
        self.entries: dict[bytes, _Entry[C]] = {}
        self.devices: dict[bytes, _Device[C]] = {}


class _Device(Generic[C]):
    """A device that is joined or has entries in grace."""

    __slots__ = ("entries", "member", "replaced_at")

    def __init__(self) -> None:
        self.member: Member[C] | None = None
        self.entries: dict[bytes, _Entry[C]] = {}
        self.replaced_at: tuple[float, ...] = ()  # the last REPLACEMENTS times


@dataclass(slots=True)
class Outcome(Generic[C]):
    """What became of a join or an `addresses` message, and what the caller has to do about it."""

    member: Member[C]
    refused: list[tuple[bytes, RefusalCode]] = field(default_factory=list)
    replaced: C | None = None
    """Close this one 4004: the same device has joined again."""
    dead: list[C] = field(default_factory=list)
    """Abort these: they did not answer the ping and have lost an address."""
    probe: list[C] = field(default_factory=list)
    """Ping these: another device wants an address of theirs."""
    tell: list[tuple[C, bytes]] = field(default_factory=list)
    """Send these a `problem address_in_use` about that address."""


class Router(Generic[C]):
    """Address tables of all networks. `now` is monotonic seconds.

    max_away: bound on the entries in grace; beyond it the oldest of the network with most of them is free.
    max_addresses: entries of one network, those in grace too; 0: no limit. It may be changed at any time.
    heard: whether something has come from a connection that is not in its `heard_at` yet.
    """

    def __init__(
        self,
        max_away: int,
        *,
        grace: float = GRACE,
        probe_timeout: float = PROBE_TIMEOUT,
        heard: Callable[[C], bool] = lambda connection: False,
    ) -> None:
        self._grace = grace
        self._probe_timeout = probe_timeout
        self._heard = heard
        self._networks: dict[bytes, _Network[C]] = {}
        self._away: OrderedDict[_Entry[C], None] = OrderedDict()
        """Those in grace, the oldest first."""
        self._away_of: Crowd[_Network[C], _Entry[C]] = Crowd()
        self._max_away = max_away
        self.max_addresses = 0

    @property
    def networks(self) -> int:
        """How many networks have a member or an entry in grace."""
        return len(self._networks)

    @property
    def addresses(self) -> int:
        """How many addresses are held by live connections."""
        return sum(len(network.routes) for network in self._networks.values())

    def joined(self, network_id: bytes, device_id: bytes) -> C | None:
        """The live connection of this device, which a join of it would replace."""
        network = self._networks.get(network_id)
        device = network.devices.get(device_id) if network else None
        return device.member.connection if device is not None and device.member is not None else None

    def members(self, network_id: bytes) -> int:
        """How many devices of this network have a live connection."""
        network = self._networks.get(network_id)
        return network.joined if network else 0

    def join(
        self,
        connection: C,
        network_id: bytes,
        device_id: bytes,
        instance: bytes,
        addresses: Iterable[bytes],
        now: float,
        most: int = MAX_HELD,
    ) -> Outcome[C]:
        """Add a verified connection, which takes over what its device had. It may hold `most` addresses.

        Raises JoinError when several processes fight for the device.
        """
        network = self._networks.get(network_id)
        known = network.devices.get(device_id) if network else None
        if known and known.member and known.member.instance != instance:
            if len(known.replaced_at) == REPLACEMENTS and now - known.replaced_at[0] < REPLACEMENT_WINDOW:
                raise JoinError("several running processes use the identity of this device")
            known.replaced_at = (*known.replaced_at, now)[-REPLACEMENTS:]
        if network is None:
            network = self._networks[network_id] = _Network(network_id)
        device = known or network.devices.setdefault(device_id, _Device())

        outcome = Outcome(Member(connection, network, device_id, instance, now))
        if device.member is not None:
            outcome.replaced = device.member.connection
            device.member.held.clear()
        else:
            network.joined += 1
        device.member = outcome.member
        wanted = dict.fromkeys(addresses)
        for entry in [e for address, e in device.entries.items() if address not in wanted]:
            self._free(entry)
        self._claim(outcome, wanted, now, most)
        return outcome

    def claim(
        self,
        member: Member[C],
        add: Iterable[bytes],
        remove: Iterable[bytes],
        now: float,
        most: int = MAX_HELD,
    ) -> Outcome[C]:
        """Release `remove`, then claim `add`, for a joined connection, which may hold `most` addresses."""
        for address in remove:
            if address in member.held:
                member.held.discard(address)
                self._free(member.network.entries[address])
        outcome = Outcome(member)
        self._claim(outcome, add, now, most)
        return outcome

    def leave(self, member: Member[C], now: float) -> None:
        """A connection has ended: its entries go into grace. Does nothing for one that was replaced."""
        network = member.network
        device = network.devices.get(member.device)
        if device is None or device.member is not member:
            return
        device.member = None
        network.joined -= 1
        for address in member.held:
            entry = network.entries[address]
            entry.member = None
            entry.expires = now + self._grace
            del network.routes[address]
            self._away[entry] = None
            self._away_of.add(network, entry)
        member.held.clear()
        self._forget_if_unused(network, member.device)
        self._trim()

    def resize(self, max_away: int) -> None:
        """Set the bound on entries in grace; those beyond it are free."""
        self._max_away = max_away
        self._trim()

    def expire(self, now: float, most: int = sys.maxsize) -> bool:
        """Free the entries whose grace is over, at most so many; whether there may be more.

        Call it every second or so.
        """
        for _ in range(most):
            entry = next(iter(self._away), None)
            if entry is None or entry.expires > now:
                return False
            self._free(entry)
        return True

    def is_away(self, member: Member[C], address: bytes) -> bool:
        """Whether an address without a route in the member's network had a holder a moment ago."""
        entry = member.network.entries.get(address)
        return entry is not None and entry.member is None

    def _trim(self) -> None:
        # Of the network that has most in grace: made-up ones must not push out those of others.
        while len(self._away) > self._max_away:
            self._free(self._away_of.oldest_of_most())

    def _claim(self, outcome: Outcome[C], addresses: Iterable[bytes], now: float, most: int) -> None:
        member = outcome.member
        for address in addresses:
            if address in member.held:
                continue
            entries = member.network.entries
            entry = entries.get(address)
            if len(member.held) >= min(most, MAX_HELD):
                if entry is not None and entry.device == member.device:
                    self._free(entry)  # of its older connection, which had more
                outcome.refused.append((address, "too_many"))
                continue
            if entry is None and 0 < self.max_addresses <= len(entries):
                outcome.refused.append((address, "too_many"))
                continue
            if entry is not None and entry.device != member.device and not self._give_up(outcome, entry, now):
                outcome.refused.append((address, "address_in_use"))
                continue
            self._take(member, address, now)

    def _give_up(self, outcome: Outcome[C], entry: _Entry[C], now: float) -> bool:
        """Decide a conflict: True if the other device's entry is free after all."""
        holder = entry.member
        if holder is None:
            return entry.expires <= now
        if self._heard(holder.connection):
            holder.heard_at = now
        probed_at = holder.probed_at
        # Not for each who asks: a crowd would have the holder answer more pings than it may.
        if probed_at is None or holder.heard_at > probed_at <= now - self._probe_timeout:
            holder.probed_at = now
            outcome.probe.append(holder.connection)
        elif holder.heard_at <= probed_at <= now - self._probe_timeout:
            holder.held.discard(entry.address)
            if holder.connection not in outcome.dead:
                outcome.dead.append(holder.connection)
            return True
        if now - entry.told_at >= TELL_HOLDER_EVERY:
            entry.told_at = now
            outcome.tell.append((holder.connection, entry.address))
        return False

    def _take(self, member: Member[C], address: bytes, now: float) -> None:
        network = member.network
        entry = network.entries.get(address)
        if entry is not None and entry.device != member.device:
            self._free(entry)
            entry = None
        if entry is None:
            entry = network.entries[address] = _Entry(network, address, member, now)
            network.devices[member.device].entries[address] = entry
        else:
            self._come_back(entry)
            entry.member, entry.since = member, now
        network.routes[address] = member.connection
        member.held.add(address)

    def _free(self, entry: _Entry[C]) -> None:
        network = entry.network
        self._come_back(entry)
        network.routes.pop(entry.address, None)
        del network.entries[entry.address]
        del network.devices[entry.device].entries[entry.address]
        self._forget_if_unused(network, entry.device)

    def _come_back(self, entry: _Entry[C]) -> None:
        """An entry that may be in grace is so no more."""
        if entry in self._away:
            del self._away[entry]
            self._away_of.remove(entry.network, entry)

    def _forget_if_unused(self, network: _Network[C], device_id: bytes) -> None:
        device = network.devices[device_id]
        if device.member is None and not device.entries:
            del network.devices[device_id]
        if not network.devices:
            del self._networks[network.id]
