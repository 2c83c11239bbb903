"""`./scripts/bench faults`: how soon a ping is answered again after something went wrong around a client.

Prints a Markdown table and writes it with JSON into bench/results/; ends with status 1 when a mark is missed
or a transfer inside the tunnel did not go on. docs/performance.md explains the marks.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from bench import environment, report
from bench.arguments import DOCS, at_least_one, parsed, some_of
from bench.stats import median, percentile
from shadowmesh.testing import netlab
from shadowmesh.testing.faults import SCENARIOS, Scene, scene
from shadowmesh.testing.program import LabError

TOOLS = {**netlab.TOOLS, "iptables": "iptables"}
ANNOUNCED, UNANNOUNCED = 3.0, 6.0  # seconds at most for 95 of 100
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
    results = [_measure(name, tries) for name in arguments.only]
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


def _measure(name: str, tries: int) -> Outages:
    outages = Outages(name)
    scenario = SCENARIOS[name]
    while tries:
        try:
            with scene(scenario) as made:
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
    return parsed(parser, argv)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
