from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import report
from bench.results import Results

TITLES = {"bare": "bare veth path", "shadowmesh": "ShadowMesh <relayed>"}
FACTS = {"kernel": "Linux 6.1"}


@pytest.fixture
def results() -> Results:
    found = Results("cubic", ("bare", "shadowmesh"), ("tcp1", "ping", "rss", "memory"))
    for value in (20.0, 30.0, 25.0):
        found.add("bare", {"tcp1": value})
        found.add("shadowmesh", {"tcp1": value / 10, "cpu": 4.0, "cpu relay in R": 1.0})
        found.add("shadowmesh", {"rss relay in R": 60.0, "idle": 20.0})
    found.errors.append("cubic round 1/3 bare ping: no answer")
    return found


def test_the_tables_have_medians_and_spreads(results: Results) -> None:
    text = report.markdown(results, TITLES, FACTS)
    assert text.startswith(
        "Congestion control cubic; kernel Linux 6.1.\n\n| median (least–most) | bare veth path |"
    )
    for line in (
        "| --- | ---: | ---: |",
        "| TCP, 1 stream, Gbit/s | 25.00 (20.00–30.00) | 2.50 (2.00–3.00) |",
        "| processor time, whole machine, s/GB |  | 4.00 (4.00–4.00) |",
        "| ShadowMesh relay in R | 1.00 (1.00–1.00) | 60.0 (60.0–60.0) |",
        "| relay, each idle connection, KB | 20.0 (20.0–20.0) |",
        "- met: relay memory, KB for each idle connection: 20.00 (mark ≤ 25)",
        "- failed: cubic round 1/3 bare ping: no answer",
    ):
        assert line in text.split("\n")


def test_other_work_on_the_machine_is_told(results: Results) -> None:
    results.add("bare", {"load before": 0.09})
    assert "not idle" not in report.markdown(results, TITLES, FACTS)
    results.add("bare", {"load before": 0.3})
    assert "- **not idle**: up to 0.30 cores" in report.markdown(results, TITLES, FACTS)


def test_the_svg_is_well_formed_and_has_a_bar_for_each_value(results: Results) -> None:
    root = ElementTree.fromstring(report.svg(results, TITLES))
    space = "{http://www.w3.org/2000/svg}"
    bars = [bar for bar in root.iter(f"{space}rect") if bar.get("class")]
    assert [bar.get("class") for bar in bars] == ["b", "o", "o"]  # tcp1 of both, cpu of one
    assert "ShadowMesh <relayed>" in [text.text for text in root.iter(f"{space}text")]


def test_the_json_has_every_value(results: Results) -> None:
    facts = json.loads(report.to_json(results, FACTS))
    assert facts["environment"] == FACTS
    assert facts["values"]["bare"]["tcp1"] == [20.0, 30.0, 25.0]
    assert facts["errors"] == results.errors
    assert {
        "mark": "relay memory, KB for each idle connection: 20.00 (mark ≤ 25)",
        "value": 20.0,
        "met": True,
    } in (facts["marks"])


def test_docs_change_between_their_marks_only(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    frame = "before\n<!-- e2e cubic: begin -->\n{}<!-- end -->\n".replace("end --", "e2e cubic: end --")
    file.write_text(frame.format("old\n") + "after \\1")
    report.write_docs(file, "e2e cubic", "new \\1\n")
    assert file.read_text() == frame.format("new \\1\n") + "after \\1"
    with pytest.raises(ValueError, match="e2e bbr: begin"):
        report.write_docs(file, "e2e bbr", "new")
