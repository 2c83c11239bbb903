"""Log lines that clients cause, at a bounded rate."""

from __future__ import annotations

from collections.abc import Iterable
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from shadowmesh.observe.logging import get_logger
from shadowmesh.ratelimit import TokenBucket

if TYPE_CHECKING:
    from shadowmesh.relay.router import Outcome

C = TypeVar("C")
SHOWN = 8
"""Hex digits of an id or address in the log: enough to tell a few thousand apart."""


class LimitedLog:
    """At most `rate` lines a second and `burst` at once; a line tells how many before it were left out.

    `flush` tells it of those that no line comes after.
    """

    def __init__(self, rate: float, burst: float | None = None) -> None:
        self._log = get_logger("relay")
        self._bucket = TokenBucket(rate, burst or rate)
        self._unlogged = self._seen = 0
        self._latest = ""

    def ready(self) -> bool:
        """Whether there is room for one more line; if not, it is counted, and must not be written."""
        if self._bucket.take(monotonic()):
            return True
        self._unlogged += 1
        return False

    def info(self, event: str, **facts: Any) -> None:
        """Write the line that `ready` allowed."""
        if self._unlogged:
            facts["unlogged_before"] = self._unlogged
            self._unlogged = 0
        self._latest = event
        self._log.info(event, **facts)

    def flush(self, *, last: bool = False) -> None:
        """Write how many lines were left out, if no more came since the call before (`last`: at once).

        To be called now and then, and at the end.
        """
        left_out, before, self._seen = self._unlogged, self._seen, self._unlogged
        if left_out and (last or (left_out == before and self._bucket.take(monotonic()))):
            self._unlogged = self._seen = 0
            self._log.info("lines left out", count=left_out, like=self._latest)


class RoutingLog(LimitedLog):
    """What `log_routing` writes: who holds which address, and what was not delivered."""

    def claims(self, names: dict[str, str], before: set[bytes], outcome: Outcome[C]) -> None:
        """What a join or an `addresses` message has changed; before: the addresses held until then."""
        log, held = self, outcome.member.held
        if held - before and log.ready():
            log.info("addresses claimed", **names, addresses=shown(held - before))
        if before - held and log.ready():
            log.info("addresses released", **names, addresses=shown(before - held))
        for address, code in outcome.refused:
            if log.ready():
                log.info("address refused", **names, address=shown([address]), why=code)

    def leaves(self, names: dict[str, str], held: set[bytes]) -> None:
        """A client has left, and its addresses are kept for its device for a while."""
        log = self
        if held and log.ready():
            log.info("addresses in grace", **names, addresses=shown(held))

    def drop(self, names: dict[str, str], reason: str, destination: bytes = b"", frames: int = 1) -> None:
        """Frames were not passed on; `names` are of their sender, or of the receiver whose outbox is full."""
        log = self
        if log.ready():
            facts: dict[str, Any] = {"destination": shown([destination])} if destination else {}
            if frames > 1:
                facts["frames"] = frames
            log.info("frame dropped", **names, reason=reason, **facts)


def shown(addresses: Iterable[bytes]) -> str:
    """Blind addresses as the log shows them."""
    return " ".join(sorted(address.hex()[:SHOWN] for address in addresses))
