"""The measures: each runs real programs in A and B over a way that is up, and gives named numbers."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from bench import parse, processor
from bench.stats import median, percentile
from bench.subjects import HTTP_PORT, IPERF3_PORT, Way, listens, start_nginx
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError, Program

MAX_LOSS = 0.01
_PATIENCE = 20.0
"""Seconds that a program may take beyond its measuring time."""


class Effort(NamedTuple):
    """How long to measure."""

    seconds: int
    """Of each run of iperf3 over TCP and of wrk."""
    trial_seconds: int
    """Of each trial of the search for a UDP rate."""
    first_rate: float
    """Where that search begins, datagrams/s."""
    rates: int
    """How many rates it tries at most."""
    precision: float
    """It ends when the lowest rate that is too high is at most this times the highest that is not."""
    pings: int
    """Of each run of ping."""
    connections: int
    """Of the crowd with which the relay's memory is measured."""

    @classmethod
    def full(cls, seconds: int) -> Effort:
        return cls(
            seconds, 2, first_rate=20e3, rates=14, precision=1.05, pings=200 * seconds, connections=500
        )

    @classmethod
    def quick(cls) -> Effort:
        """Seconds in all, to see that everything works; the numbers mean nothing."""
        return cls(1, 1, first_rate=1e3, rates=1, precision=1.0, pings=40, connections=30)


PING_INTERVAL = 0.005


class Bench(NamedTuple):
    """One subject that is up, ready to be measured."""

    lab: Lab
    way: Way
    congestion: str
    effort: Effort


Numbers = dict[str, float]
"""Name of a number to its value; report.METRICS has titles and units, "cpu NAME" and "rss NAME" are of
programs."""


class Measure(NamedTuple):
    """One step of the benchmark."""

    title: str
    run: Callable[[Bench], Numbers]
    tools: Mapping[str, str]
    over_tcp: bool = True
    """Whether a way that carries nothing but TCP can be measured so."""


# -- TCP


def tcp1(bench: Bench) -> Numbers:
    """One stream from A to B, and what it costs."""
    idle = processor.load()
    meter = processor.Meter(bench.way.programs, idle)
    result = _iperf3_tcp(bench)
    machine, own = meter.read()
    gigabytes = result.bytes / 1e9
    numbers = {"tcp1": result.bits_per_second / 1e9, "cpu": machine / gigabytes, "load before": idle}
    return numbers | {f"cpu {name}": seconds / gigabytes for name, seconds in own.items()}


def tcp8(bench: Bench) -> Numbers:
    """Eight streams from A to B."""
    return {"tcp8": _iperf3_tcp(bench, "-P", "8").bits_per_second / 1e9}


def tcp_reversed(bench: Bench) -> Numbers:
    """One stream from B to A, over a connection that A made."""
    return {"tcpr": _iperf3_tcp(bench, "-R").bits_per_second / 1e9}


def _iperf3_tcp(bench: Bench, *options: str) -> parse.Tcp:
    with _iperf3_server(bench) as server:
        argv = _iperf3_client(bench, bench.effort.seconds, *options)
        done = bench.lab["a"].run(*argv, check=False, timeout=bench.effort.seconds + _PATIENCE)
        result = parse.iperf3_tcp(done.stdout)
        server.wait()
    if result.congestion != bench.congestion:
        raise LabError(f"the sender used {result.congestion}, not {bench.congestion}")
    return result


@contextmanager
def _iperf3_server(bench: Bench) -> Iterator[Program]:
    """A server in B for one test; a new one each time, as a test that broke off would leave it busy."""
    host = bench.lab["b"]
    argv = ("iperf3", "-s", "-1", "-p", str(IPERF3_PORT), "-B", bench.way.listen)
    server = host.start(*argv, name="iperf3-server")
    try:
        server.wait_for(lambda: listens(host, IPERF3_PORT), "listening port of iperf3")
        yield server
    finally:
        server.stop()


def _iperf3_client(bench: Bench, seconds: int, *options: str) -> list[str]:
    argv = ["iperf3", "-J", "-c", bench.way.target, "-p", str(IPERF3_PORT), "-t", str(seconds)]
    return [*argv, *(() if "-u" in options else ("-C", bench.congestion)), *options]


# -- UDP


def udp1200(bench: Bench) -> Numbers:
    """Datagrams of 1200 bytes: the highest payload rate with under 1 % loss, in Mbit/s."""
    best = highest_rate(lambda rate: _iperf3_udp(bench, rate, 1200), bench.effort)
    return {"udp1200": best.received * 1200 * 8 / 1e6, "udp1200 loss": best.loss * 100}


def udp100(bench: Bench) -> Numbers:
    """Datagrams of 100 bytes: the highest rate with under 1 % loss, in datagrams/s."""
    best = highest_rate(lambda rate: _iperf3_udp(bench, rate, 100), bench.effort)
    return {"udp100": best.received, "udp100 loss": best.loss * 100}


