"""`./scripts/bench relay`: the relay by itself, beside the plain TCP proxy of nginx in the same run.

Prints Markdown tables, writes them with JSON into bench/results/, and ends with status 1 when a mark is
missed or a measure failed. docs/performance.md explains method and measures.
"""

from __future__ import annotations

import argparse
import json
import re
import resource
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from subprocess import TimeoutExpired

from bench import environment, processor, relay_report, report
from bench.arguments import DOCS, ROOT, at_least_one, parsed, some_of
from bench.generator import Numbers, Plan, Size
from bench.peers import CONGESTION, ONE_SOURCE
from bench.relay_report import MARKS, PROXY
from bench.results import OWN, Results
from bench.subjects import NGINX_STREAM, SUBJECTS, listens, start_nginx
from shadowmesh.testing import guide, netlab
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.program import LabError, Program

PROXY_PORT = 9600
FILES_BESIDE = 300
"""Open files of a program besides those of the peers."""
_PATIENCE = 120.0
_SHOWN = re.compile(r"\d gbit|mixed gbit|\d cpu|(half|bulk|small) p99|idle")


@dataclass(frozen=True)
class Effort:
    """How much to measure. `peers` has (pairs that send, peers in all) for each measure of traffic."""

    seconds: float
    warm: float
    peers: Mapping[str, tuple[int, int]]
    idle: tuple[int, ...]
    """Peers at which memory is read; the first are not counted, so that what is set up once is not theirs."""

    @property
    def most(self) -> int:
        """Peers at once."""
        return max(*self.idle, *(count for _, count in self.peers.values()))


FULL = Effort(
    2.0, 0.3, {"pair": (1, 2), "pairs": (50, 100), "peers": (125, 500), "mixed": (125, 500)}, (50, 1050, 5050)
)
QUICK = Effort(
    0.05, 0.02, {"pair": (1, 2), "pairs": (2, 4), "peers": (4, 16), "mixed": (4, 16)}, (10, 30, 60)
)


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a missed mark or a failed measure, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    effort = QUICK if arguments.quick else replace(FULL, seconds=float(arguments.seconds))
    tools = {**netlab.TOOLS, "ss": "iproute2", **(SUBJECTS[PROXY].tools if PROXY in arguments.only else {})}
    if obstacle := _obstacle(tools, effort.most + FILES_BESIDE):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    rounds = 1 if arguments.quick else arguments.rounds
    facts = environment.describe([SUBJECTS[PROXY]] if PROXY in arguments.only else [], [])
    facts["rounds"] = (
        f"{rounds}, runs of {effort.seconds:g} s" if not arguments.quick else "a quick one of fewer peers"
    )
    # A quick run proves nothing about speed.
    marks = () if arguments.quick else MARKS
    results = Results(CONGESTION, tuple(arguments.only), tuple(arguments.measures), marks=marks)
    for number in range(rounds):
        Round(results, effort, f"round {number + 1}/{rounds}").run()
    text = relay_report.markdown(results, facts)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "relay.md").write_text(text)
    (arguments.output / "relay.json").write_text(report.to_json(results, facts))
    if arguments.write_docs:
        report.write_docs(DOCS, "relay", text)
    missed = [verdict for verdict in results.verdicts() if not verdict.met]
    for verdict in missed:
        print(f"bench: mark missed: {verdict}", file=sys.stderr)
    return 1 if missed or results.errors else 0


