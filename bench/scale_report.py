"""What `bench scale` measures, its marks, its tables and its chart."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import NamedTuple

from bench.report import cell, disturbance, headline, table, verdicts
from bench.results import OWN, Mark, Metric, Results

SHARES = {0.01: "1 %", 0.5: "50 %"}
"""Of the peers that send or receive."""
BURSTS = {1434: 8, 65536: 1}
"""Payload of a frame, bytes, to the frames that a sender gives to one call at full load."""
SIZES = {1434: "1.4 KiB", 65536: "64 KiB"}
FLAT = 1.2

MARKS = tuple(
    Mark(
        f"flat {payload}",
        None,
        FLAT,
        False,
        f"relay, 1 % active, {size}, a frame alone: the dearest number of peers, against the fewest",
        "relay",
    )
    for payload, size in SIZES.items()
)
_WAYS = {
    "alone": ("alone", 1),
    "ratio": ("against the fewest peers", 2),
    "full": ("full load", 1),
}
"""Title and decimals."""
_MICRO = Metric("", "µs", 1, more_is_better=False)


def judge(results: Results, peers: Sequence[int]) -> None:
    """Add the numbers of the marks, from the medians of all rounds."""
    share = next(iter(SHARES))
    for payload in SIZES:
        ratios = [results.spread(OWN, f"{count} {share} {payload} ratio") for count in peers]
        if found := [ratio.median for ratio in ratios if ratio is not None]:
            results.add(OWN, {f"flat {payload}": max(found)})


def markdown(results: Results, environment: Mapping[str, str]) -> str:
    """The tables of one run."""
    parts = [
        headline(results, environment),
        _frames(results),
        _peers(results),
        _daemons(results),
        _sessions(results),
        _routes(results),
        verdicts(results),
        disturbance(results),
        "\n".join(f"- failed: {error}" for error in results.errors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _counts(results: Results, prefix: str) -> list[int]:
    """The numbers behind this prefix for which there is one, ascending."""
    found = (name.removeprefix(prefix).split()[0] for _, name in results.names(prefix))
    return sorted({int(word) for word in found if word.isdigit()})


def _cells(results: Results, names: Sequence[str], metric: Metric) -> list[str]:
    return [cell(results.spread(OWN, name), metric) for name in names]


def _frames(results: Results) -> str:
    """Processor time of the relay for a frame."""
    head = ["relay, µs for a frame; peers", "active"]
    head += [f"{size}, {title}" for size in SIZES.values() for title, _ in _WAYS.values()]
    rows = []
    for share, named in SHARES.items():
        for count in _counts(results, "join "):
            row = [f"{count:,}", named]
            for payload in SIZES:
                for way, (_, decimals) in _WAYS.items():
                    row += _cells(results, [f"{count} {share} {payload} {way}"], Metric("", "", decimals))
            rows.append(row)
    return table(head, rows)


def _peers(results: Results) -> str:
    """What a peer costs that sends nothing."""
    rows = []
    for count in _counts(results, "join "):
        row = [f"{count:,}"]
        for name, decimals in (("join", 2), ("idle", 1), ("memory", 1)):
            row += _cells(results, [f"{name} {count}"], Metric("", "", decimals))
        rows.append(row)
    return table(
        [
            "relay; peers",
            "join, ms for each",
            "all idle, thousandths of a core",
            "memory more than at start, MB",
        ],
        rows,
    )


def _daemons(results: Results) -> str:
    rows = [
        [str(count), *_cells(results, [f"send {count}", f"receive {count}"], _MICRO)]
        for count in _counts(results, "send ")
    ]
    return table(
        ["daemons, all peers of one", "it sends a message to each in turn, µs", "it gets one of each, µs"],
        rows,
    )


def _sessions(results: Results) -> str:
    metrics = {
        "begun": Metric("handshakes that one core begins", "in a second", 0),
        "answered": Metric("handshakes that one core answers", "in a second", 0),
        "session": Metric("memory of a daemon for a session", "KB", 1),
    }
    rows = [[f"{m.title}, {m.unit}", *_cells(results, [name], m)] for name, m in metrics.items()]
    return table(["sessions", "median (least–most)"], [row for row in rows if row[1]])


def _routes(results: Results) -> str:
    metric = Metric("", "µs", 2)
    rows = [
        [f"{count:,}", *_cells(results, [f"known {count}", f"new {count}"], metric)]
        for count in _counts(results, "known ")
    ]
    return table(["routes", "a packet of a known connection, µs", "the first of a new one, µs"], rows)


# -- SVG


class _Line(NamedTuple):
    title: str
    color: str
    points: list[tuple[int, float]]


_WIDTH, _HEIGHT, _LEFT, _TOP, _PLOT_W, _PLOT_H = 330, 250, 48, 44, 260, 160
_COLORS = ("#e07b39", "#3b6ea5", "#b03a2e", "#5b8c5a")


def svg(results: Results) -> str:
    """A panel of lines for each of relay, daemon and routes; both axes logarithmic in what grows."""
    panels = [
        (
            "relay, µs for a frame alone; peers",
            [
                (f"{size}, {named} active", f"{{}} {share} {payload} alone", "join ")
                for payload, size in SIZES.items()
                for share, named in SHARES.items()
            ],
        ),
        (
            "daemon, µs for a message; daemons",
            [("sends", "send {}", "send "), ("gets", "receive {}", "send ")],
        ),
        (
            "daemon, µs for a packet; routes",
            [("known connection", "known {}", "known "), ("new one", "new {}", "known ")],
        ),
    ]
    drawn = []
    for title, lines in panels:
        found = [
            _Line(name, _COLORS[number], _points(results, metric, counts))
            for number, (name, metric, counts) in enumerate(lines)
        ]
        if any(line.points for line in found):
            drawn.append(_panel(title, found))
    style = "text{font:11px sans-serif;fill:#222}.h{font-weight:bold}.n{font-size:10px}.a{stroke:#999}"
    body = "\n".join(
        f'<g transform="translate({number * _WIDTH},0)">{panel}</g>' for number, panel in enumerate(drawn)
    )
    size = f'width="{max(1, len(drawn)) * _WIDTH}" height="{_HEIGHT}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size}><style>{style}</style>'
        f'<rect width="100%" height="100%" fill="#fff"/>\n{body}\n</svg>\n'
    )


def _points(results: Results, metric: str, counts: str) -> list[tuple[int, float]]:
    spreads = ((count, results.spread(OWN, metric.format(count))) for count in _counts(results, counts))
    return [(count, found.median) for count, found in spreads if found is not None]


def _panel(title: str, lines: Sequence[_Line]) -> str:
    xs = sorted({x for line in lines for x, _ in line.points})
    ys = [y for line in lines for _, y in line.points]
    # What grows a hundredfold needs a logarithm; what is flat is to be seen as flat, from 0 on.
    logarithmic = max(ys) > 50 * min(ys)
    low, high = (math.log10(min(ys)), math.log10(max(ys))) if logarithmic else (0.0, max(ys) * 1.1)

    def place(x: float, y: float) -> tuple[float, float]:
        span = math.log10(xs[-1] / xs[0]) or 1.0
        value = math.log10(y) if logarithmic else y
        return (
            _LEFT + math.log10(x / xs[0]) / span * _PLOT_W,
            _TOP + _PLOT_H - (value - low) / ((high - low) or 1.0) * _PLOT_H,
        )

    bottom = _TOP + _PLOT_H
    parts = [
        f'<text class="h" x="8" y="14">{escape(title)}</text>',
        f'<line class="a" x1="{_LEFT}" x2="{_LEFT + _PLOT_W}" y1="{bottom}" y2="{bottom}"/>',
        f'<line class="a" x1="{_LEFT}" x2="{_LEFT}" y1="{_TOP}" y2="{bottom}"/>',
    ]
    for x in xs:
        left = place(x, max(ys))[0]
        parts.append(f'<text class="n" x="{left:.0f}" y="{bottom + 13}" text-anchor="middle">{x}</text>')
    for y in (min(ys), max(ys)) if logarithmic else (0.0, max(ys)):
        top = place(xs[0], y)[1] + 4
        parts.append(f'<text class="n" x="{_LEFT - 4}" y="{top:.0f}" text-anchor="end">{y:,.3g}</text>')
    for number, line in enumerate(lines):
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(x, y) for x, y in line.points))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"/>')
        left, top = 8 + number % 2 * 160, _TOP + _PLOT_H + 28 + number // 2 * 14
        parts.append(
            f'<rect x="{left}" y="{top - 8}" width="8" height="8" fill="{line.color}"/>'
            f'<text class="n" x="{left + 12}" y="{top}">{escape(line.title)}</text>'
        )
    return "".join(parts)
