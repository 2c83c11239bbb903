"""`./scripts/bench cost`: what a frame costs in instructions and system calls, which no clock measures.

On fixed input the counts are the same on a busy machine, so a slow-down shows at once: when one is above its
bound, tests/netns/test_cost.py fails. Prints a table, and the lines to put into `MEASURED` below.

`MEASURED` is what this command has counted last, by what and case. After a change that is meant to cost more,
or that saves much, run it three times and put in the highest of each; the bounds follow by `MARGIN`.
"""

from __future__ import annotations

import argparse
import os
import platform
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from signal import SIGCONT, SIGSTOP
from typing import NamedTuple

from bench import environment, report
from bench.arguments import ROOT
from bench.counting import START_SECONDS, TOOLS, Callgrind, Counts, system_calls
from bench.peers import Crowd
from shadowmesh.testing import netlab
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import Program
from shadowmesh.testing.relay_program import RelayProgram

MEASURED: Counts = {
    "relay, 64 KiB: instructions": 43760,
    "relay, 1.4 KiB: instructions": 40140,
    "relay, 50 of 100 B: instructions": 15970,
    "engine, 64 KiB: instructions": 1041000,
    "engine, 1.2 KB: instructions": 257500,
    "engine, 50 of 100 B: instructions": 48480,
    "engine, 50 of 100 B, slow link: instructions": 67840,
    "relay, 64 KiB: system calls": 4.023,
    "relay, 1.4 KiB: system calls": 4.038,
    "relay, 50 of 100 B: system calls": 0.083,
    "daemon sends, 1.2 KB: system calls": 4.055,
    "daemon receives, 1.2 KB: system calls": 4.080,
    "daemon sends, 50 of 100 B: system calls": 1.200,
    "daemon receives, 50 of 100 B: system calls": 0.085,
}
MARGIN = 1.2
OTHER_PYTHON = 1.5
"""The margin of instructions where the interpreter or the processor is not that of the table."""
PYTHON, MACHINE = "3.11", "x86_64"
"""Those of the table."""


class Case(NamedTuple):
    """What is sent in one go, and how often."""

    payload: int
    """Bytes of a frame or packet."""
    burst: int
    rounds: int


RELAY = {"64 KiB": Case(65536, 1, 1000), "1.4 KiB": Case(1434, 1, 1000), "50 of 100 B": Case(100, 50, 60)}
ENGINE = {"64 KiB": 100, "1.2 KB": 200, "50 of 100 B": 20, "50 of 100 B, slow link": 20}
"""Rounds of the cases of `bench.cost_engine`."""
DAEMON = {"1.2 KB": Case(1200, 1, 200), "50 of 100 B": Case(100, 50, 20)}
_PORT = 5001
"""Of UDP."""
_WARM = 10
MANY = 100
"""Peers of a relay, for `relay_growth`."""
_QUIET = "import shadowmesh.observe.lag as lag; lag.INTERVAL = 60.0"
"""Done by the relay first: what runs 50 times a second would count more, the busier the machine."""


def bound(name: str) -> float:
    """The most that this count may be, on this machine."""
    other = not platform.python_version().startswith(PYTHON + ".") or platform.machine() != MACHINE
    return MEASURED[name] * (OTHER_PYTHON if other and "instructions" in name else MARGIN)


def measure() -> Counts:
    """All counts, each for one frame or packet."""
    return relay_instructions() | engine_instructions() | relay_calls() | daemon_calls()


# -- the relay: the real program on loopback, frames from one client to another


class _Relay(RelayProgram):
    def __init__(self, directory: Path, prefix: Sequence[str] = (), before: str = "") -> None:
        self._prefix = prefix
        super().__init__(directory, before=f"{_QUIET}\n{before}", environment={"PYTHONHASHSEED": "0"})

    def _start(self) -> None:
        self._argv = [*self._prefix, *self._argv]
        super()._start()


@contextmanager
def _relay(directory: Path, prefix: Sequence[str] = (), before: str = "") -> Iterator[tuple[_Relay, Crowd]]:
    with _Relay(directory, prefix, before) as program:
        program.wait_for_text("relay is ready", START_SECONDS)
        crowd = Crowd(("127.0.0.1", program.relay_port))
        try:
            crowd.grow(2)
            yield program, crowd
        finally:
            crowd.close()


def _frames(crowd: Crowd, case: Case, rounds: int) -> None:
    """Bursts of frames, each of which arrives before the next is sent, from all pairs in turn."""
    pairs, buffer = len(crowd.sockets) // 2, bytearray(1 << 18)
    flows, bursts = crowd.flows(pairs), crowd.bursts(pairs, case.payload, case.burst)
    for number in range(rounds):
        flow, burst = flows[number % pairs], bursts[number % pairs]
        flow.sender.sendall(b"".join(burst.parts))
        left = burst.arrives
        while left:
            left -= flow.receiver.recv_into(buffer)


