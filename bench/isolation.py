"""What the work costs of which a relay does a bounded amount in one turn (docs/security.md, "Isolation").

    ./scripts/bench isolation        # half a minute, on a machine that does nothing else

Joins, control messages and deadlines are timed in this process, as processor time of each call. What a
connection costs from its accept to its end is the processor time of the real program, shared by as many.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import ssl
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest.mock import patch

from bench.stats import median
from shadowmesh.net.loop import run_loop
from shadowmesh.observe.logging import configure
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.light_client import LightClient, join_message
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.relay_program import RelayProgram
from shadowmesh.testing.relay_server import running_relay
from shadowmesh.testing.websocket import TEXT, RawPeer, frame

_AT_ONCE = 16
_PATH = "/relay?peer_id=x"


@contextmanager
def timed(method: str) -> Iterator[list[float]]:
    """Seconds of processor time of each call of a method of connections, meanwhile."""
    seconds: list[float] = []
    called = getattr(Connection, method)

    def call(self: Connection, *args: object) -> None:
        begin = time.thread_time()
        called(self, *args)
        seconds.append(time.thread_time() - begin)

    with patch.object(Connection, method, call):
        yield seconds


def addresses(name: object, count: int) -> list[str]:
    """Different ones for each name."""
    return [address(f"{name} {number}").hex() for number in range(count)]


async def calls(count: int) -> dict[str, float]:
    """Median seconds of each kind of call."""
    found: dict[str, float] = {}

    async def measure(what: str, method: str, once: Callable[[int], Awaitable[None]]) -> None:
        with timed(method) as seconds:
            for number in range(count):
                await once(number)
            while not seconds:
                await asyncio.sleep(0.01)
        found[what] = median(seconds)

    async with running_relay(Timing(tick=0.05)) as relay:

        async def join(number: int, held: int) -> None:
            client = await LightClient.join(relay.port, f"{number}", addresses=addresses(number, held))
            await client.peer.close()

        async def refused(number: int) -> None:
            peer = await RawPeer.upgraded(relay.port, _PATH)
            _, challenge = await peer.frame()
            message = join_message(challenge, "x")
            message["device_signature"] = message["network_signature"]
            peer.send(frame(TEXT, json.dumps(message).encode()))
            await peer.close_code()
            await peer.close()

        await measure("join, 1 address", "join", lambda number: join(number, 1))
        await measure("join, 48 addresses", "join", lambda number: join(number, 48))
        await measure("join, bad signature", "join", refused)
        # Each sends 20 messages at most, which it may do at once.
        crowd = [await LightClient.join(relay.port, f"member {number}") for number in range(-(-count // 10))]

        async def control(number: int, size: int) -> None:
            client = crowd[number % len(crowd)]
            client.say(
                {"type": "addresses", ("add", "remove")[number // len(crowd) % 2]: addresses(client, size)}
            )
            await client.peer.frame()

        await measure("control message, 1 address", "on_text", lambda number: control(number, 1))
        await measure("control message, 60 addresses", "on_text", lambda number: control(number, 60))
        await measure("a look at the deadlines", "check", lambda number: asyncio.sleep(0.005))
        for client in crowd:
            await client.peer.close()
    return found


def processor_time(pid: int) -> float:
    """Seconds that the threads of a process have run."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def upgrades(count: int, *, tls: bool) -> float:
    """Seconds of the real relay for one connection that asks for a WebSocket and leaves."""
    with ExitStack() as stack:
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        settings: dict[str, object] = {}
        context = None
        if tls:
            paths = make_certificate(directory, ["127.0.0.1"])
            settings["tls"] = {"cert_file": str(paths.cert), "key_file": str(paths.key)}
            context = ssl.create_default_context(cafile=str(paths.ca))
        relay = stack.enter_context(RelayProgram(directory, settings)).ready()

        async def come_and_go() -> float:
            used = 0.0
            for number in range(1 + count // _AT_ONCE):
                before = processor_time(relay.pid)
                peers = await asyncio.gather(
                    *(RawPeer.upgraded(relay.relay_port, _PATH, "", context) for _ in range(_AT_ONCE))
                )
                for peer in peers:
                    await peer.frame()
                    await peer.close()
                await asyncio.sleep(0.05)
                used += (processor_time(relay.pid) - before) if number else 0.0
            return used / (count // _AT_ONCE * _AT_ONCE)

        return asyncio.run(come_and_go())


def measure(count: int) -> dict[str, float]:
    """Seconds, by what they are of."""
    found: dict[str, float] = {}

    async def main() -> None:
        found.update(await calls(count))

    run_loop(main())
    for words, tls in (("connection that asks and leaves", False), ("the same with TLS (P-256)", True)):
        found[words] = upgrades(count, tls=tls)
    return found


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="./scripts/bench isolation", description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=400, help="how often each is done (16 at least)")
    count = parser.parse_args().count
    configure("error")
    for what, seconds in measure(max(_AT_ONCE, count)).items():
        print(f"| {what} | {seconds * 1000:.3f} ms |")


if __name__ == "__main__":
    main()
