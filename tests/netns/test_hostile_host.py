"""Attacks that need more of a host than its loopback: a disk that is full, and addresses from elsewhere."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.net.server import MAX_PENDING_PER_SOURCE
from shadowmesh.relay.admission import MAX_UNJOINED_PER_SOURCE
from shadowmesh.testing.hostile_clients import Siege, run_attack, under_attack
from shadowmesh.testing.hostile_clients import source as loopback
from shadowmesh.testing.namespace import own_namespace
from shadowmesh.testing.program import Program
from shadowmesh.testing.relay_program import RelayProgram
from shadowmesh.testing.websocket import UPGRADE

pytestmark = pytest.mark.netns

GOOD = UPGRADE.format(path="/relay?peer_id=x", more="").encode()


class OnSmallDisk(RelayProgram):
    """Its log is in a file system of its own, of 64 KiB, which ends with it."""

    def _start(self) -> None:
        disk = self.config.with_name("disk")
        disk.mkdir()
        script = 'mount -t tmpfs -o size=64k none "$0" && exec "$@" 2>>"$0/log"'
        argv = ["unshare", "--mount", "--propagation", "private", "sh", "-c", script, str(disk), *self._argv]
        process = subprocess.Popen(argv, env=self._environment)
        self.disk = Path(f"/proc/{process.pid}/root{disk}")
        Program.__init__(self, "relay", process, self.disk / "log")


def test_a_full_disk(tmp_path: Path) -> None:
    """The relay goes on without a log, and logs again when there is room."""
    with OnSmallDisk(tmp_path) as relay:
        relay.wait_for(relay.log.exists, "the disk")
        relay.ready()
        fill = relay.disk / "fill"
        with pytest.raises(OSError, match="No space left"):
            fill.write_bytes(bytes(1 << 20))

        async def main() -> None:
            async with Siege(relay.relay_port) as siege:
                for number in range(100):  # more lines than the last page of the log takes
                    await siege.joined(f"member {number}", loopback(number))
                await siege.talk()
                full = relay.log.stat().st_size
                relay.signal(signal.SIGHUP)
                await siege.talk()
                assert relay.log.stat().st_size == full
                fill.unlink()
                await siege.joined("the last")
                relay.wait_for(lambda: relay.log.stat().st_size > full, "a line in the log")
                await siege.talk()

        run_attack(main)
        assert relay.stop() == 0


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """A network where every address of 198.18.0.0/15 is this host's."""
    with own_namespace():
        subprocess.run(["ip", "route", "add", "local", "198.18.0.0/15", "dev", "lo"], check=True)
        yield


@pytest.mark.usefixtures("elsewhere")
@under_attack(limits={"connects_per_second": 0, "connections_per_source": 0})
async def test_one_source_cannot_hold_the_door(siege: Siege) -> None:
    """Of a source, 64 may have said nothing and 16 may not have joined; all others come in as ever."""
    listener, relay = siege.relay.server.listener, siege.relay
    assert listener is not None
    idle = [await siege.dial("198.18.0.1") for _ in range(MAX_PENDING_PER_SOURCE)]
    await relay.until(lambda: len(listener._pending) == MAX_PENDING_PER_SOURCE, "the last that fits")
    for _ in range(500):
        await (await siege.dial("198.18.0.1")).eof()
    assert listener.pending_refused == 500
    await siege.joined("neighbour", "198.18.0.2")
    for number, peer in enumerate(idle):
        peer.send(GOOD)
        allowed = number < MAX_UNJOINED_PER_SOURCE
        assert (await peer.head()).startswith("HTTP/1.1 101 " if allowed else "HTTP/1.1 429 ")
    await siege.joined("another neighbour", "198.18.0.2")
    assert relay.counters.refused["too_many_from_source"] == len(idle) - MAX_UNJOINED_PER_SOURCE
