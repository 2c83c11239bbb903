"""The benchmarks as programs: that they measure every subject installed here, and that nothing is left."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench import environment
from bench.measures import MEASURES
from bench.subjects import SUBJECTS
from shadowmesh.testing.netlab import lab_prefix
from shadowmesh.testing.program import wait_for

pytestmark = pytest.mark.netns

ROOT = Path(__file__).parents[2]
E2E = [sys.executable, "-m", "bench.e2e", "--quick"]
RELAY = [sys.executable, "-m", "bench.relay", "--quick"]
SOAK = [sys.executable, "-m", "bench.soak", "--quick", "--seed", "1"]
FLAP = [sys.executable, "-m", "bench.flap", "--quick", "--seed", "1"]
STARTED: list[int] = []
"""Ids of the benchmarks that the test has run."""
# Only what scripts/setup installs has to be there; other subjects and measures run where their programs are.
HERE = [name for name, subject in SUBJECTS.items() if not environment.missing_packages(subject.tools)]
MEASURED = [name for name, measure in MEASURES.items() if not environment.missing_packages(measure.tools)]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Of what the test's own runs have made; others may have labs at the same time."""
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    STARTED.clear()
    yield
    assert STARTED
    wait_for(lambda: not namespaces(), "end of the benchmark's namespaces")
    wait_for(lambda: not processes(str(tmp_path / "tmp")), "end of the benchmark's programs")
    assert not list((tmp_path / "tmp").iterdir())


def namespaces() -> list[str]:
    names = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    return [name for name in names if name.startswith(tuple(map(lab_prefix, STARTED)))]


def start(argv: list[str]) -> subprocess.Popen[str]:
    pipe = subprocess.PIPE
    process = subprocess.Popen(argv, cwd=ROOT, stdout=pipe, stderr=pipe, text=True)
    STARTED.append(process.pid)
    return process


def finished(argv: list[str], tmp_path: Path, timeout: float = 100) -> tuple[str, str]:
    """What a run that must have had no failure wrote to stdout and to stderr."""
    with start([*argv, "--output", str(tmp_path)]) as process:
        try:
            out, errors = process.communicate(timeout=timeout)
        finally:
            process.terminate()
    assert process.returncode == 0, out + errors
    return out, errors


def processes(text: str) -> list[int]:
    """Ids of the processes with `text` in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue  # ended meanwhile
    return found


def run(tmp_path: Path, subjects: list[str], measures: list[str]) -> dict[str, dict[str, list[float]]]:
    """The values of a quick run that must have had no failure."""
    values = values_of(E2E, "e2e-cubic", tmp_path, subjects, measures)
    assert (tmp_path / "e2e-cubic.svg").read_text().startswith("<svg")
    return values


def values_of(
    command: list[str], file: str, tmp_path: Path, subjects: list[str], measures: list[str]
) -> dict[str, dict[str, list[float]]]:
    out, _ = finished([*command, "--only", ",".join(subjects), "--measures", ",".join(measures)], tmp_path)
    assert (tmp_path / f"{file}.md").read_text() in out
    facts = json.loads((tmp_path / f"{file}.json").read_text())
    assert facts["errors"] == []
    values: dict[str, dict[str, list[float]]] = facts["values"]
    return values


def test_every_measure_of_shadowmesh_gives_its_numbers(tmp_path: Path) -> None:
    values = run(tmp_path, ["shadowmesh"], [*MEASURED, "memory"])["shadowmesh"]
    numbers = {"tcp1", "tcp8", "tcpr", "cpu", "udp1200", "udp100", "ping", "loaded", "idle", "used"}
    numbers |= {"start", "relay ready", "daemon ready"}
    for name in numbers | ({"wrk"} & set(MEASURED)):
        assert values[name][0] > 0, name
    for program in ("relay in R", "daemon in A", "daemon in B"):
        assert values[f"cpu {program}"][0] > 0
        assert values[f"rss {program}"][0] > 10


def test_every_subject_carries_tcp(tmp_path: Path) -> None:
    values = run(tmp_path, HERE, ["tcp1", "ping"])
    assert set(values) == set(HERE)
    for name, numbers in values.items():
        assert numbers["tcp1"][0] > 0, name
        assert ("ping" in numbers) is not SUBJECTS[name].only_tcp


def test_every_measure_of_the_relay_gives_its_numbers(tmp_path: Path) -> None:
    measures = ["pair", "pairs", "peers", "mixed", "memory"]
    values = values_of(RELAY, "relay", tmp_path, ["shadowmesh"], measures)["shadowmesh"]
    for load in ("pair", "pairs", "peers"):
        for payload in (64, 1434, 16384, 65536):
            for name in ("frames", "gbit", "cpu", "frames per cpu", "half p50", "half p99", "half cpu"):
                assert values[f"{load} {payload} {name}"][0] > 0, (load, payload, name)
    for name in ("gbit", "bulk p99", "small p99"):
        assert values[f"mixed {name}"][0] > 0
    for count in (20, 50):
        assert 5 < values[f"idle {count}"][0] < 50


@pytest.mark.skipif("proxy" not in HERE, reason="nginx is not installed")
def test_the_relay_is_compared_with_nginx(tmp_path: Path) -> None:
    values = values_of(RELAY, "relay", tmp_path, ["shadowmesh", "proxy"], ["pair"])
    assert values["proxy"]["pair 65536 gbit"][0] > 0
    # The proxy gets the relay's half load.
    own, other = (values[name]["pair 65536 half frames"][0] for name in ("shadowmesh", "proxy"))
    assert own / 3 < other < own * 3


def test_a_soak_of_seconds_holds(tmp_path: Path) -> None:
    """Nothing is left in the relay, and every connection and frame is accounted for, whosever it is."""
    out, errors = finished([*SOAK, "--keep", str(tmp_path / "logs")], tmp_path)
    assert "bench: seed 1\n" in errors
    assert (tmp_path / "soak.md").read_text() in out
    facts = json.loads((tmp_path / "soak.json").read_text())
    assert len(facts["checks"]) > 20
    assert all(check["held"] for check in facts["checks"])
    assert len([name for name in facts["tally"] if name.startswith("attack ")]) > 15
    assert facts["tally"]["frames received"] > 100
    assert facts["idle after"]["metrics"]["joins_total"] > 100
    assert "relay has stopped" in (tmp_path / "logs").read_text()


def test_flapping_for_seconds_leaves_nothing_in_anyone(tmp_path: Path) -> None:
    """Daemons and relays break together, come back, and have as many files, tasks and sessions as before."""
    out, errors = finished([*FLAP, "--keep", str(tmp_path / "logs")], tmp_path)
    assert "bench: seed 1\n" in errors
    assert (tmp_path / "flap.md").read_text() in out
    facts = json.loads((tmp_path / "flap.json").read_text())
    assert len(facts["checks"]) > 12
    assert all(check["held"] for check in facts["checks"])
    assert len(facts["rounds"]) > 2
    assert "relay has stopped" in (tmp_path / "logs").read_text()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_an_interrupted_run_leaves_nothing(number: int, tmp_path: Path) -> None:
    argv = [*E2E, "--output", str(tmp_path), "--only", "shadowmesh", "--measures", "ping,tcp1"]
    with start(argv) as process:
        try:
            assert process.stderr is not None
            assert "shadowmesh ping" in process.stderr.readline()  # tcp1 runs now
            process.send_signal(number)
            process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode != 0
