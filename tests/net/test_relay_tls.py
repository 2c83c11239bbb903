"""Over TLS, too, what waits for a client is sent in the end, and flushed when the relay stops."""

from __future__ import annotations

import asyncio
from pathlib import Path
from ssl import create_default_context

import pytest

from shadowmesh.net.loop import run_loop
from shadowmesh.net.tls import Certificate
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import QUICK, TestRelay, running_relay

A, B = address("a"), address("b")


def data(number: int) -> bytes:
    return frame(B, A, number.to_bytes(4) + bytes(20_000))


async def fill(relay: TestRelay, sender: RelayClient, sent: int) -> int:
    """Send until frames wait in an outbox; returns how many there were in all."""
    while not relay.server.memory.frames:
        for _ in range(20):
            await sender.send(data(sent))
            sent += 1
        await received(relay, sent)
    return sent


async def received(relay: TestRelay, frames: int) -> None:
    await relay.until(lambda: relay.counters.frames_in == frames, "the last frame")


@pytest.mark.parametrize("mark", [1, 500_000])
def test_a_slow_reader_gets_everything_also_at_the_end(tmp_path: Path, mark: int) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    certificate = Certificate(str(paths.cert), str(paths.key))

    async def main() -> None:
        async with (
            asyncio.timeout(20),
            running_relay(QUICK, certificate.context, write_buffer_size=mark) as relay,
        ):
            url, trust = relay.url.replace("ws://", "wss://"), create_default_context(cafile=str(paths.ca))
            async with RelayClient(url, ssl=trust) as a, RelayClient(url, ssl=trust) as b:
                await a.join(A, device="a")
                await b.join(B, device="b")
                b.ws.transport.pause_reading()
                half = await fill(relay, a, 0)
                b.ws.transport.resume_reading()
                for number in range(half):
                    assert await b.next_data() == data(number)
                b.ws.transport.pause_reading()
                sent = await fill(relay, a, half)
                draining = asyncio.create_task(relay.server.drain())
                await a.closed()
                assert not draining.done()
                b.ws.transport.resume_reading()
                for number in range(half, sent):
                    assert await b.next_data() == data(number)
                assert (await b.closed())[0] == 1012
                await draining
                assert relay.counters.frames_out == sent

    run_loop(main())
