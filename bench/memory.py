"""Memory of the relay for each connection: idle ones, and ones that have carried 64 KiB frames.

The crowd of clients is a program of its own (`main`) in namespace A, made of the
independent client of the test kit.
"""

from __future__ import annotations

import asyncio
import json
import resource
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path

from bench import processor
from bench.peers import ONE_SOURCE
from shadowmesh.testing import guide
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.relay_client import RelayClient, address, frame

ROOT = Path(__file__).parents[1]
FRAMES = 8
"""Frames of 64 KiB that each connection sends at once, and receives: enough to fill its read buffer."""
WARM = 50
"""Connections before the counting begins, so that what the relay sets up once is not counted as theirs."""
_AT_ONCE = 8  # a relay takes at most 16 unjoined connections from one source
_SETTLE = 0.5


def relay_memory(count: int) -> dict[str, float]:
    """Resident memory of a fresh relay: "start" in MB, and in KB (1000 bytes) for each connection.

    "idle" is of `count` connections that have joined and sent nothing; "used" is after all have sent and
    received FRAMES frames of 64 KiB.
    """
    with Lab("a") as lab:
        relay = lab.start_relay(limits=ONE_SOURCE)
        crowd = (sys.executable, "-c", "from bench.memory import main; main()", str(relay.pid), str(count))
        done = lab["a"].run("env", "-C", str(ROOT), *crowd, timeout=300)
        start, warm, idle, used = (kib * 1024 for kib in json.loads(done.stdout))
        each = (idle - warm) / count
        return {
            "start": start / 1e6,
            "idle": each / 1e3,
            "used": (each + (used - idle) / (WARM + count)) / 1e3,
        }


async def crowd(url: str, count: int, resident: Callable[[], int]) -> list[int]:
    """What `resident` gives at the start, with WARM connections, with `count` more, after their frames."""
    sizes = [resident()]
    clients: list[RelayClient] = []
    async with AsyncExitStack() as stack:
        for total in (WARM, WARM + count):
            while (first := len(clients)) < total:
                numbers = range(first, min(first + _AT_ONCE, total))
                clients += await asyncio.gather(*(_join(stack, url, number) for number in numbers))
            await asyncio.sleep(_SETTLE)
            sizes.append(resident())
        for number, client in enumerate(clients):
            await _send(client, clients[number - 1], number, (number - 1) % len(clients))
        await asyncio.sleep(_SETTLE)
        sizes.append(resident())
    return sizes


async def _join(stack: AsyncExitStack, url: str, number: int) -> RelayClient:
    client = await stack.enter_async_context(RelayClient(url))
    await client.join(address(str(number)), device=f"device {number}", relay=RELAY_IP4)
    return client


async def _send(sender: RelayClient, receiver: RelayClient, source: int, destination: int) -> None:
    data = frame(address(str(destination)), address(str(source)), bytes(65536))
    for _ in range(FRAMES):
        await sender.send(data)
    for _ in range(FRAMES):
        await receiver.next_data()


def main() -> None:
    """Arguments: process id of the relay, number of connections. Prints four sizes in KiB."""
    pid, count = map(int, sys.argv[1:])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    status = Path(f"/proc/{pid}/status")
    url = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}/relay?peer_id=crowd"
    print(json.dumps(asyncio.run(crowd(url, count, lambda: processor.memory_kb(status.read_text())))))
