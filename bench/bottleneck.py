"""`./scripts/bench bottleneck`: bulk, pings and fairness through a slow line with a long queue.

Prints Markdown tables, writes them with JSON into bench/results/, and ends with status 1 when a mark is
missed or a measure failed. docs/performance.md explains method and measures.
"""

from __future__ import annotations

import argparse
import json
import secrets
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from subprocess import TimeoutExpired
from typing import NamedTuple

from bench import environment, parse, processor, report
from bench.arguments import at_least_one, some_of
from bench.results import OWN, Mark, Metric, Results
from bench.stats import median, percentile
from bench.subjects import IPERF3_PORT, listens
from shadowmesh.testing import guide, netlab
from shadowmesh.testing.bottleneck import OTHER_RELAY, add_bottleneck, add_other_relay
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "bench" / "results"
DOCS = ROOT / "docs" / "performance.md"

MBIT, MBIT_BESIDE = 20, 1
SHAPE = "tbf rate {}mbit burst 32kb latency 400ms"
"""With 20 Mbit/s the queue is a megabyte, as in many a home router."""
WARM = 3.0
"""Seconds of bulk before anything counts."""
PING_INTERVAL = 0.02
BESIDE_NEARER = 5
"""Pings that do not go through the line have to be so many times quicker."""
_PATIENCE = 30.0
_A, _B, _C = "10.10.10.1", "10.10.10.2", "10.10.10.3"
BESIDE = "beside"
WAYS = ("up", "down", BESIDE)
CONTROLS = ("cubic", "bbr")
MANY = 16
"""Flows that share what one sender may use of the relay; of cubic, which fills whatever queue there is."""
FLOWS = (1, 2, MANY)


class Case(NamedTuple):
    """Direction of the bulk through the line, congestion control of outer and inner TCP, number of flows.

    BESIDE: up through a line of 1 Mbit/s, and the pings go by another relay, to which there is no slow line.
    """

    way: str
    outer: str
    inner: str
    flows: int

    def __str__(self) -> str:
        return f"{self.way} {self.outer} {self.inner} {self.flows}"


Numbers = dict[str, float]