class Round:
    """Every measure once: of the relay, then of the proxy, which gets the relay's half load for its own."""

    def __init__(self, results: Results, effort: Effort, where: str) -> None:
        self._results = results
        self._effort = effort
        self._where = where
        self._half: dict[tuple[str, int], float] = {}

    def run(self) -> None:
        """A failure is noted as one line of the results, but does not end a long run."""
        measures = self._results.measures
        for subject in self._results.subjects:
            with Lab("a", congestion=CONGESTION) as lab:
                if traffic := [name for name in measures if name in self._effort.peers]:
                    with self._survived(subject, "start"), _started(lab, subject, self._effort) as program:
                        self._results.add(subject, {"load before": processor.load()})
                        for name in traffic:
                            with self._survived(subject, name):
                                self._traffic(lab, subject, program, name)
                if "memory" in measures:
                    with self._survived(subject, "memory"), _started(lab, subject, self._effort) as program:
                        plan = replace(self._plan(lab, subject, program), idle=self._effort.idle)
                        self._keep(subject, "memory", _generate(lab, plan))

    def _traffic(self, lab: Lab, subject: str, program: Program, name: str) -> None:
        pairs, peers = self._effort.peers[name]
        plan = replace(self._plan(lab, subject, program), pairs=pairs, peers=peers)
        if name == "mixed":
            plan = replace(plan, mixed=relay_report.MIXED_GBIT)
        else:
            plan = replace(
                plan,
                sizes=tuple(
                    Size(payload, burst, self._half.get((name, payload), 0.0))
                    for payload, burst in relay_report.BURSTS.items()
                ),
            )
        numbers = _generate(lab, plan)
        for size in plan.sizes:
            self._half.setdefault((name, size.payload), numbers[f"{size.payload} frames"] / 2)
        self._keep(subject, name, numbers if name == "mixed" else _prefixed(name, numbers))

    def _plan(self, lab: Lab, subject: str, program: Program) -> Plan:
        return Plan(
            joins=subject == OWN,
            pid=program.pid,
            target=(RELAY_IP4, guide.RELAY_PORT if subject == OWN else PROXY_PORT),
            listen=(lab["a"].ip4, PROXY_PORT),
            seconds=self._effort.seconds,
            warm=self._effort.warm,
        )

    def _keep(self, subject: str, measure: str, numbers: Numbers) -> None:
        self._results.add(subject, numbers)
        shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items() if _SHOWN.search(name))
        print(f"{self._where} {subject} {measure}: {shown}", file=sys.stderr, flush=True)

    @contextmanager
    def _survived(self, subject: str, measure: str) -> Iterator[None]:
        try:
            yield
        except (LabError, TimeoutExpired, OSError) as error:
            where = f"{self._where} {subject} {measure}"
            self._results.errors.append(f"{where}: {str(error).strip().splitlines()[-1]}")
            print(f"{where}: FAILED: {error}", file=sys.stderr, flush=True)


@contextmanager
def _started(lab: Lab, subject: str, effort: Effort) -> Iterator[Program]:
    """A fresh program to be measured, in R."""
    most = effort.most + FILES_BESIDE
    if subject == OWN:
        program = lab.start_relay(max_connections=most, limits=ONE_SOURCE)
    else:
        way = f"listen {RELAY_IP4}:{PROXY_PORT}; proxy_pass {lab['a'].ip4}:{PROXY_PORT};"
        block = f"stream {{ server {{ {way} proxy_buffer_size 64k; }} }}"
        modules = f"load_module {NGINX_STREAM};"
        program = start_nginx(lab.relay, f"proxy{len(lab.programs)}", block, modules, connections=most)
        program.wait_for(lambda: listens(lab.relay, PROXY_PORT), "listening port of nginx")
    try:
        yield program
    finally:
        program.stop()


def _generate(lab: Lab, plan: Plan) -> Numbers:
    """Run a generator in A."""
    argv = (sys.executable, "-c", "from bench.generator import main; main()", plan.to_json())
    done = lab["a"].run("env", "-C", str(ROOT), *argv, check=False, timeout=_PATIENCE)
    if done.returncode:
        raise LabError(done.stderr)
    numbers: Numbers = json.loads(done.stdout)
    return numbers


def _prefixed(prefix: str, numbers: Numbers) -> Numbers:
    return {f"{prefix} {name}": value for name, value in numbers.items()}


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench relay", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of all measures (default: 3)")
    parser.add_argument(
        "--seconds", type=_some_seconds, default=2, help="of each run (default: 2, at most 8)"
    )
    for option, known in (("--only", [OWN, PROXY]), ("--measures", [*FULL.peers, "memory"])):
        parser.add_argument(
            option, type=some_of(known), default=known, metavar="NAME,…", help=", ".join(known)
        )
    return parsed(parser, argv)


def _some_seconds(text: str) -> int:
    # A relay pings who is silent for 20 seconds, and two runs must fit in between.
    if (value := at_least_one(text)) > 8:
        raise argparse.ArgumentTypeError("at most 8")
    return value


def _obstacle(tools: Mapping[str, str], files: int) -> str | None:
    if obstacle := environment.obstacle(tools):
        return obstacle
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < files:
        return f"{files} open files are needed and {hard} allowed: raise the hard limit (ulimit -Hn)"
    return None


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
