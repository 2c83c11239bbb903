"""The API keys in force: who may connect, what its key allows, and who has to go when that changes."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Mapping
from time import time
from typing import TYPE_CHECKING

from shadowmesh.errors import JoinError
from shadowmesh.relay.keys import ASKED, Grant, Keys, Refusal
from shadowmesh.relay.source import values

if TYPE_CHECKING:
    from shadowmesh.relay.connection import Connection
    from shadowmesh.wire.control import Claims

_ANOTHER_NETWORK = "this API key is for another network"


class Gate:
    """keys: None lets everybody in. clock: the wall clock, by which keys expire."""

    def __init__(self, clock: Callable[[], float] = time) -> None:
        self.keys: Keys | None = None
        self.clock = clock
        self._joined: dict[str, dict[Connection, int]] = {}
        """By the id of their key, joined connections and how many addresses each holds."""
        self._addresses: Counter[str] = Counter()
        """The sums of these."""

    def admit(self, headers: Mapping[str, str]) -> Grant | Refusal | None:
        """The grant of an upgrade request (None: none is needed), or why it is refused."""
        if self.keys is None:
            return None
        return self.keys.admit(values(headers, "authorization"), self.clock())

    def check(self, grant: Grant | None, claims: Claims) -> None:
        """Raise JoinError if these claims cannot be made under this grant."""
        if grant is not None and grant.network not in (None, claims.network):
            raise JoinError(_ANOTHER_NETWORK)

    def is_full_for(self, grant: Grant | None, old: Connection | None) -> bool:
        """Whether the key has all its connections. old: what a join would replace."""
        if grant is None or not grant.max_connections:
            return False
        joined = self._joined.get(grant.id, {})
        return len(joined) >= grant.max_connections and old not in joined

    def most_addresses(self, connection: Connection, old: Connection | None = None) -> int:
        """How many addresses a connection may hold by its key. old: what its join would replace."""
        grant = connection.grant
        if grant is None or not grant.max_addresses:
            return sys.maxsize
        joined = self._joined.get(grant.id, {})
        own = joined.get(connection, 0) + (joined.get(old, 0) if old is not None else 0)
        return max(0, grant.max_addresses - self._addresses[grant.id] + own)

    def joined(self, connection: Connection) -> None:
        """A connection has joined."""
        if connection.grant is not None:
            self._joined.setdefault(connection.grant.id, {})[connection] = 0
            self.count(connection)

    def count(self, connection: Connection) -> None:
        """The addresses of a joined connection may be others than before."""
        grant, member = connection.grant, connection.member
        joined = self._joined.get(grant.id, {}) if grant is not None else {}
        if grant is not None and member is not None and connection in joined:
            self._addresses[grant.id] += len(member.held) - joined[connection]
            joined[connection] = len(member.held)

    def left(self, connection: Connection) -> None:
        """A joined connection has ended."""
        grant = connection.grant
        if grant is not None and (joined := self._joined.get(grant.id)) is not None:
            self._addresses[grant.id] -= joined.pop(connection, 0)
            if not joined:
                del self._joined[grant.id], self._addresses[grant.id]

    def use(self, keys: Keys | None) -> set[str] | None:
        """Let other keys hold. Returns the ids of those whose connections have to be renewed; None: all."""
        old, self.keys = self.keys, keys
        if keys is None:
            self._joined.clear()
            self._addresses.clear()
        return None if old is None or keys is None else old.differ(keys)

    def renew(self, connection: Connection) -> str | None:
        """Give a connection what the keys in force grant it, or say why it has to go."""
        if self.keys is None:
            connection.grant = None
            return None
        if connection.grant is None:
            return ASKED
        grant = self.keys.renew(connection.grant, self.clock())
        if isinstance(grant, str):
            return grant
        connection.grant = grant
        member = connection.member
        if member is not None and grant.network not in (None, member.network.id):
            return _ANOTHER_NETWORK
        return None

    def expired(self, connection: Connection, now: float) -> bool:
        """Whether the grant of a connection has ended at wall clock time `now`."""
        grant = connection.grant
        return grant is not None and grant.expires is not None and grant.expires <= now
