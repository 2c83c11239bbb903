from __future__ import annotations

import json

import pytest

from bench import parse
from bench.bottleneck import BESIDE, Case, _arguments, _numbers, markdown, marks
from bench.results import OWN, Results

ONE, TWO = Case("up", "cubic", "bbr", 1), Case("down", "bbr", "cubic", 2)


def iperf3(*rates: float) -> str:
    flows = [{"receiver": {"bits_per_second": rate}} for rate in rates]
    total = {"bits_per_second": sum(rates), "bytes": 1}
    return json.dumps({"end": {"streams": flows, "sum_received": total, "sum_sent": {}}})


def test_numbers_are_shares_of_the_line() -> None:
    pings = parse.Ping([1.0, 2.0, 30.0], 4)
    numbers = _numbers(pings, iperf3(10e6, 8e6), 20)
    assert numbers["ping"] == 2.0
    assert numbers["lost"] == 25.0
    assert numbers["goodput"] == pytest.approx(90.0)
    assert numbers["apart"] == pytest.approx(20.0)
    assert "apart" not in _numbers(pings, iperf3(10e6), 20)


def test_every_case_has_its_row_and_its_marks() -> None:
    results = Results("x", (OWN,), (str(ONE), str(TWO)), marks=marks((ONE, TWO)))
    for case, goodput in ((ONE, 90.0), (TWO, 80.0)):
        numbers = {"ping": 20.0, "p99": 50.0, "lost": 0.0, "goodput": goodput, "apart": 5.0}
        results.add(OWN, {f"{case} {name}": value for name, value in numbers.items()})
    verdicts = results.verdicts()
    assert len(verdicts) == 7
    assert [str(verdict) for verdict in verdicts if not verdict.met] == [
        "down, outer bbr, 2 flows of cubic: goodput, % of the line: 80.00 (mark ≥ 85)"
    ]
    text = markdown(results, (ONE, TWO), {})
    assert "| up, outer cubic, 1 flow of bbr | 20.0" in text
    assert "**missed**" in text


def test_pings_by_another_relay_have_marks_of_their_own() -> None:
    case = Case(BESIDE, "cubic", "cubic", 1)
    limits = {mark.what: mark.limit for mark in marks((case,))}
    title = "up at 1 Mbit/s, pings by another relay, outer cubic, 1 flow of cubic"
    assert limits[f"{title}: ping, median, ms"] == 12
    assert limits[f"{title}: ping, 99th percentile, ms"] == 30
    assert limits[f"{title}: goodput, % of the line"] == 85


def test_a_quick_run_does_not_go_into_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    assert _arguments(["--ways", "down"]).ways == ["down"]
    with pytest.raises(SystemExit):
        _arguments(["--quick", "--write-docs"])
    assert "mean nothing" in capsys.readouterr().err
