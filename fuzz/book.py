"""Who holds which address, by section 3 of the protocol page, as clients can know it.

It is told what they ask for and are answered, and checks the answers. Where clients cannot know (whether a
pong came in time, when exactly a connection was lost), it lets the relay decide and takes note.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import inf
from typing import Any

GRACE, PROBE, MOST = 30.0, 3.0, 64


class Holder:
    """A client's end of a connection. key: the number of its API key."""

    def __init__(self, network: bytes, device: bytes, key: int) -> None:
        self.network = network
        self.device = device
        self.key = key
        self.joined = False
        self.unanswered: float | None = None
        """When the relay's first ping came of those after which this client has sent nothing."""

    @property
    def there(self) -> bool:
        """Whether it is open, as far as its client sees."""
        raise NotImplementedError

    @property
    def gone(self) -> bool:
        """Whether it is no more."""
        raise NotImplementedError


class _Entry:
    """An address that somebody holds, or has held until some time between the two of `away`.

    The second is inf while its connection is being closed, be it that the relay has still it down as held.
    """

    def __init__(self, holder: Holder) -> None:
        self.device = holder.device
        self.last = holder
        self.holder: Holder | None = holder
        self.away = (0.0, 0.0)


class Book:
    """per_network: bound on the addresses of a network; per_key: on those of the API keys that have one."""

    def __init__(self, per_network: int | None, per_key: dict[int, int]) -> None:
        self._per_network = per_network
        self._per_key = per_key
        self._tables: dict[bytes, dict[bytes, _Entry]] = {}
        self._current: dict[tuple[bytes, bytes], Holder] = {}
        """The connection of each device that has joined."""

    def held(self, who: Holder) -> set[bytes]:
        """The addresses of a connection."""
        return {address for address, entry in self._table(who).items() if entry.holder is who}

    def holder(self, who: Holder, address: bytes) -> Holder | None:
        """Who has an address in that one's network."""
        entry = self._table(who).get(address)
        return entry.holder if entry is not None else None

    def absent(self, who: Holder, address: bytes, now: float) -> str | None:
        """What is said of an address that nobody holds."""
        entry = self._table(who).get(address)
        if entry is None or now >= entry.away[1] + GRACE:
            return "not_here"
        if entry.holder is not None:
            return None
        return "disconnected" if now < entry.away[0] + GRACE else "either"

    def closing(self, key: int | None = None) -> int:
        """How many addresses are of connections that are being closed, in all or by an API key."""
        return sum(
            entry.holder is None and entry.away[1] == inf and key in (None, entry.last.key)
            for table in self._tables.values()
            for entry in table.values()
        )

    def ended(self, who: Holder, since: float, now: float) -> None:
        """A connection was closed at some time since then; `who.gone`: it is no more."""
        for entry in self._table(who).values():
            if entry.holder is who:
                entry.holder, entry.away = None, (since, inf)
            if who.gone and entry.last is who and entry.away[1] == inf:
                entry.away = (entry.away[0], now)
        if self._current.get((who.network, who.device)) is who:
            del self._current[who.network, who.device]

    def joins(
        self, who: Holder, wanted: Iterable[bytes], answer: dict[str, Any], now: float
    ) -> Holder | None:
        """A join was accepted. Returns the connection that it replaces."""
        table, wanted = self._table(who), list(wanted)
        old = self._current.get((who.network, who.device))
        self._current[who.network, who.device] = who
        who.joined = True
        for address, entry in list(table.items()):
            if entry.device == who.device and address not in wanted:
                del table[address]
        self._claim(who, wanted, answer, now)
        for address, entry in list(table.items()):
            if entry.device == who.device and entry.holder is not who:
                del table[address]
        return old

    def claims(
        self, who: Holder, add: Iterable[bytes], remove: Iterable[bytes], answer: dict[str, Any], now: float
    ) -> None:
        """An `addresses` message was answered."""
        for address in set(remove) & self.held(who):
            del self._table(who)[address]
        self._claim(who, add, answer, now)

    def unanswered(self, who: Holder, asked: Iterable[bytes], now: float) -> None:
        """An `addresses` message ended its connection: what it has changed nobody knows."""
        table = self._table(who)
        for address in asked:
            entry = table.setdefault(address, _Entry(who))
            if entry.holder is None or not entry.holder.there:
                entry.device, entry.holder, entry.away = b"", None, (-inf, now)  # its or another's

    def _claim(self, who: Holder, add: Iterable[bytes], answer: dict[str, Any], now: float) -> None:
        refused = {bytes.fromhex(each["address"]): each["code"] for each in answer["refused"]}
        table = self._table(who)
        least, most = self._most(who)
        for address in add:
            entry = table.get(address)
            if entry is not None and entry.holder is who:
                continue
            outcome = refused.pop(address, "held")
            allowed = self._allowed(who, address, most, now)
            if len(self.held(who)) >= least:
                allowed.add("too_many")
            assert outcome in allowed, (outcome, allowed)
            if outcome == "held":
                robbed = entry.holder if entry is not None and entry.device != who.device else None
                assert robbed is None or not robbed.there
                table[address] = _Entry(who)
        assert not refused
        assert {bytes.fromhex(each) for each in answer["held"]} == self.held(who)

    def _most(self, who: Holder) -> tuple[int, int]:
        """How many addresses it may have: at least, at most, for some may be given back just now."""
        cap = self._per_key.get(who.key)
        if cap is None:
            return MOST, MOST
        others = [each for each in self._current.values() if each.key == who.key and each is not who]
        there, gone = (
            sum(len(self.held(each)) for each in others if each.there == there) for there in (True, False)
        )
        return max(0, cap - there - gone - self.closing(who.key)), max(0, cap - there)

    def _allowed(self, who: Holder, address: bytes, most: int, now: float) -> set[str]:
        """What may become of a claim."""
        table = self._table(who)
        entry = table.get(address)
        if len(self.held(who)) >= most:
            return {"too_many"}
        over = [each for each in table.values() if each.holder is None and now >= each.away[1] + GRACE]
        maybe = [each for each in table.values() if each.holder is None and now >= each.away[0] + GRACE]
        if entry is None or entry in over:
            if self._per_network is None or len(table) - len(over) < self._per_network:
                return {"held"}
            return {"too_many", "held"} if len(table) - len(maybe) < self._per_network else {"too_many"}
        if entry in maybe:
            return {"held", "address_in_use", "too_many"}
        if entry.device == who.device:
            return {"held"}
        pinged = entry.last.unanswered if entry.holder is not None or entry.away[1] == inf else None
        return (
            {"address_in_use", "held"} if pinged is not None and now - pinged >= PROBE else {"address_in_use"}
        )

    def _table(self, who: Holder) -> dict[bytes, _Entry]:
        return self._tables.setdefault(who.network, {})
