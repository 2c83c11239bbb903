"""`./scripts/bench e2e`: ShadowMesh beside others, end to end, on the same machine and in turn.

Prints Markdown tables, writes them with JSON and SVG into bench/results/, and ends with status 1 when a mark
is missed or a measure failed. docs/performance.md explains method and measures.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from subprocess import TimeoutExpired

from bench import environment, report
from bench.arguments import DOCS, at_least_one, parsed, some_of
from bench.measures import MEASURES, Bench, Effort, Numbers
from bench.memory import relay_memory
from bench.results import OWN, Results
from bench.start import start_times
from bench.subjects import SUBJECTS, Subject
from shadowmesh.testing import netlab
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError

MEMORY = "memory"
TITLES = {name: subject.title for name, subject in SUBJECTS.items()}


def main(argv: Sequence[str] | None = None) -> int:
    """Exit status: 0, 1 for a missed mark or a failed measure, 2 for what keeps it from starting."""
    arguments = _arguments(argv)
    subjects = [SUBJECTS[name] for name in arguments.only]
    tools = _tools(subjects, arguments.measures)
    if obstacle := environment.obstacle(tools):
        print(f"bench: {obstacle}", file=sys.stderr)
        return 2
    effort = Effort.quick() if arguments.quick else Effort.full(arguments.seconds)
    rounds = 1 if arguments.quick else arguments.rounds
    facts = environment.describe(subjects, [tool for tool in ("iperf3", "nginx", "wrk") if tool in tools])
    facts["rounds"] = f"{rounds}, runs of {effort.seconds} s"
    failed = False
    for congestion in arguments.congestion:
        results = Run(congestion, subjects, arguments.measures, effort).rounds(rounds)
        missed = [verdict for verdict in results.verdicts() if not verdict.met]
        text = report.markdown(results, TITLES, facts)
        print(text, flush=True)
        _write(arguments.output, results, text, facts)
        if arguments.write_docs:
            chart = DOCS.with_name(f"{DOCS.stem}-{congestion}.svg")
            chart.write_text(report.svg(results, TITLES))
            report.write_docs(DOCS, f"e2e {congestion}", f"{text}\n![The same as bars]({chart.name})\n")
        # The marks are for cubic, which most hosts run; and a quick run proves nothing about speed.
        if congestion == "cubic" and not arguments.quick:
            failed |= bool(missed)
            for verdict in missed:
                print(f"bench: mark missed: {verdict}", file=sys.stderr)
        failed |= bool(results.errors)
    return 1 if failed else 0


class Run:
    """All rounds with one congestion control."""

    def __init__(
        self, congestion: str, subjects: Sequence[Subject], measures: Sequence[str], effort: Effort
    ) -> None:
        self._subjects = subjects
        self._effort = effort
        self._results = Results(congestion, tuple(s.name for s in subjects), tuple(measures))

    def rounds(self, count: int) -> Results:
        """Every subject in every round, each time in another order."""
        for number in range(count):
            shift = number % len(self._subjects)
            for subject in [*self._subjects[shift:], *self._subjects[:shift]]:
                where = f"{self._results.congestion} round {number + 1}/{count} {subject.name}"
                with self._survived(where):
                    self._round(subject, where)
        return self._results

    def _round(self, subject: Subject, where: str) -> None:
        congestion, measures = self._results.congestion, self._results.measures
        with Lab("a", "b", congestion=congestion) as lab, subject.start(lab, congestion) as way:
            bench = Bench(lab, way, congestion, self._effort)
            for name, measure in MEASURES.items():
                if name in measures and (measure.over_tcp or not subject.only_tcp):
                    with self._survived(f"{where} {name}"):
                        self._keep(subject, f"{where} {name}", measure.run(bench))
        if subject.name == OWN and MEMORY in measures:
            with self._survived(f"{where} {MEMORY}"):
                self._keep(subject, f"{where} {MEMORY}", relay_memory(self._effort.connections))
                self._keep(subject, f"{where} start", start_times())

    def _keep(self, subject: Subject, where: str, numbers: Numbers) -> None:
        self._results.add(subject.name, numbers)
        if numbers:
            shown = ", ".join(f"{name} {value:.4g}" for name, value in numbers.items())
            print(f"{where}: {shown}", file=sys.stderr, flush=True)

    @contextmanager
    def _survived(self, where: str) -> Iterator[None]:
        """A failure is noted as one line of the results, but does not end a long run."""
        try:
            yield
        except (LabError, TimeoutExpired, OSError) as error:
            self._results.errors.append(f"{where}: {str(error).partition(chr(10))[0]}")
            print(f"{where}: FAILED: {error}", file=sys.stderr, flush=True)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="bench e2e", description=(__doc__ or "").partition("\n\n")[2])
    measures = [*MEASURES, MEMORY]
    parser.add_argument("--rounds", type=at_least_one, default=3, help="of all subjects (default: 3)")
    parser.add_argument("--seconds", type=at_least_one, default=5, help="of each run (default: 5)")
    for option, known, default in (
        ("--only", list(SUBJECTS), list(SUBJECTS)),
        ("--measures", measures, measures),
        ("--congestion", ["cubic", "bbr"], ["cubic"]),
    ):
        parser.add_argument(
            option, type=some_of(known), default=default, metavar="NAME,…", help=", ".join(known)
        )
    return parsed(parser, argv)


def _tools(subjects: Sequence[Subject], measures: Sequence[str]) -> dict[str, str]:
    """Commands and files that a run needs, and their Debian packages."""
    tools = {**netlab.TOOLS, "iperf3": "iperf3"}
    for subject in subjects:
        tools |= subject.tools
    for name in measures:
        if name in MEASURES:
            tools |= MEASURES[name].tools
    return tools


def _write(directory: Path, results: Results, text: str, facts: Mapping[str, str]) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    file = directory / f"e2e-{results.congestion}"
    file.with_suffix(".md").write_text(text)
    file.with_suffix(".json").write_text(report.to_json(results, facts))
    file.with_suffix(".svg").write_text(report.svg(results, TITLES))


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
