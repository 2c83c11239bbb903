"""Results as Markdown, JSON and SVG, and the Markdown in its place in docs/performance.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from html import escape
from pathlib import Path

from bench.results import MEMORY, METRICS, OWN, Metric, Results
from bench.stats import Spread

Environment = Mapping[str, str]

MAX_LOAD = 0.1
"""Busy cores before a run above which a report warns."""


# -- Markdown


def markdown(results: Results, titles: Mapping[str, str], environment: Environment) -> str:
    """The tables of one run. `titles` are the headings of the subjects."""
    parts = [
        headline(results, environment),
        _main_table(results, titles),
        _program_table(results),
        _memory_table(results),
        verdicts(results),
        disturbance(results),
        "\n".join(f"- failed: {error}" for error in results.errors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def headline(results: Results, environment: Environment) -> str:
    """On what it was measured."""
    facts = {"Congestion control": results.congestion, **environment}
    return "; ".join(f"{name} {value}" for name, value in facts.items()) + "."


def _main_table(results: Results, titles: Mapping[str, str]) -> str:
    rows = []
    for name, metric in METRICS.items():
        cells = [cell(results.spread(subject, name), metric) for subject in results.subjects]
        if any(cells):
            rows.append([f"{metric.title}, {metric.unit}", *cells])
    return table(["median (least–most)", *(titles[subject] for subject in results.subjects)], rows)


def _program_table(results: Results) -> str:
    """Processor time and memory of the subjects' own programs."""
    rows = []
    for subject, name in results.names("rss "):
        program = name.removeprefix("rss ")
        cpu = results.spread(subject, f"cpu {program}")
        rows.append(
            [
                f"ShadowMesh {program}" if subject == OWN else program,
                cell(cpu, Metric("", "", 2)),
                cell(results.spread(subject, name), Metric("", "", 1)),
            ]
        )
    return table(["program", "processor time under 1 TCP stream, s/GB", "memory after the round, MB"], rows)


def _memory_table(results: Results) -> str:
    rows = [
        [f"{metric.title}, {metric.unit}", cell(results.spread(OWN, name), metric)]
        for name, metric in MEMORY.items()
    ]
    return table(["memory and start", "ShadowMesh"], [row for row in rows if row[1]])


def verdicts(results: Results) -> str:
    """A line for each mark."""
    return "\n".join(f"- {'met' if v.met else '**missed**'}: {v}" for v in results.verdicts())


def disturbance(results: Results) -> str:
    """A warning when the machine had other work before any of the runs."""
    loads = [load for values in results.values.values() for load in values.get("load before", [])]
    if max(loads, default=0.0) <= MAX_LOAD:
        return ""
    return (
        f"- **not idle**: up to {max(loads):.2f} cores had other work before a run: do not trust the numbers"
    )


def table(head: list[str], rows: list[list[str]]) -> str:
    """A Markdown table, numbers to the right; nothing without rows."""
    if not rows:
        return ""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(values: Spread | None, metric: Metric) -> str:
    """`median (least–most)`; an empty text for no values."""
    if values is None:
        return ""
    middle, least, most = (f"{value:,.{metric.decimals}f}" for value in values)
    return f"{middle} ({least}–{most})"


def write_docs(file: Path, name: str, text: str) -> None:
    """Replace what stands between `<!-- NAME: begin -->` and `<!-- NAME: end -->` in a file."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    old = file.read_text()
    if old.count(begin) != 1 or old.count(end) != 1:
        raise ValueError(f"{file} needs one {begin} and one {end}")
    new = re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{text}{end}", old, flags=re.DOTALL
    )
    file.write_text(new)


# -- JSON


def to_json(results: Results, environment: Environment) -> str:
    """Every value of every round, with what is needed to judge it."""
    verdicts = [{"mark": str(v), "value": v.value, "met": v.met} for v in results.verdicts()]
    facts = {"environment": dict(environment), **asdict(results), "marks": verdicts}
    return json.dumps(facts, indent=1, ensure_ascii=False) + "\n"


# -- SVG

_PANELS = ("tcp1", "tcp8", "tcpr", "cpu", "udp1200", "udp100", "ping", "loaded p99", "wrk")
_COLUMNS, _WIDTH, _BAR, _LABELS = 3, 320, 18, 128


def svg(results: Results, titles: Mapping[str, str]) -> str:
    """One panel of bars for each metric; a line over each bar spans the rounds."""
    names = [name for name in _PANELS if any(results.spread(subject, name) for subject in results.subjects)]
    height = 44 + len(results.subjects) * _BAR
    rows = -(-len(names) // _COLUMNS)
    panels = "\n".join(
        f'<g transform="translate({number % _COLUMNS * _WIDTH + 8},{number // _COLUMNS * height + 8})">'
        f"{_panel(results, titles, name)}</g>"
        for number, name in enumerate(names)
    )
    size = f'width="{_COLUMNS * _WIDTH}" height="{max(1, rows) * height}"'
    style = (
        "text{font:11px sans-serif;fill:#222}.h{font-weight:bold}.n{font-size:10px}"
        ".b{fill:#9db4c8}.o{fill:#e07b39}.s{stroke:#222}"
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{panels}\n</svg>\n'
    )


def _panel(results: Results, titles: Mapping[str, str], name: str) -> str:
    metric = METRICS[name]
    title = (
        f"{'ping under load, 99th percentile' if name.startswith('loaded') else metric.title}, {metric.unit}"
    )
    hint = "more is better" if metric.more_is_better else "less is better"
    spreads = {subject: results.spread(subject, name) for subject in results.subjects}
    scale = (_WIDTH - _LABELS - 70) / (max(values.most for values in spreads.values() if values) or 1.0)
    parts = [
        f'<text class="h" y="12">{escape(title)}</text><text class="n" y="25">{hint}</text>',
    ]
    for number, (subject, values) in enumerate(spreads.items()):
        if values is None:
            continue
        y = 32 + number * _BAR
        kind = "o" if subject == OWN else "b"
        least, most = (_LABELS + value * scale for value in (values.least, values.most))
        middle = f"{values.median:,.{metric.decimals}f}"
        parts.append(
            f'<text x="{_LABELS - 6}" y="{y + 11}" text-anchor="end">{escape(titles[subject])}</text>'
            f'<rect class="{kind}" x="{_LABELS}" y="{y}" width="{values.median * scale:.1f}" height="14"/>'
            f'<line class="s" x1="{least:.1f}" x2="{most:.1f}" y1="{y + 7}" y2="{y + 7}"/>'
            f'<text class="n" x="{most + 4:.1f}" y="{y + 11}">{middle}</text>'
        )
    return "".join(parts)
