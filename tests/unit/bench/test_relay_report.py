from __future__ import annotations

import pytest

from bench import relay_report
from bench.relay_report import BURSTS, LOADS, MARKS, SIZES
from bench.results import Results


@pytest.fixture
def results() -> Results:
    found = Results("cubic", ("shadowmesh", "proxy"), ("pair", "mixed", "memory"), marks=MARKS)
    for cpu in (0.8, 1.2, 1.0):
        found.add("shadowmesh", {"pair 65536 gbit": 8.0, "pair 65536 cpu": cpu, "pair 65536 half p99": 0.25})
    found.add("proxy", {"pair 65536 gbit": 16.0, "pair 65536 cpu": 0.5})
    found.add("shadowmesh", {"mixed gbit": 2.1, "mixed bulk p99": 5.9, "idle 1000": 19.0, "idle 5000": 19.5})
    found.errors.append("round 1/1 proxy mixed: no answer")
    return found


def test_each_size_has_a_name_and_a_burst() -> None:
    assert set(SIZES) == set(BURSTS)


def test_the_tables_have_both_and_their_ratio(results: Results) -> None:
    lines = relay_report.markdown(results, {"kernel": "Linux 6.1"}).split("\n")
    assert lines[0] == "Congestion control cubic; kernel Linux 6.1."
    for line in (
        "| 1 pair | 64 KiB |  | 8.000 (8.000–8.000) | 16.000 (16.000–16.000) | 0.50 "
        "| 1.00 (0.80–1.20) | 0.50 (0.50–0.50) | 2.00 |  |  |  |",
        "| 1 pair | 64 KiB |  |  |  |  | 0.250 (0.250–0.250) |  |  |  |  |  |",
        "| 500 peers, mixed traffic, Gbit/s | 2.10 (2.10–2.10) |  |  |",
        "| memory of each of 1000 idle connections, KB | 19.0 (19.0–19.0) |  |  |",
        "- failed: round 1/1 proxy mixed: no answer",
    ):
        assert line in lines
    assert not any(line.startswith("| 50 pairs") for line in lines)


def test_the_marks_are_of_what_was_measured(results: Results) -> None:
    verdicts = {str(verdict): verdict.met for verdict in results.verdicts()}
    assert verdicts == {
        "500 peers, mixed traffic, Gbit/s: 2.10 (mark ≥ 2)": True,
        "… latency of 64 KiB frames, 99th percentile, ms: 5.90 (mark ≤ 5.8)": False,
        "… latency of 1.4 KiB frames, 99th percentile, ms: no number (mark ≤ 5.8)": False,
        "1 pair, 64 KiB: s/GB, against nginx: 2.00 (mark ≤ 2.5)": True,
        "memory, KB for each of 1000 idle connections: 19.00 (mark ≤ 20)": True,
        "memory, KB for each of 5000 idle connections: 19.50 (mark ≤ 20)": True,
    }
    assert {mark.measure for mark in MARKS} == {*LOADS, "mixed", "memory"}
