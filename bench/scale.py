"""`./scripts/bench scale`: how the cost of a relay and of a daemon grows with peers, routes and sessions.

What is counted is processor time, of the relay's process or of calls into a daemon's engine in memory. Prints
Markdown tables, writes them with JSON and a chart into bench/results/, and ends with status 1 when a mark is
missed or a measure failed. docs/performance.md explains method and measures.
"""

from __future__ import annotations

import argparse
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from ast import literal_eval
from collections import deque
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from bench import environment, processor, report, scale_engines, scale_report
from bench.arguments import DOCS, ROOT, at_least_one, parsed, some_of
from bench.load import Load
from bench.peers import ONE_SOURCE, PATIENCE, Crowd
from bench.results import OWN, Results
from bench.scale_report import BURSTS, MARKS, SHARES
from bench.stats import median
from shadowmesh.testing.program import LabError
from shadowmesh.testing.relay_program import RelayProgram

MEASURES = ("relay", "peers", "sessions", "routes")
FILES_BESIDE = 300
_SETTLE, _SETTLE_EACH = 0.05, 1e-4
SLICES = 10

Numbers = dict[str, float]


@dataclass(frozen=True)
class Effort:
    """How much to measure."""

    peers: tuple[int, ...]
    """Of the relay, ascending."""
    seconds: float
    """Of each run."""
    daemons: tuple[int, ...]
    messages: int
    sessions: int
    routes: tuple[int, ...]
    packets: int


FULL = Effort(
    (10, 100, 500, 1000, 2000, 5000),
    0.5,
    (2, 4, 8, 16, 32, 64),
    2048,
    100,
    (1, 10, 100, 1000, 10_000),
    200,
)
QUICK = Effort((10, 20), 0.02, (2, 3), 64, 3, (1, 10), 20)


def pairs(peers: int, share: float) -> int:
    """How many of the peers send, each to another one, when this share of them is active: one at least."""
    return max(1, round(peers * share / 2))


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a missed mark or a failed measure, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    effort, rounds = (QUICK, 1) if arguments.quick else (FULL, arguments.rounds)
    if obstacle := _files(effort.peers[-1] + FILES_BESIDE):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    facts = environment.describe([], []) | {
        "rounds": f"{rounds}, runs of {effort.seconds:g} s"
        if not arguments.quick
        else "a quick one of fewer peers"
    }
    marks = () if arguments.quick else MARKS
    results = Results("cubic at the clients", (OWN,), tuple(arguments.measures), marks=marks)
    for number in range(rounds):
        results.add(OWN, {"load before": processor.load()})
        for name in arguments.measures:
            begin = time.monotonic()
            try:
                _measure(name, effort, results)
            except (LabError, OSError) as error:
                results.errors.append(f"round {number + 1}, {name}: {str(error).partition(chr(10))[0]}")
            spent = time.monotonic() - begin
            print(f"round {number + 1}/{rounds} {name}: {spent:.0f} s", file=sys.stderr, flush=True)
    scale_report.judge(results, effort.peers)
    _write(arguments, results, facts)
    missed = [verdict for verdict in results.verdicts() if not verdict.met]
    for verdict in missed:
        print(f"bench: mark missed: {verdict}", file=sys.stderr)
    return 1 if missed or results.errors else 0


def _write(arguments: argparse.Namespace, results: Results, facts: dict[str, str]) -> None:
    text = scale_report.markdown(results, facts)
    chart = scale_report.svg(results)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "scale.md").write_text(text)
    (arguments.output / "scale.json").write_text(report.to_json(results, facts))
    (arguments.output / "scale.svg").write_text(chart)
    if arguments.write_docs:
        DOCS.with_name("performance-scale.svg").write_text(chart)
        report.write_docs(DOCS, "scale", text + "\n![The same as lines](performance-scale.svg)\n")


def _measure(name: str, effort: Effort, results: Results) -> None:
    if name == "relay":
        relay(effort, results)
    elif name == "peers":
        for count in effort.daemons:
            results.add(OWN, scale_engines.messages(count, effort.messages))
    elif name == "sessions":
        # In a process of its own: in this one a session gets memory that others have left.
        code = f"from bench.scale_engines import handshakes; print(handshakes({effort.sessions}))"
        argv = [sys.executable, "-c", code]
        done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, check=False)
        if done.returncode:
            raise LabError(done.stderr.strip().splitlines()[-1])
        results.add(OWN, literal_eval(done.stdout))
    else:
        for count in effort.routes:
            results.add(OWN, scale_engines.routes(count, effort.packets))


# -- the relay


