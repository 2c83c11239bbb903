"""`bench scale`: that each measure gives its numbers, what is judged, and the command line."""

from __future__ import annotations

import json
import os
import resource
from collections.abc import Iterator
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench import scale, scale_report
from bench.results import OWN, Results


@pytest.fixture(autouse=True)
def limits() -> Iterator[None]:
    """What the benchmark changes of its process."""
    files = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, files)


def test_every_measure_gives_its_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cores, files = os.sched_getaffinity(0), len(os.listdir("/proc/self/fd"))
    assert scale.main(["--quick", "--output", str(tmp_path)]) == 0
    assert os.sched_getaffinity(0) == cores
    assert len(os.listdir("/proc/self/fd")) <= files + 1  # where a load waits, until it is collected
    text = (tmp_path / "scale.md").read_text()
    assert text in capsys.readouterr().out
    values = json.loads((tmp_path / "scale.json").read_text())["values"][OWN]
    names = {f"{name} {count}" for name in ("join", "memory", "idle") for count in (10, 20)}
    for count, share, payload in ((10, 0.01, 1434), (20, 0.5, 65536)):
        names |= {f"{count} {share} {payload} {way}" for way in ("alone", "ratio", "full")}
    names |= {"send 2", "receive 3", "begun", "answered", "known 1", "new 10", "flat 1434", "flat 65536"}
    assert names <= set(values)
    assert all(values[name][0] > 0 for name in names)
    assert "| 20 | 50 % |" in text
    drawn = ElementTree.fromstring((tmp_path / "scale.svg").read_text())
    assert len(drawn.findall(".//{*}polyline")) == 8


def test_so_many_peers_are_active() -> None:
    assert [scale.pairs(count, 0.01) for count in (10, 100, 500, 1000, 5000)] == [1, 1, 2, 5, 25]
    assert [scale.pairs(count, 0.5) for count in (10, 5000)] == [2, 1250]


def test_the_dearest_number_of_peers_counts() -> None:
    results = Results("x", (OWN,), ("relay",), marks=scale_report.MARKS)
    for count, ratio in ((10, 1.0), (100, 1.3), (5000, 1.1)):
        results.add(OWN, {f"{count} 0.01 1434 ratio": ratio, f"{count} 0.01 65536 ratio": 1.0})
    scale_report.judge(results, (10, 100, 5000))
    assert [(verdict.value, verdict.met) for verdict in results.verdicts()] == [(1.3, False), (1.0, True)]


def test_too_few_open_files_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    assert scale.main([]) == 2
    assert "5300 open files are needed and 4096 allowed" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--measures", "x"], ["--rounds", "0"], ["--quick", "--write-docs"]])
def test_a_wrong_argument_is_refused(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as error:
        scale.main(arguments)
    assert error.value.code == 2
