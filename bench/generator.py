"""The load generator as a program: `bench.relay` starts it in a namespace of its own with a plan as JSON."""

from __future__ import annotations

import ctypes
import gc
import json
import re
import resource
import socket
import subprocess
import sys
import time
from array import array
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

from bench import processor
from bench.load import Latencies, Load, Sample
from bench.peers import CONGESTION, Crowd, Ends, Proxied
from bench.stats import percentile
from shadowmesh.testing.program import LabError

BULK, SMALL = 65536, 1434
"""Payloads of the mixed traffic, bytes."""
_SETTLE = 0.5
_PR_SET_TIMERSLACK = 29

Numbers = dict[str, float]


@dataclass(frozen=True)
class Size:
    """A size of frames."""

    payload: int
    burst: int
    """Frames that a sender gives to one call."""
    half: float = 0.0
    """Frames/s at half load; 0: half of what full load turns out to be."""


@dataclass(frozen=True)
class Plan:
    """What one generator does."""

    joins: bool
    """Whether its peers join a relay, or are connected through a TCP proxy."""
    pid: int
    """Of the program that is measured."""
    target: tuple[str, int]
    """Where that listens."""
    listen: tuple[str, int]
    """Where a proxy connects to."""
    seconds: float
    """Of each run, after …"""
    warm: float
    """… these."""
    pairs: int = 0
    """Peers that send, each to another one."""
    peers: int = 0
    """In all, with those that receive and those that do nothing; through a proxy, ends of connections."""
    sizes: tuple[Size, ...] = ()
    mixed: float = 0.0
    """Gbit/s of payload in frames of BULK and of SMALL bytes, as many of the ones as of the others."""
    idle: tuple[int, ...] = ()
    """Instead of all that: numbers of peers, ascending, at which memory is read."""

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Plan:
        fields = json.loads(text)
        fields["sizes"] = tuple(Size(**size) for size in fields["sizes"])
        return cls(**fields | {name: tuple(fields[name]) for name in ("target", "listen", "idle")})


def main() -> None:
    """Argument: a Plan as JSON. Prints Numbers as JSON."""
    plan = Plan.from_json(sys.argv[1])
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    # Timers of 1 µs and not 50: nothing is done here so often as to wait for the next burst.
    ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, 1000, 0, 0, 0)
    try:
        print(json.dumps(run(plan)))
    except LabError as error:
        sys.exit(f"generator: {error}")


def run(plan: Plan) -> Numbers:
    """All that the plan asks for, one after the other, on the same connections."""
    ends: Ends = Crowd(plan.target) if plan.joins else Proxied(plan.target, plan.listen)
    try:
        if plan.idle:
            return idle(plan, ends)
        ends.grow(plan.peers)
        check_congestion(plan, ends)
        return traffic(plan, ends)
    finally:
        ends.close()


def idle(plan: Plan, ends: Ends) -> Numbers:
    """Growth of the resident memory for each idle peer, KB (1000 bytes)."""
    status = Path(f"/proc/{plan.pid}/status")
    sizes = []
    for count in plan.idle:
        ends.grow(count)
        ends.keep()
        time.sleep(_SETTLE)
        sizes.append(processor.memory_kb(status.read_text()) * 1.024)
    first = plan.idle[0]
    return {
        f"idle {count - first}": (size - sizes[0]) / (count - first)
        for count, size in zip(plan.idle[1:], sizes[1:], strict=True)
    }


def traffic(plan: Plan, ends: Ends) -> Numbers:
    """Full load and half of it with each size of frames, then mixed traffic."""
    gc.collect()
    gc.disable()
    load = Load(ends.flows(plan.pairs), lambda: processor.run_seconds(plan.pid))
    numbers: Numbers = {}
    for size in plan.sizes:
        ends.keep()
        bursts = ends.bursts(plan.pairs, size.payload, size.burst)
        full = load.saturate(bursts, plan.warm, plan.seconds)
        numbers |= _named(f"{size.payload} ", _costs(full))
        rate = (size.half or full.frames / full.seconds / 2) / size.burst
        half, latencies, late = load.paced([(burst,) for burst in bursts], [rate], plan.warm, plan.seconds)
        numbers |= _named(f"{size.payload} half ", _costs(half) | _quantiles(latencies, late))
    if plan.mixed:
        ends.keep()
        bulk = ends.bursts(plan.pairs, BULK, 1, "bulk")
        small = ends.bursts(plan.pairs, SMALL, 1, "small")
        rate = plan.mixed * 1e9 / 8 / (BULK + SMALL)
        both = list(zip(bulk, small, strict=True))
        mixed, latencies, late = load.paced(both, [rate, rate], plan.warm, plan.seconds)
        numbers |= _named("mixed ", _costs(mixed) | _quantiles(latencies, late))
    return numbers


def _costs(sample: Sample) -> Numbers:
    if not sample.payload or not sample.subject:
        raise LabError("nothing came through")
    gigabytes = sample.payload / 1e9
    return {
        "frames": sample.frames / sample.seconds,
        "gbit": sample.payload * 8 / 1e9 / sample.seconds,
        "cpu": sample.subject / gigabytes,
        "frames per cpu": sample.frames / sample.subject,
        "busy": sample.subject / sample.seconds,
        "generator": sample.generator / sample.seconds,
    }


def _quantiles(latencies: Latencies, late: array[int]) -> Numbers:
    numbers: Numbers = {"late p99": percentile(late, 99) / 1e6}
    for kind, times in latencies.items():
        for name, percent in (("p50", 50), ("p99", 99)):
            numbers[f"{kind} {name}".lstrip()] = percentile(times, percent) / 1e6
    return numbers


def _named(prefix: str, numbers: Numbers) -> Numbers:
    return {prefix + name: value for name, value in numbers.items()}


def check_congestion(plan: Plan, ends: Ends) -> None:
    """Raise LabError unless both ends of all connections use cubic."""
    own = Counter(end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16) for end in ends.sockets)
    found = Counter({name.rstrip(b"\0").decode(): count for name, count in own.items()})
    argv = ["nsenter", f"--net=/proc/{plan.pid}/ns/net", "ss", "-tinH", "state", "established"]
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    found.update(congestion_controls(done.stdout))
    if set(found) != {CONGESTION}:
        raise LabError(f"not all connections use {CONGESTION}: {dict(found)}")


def congestion_controls(text: str) -> list[str]:
    """The congestion control of each connection that `ss -ti` shows."""
    return re.findall(r"(\w+) wscale:", text)