class Subject:
    """A relay on loopback, and its peers."""

    def __init__(self, stack: ExitStack, most: int) -> None:
        settings = {"max_connections": most + FILES_BESIDE, "limits": ONE_SOURCE}
        directory = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        self._program = stack.enter_context(RelayProgram(directory, settings)).ready()
        self.crowd = Crowd(("127.0.0.1", self._program.relay_port))
        stack.callback(self.crowd.close)

    def seconds(self) -> float:
        """Processor time until now."""
        return processor.run_seconds(self._program.pid)

    def memory(self) -> int:
        """Resident bytes."""
        return processor.memory_kb(Path(f"/proc/{self._program.pid}/status").read_text()) * 1024

    def idle(self, seconds: float) -> float:
        """Cores that it uses while its peers do nothing."""
        before, begin = self.seconds(), time.monotonic()
        time.sleep(seconds)
        return (self.seconds() - before) / (time.monotonic() - begin)

    def alone(self, active: int, payload: int, length: float) -> float:
        """Seconds for a frame, when the next is sent only after it has arrived, by all pairs in turn."""
        flows, bursts = self.crowd.flows(active), self.crowd.bursts(active, payload, 1)
        buffer = bytearray(1 << 18)
        frames, before = 0, self.seconds()
        end = time.monotonic() + length
        while time.monotonic() < end:
            flow, burst = flows[frames % active], bursts[frames % active]
            flow.sender.sendmsg(burst.parts)
            left = burst.arrives
            while left:
                left -= flow.receiver.recv_into(buffer)
            frames += 1
        return (self.seconds() - before) / frames


def relay(effort: Effort, results: Results) -> None:
    """A relay with more and more peers, beside one with as few as at first; all numbers.

    All of it on one core: to wake another one costs several times what a frame costs, or nothing.
    """
    with ExitStack() as stack:
        cores = os.sched_getaffinity(0)
        os.sched_setaffinity(0, {max(cores)})
        stack.callback(os.sched_setaffinity, 0, cores)
        # One file for each `Load`, which waits with select(2): that knows no file from number 1024 on.
        spare = [os.open(os.devnull, os.O_RDONLY) for _ in range(len(effort.peers) * len(SHARES))]
        stack.callback(lambda: deque(map(os.close, spare)))
        few, subject = Subject(stack, effort.peers[0]), Subject(stack, effort.peers[-1])
        few.crowd.grow(effort.peers[0])
        first = subject.memory()
        for before, count in zip((0, *effort.peers), effort.peers, strict=False):
            began = subject.seconds()
            for step in (*range(before + 500, count, 500), count):
                subject.crowd.grow(step)
                few.crowd.keep()
            join = (subject.seconds() - began) / (count - before)
            _settle(subject, few)
            numbers = {
                f"join {count}": join * 1e3,
                f"memory {count}": (subject.memory() - first) / 1e6,
                f"idle {count}": subject.idle(2 * effort.seconds) * 1e3,
            }
            for share in SHARES:
                os.close(spare.pop())
                found = _traffic(subject, few, pairs(count, share), pairs(effort.peers[0], share), effort)
                numbers |= {f"{count} {share} {name}": value for name, value in found.items()}
            results.add(OWN, numbers)


def _traffic(subject: Subject, few: Subject, active: int, active_of_few: int, effort: Effort) -> Numbers:
    """µs for a frame, of those that are alone on their way, also as ratio, and of bursts at full load."""
    numbers: Numbers = {}
    gc.collect()
    gc.disable()
    for payload in BURSTS:
        _settle(subject, few)
        ways = ((subject, active), (few, active_of_few))
        # In turn with the other relay, slice by slice: what else these cores do meets both.
        slices = [
            [each.alone(senders, payload, effort.seconds / SLICES) for each, senders in ways]
            for _ in range(SLICES + 1)
        ][1:]
        numbers[f"{payload} alone"] = median([own for own, _ in slices]) * 1e6
        numbers[f"{payload} ratio"] = median([own / other for own, other in slices])
    crowd = subject.crowd
    load = Load(crowd.flows(active), subject.seconds)
    for payload, burst in BURSTS.items():
        _settle(subject, few)
        sample = load.saturate(crowd.bursts(active, payload, burst), effort.seconds / 4, effort.seconds)
        numbers[f"{payload} full"] = sample.subject / sample.frames * 1e6
    gc.enable()
    for end in crowd.sockets[: 2 * active]:
        end.settimeout(PATIENCE)
    return numbers


def _settle(*subjects: Subject) -> None:
    """Have no peer taken for silent, and wait until the relays have heard them all."""
    for subject in subjects:
        subject.crowd.keep()
    time.sleep(_SETTLE + _SETTLE_EACH * max(len(subject.crowd.sockets) for subject in subjects))


def _files(needed: int) -> str | None:
    """Allow this process so many open files, which the relay inherits; or why that cannot be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < needed:
        return f"{needed} open files are needed and {hard} allowed: raise the hard limit (ulimit -Hn)"
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, needed), hard))
    return None


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench scale", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of all measures (default: 3)")
    parser.add_argument(
        "--measures",
        type=some_of(MEASURES),
        default=list(MEASURES),
        metavar="NAME,…",
        help=", ".join(MEASURES),
    )
    return parsed(parser, argv)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
