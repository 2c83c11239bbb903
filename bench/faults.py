"""`./scripts/bench faults`: how soon a ping is answered again after something went wrong around a client.

Prints a Markdown table and writes it with JSON into bench/results/; ends with status 1 when a mark is missed
or a transfer inside the tunnel did not go on. docs/performance.md explains the marks.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from bench import environment, report
from bench.arguments import DOCS, at_least_one, parsed, some_of
from bench.stats import median, percentile
from shadowmesh.testing import netlab
from shadowmesh.testing.faults import LONG, SCENARIOS, Scene, scene
from shadowmesh.testing.program import LabError

TOOLS = {**netlab.TOOLS, "iptables": "iptables"}
ANNOUNCED, UNANNOUNCED = 3.0, 6.0  # seconds at most for 95 of 100
SHORT = 5.0
"""Seconds without a carrier, for --quick."""
REST = 6.0  # seconds between two faults of one lab, so that each finds a connection that has lasted


@dataclass
class Outages:
    """What the tries of one scenario gave: seconds from the way back to the first reply."""

    name: str
    seconds: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)

    @property
    def mark(self) -> float:
        """Seconds that the 95th percentile must stay below."""
        return ANNOUNCED if SCENARIOS[self.name].announced else UNANNOUNCED

    @property
    def met(self) -> bool:
        """Whether it does, and every transfer went on."""
        return not self.errors and bool(self.seconds) and percentile(self.seconds, 95) < self.mark


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a missed mark or a failed try, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    packages = environment.missing_packages(TOOLS)
    if obstacle := f"please install {' '.join(packages)}" if packages else netlab.obstacle():
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    tries = 1 if arguments.quick else arguments.tries
    facts = environment.describe([], [])
    facts["tries"] = str(tries)
    facts["labs at once"] = str(min(arguments.at_once, len(arguments.only)))
    if arguments.at_once > 1:
        with ThreadPoolExecutor(arguments.at_once) as pool:
            results = list(pool.map(lambda name: _measured_apart(name, arguments), arguments.only))
    else:
        results = [_measure(name, tries, SHORT if arguments.quick else LONG) for name in arguments.only]
    text = markdown(results, facts)
    print(text, flush=True)
    arguments.output.mkdir(parents=True, exist_ok=True)
    (arguments.output / "faults.md").write_text(text)
    values = {each.name: {"seconds": each.seconds, "errors": each.errors} for each in results}
    (arguments.output / "faults.json").write_text(
        json.dumps({"environment": facts, **values}, indent=1) + "\n"
    )
    if arguments.write_docs:
        report.write_docs(DOCS, "faults", text)
    failed = [each for each in results if each.errors or not (arguments.quick or each.met)]
    for each in failed:
        print(f"bench: missed: {each.name} {' '.join(each.errors)}", file=sys.stderr)
    return 1 if failed else 0


def _measure(name: str, tries: int, carrier_seconds: float) -> Outages:
    outages = Outages(name)
    scenario = SCENARIOS[name]
    while tries:
        try:
            with scene(scenario, carrier_seconds) as made:
                for _ in range(1 if scenario.once else tries):
                    tries -= 1
                    _once(outages, made)
                    if tries and not scenario.once:
                        time.sleep(REST)
        except (LabError, OSError, AssertionError) as error:
            outages.errors.append(str(error).partition("\n")[0] or repr(error))
            print(f"{name}: FAILED: {error}", file=sys.stderr, flush=True)
            if len(outages.errors) > 2:
                break
    return outages


def _measured_apart(name: str, arguments: argparse.Namespace) -> Outages:
    """The same in a process of its own: namespaces and threads of several labs do not go together in one."""
    with tempfile.TemporaryDirectory() as output:
        command = [sys.executable, "-m", "bench.faults", "--only", name, "--at-once", "1", "--output", output]
        command += ["--quick"] if arguments.quick else ["--tries", str(arguments.tries)]
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
        try:
            values = json.loads((Path(output) / "faults.json").read_text())[name]
        except OSError:
            return Outages(name, errors=["ended before its time"])
    return Outages(name, **values)


def _once(outages: Outages, made: Scene) -> None:
    took = made.outage(SCENARIOS[outages.name].fault)
    outages.seconds.append(round(took, 3))
    print(f"{outages.name}: {took:.2f} s", file=sys.stderr, flush=True)


def markdown(results: Sequence[Outages], facts: Mapping[str, str]) -> str:
    """A table of all scenarios, and what it was measured on."""
    lines = ["| what goes wrong | median | p95 | most | mark | tries |", "|---|---|---|---|---|---|"]
    for each in results:
        title = SCENARIOS[each.name].title
        if each.seconds:
            numbers = [median(each.seconds), percentile(each.seconds, 95), max(each.seconds)]
            shown = " | ".join(f"{value:.2f} s" for value in numbers)
        else:
            shown = "– | – | –"
        mark = f"< {each.mark:g} s" + ("" if each.met else ", **missed**")
        failed = f", {len(each.errors)} failed" if each.errors else ""
        lines.append(f"| {title} | {shown} | {mark} | {len(each.seconds)}{failed} |")
    about = "; ".join(f"{name}: {value}" for name, value in facts.items())
    return "\n".join(lines) + f"\n\n{about}\n"


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench faults", description=(__doc__ or "").partition("\n\n")[2])
    parser.add_argument("--tries", type=at_least_one, default=10, help="of each fault (default: 10)")
    names = list(SCENARIOS)
    parser.add_argument("--only", type=some_of(names), default=names, metavar="NAME,…", help=", ".join(names))
    parser.add_argument(
        "--at-once",
        type=at_least_one,
        default=4,
        metavar="N",
        help="labs beside each other, each of which mostly waits (default: 4)",
    )
    return parsed(parser, argv)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
