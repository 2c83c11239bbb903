"""SIGHUP with a configuration that does not serve everybody any more: who goes, and what the log says."""

from __future__ import annotations

import asyncio
from pathlib import Path

from shadowmesh.testing.relay_client import RelayClient, address, key, public
from shadowmesh.testing.relay_program import RelayProgram


def test_the_log_says_how_many_are_sent_away(tmp_path: Path) -> None:
    async def scenario(relay: RelayProgram) -> None:
        async with RelayClient(relay.url) as a, RelayClient(relay.url) as other:
            await a.join(address("a"), device="a")
            await other.join(address("a"), network="another")
            relay.configure({"allowed_networks": [public(key("another")).hex()]})
            said = await asyncio.to_thread(relay.hang_up)
            assert "clients sent away by the configuration [relay] by_network=1 by_key=0" in said
            assert await a.closed() == (4005, "this relay serves this network no more")
            relay.configure({"allowed_networks": [public(key("another")).hex()], "queue_size": 7})
            assert "sent away" not in await asyncio.to_thread(relay.hang_up)
            assert relay.metric("connections") == 1

    with RelayProgram(tmp_path) as program:
        asyncio.run(scenario(program.ready()))
