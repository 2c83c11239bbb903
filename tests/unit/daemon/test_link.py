"""Links without a relay: which of two is the other's twin, when one is stuck, what a short connection is."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import cast

import pytest

from shadowmesh.daemon.backoff import Backoff
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.link import KEEPALIVE_GRACE, STABLE_AFTER, Identity, RelayLink, _Connection
from shadowmesh.daemon.links import Links
from shadowmesh.testing.websocket import drive
from shadowmesh.wire import control

NOBODY = cast(Identity, SimpleNamespace(network=SimpleNamespace(network_id=bytes(32))))


def link_to(host: str) -> RelayLink:
    return RelayLink(f"ws://{host}/relay", host, NOBODY, "p", lambda *_, **__: None)


def challenge(server_name: str, region: str = "eu") -> control.Challenge:
    return control.Challenge(1, bytes(32), server_name, region, 131072, 30)


def test_a_relay_of_another_name_or_region_is_no_twin() -> None:
    async def main() -> None:
        one, two = link_to("one"), link_to("two")
        links = Links([one, two])
        links._open[two] = None
        one.since = two.since
        one.relay = challenge("relay-1")
        for two.relay in (challenge("relay-2"), challenge("relay-1", "us")):
            assert links._twin(one) is None
        two.relay = challenge("relay-1")
        assert links._twin(one) is two

    drive(main)


class Slow(_Connection):
    """A connection whose relay has acknowledged as many bytes as we say."""

    reached = 0

    def acknowledged(self) -> int:
        """See _Connection."""
        return self.reached


def test_a_relay_that_reads_slowly_is_not_stuck() -> None:
    async def main() -> None:
        ws = Slow(link_to("one"), NOBODY, "one")
        ws.challenge = challenge("relay-1")
        patience = 2 * 30 + KEEPALIVE_GRACE
        ws._blocked = 0.0, 0
        ws.reached = 1
        assert not ws._is_stuck(patience)
        assert not ws._is_stuck(2 * patience - 1)
        assert ws._is_stuck(2 * patience)

    drive(main)


@pytest.mark.parametrize(("lasted", "resets"), [(STABLE_AFTER - 1.0, 0), (STABLE_AFTER + 1.0, 1)])
def test_only_a_connection_that_lasted_starts_the_back_off_anew(lasted: float, resets: int) -> None:
    async def main() -> None:
        link = link_to("one")
        seen: list[None] = []
        link._backoff = cast(Backoff, SimpleNamespace(reset=lambda: seen.append(None)))
        link.listener = cast(Engine, SimpleNamespace(lost=lambda: None))
        link.ready, link.since = True, asyncio.get_running_loop().time() - lasted
        link.on_lost()
        assert len(seen) == resets

    drive(main)
