"""What `bench relay` measures, its marks, and its tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from bench.report import cell, disturbance, headline, table, verdicts
from bench.results import OWN, Mark, Metric, Results

PROXY = "proxy"
BURSTS = {64: 32, 1434: 8, 16384: 2, 65536: 1}
"""Payload of a frame, bytes, to the frames that a sender gives to one call: small packets come in groups."""
SIZES = {64: "64 B", 1434: "1.4 KiB", 16384: "16 KiB", 65536: "64 KiB"}
LOADS = {"pair": "1 pair", "pairs": "50 pairs", "peers": "500 peers"}
MIXED_GBIT = 2.1
"""Offered as mixed traffic: a Poisson process that is to stay above the mark needs a little more."""

MARKS = (
    Mark("mixed gbit", None, 2.0, True, "500 peers, mixed traffic, Gbit/s", "mixed"),
    Mark("mixed bulk p99", None, 5.8, False, "… latency of 64 KiB frames, 99th percentile, ms", "mixed"),
    Mark("mixed small p99", None, 5.8, False, "… latency of 1.4 KiB frames, 99th percentile, ms", "mixed"),
    *(
        Mark(f"{load} 65536 cpu", PROXY, 2.5, False, f"{title}, 64 KiB: s/GB, against nginx", load)
        for load, title in LOADS.items()
    ),
    Mark("idle 1000", None, 20.0, False, "memory, KB for each of 1000 idle connections", "memory"),
    Mark("idle 5000", None, 20.0, False, "memory, KB for each of 5000 idle connections", "memory"),
)


def markdown(results: Results, environment: Mapping[str, str]) -> str:
    """The tables of one run."""
    parts = [
        headline(results, environment),
        _by_load(results, "full load", FULL),
        _by_load(results, "half of that", HALF),
        _side_by_side(results),
        verdicts(results),
        disturbance(results),
        "\n".join(f"- failed: {error}" for error in results.errors),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


class Column(NamedTuple):
    """One number of a load and size, and how it is shown."""

    name: str
    title: str
    decimals: int
    compared: bool = True
    """Beside nginx's."""
    ratio: bool = True


FULL = (
    Column("frames", "frames/s", 0, compared=False),
    Column("gbit", "Gbit/s", 3),
    Column("cpu", "s/GB", 2),
    Column("busy", "cores used", 2, ratio=False),
    Column("frames per cpu", "frames per core second", 0, compared=False),
)
HALF = (
    Column("half frames", "frames/s", 0, compared=False),
    Column("half p50", "latency, median, ms", 3),
    Column("half p99", "latency, 99th percentile, ms", 3),
    Column("half cpu", "s/GB", 2),
)
ROWS = {
    "mixed gbit": Metric("500 peers, mixed traffic", "Gbit/s", 2),
    "mixed frames": Metric("…", "frames/s", 0),
    "mixed bulk p50": Metric("… latency of 64 KiB frames, median", "ms", 3),
    "mixed bulk p99": Metric("… 99th percentile", "ms", 3),
    "mixed small p50": Metric("… latency of 1.4 KiB frames, median", "ms", 3),
    "mixed small p99": Metric("… 99th percentile", "ms", 3),
    "mixed cpu": Metric("… processor time", "s/GB", 2),
    "mixed busy": Metric("… of the program", "cores", 2),
    "idle 1000": Metric("memory of each of 1000 idle connections", "KB", 1),
    "idle 5000": Metric("memory of each of 5000 idle connections", "KB", 1),
}


def _by_load(results: Results, title: str, columns: Sequence[Column]) -> str:
    """A row for each load and size."""
    head = [title, "payload"]
    for column in columns:
        head += [column.title, "nginx", "ratio"][: _width(column)]
    rows = []
    for load, named in LOADS.items():
        for payload, size in SIZES.items():
            cells: list[str] = []
            for column in columns:
                metric = Metric("", "", column.decimals)
                cells += _compared(results, f"{load} {payload} {column.name}", metric)[: _width(column)]
            if any(cells):
                rows.append([named, size, *cells])
    return table(head, rows)


def _width(column: Column) -> int:
    return 1 + column.compared + (column.compared and column.ratio)


def _side_by_side(results: Results) -> str:
    rows = [
        [f"{metric.title}, {metric.unit}", *_compared(results, name, metric)] for name, metric in ROWS.items()
    ]
    return table(
        ["median (least–most)", "ShadowMesh", "nginx", "ratio"], [row for row in rows if any(row[1:])]
    )


def _compared(results: Results, name: str, metric: Metric) -> list[str]:
    """ShadowMesh, nginx, and the ratio of the two."""
    own, other = results.spread(OWN, name), results.spread(PROXY, name)
    ratio = f"{own.median / other.median:.2f}" if own and other and other.median else ""
    return [cell(own, metric), cell(other, metric), ratio]
