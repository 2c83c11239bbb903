"""The relay's timers, in seconds, gathered so that tests can shorten them."""

from __future__ import annotations

from dataclasses import dataclass

from shadowmesh.relay.router import GRACE, PROBE_TIMEOUT

KEEPALIVE = 20


@dataclass(frozen=True, slots=True)
class Timing:
    """Values of protocol section 3. `tick` is how often deadlines are looked at."""

    join: float = 10.0
    keepalive: float = KEEPALIVE
    dead: float = 45.0
    grace: float = GRACE
    probe: float = PROBE_TIMEOUT
    problem_every: float = 10.0
    tick: float = 0.5

    @classmethod
    def for_idle_timeout(cls, seconds: float) -> Timing:
        """Timers for a `connection_timeout`: a silent client is pinged before it is given up."""
        keepalive = min(KEEPALIVE, seconds / 3)
        return cls(keepalive=keepalive, dead=min(seconds, 2 * keepalive + 5.0))
