"""A host with nothing left for the program: no file descriptors, no room for its log, a clock that jumps."""

from __future__ import annotations

import asyncio
import fcntl
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

import shadowmesh
from shadowmesh.testing.hostile_clients import Siege, run_attack, scraped, source
from shadowmesh.testing.program import Program
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.relay_program import RelayProgram
from shadowmesh.testing.websocket import PING

FILES = 80
RESERVED = FILES // 4
F_SETPIPE_SZ = 1031


def numbers(relay: RelayProgram) -> dict[str, float]:
    return scraped(relay.get("/metrics", relay.metrics_port).text)


def healthy(relay: RelayProgram) -> bool:
    try:
        return relay.get("/health").is_success
    except httpx.HTTPError:
        return False


def processor_seconds(pid: int) -> float:
    user, system = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return (int(user) + int(system)) / os.sysconf("SC_CLK_TCK")


def open_files(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


def test_file_descriptors_run_out(tmp_path: Path) -> None:
    """Who is there is served as ever, and the HTTP ports answer; one line, no work, then whoever waited."""
    few = f"import resource; resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))"
    with RelayProgram(tmp_path, before=few) as relay:
        relay.ready()

        async def main() -> None:
            async with Siege(relay.relay_port) as siege:
                one, other = await siege.joined("one"), await siege.joined("other")
                relay.wait_for(lambda: relay.text().count("client joined") == 4, "four lines")
                before = relay.text()
                for number in range(2 * FILES):
                    await siege.dial(source(number))
                said = relay.wait_for_text(r"file descriptors run out, newcomers are refused; .*\n")
                assert said[0].endswith(f" open={FILES - RESERVED} allowed={FILES}\n")
                newcomer = asyncio.create_task(siege.joined("newcomer"))
                await siege.talk()
                assert healthy(relay)
                assert numbers(relay)["accept_errors_total"] >= 1
                assert open_files(relay.pid) < FILES - RESERVED // 2  # those two HTTP connections may linger

                await siege.honest.pause()
                spent = processor_seconds(relay.pid)
                await asyncio.sleep(1.0)
                assert processor_seconds(relay.pid) - spent < 0.2
                for number in range(50):
                    one.send("other", b"%d" % number)
                    assert await other.receive() == (address("one"), b"%d" % number)
                siege.honest.resume()
                assert len(relay.text().splitlines()) == len(before.splitlines()) + 1

                for peer in siege.attackers[2:]:
                    peer.writer.transport.abort()
                assert (await newcomer).joined["held"]
                assert healthy(relay)

        run_attack(main)


class Mute(RelayProgram):
    """Its log goes to a file descriptor and cannot be read here."""

    def __init__(self, directory: Path, log: int) -> None:
        self._to = log
        super().__init__(directory)

    def _start(self) -> None:
        process = subprocess.Popen(self._argv, stderr=self._to, env=self._environment)
        nothing = self.config.with_name("nothing")
        nothing.touch()
        Program.__init__(self, "relay", process, nothing)


def full_disk() -> tuple[int, list[int]]:
    log = os.open("/dev/full", os.O_WRONLY)
    return log, [log]


def reader_that_hangs() -> tuple[int, list[int]]:
    unread, log = os.pipe()
    fcntl.fcntl(log, F_SETPIPE_SZ, 4096)
    return log, [unread, log]


def reader_that_is_gone() -> tuple[int, list[int]]:
    unread, log = os.pipe()
    os.close(unread)
    return log, [log]


@pytest.mark.parametrize("make", [full_disk, reader_that_hangs, reader_that_is_gone])
def test_a_log_that_takes_nothing(tmp_path: Path, make: Callable[[], tuple[int, list[int]]]) -> None:
    """It starts, serves, reloads and stops as ever, in time."""
    log, descriptors = make()
    with Mute(tmp_path, log) as relay:
        relay.wait_for(lambda: healthy(relay), "health")

        async def main() -> None:
            async with Siege(relay.relay_port) as siege:
                for number in range(100):
                    await siege.joined(f"member {number}", source(number))
                siege.abort()
                relay.signal(signal.SIGHUP)
                await siege.talk()
            relay.wait_for(lambda: not numbers(relay)["connections"], "the end of all connections")

        run_attack(main)
        assert relay.stop() == 0
    for descriptor in descriptors:
        os.close(descriptor)


JUMPS = """
import itertools, time
real, jumps = time.time, itertools.cycle((0, 1e9, -1e9, 3600, -3600))
time.time = lambda: real() + next(jumps)
from shadowmesh.relay.timing import Timing
Timing.for_idle_timeout = classmethod(lambda cls, seconds: cls(keepalive=0.3, dead=2.5, tick=0.05))
"""


def test_a_clock_that_jumps(tmp_path: Path) -> None:
    """Years forth and back at every look: nobody is taken for silent, late or away, no deadline is missed."""
    with RelayProgram(tmp_path, before=JUMPS) as relay:
        relay.ready()

        async def main() -> None:
            async with Siege(relay.relay_port) as siege:
                silent = await siege.joined("silent")
                assert (await silent.peer.frame())[0] == PING
                for number in range(20):
                    client = await siege.joined("comes and goes", source(number))
                    assert client.joined["held"] == [address("comes and goes").hex()]
                    client.peer.writer.transport.abort()
                await siege.talk()
                assert (await silent.closed())[0] == 1008
            assert relay.metric("joins_total") == 23

        run_attack(main)
        assert relay.stop() == 0


def test_who_asks_the_wall_clock() -> None:
    """Dates that people write: of certificates and of API keys; and the time in front of a log line."""
    package = Path(shadowmesh.__file__).parent
    asks = r"\btime\.time\b|^from time import .*\btime\b|datetime\.(now|today|utcnow)\b|\btime_ns\("
    found = {
        str(path.relative_to(package))
        for room in ("relay", "net", "wire", "crypto", "mesh", "observe")
        for path in (package / room).rglob("*.py")
        if re.search(asks, path.read_text(), re.MULTILINE)
    }
    assert found <= {"net/failure.py", "net/tls.py", "relay/gate.py", "relay/keys.py"}
    assert not re.search(asks, (package / "ratelimit.py").read_text(), re.MULTILINE)