def highest_rate(trial: Callable[[float], parse.Udp], effort: Effort) -> parse.Udp:
    """Search the rate (datagrams/s): doubled or quartered until it is enclosed, then bisected.

    A rate is too high when two trials of it in a row lose too much, so that one hiccup of the machine does
    not decide. The search ends early when the sender cannot send as fast as asked. Raises LabError when no
    trial lost little enough.
    """
    best: parse.Udp | None = None
    low, high = 0.0, math.inf
    rate = effort.first_rate
    for _ in range(effort.rates):
        result = trial(rate)
        if result.loss >= MAX_LOSS:
            result = trial(rate)
        if result.loss < MAX_LOSS:
            low = rate
            if best is None or result.received > best.received:
                best = result
            if result.sent < 0.9 * rate:
                break
        else:
            high = rate
        if high <= low * effort.precision:
            break
        rate = low * 2 if high == math.inf else math.sqrt(low * high) if low else high / 4
    if best is None:
        raise LabError(f"no UDP rate down to {rate:,.0f} datagrams/s had under {MAX_LOSS:.0%} loss")
    return best


def _iperf3_udp(bench: Bench, rate: float, size: int) -> parse.Udp:
    """One trial. A rate that breaks iperf3's own control connection too counts as lost altogether."""
    seconds = bench.effort.trial_seconds
    options = ("-u", "-l", str(size), "-b", str(round(rate * size * 8)), "-w", str(_udp_buffer()))
    with _iperf3_server(bench):
        argv = _iperf3_client(bench, seconds, *options)
        done = bench.lab["a"].run(*argv, check=False, timeout=seconds + _PATIENCE)
        try:
            return parse.iperf3_udp(done.stdout)
        except LabError:
            return parse.Udp(rate, 0.0)


def _udp_buffer() -> int:
    """Socket buffer of iperf3: 1 MiB, or what the kernel allows.

    With the usual 208 KiB a receiver that waits for its core some milliseconds would lose datagrams that the
    subject has delivered.
    """
    limits = (Path(f"/proc/sys/net/core/{name}mem_max").read_text() for name in "rw")
    return min(1 << 20, *map(int, limits))


# -- latency


def ping(bench: Bench) -> Numbers:
    """Round trips while nothing else runs."""
    result = _ping(bench)
    lost = 100 * (1 - len(result.times) / result.sent)
    return {
        "ping": median(result.times),
        "ping p99": percentile(result.times, 99),
        "ping lost": max(0.0, lost),
    }


def ping_loaded(bench: Bench) -> Numbers:
    """Round trips beside one TCP stream from A to B that takes all it can get."""
    # A second for the stream to find its rate, two for ping to end within it.
    seconds = math.ceil(bench.effort.pings * PING_INTERVAL) + 3
    with _iperf3_server(bench):
        argv = _iperf3_client(bench, seconds)
        stream = bench.lab["a"].start(*argv, name="iperf3-load")
        try:
            time.sleep(1.0)
            result = _ping(bench)
            if stream.status is not None:
                raise LabError(f"the stream ended before the pings\n{stream.text()[-500:]}")
        finally:
            stream.stop()
    lost = 100 * (1 - len(result.times) / result.sent)
    return {
        "loaded": median(result.times),
        "loaded p99": percentile(result.times, 99),
        "loaded lost": max(0.0, lost),
    }


def _ping(bench: Bench) -> parse.Ping:
    count = bench.effort.pings
    argv = ("ping", "-n", "-i", str(PING_INTERVAL), "-c", str(count), "-W", "1", bench.way.target)
    done = bench.lab["a"].run(*argv, check=False, timeout=3 * count * PING_INTERVAL + _PATIENCE)
    return parse.ping(done.stdout)


# -- HTTP


def wrk(bench: Bench) -> Numbers:
    """Requests/s of 64 connections for a file of 1 KiB that nginx in B serves."""
    host = bench.lab["b"]
    root = bench.lab.directory / "www"
    root.mkdir()
    (root / "1k").write_bytes(b"x" * 1024)
    server = f"server {{ listen {bench.way.listen}:{HTTP_PORT}; root {root}; }}"
    nginx = start_nginx(host, "http", f"http {{ access_log off; keepalive_requests 100000000; {server} }}")
    try:
        nginx.wait_for(lambda: listens(host, HTTP_PORT), "listening port of nginx")
        url = f"http://{bench.way.target}:{HTTP_PORT}/1k"
        argv = ("wrk", "-t2", "-c64", f"-d{bench.effort.seconds}s", "--latency", url)
        done = bench.lab["a"].run(*argv, timeout=bench.effort.seconds + _PATIENCE)
        result = parse.wrk(done.stdout)
    finally:
        nginx.stop()
    return {"wrk": result.requests_per_second, "wrk ms": result.median_ms, "wrk errors": result.errors}


# -- memory


def rss(bench: Bench) -> Numbers:
    """Resident memory of the subject's programs after all other measures, in MB."""
    programs = bench.way.programs.items()
    return {f"rss {name}": processor.program_memory_kb(program) * 1024 / 1e6 for name, program in programs}


_NGINX = {"nginx": "nginx-light"}

# The order in which they run: rss is last, to see what the traffic before it has left.
MEASURES = {
    "ping": Measure("ping, idle", ping, {}, over_tcp=False),
    "tcp1": Measure("TCP, 1 stream", tcp1, {}),
    "tcp8": Measure("TCP, 8 streams", tcp8, {}),
    "tcpr": Measure("TCP, 1 stream reversed", tcp_reversed, {}),
    "udp1200": Measure("UDP, 1200 bytes", udp1200, {}, over_tcp=False),
    "udp100": Measure("UDP, 100 bytes", udp100, {}, over_tcp=False),
    "loaded": Measure("ping under one TCP stream", ping_loaded, {}, over_tcp=False),
    "wrk": Measure("HTTP", wrk, _NGINX | {"wrk": "wrk"}),
    "rss": Measure("memory of the programs", rss, {}),
}