def marks(cases: Sequence[Case]) -> tuple[Mark, ...]:
    """What each case has to reach."""
    limits = (
        ("ping", 60.0, False, "ping, median, ms"),
        ("p99", 150.0, False, "ping, 99th percentile, ms"),
        ("goodput", 85.0, True, "goodput, % of the line"),
        ("apart", 20.0, False, "two flows apart, %"),
    )
    return tuple(
        Mark(
            f"{case} {name}",
            None,
            limit / (BESIDE_NEARER if case.way == BESIDE and not at_least else 1),
            at_least,
            f"{_title(case)}: {what}",
            str(case),
        )
        for case in cases
        for name, limit, at_least, what in limits
        if name != "apart" or case.flows == 2
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a missed mark or a failed measure, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    if obstacle := _obstacle():
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    seconds, rounds = (2, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    cases = [
        Case(way, outer, inner, flows)
        for outer, way, inner, flows in product(arguments.outer, arguments.ways, arguments.inner, FLOWS)
        if (way != BESIDE or flows == 1) and (inner == "cubic" or flows != MANY)
    ]
    facts = environment.describe([], ["iperf3"]) | {
        "line": SHAPE.format(MBIT),
        "rounds": f"{rounds}, runs of {seconds} s",
    }
    results = Results(
        "of the tables",
        (OWN,),
        tuple(map(str, cases)),
        marks=() if arguments.quick else marks(cases),
    )
    for number in range(rounds):
        for outer, beside in product(arguments.outer, (False, True)):
            of_lab = [case for case in cases if case.outer == outer and (case.way == BESIDE) is beside]
            if of_lab:
                _round(results, of_lab, outer, seconds, f"round {number + 1}/{rounds}")
    text = markdown(results, cases, facts)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "bottleneck.md").write_text(text)
    (arguments.output / "bottleneck.json").write_text(report.to_json(results, facts))
    if arguments.write_docs:
        report.write_docs(DOCS, "bottleneck", text)
    missed = [verdict for verdict in results.verdicts() if not verdict.met]
    for verdict in missed:
        print(f"bench: mark missed: {verdict}", file=sys.stderr)
    return 1 if missed or results.errors else 0


def _round(results: Results, cases: Sequence[Case], outer: str, seconds: int, where: str) -> None:
    """All cases of one lab. A failure is noted, but does not end a long run."""
    beside = cases[0].way == BESIDE
    with _survived(results, f"{where} {outer}"), started(outer, beside=beside) as lab:
        results.add(OWN, {"load before": processor.load()})
        for case in cases:
            with _survived(results, f"{where} {case}"):
                numbers = measure(lab, case, seconds)
                results.add(OWN, {f"{case} {name}": value for name, value in numbers.items()})
                shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
                print(f"{where} {case}: {shown}", file=sys.stderr, flush=True)


@contextmanager
def started(outer: str, *, beside: bool = False) -> Iterator[Lab]:
    """A and B, joined to the relay, A through the slow line; beside: A and C to another relay, too."""
    with Lab("a", "b", "c", congestion=outer) as lab:
        add_bottleneck(lab, "a", SHAPE.format(MBIT_BESIDE if beside else MBIT), outer)
        key = secrets.token_hex(32)
        servers = [f"ws://{netlab.RELAY_IP4}:{guide.RELAY_PORT}"]
        lab.start_relay()
        if beside:
            add_other_relay(lab, "a", outer)
            lab.start_client("c", f"{_C}/24", key, relay={"server": OTHER_RELAY})
            servers.append(OTHER_RELAY)
        lab.start_client("a", f"{_A}/24", key, relay={"server": None, "servers": servers})
        lab.start_client("b", f"{_B}/24", key)
        lab["a"].wait_for_ping(_B)
        if beside:
            lab["a"].wait_for_ping(_C)
        yield lab


def measure(lab: Lab, case: Case, seconds: int) -> Numbers:
    """Bulk for some seconds after WARM, pings beside it: ms, and % of the line's rate."""
    server = lab["b"].start("iperf3", "-s", "-1", "-p", str(IPERF3_PORT), "-B", _B, name="iperf3-server")
    try:
        server.wait_for(lambda: listens(lab["b"], IPERF3_PORT), "listening port of iperf3")
        argv = ["iperf3", "-J", "-c", _B, "-p", str(IPERF3_PORT), "-t", str(seconds), "-O", f"{WARM:g}"]
        argv += ["-C", case.inner, "-P", str(case.flows), *(["-R"] if case.way == "down" else [])]
        bulk = lab["a"].start(*argv, name="iperf3-bulk")
        time.sleep(WARM)
        count = round(seconds / PING_INTERVAL)
        target = _C if case.way == BESIDE else _B
        pings = ("ping", "-n", "-i", str(PING_INTERVAL), "-c", str(count), "-W", "2", target)
        done = lab["a"].run(*pings, check=False, timeout=seconds + _PATIENCE)
        bulk.wait(_PATIENCE)
        return _numbers(parse.ping(done.stdout), bulk.text(), MBIT_BESIDE if case.way == BESIDE else MBIT)
    finally:
        server.stop()


def _numbers(pings: parse.Ping, text: str, mbit: int) -> Numbers:
    total = parse.iperf3_tcp(text).bits_per_second
    shares = [flow["receiver"]["bits_per_second"] for flow in json.loads(text)["end"]["streams"]]
    numbers = {
        "ping": median(pings.times),
        "p99": percentile(pings.times, 99),
        "lost": max(0.0, 100 * (1 - len(pings.times) / pings.sent)),
        "goodput": total / mbit / 1e4,
    }
    if len(shares) == 2:
        numbers["apart"] = 100 * (1 - min(shares) / max(shares))
    return numbers


def markdown(results: Results, cases: Sequence[Case], facts: Mapping[str, str]) -> str:
    """The table of one run, one row for each case."""
    columns = {
        "ping": Metric("ping, median, ms", "", 1),
        "p99": Metric("99th percentile, ms", "", 1),
        "lost": Metric("lost, %", "", 1),
        "goodput": Metric("goodput, %", "", 1),
        "apart": Metric("flows apart, %", "", 1),
    }
    rows = []
    for case in cases:
        cells = [
            report.cell(results.spread(OWN, f"{case} {name}"), metric) for name, metric in columns.items()
        ]
        if any(cells):
            rows.append([_title(case), *cells])
    parts = [
        report.headline(results, facts),
        report.table(
            ["bulk; median (least–most)", *(metric.title for metric in columns.values())],
            rows,
        ),
        _verdicts(results),
        report.disturbance(results),
        "\n".join(f"- failed: {error}" for error in results.errors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _verdicts(results: Results) -> str:
    """A line for each mark that was missed, and one for all others."""
    verdicts = results.verdicts()
    missed = [verdict for verdict in verdicts if not verdict.met]
    lines = [f"- **missed**: {verdict}" for verdict in missed]
    return "\n".join(
        [*lines, f"- met: {len(verdicts) - len(missed)} of {len(verdicts)} marks"] if verdicts else []
    )


def _title(case: Case) -> str:
    flows = "1 flow" if case.flows == 1 else f"{case.flows} flows"
    way = "up at 1 Mbit/s, pings by another relay" if case.way == BESIDE else case.way
    return f"{way}, outer {case.outer}, {flows} of {case.inner}"


@contextmanager
def _survived(results: Results, where: str) -> Iterator[None]:
    try:
        yield
    except (LabError, TimeoutExpired, OSError) as error:
        results.errors.append(f"{where}: {str(error).partition(chr(10))[0]}")
        print(f"{where}: FAILED: {error}", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench bottleneck", description=(__doc__ or "").partition("\n\n")[2]
    )
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of all cases (default: 3)")
    parser.add_argument("--seconds", type=at_least_one, default=15, help="of each run (default: 15)")
    for option, known, default in (
        ("--ways", list(WAYS), list(WAYS)),
        ("--outer", list(CONTROLS), list(CONTROLS)),
        ("--inner", list(CONTROLS), list(CONTROLS)),
    ):
        parser.add_argument(
            option, type=some_of(known), default=default, metavar="NAME,…", help=", ".join(known)
        )
    parser.add_argument("--quick", action="store_true", help="see that it works; the numbers mean nothing")
    parser.add_argument("--output", type=Path, default=RESULTS, help="directory (default: bench/results)")
    parser.add_argument("--write-docs", action="store_true", help="put the table into docs/performance.md")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.write_docs:
        parser.error("the numbers of --quick mean nothing and do not go into the docs")
    return arguments


def _obstacle() -> str | None:
    """What keeps the run from starting, in words, or None."""
    tools = {**netlab.TOOLS, "tc": "iproute2", "iperf3": "iperf3"}
    if packages := environment.missing_packages(tools):
        return f"please install what is missing: apt-get install --no-install-recommends {' '.join(packages)}"
    return netlab.obstacle()


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
