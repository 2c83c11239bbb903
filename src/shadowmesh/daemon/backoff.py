"""How long to wait before a relay is dialled again (docs/protocol.md, 3)."""

from __future__ import annotations

from collections.abc import Callable

from shadowmesh.net.proxy import PROXY_AUTHENTICATION
from shadowmesh.wire import control

UNAUTHORIZED = 401
_WHO_ARE_YOU = {UNAUTHORIZED, PROXY_AUTHENTICATION}  # wrong passwords for a proxy can lock an account

# First and longest wait in seconds, doubling in between, by what ended the last connection.
USUAL = (0.2, 2.0)
LATER = (0.2, 30.0)
LATER_AFTER = 120.0  # seconds without a relay
_REFUSED = (30.0, 600.0)
_REFUSED_CODES = {control.CLOSE_JOIN_REFUSED, control.CLOSE_PROTOCOL, control.CLOSE_WITHDRAWN}
_UNKNOWN_KEY = (5.0, 600.0)  # the relay sees a new key within seconds; for a proxy's password, too
_REPLACED = (30.0, 60.0)


class Backoff:
    """How long to wait before the next try, with full jitter: clients of a lost relay must not be a crowd."""

    def __init__(self, uniform: Callable[[float, float], float]) -> None:
        self._uniform = uniform
        self._failures = self._refusals = 0

    def reset(self) -> None:
        """The last connection was a good one."""
        self._failures = self._refusals = 0

    def next(self, code: int | None, away: float = 0.0) -> float:
        """Seconds to wait after a connection that ended with this close code (None: no close frame), or that
        was answered with this HTTP status. away: seconds since there was a relay.
        """
        if code == control.CLOSE_REPLACED:
            return self._uniform(*_REPLACED)
        if is_refusal(code):
            ceiling = _doubled(*(_UNKNOWN_KEY if code in _WHO_ARE_YOU else _REFUSED), self._refusals)
            self._refusals += 1
            # A refusal is not a crowd: it waits at least half, or it would come back at once.
            return self._uniform(ceiling / 2, ceiling)
        ceiling = _doubled(*(USUAL if away < LATER_AFTER else LATER), self._failures)
        self._failures += 1
        return self._uniform(0.0, ceiling)


def is_refusal(code: int | None) -> bool:
    """Whether the relay does not want us, so that another network would change nothing."""
    return code in _REFUSED_CODES or code in _WHO_ARE_YOU or code == control.CLOSE_REPLACED


def _doubled(first: float, longest: float, times: int) -> float:
    return min(longest, first * 2.0 ** min(times, 16))
