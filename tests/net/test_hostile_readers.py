"""Readers that stop reading: they lose their own frames, keep nobody waiting, and cost a bounded memory."""

from __future__ import annotations

import fcntl
import re
import termios
from pathlib import Path

from shadowmesh.testing.hostile_clients import (
    Siege,
    resident,
    run_attack,
    scraped,
    under_attack,
)
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.relay_program import RelayProgram

MANY = 1000
SIZE = 60_000
BUDGET = 32 << 20
END = b"end"


def test_a_thousand_readers_that_stop(tmp_path: Path) -> None:
    """Behind every frame for one of them comes one for a witness on the same connection: none is held up."""
    settings = {"max_connections": MANY + 4, "limits": {"queue_memory": BUDGET}}
    with RelayProgram(tmp_path, settings) as relay:
        relay.ready()

        def numbers() -> dict[str, float]:
            return scraped(relay.get("/metrics", relay.metrics_port).text)

        async def main() -> None:
            async with Siege(relay.relay_port) as siege:
                readers = await siege.crowd(MANY)
                for reader in readers:
                    reader.stop_reading()
                sender = await siege.joined("sender")
                witness = await siege.joined("witness")
                before = resident(relay.pid)
                # How many it takes until the kernel has all that it keeps for a reader depends on its memory.
                for turn in range(40):
                    for number, reader in enumerate(readers):
                        sender.send(reader.name, turn.to_bytes(2) + bytes(SIZE))
                        if number % 20 == 19:
                            sender.send("witness", number.to_bytes(2))
                            assert await witness.receive() == (address("sender"), number.to_bytes(2))
                    await siege.talk(5)
                    found = numbers()
                    assert found["queued_bytes"] <= found["queue_limit_bytes"] == BUDGET
                    if found["frames_dropped"] > MANY:
                        break
                assert found["frames_dropped"] > MANY, "each of them has lost a frame, and nobody else any"
                # A frame whose end the kernel does not take waits in its connection, beside the budget, and
                # Python and the allocator take something for what they manage.
                assert resident(relay.pid) - before < 1.2 * BUDGET + MANY * (SIZE + 8192)

                for reader in readers[1:]:
                    reader.peer.writer.transport.abort()
                readers[0].go_on_reading()
                sender.send(readers[0].name, END)
                turns = []
                while (received := await readers[0].receive()) != (address("sender"), END):
                    assert received[1][2:] == bytes(SIZE)
                    turns.append(int.from_bytes(received[1][:2]))
                assert turns == sorted(set(turns)), "in order, each once, the older ones are missing"
                await siege.talk()
            relay.wait_for(lambda: not numbers()["connections"], "the end of all connections")
            text = relay.get("/metrics", relay.metrics_port).text
            found = scraped(text)
            assert (found["frames_queued"], found["queued_bytes"]) == (0, 0)
            reasons = re.findall(r"^shadowmesh_relay_drops_total{.*} (\S+)$", text, re.MULTILINE)
            assert sum(map(float, reasons)) == found["frames_dropped"]
            assert found["frames_total"] == found["frames_relayed_total"] + found["frames_dropped"]

        run_attack(main, seconds=60)


@under_attack()
async def test_the_kernel_keeps_little_for_a_reader_that_stops(siege: Siege) -> None:
    """Or else a thousand of them would take the host's memory for TCP, beside the relay's budget."""
    reader, sender = await siege.joined("reader"), await siege.joined("sender")
    (connection,) = (
        c for c in siege.relay.server.connections if c.member and address("reader") in c.member.held
    )
    reader.stop_reading()
    for _ in range(200):
        sender.send("reader", bytes(SIZE))
        await sender.peer.writer.drain()
        await siege.talk(1)
    transport = connection._transport.underlying_transport  # type: ignore[union-attr]
    descriptor = transport.get_extra_info("socket").fileno()
    unsent = fcntl.ioctl(descriptor, termios.TIOCOUTQ, bytes(4))
    assert int.from_bytes(unsent, "little") < 512 * 1024
