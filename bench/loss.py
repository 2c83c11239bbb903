"""`./scripts/bench loss`: what is lost at full speed, where no line is slow.

iperf3 sends all it can through relay and daemons, and all their counters of drops are read before and after.
Prints a Markdown table, writes it with JSON into bench/results/, and ends with status 1 when a mark is missed
or a measure failed. docs/performance.md explains the marks.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from itertools import product
from subprocess import TimeoutExpired
from typing import NamedTuple

from bench import environment, parse, processor, report, soak_watch
from bench.arguments import DOCS, at_least_one, parsed, some_of
from bench.results import OWN, Mark, Metric, Results
from bench.stats import median, percentile
from bench.subjects import IPERF3_PORT, SUBJECTS, Way, listens
from shadowmesh.testing import netlab
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError

WAYS = ("up", "down")
CONTROLS = ("cubic", "bbr")
STREAMS = (1, 8)
PING_INTERVAL = 0.02
_PATIENCE = 20.0
METRICS = {
    "gbit": Metric("Gbit/s", "", 2),
    "frames": Metric("frames", "", 0),
    "lost": Metric("lost frames", "", 0),
    "again": Metric("segments sent again", "", 0),
    "ping": Metric("ping, median, ms", "", 1),
    "p99": Metric("99th percentile", "", 1),
}


class Case(NamedTuple):
    """From A to B or back, congestion control of outer and inner TCP, streams."""

    way: str
    control: str
    streams: int

    def __str__(self) -> str:
        return f"{self.way}, {self.streams} of {self.control}"


Numbers = dict[str, float]


def marks(cases: Sequence[Case]) -> tuple[Mark, ...]:
    """Nothing is lost."""
    return tuple(Mark(f"{case} lost", None, 0.0, False, f"{case}: lost frames", str(case)) for case in cases)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a missed mark or a failed measure, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    if obstacle := environment.obstacle({**netlab.TOOLS, "iperf3": "iperf3"}):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    seconds, rounds = (2, 1) if arguments.quick else (arguments.seconds, arguments.rounds)
    cases = [Case(way, control, count) for control, way, count in product(arguments.control, WAYS, STREAMS)]
    facts = environment.describe([], ["iperf3"]) | {"rounds": f"{rounds}, runs of {seconds} s"}
    results = Results(
        "of the table", (OWN,), tuple(map(str, cases)), marks=() if arguments.quick else marks(cases)
    )
    for number, control in product(range(rounds), arguments.control):
        with Lab("a", "b", congestion=control) as lab, SUBJECTS[OWN].start(lab, control) as way:
            results.add(OWN, {"load before": processor.load()})
            for case in (case for case in cases if case.control == control):
                try:
                    found = measure(lab, way, case, seconds)
                except (LabError, TimeoutExpired, OSError) as error:
                    results.errors.append(f"round {number + 1}, {case}: {str(error).partition(chr(10))[0]}")
                    continue
                results.add(OWN, {f"{case} {name}": value for name, value in found.items()})
                shown = ", ".join(f"{name} {value:.4g}" for name, value in found.items())
                print(f"round {number + 1}/{rounds} {case}: {shown}", file=sys.stderr, flush=True)
    text = markdown(results, cases, facts)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "loss.md").write_text(text)
    (arguments.output / "loss.json").write_text(report.to_json(results, facts))
    if arguments.write_docs:
        report.write_docs(DOCS, "loss", text)
    missed = [verdict for verdict in results.verdicts() if not verdict.met]
    for verdict in missed:
        print(f"bench: mark missed: {verdict}", file=sys.stderr)
    return 1 if missed or results.errors else 0


def measure(lab: Lab, way: Way, case: Case, seconds: int) -> Numbers:
    """One run of iperf3, a ping beside it, and what the counters say of it."""
    server = lab["b"].start("iperf3", "-s", "-1", "-p", str(IPERF3_PORT), "-B", way.listen, name="server")
    try:
        server.wait_for(lambda: listens(lab["b"], IPERF3_PORT), "listening port of iperf3")
        before = counted(lab)
        argv = ["iperf3", "-J", "-c", way.target, "-p", str(IPERF3_PORT), "-t", str(seconds)]
        argv += ["-C", case.control, "-P", str(case.streams), *(["-R"] if case.way == "down" else [])]
        bulk = lab["a"].start(*argv, name="bulk")
        count = round((seconds - 1) / PING_INTERVAL)
        ping = ("ping", "-n", "-i", str(PING_INTERVAL), "-c", str(count), "-W", "2", way.target)
        pings = parse.ping(lab["a"].run(*ping, check=False, timeout=seconds + _PATIENCE).stdout).times
        bulk.wait(seconds + _PATIENCE)
        after, result = counted(lab), parse.iperf3_tcp(bulk.text())
    finally:
        server.stop()
    return {
        "gbit": result.bits_per_second / 1e9,
        "again": result.retransmits,
        "ping": median(pings),
        "p99": percentile(pings, 99),
        **{name: after[name] - before[name] for name in after},
    }


def counted(lab: Lab) -> Numbers:
    """frames: that the relay has received; lost: frames and packets, anywhere, for whatever reason.

    Multicast does not count: the kernel sends it unasked, and nobody would answer.
    """
    relay = soak_watch.scrape(lab.relay)
    lost = relay["frames_dropped"]
    for name in ("a", "b"):
        status = lab.status(name)
        if status is None:
            raise LabError(f"daemon {name} does not answer")
        lost += sum(count for reason, count in status["drops"].items() if reason != "multicast")
        lost += sum(each["dropped"] for each in status["relays"])
    return {"frames": relay["frames_total"], "lost": lost}


def markdown(results: Results, cases: Sequence[Case], facts: Mapping[str, str]) -> str:
    """The table, one row for each case."""
    rows = []
    for case in cases:
        cells = [
            report.cell(results.spread(OWN, f"{case} {name}"), metric) for name, metric in METRICS.items()
        ]
        if any(cells):
            rows.append([str(case), *cells])
    parts = [
        report.headline(results, facts),
        report.table(["streams; median (least–most)", *(each.title for each in METRICS.values())], rows),
        report.verdicts(results),
        report.disturbance(results),
        "\n".join(f"- failed: {error}" for error in results.errors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench loss", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of all cases (default: 3)")
    parser.add_argument(
        "--seconds",
        type=int,
        choices=range(2, 61),
        default=10,
        metavar="2…60",
        help="of each run (default: 10)",
    )
    parser.add_argument(
        "--control",
        type=some_of(CONTROLS),
        default=list(CONTROLS),
        metavar="NAME,…",
        help=", ".join(CONTROLS),
    )
    return parsed(parser, argv)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
