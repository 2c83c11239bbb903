"""The command line of `bench soak`, its settings and its tables; tests/netns/test_bench.py runs it."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

import pytest
import yaml

from bench import environment, soak, soak_report
from bench.soak import SETTINGS, other_settings
from bench.soak_checks import Check, Facts
from bench.soak_report import Run
from bench.soak_watch import Sample
from shadowmesh.config import load_relay_config
from shadowmesh.testing import guide

METRICS = {
    "accepts_total": 1234.0,
    "closes_total{4001}": 5.0,
    "connections": 50.0,
    "drops_total{not_here}": 3.0,
    "drops_total{queue_full}": 0.0,
    "frames_relayed_total": 90.0,
    "frames_total": 100.0,
    "joins_total": 80.0,
    "latency_ms{0.99}": 4.25,
    "loop_lag_worst_seconds": 0.031,
    "queued_bytes": 2e6,
    "refused_total{full}": 10.0,
}


def sample(at: float) -> Sample:
    return Sample(at, at / 2, 60 + at / 60, 40.0, 16, 3, ("a", "b"), 9, METRICS | {"frames_total": 100 * at})


@pytest.fixture
def facts() -> Facts:
    found = Facts(samples=[sample(10.0 * n) for n in range(61)], reloads=3)
    found.tally.update({"attack slow loris": 7, "leaves": 2, "refused address_in_use": 1})
    found.start = found.before = found.after = sample(0.0)
    return found


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["--minutes", "0"], "at least 1"), (["--quick", "--write-docs"], "mean nothing")],
)
def test_a_wrong_argument_is_named(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        soak.main(arguments)
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_missing_programs_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "missing_packages", lambda _: ["iperf3"])
    assert soak.main([]) == 2
    assert "apt-get install --no-install-recommends iperf3" in capsys.readouterr().err


def test_every_configuration_is_one_that_a_relay_takes(tmp_path: Path) -> None:
    chance, file = Random(1), tmp_path / "relay.yaml"
    base = guide.merged(guide.RELAY_CONFIG, SETTINGS)
    texts = {base, *(guide.merged(base, other_settings(chance)) for _ in range(20))}
    assert len(texts) > 15
    for text in texts:
        file.write_text(text)
        config = load_relay_config(str(file)).config
        assert config.log_format == "json"
        assert config.limits.queue_memory <= yaml.safe_load(base)["limits"]["queue_memory"]
        # What keeps honest clients in, or their frames from being dropped, is what it always is.
        assert config.limits.connects_per_second == 20
        assert config.queue_size >= 250
        assert config.max_connections >= 2 * soak.FULL.pairs + len(soak.DAEMONS)


def test_the_tables_tell_what_happened(facts: Facts) -> None:
    runs = [Run(95.0, 64, 1e5, 0.05, 1.0, 2.0), Run(100.0, 65536, 2e4, 9.5, 1.0, 6.5)]
    found = [Check("memory is flat", "+0.1 %", True), Check("no error", "1", False)]
    text = soak_report.markdown(facts, runs, found, {"kernel": "Linux 6.1", "seed": "7"})
    lines = text.split("\n")
    assert lines[0] == "kernel Linux 6.1; seed 7."
    assert sum("–" in line.split("|")[1] for line in lines if line.startswith("|")) == soak_report.ROWS
    for line in (
        "| idle, after the warm-up | 60.0 | 40.0 | 16 | 2 | 50 | 2.0 |  |  |  |  |  |  |",
        "| 1:40–2:30 | 61.8–62.5 | 40.0 | 16 | 2 | 50 | 2.0 | 0.50 | 100 | 31 | 4.2 |  |  |",
        "| 0:50–1:40 | 61.0–61.7 | 40.0 | 16 | 2 | 50 | 2.0 | 0.50 | 100 | 31 | 4.2 | 0.05–9.50 | 2.0–6.5 |",
        "| frames dropped | not_here 3 |",
        "| attacks | slow loris 7 |",
        "- held: memory is flat: +0.1 %",
        "- **broken**: no error: 1",
    ):
        assert line in lines, line
    facts_again = json.loads(soak_report.to_json(facts, runs, found, {}))
    assert len(facts_again["samples"]) == 61
    assert facts_again["runs"][1]["gbit"] == 9.5


def test_what_did_not_hold_is_told_by_the_status(capsys: pytest.CaptureFixture[str]) -> None:
    assert soak._verdict([Check("a", "b", True)]) == 0
    assert soak._verdict([Check("a", "b", True), Check("no error", "1", False)]) == 1
    assert capsys.readouterr().err == "bench: no error: 1\n"