def relay_instructions(names: Collection[str] = RELAY.keys(), before: str = "") -> Counts:
    """Of `shadowmesh-relay` for a frame. before: Python that its process runs first."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        callgrind = Callgrind(Path(directory))
        with _relay(Path(directory), callgrind.prefix, before) as (program, crowd):
            callgrind.begin(program.pid)
            for name in names:
                case = RELAY[name]
                _frames(crowd, case, _WARM)
                counts = callgrind.count(program.pid, partial(_frames, crowd, case, case.rounds))
                found[f"relay, {name}: instructions"] = counts["instructions"] / case.rounds / case.burst
    return found


def relay_growth() -> Counts:
    """Instructions of `shadowmesh-relay` for a frame, by the number of its peers, all of which are active."""
    found, case = {}, RELAY["1.4 KiB"]
    with tempfile.TemporaryDirectory() as directory:
        callgrind = Callgrind(Path(directory))
        with _relay(Path(directory), callgrind.prefix) as (program, crowd):
            for count in (2, MANY):
                crowd.grow(count)
                callgrind.begin(program.pid)
                _frames(crowd, case, MANY)
                counts = callgrind.count(program.pid, partial(_frames, crowd, case, case.rounds))
                found[f"{count} peers"] = counts["instructions"] / case.rounds
                callgrind.end(program.pid)
    return found


def relay_calls() -> Counts:
    """Of `shadowmesh-relay` for a frame."""
    found: Counts = {}
    with tempfile.TemporaryDirectory() as directory, _relay(Path(directory)) as (program, crowd):
        for name, case in RELAY.items():
            _frames(crowd, case, _WARM)
            counts = system_calls(program.pid, partial(_frames, crowd, case, case.rounds))
            found |= _per_frame(f"relay, {name}", counts, case)
    return found


def _per_frame(name: str, counts: Counts, case: Case) -> Counts:
    frames = case.rounds * case.burst
    often = sorted(((count, kind) for kind, count in counts.items() if count > frames / 50), reverse=True)
    shown = ", ".join(f"{kind} {count / frames:.3g}" for count, kind in often)
    print(f"{name}: {shown}", file=sys.stderr, flush=True)
    return {f"{name}: system calls": sum(counts.values()) / frames}


# -- the daemon: its engine in memory, and the real program between TUN device and relay


def engine_instructions() -> Counts:
    """Of two daemon engines for a packet from TUN device to TUN device, sealed and opened."""
    found = {}
    with tempfile.TemporaryDirectory() as directory:
        callgrind = Callgrind(Path(directory))
        argv = [*callgrind.prefix, sys.executable, "-c", "from bench.cost_engine import main; main()"]
        pipe = subprocess.PIPE
        surroundings = os.environ | {"PYTHONHASHSEED": "0"}
        with subprocess.Popen(argv, stdin=pipe, stdout=pipe, text=True, cwd=ROOT, env=surroundings) as engine:
            assert engine.stdin is not None
            assert engine.stdout is not None
            read, write = engine.stdout.readline, engine.stdin

            def carry(name: str, rounds: int) -> None:
                print(name, rounds, file=write, flush=True)
                assert read() == "done\n"

            try:
                assert read() == "ready\n"
                callgrind.begin(engine.pid)
                for name, rounds in ENGINE.items():
                    carry(name, _WARM)
                    counts = callgrind.count(engine.pid, partial(carry, name, rounds))
                    packets = rounds * int(name.split(" of ")[0] if " of " in name else 1)
                    found[f"engine, {name}: instructions"] = counts["instructions"] / packets
            finally:
                engine.kill()
    return found


def daemon_calls() -> Counts:
    """Of the `shadowmesh-daemon` that sends, and of the one that receives, for a datagram."""
    found: Counts = {}
    with Lab("a", "b") as lab, ExitStack() as stack:
        lab.start_relay()
        key = os.urandom(32).hex()
        programs = {name: lab.start_client(name, f"10.10.10.{n}/24", key) for n, name in enumerate("ab", 1)}
        lab["a"].wait_for_ping("10.10.10.2")
        sender, receiver = (
            stack.enter_context(lab[name].new_socket(kind=socket.SOCK_DGRAM)) for name in "ab"
        )
        sender.connect(("10.10.10.2", _PORT))
        receiver.bind(("10.10.10.2", _PORT))

        def datagrams(case: Case, rounds: int) -> None:
            # A daemon that is stopped meanwhile finds the whole burst, as one that had to wait for its core.
            for _ in range(rounds):
                if case.burst > 1:
                    _stop(programs["a"])
                for _ in range(case.burst):
                    sender.send(bytes(case.payload))
                if case.burst > 1:
                    programs["a"].signal(SIGCONT)
                for _ in range(case.burst):
                    receiver.recv(65536)

        for name, case in DAEMON.items():
            datagrams(case, _WARM)
            for who, what in (("a", "sends"), ("b", "receives")):
                counts = system_calls(programs[who].pid, partial(datagrams, case, case.rounds))
                found |= _per_frame(f"daemon {what}, {name}", counts, case)
    return found


def _stop(program: Program) -> None:
    """Have it run no more when this returns, until SIGCONT."""
    program.signal(SIGSTOP)
    stat = Path(f"/proc/{program.pid}/stat")
    while stat.read_text().rpartition(") ")[2][0] not in "Tt":
        pass


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a count above its bound, 2 for what keeps it from starting."""
    argparse.ArgumentParser(prog="bench cost", description=__doc__).parse_args(argv)
    if obstacle := environment.obstacle({**netlab.TOOLS, **TOOLS}):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    found = measure()
    rows = [[name, f"{count:,.2f}", f"{bound(name):,.2f}"] for name, count in found.items()]
    print(report.table(["for a frame or packet", "counted", "at most"], rows))
    lines = (f'    "{name}": {n:.0f},' if n > 100 else f'    "{name}": {n:.3f},' for name, n in found.items())
    print("\nMEASURED: Counts = {", *lines, "}", sep="\n")
    return int(any(count > bound(name) for name, count in found.items()))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
