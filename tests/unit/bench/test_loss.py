"""What `bench loss` reads, and how it judges it; tests/netns/test_full_speed.py measures."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from bench import environment, loss, soak_watch
from bench.loss import Case, counted, markdown, marks
from bench.results import OWN, Results

ONE, EIGHT = Case("up", "bbr", 1), Case("down", "cubic", 8)


def test_whatever_is_dropped_anywhere_is_lost_but_for_multicast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak_watch, "scrape", lambda _: {"frames_dropped": 3.0, "frames_total": 100.0})
    status = {"drops": {"multicast": 7, "no_answer": 2}, "relays": [{"dropped": 4}, {"dropped": 5}]}
    lab = SimpleNamespace(relay=None, status=lambda name: status)
    assert counted(cast(Any, lab)) == {"frames": 100, "lost": 3 + 2 * (2 + 4 + 5)}


def test_every_case_has_its_row_and_one_lost_frame_is_too_many() -> None:
    results = Results("x", (OWN,), (str(ONE), str(EIGHT)), marks=marks((ONE, EIGHT)))
    for case, lost in ((ONE, 0.0), (EIGHT, 1.0)):
        numbers = {"gbit": 2.5, "frames": 1e4, "lost": lost, "again": 48.0, "ping": 20.0, "p99": 50.0}
        results.add(OWN, {f"{case} {name}": value for name, value in numbers.items()})
    assert [verdict.met for verdict in results.verdicts()] == [True, False]
    text = markdown(results, (ONE, EIGHT), {})
    assert "| up, 1 of bbr | 2.50 (2.50–2.50) | 10,000 (10,000–10,000) | 0 (0–0) |" in text
    assert "- **missed**: down, 8 of cubic: lost frames: 1.00 (mark ≤ 0)" in text


@pytest.mark.parametrize(
    "arguments", [["--seconds", "1"], ["--quick", "--write-docs"], ["--control", "reno"]]
)
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        loss.main(arguments)
    assert error.value.code == 2


def test_missing_programs_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "missing_packages", lambda _: ["iperf3"])
    assert loss.main([]) == 2
    assert "apt-get install --no-install-recommends iperf3" in capsys.readouterr().err
