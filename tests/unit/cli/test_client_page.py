"""docs/client.md: its commands exist, its curl examples work, and it has every code and field there is."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import click
import pytest

from shadowmesh.cli import ctl, tables
from shadowmesh.daemon import ping as ping_module
from shadowmesh.daemon.diagnosis import KINDS
from shadowmesh.testing.memory import MemoryMesh
from shadowmesh.testing.reports import Reported, Served

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/client.md").read_text()


def test_every_command_of_the_daemon_is_there_and_no_other() -> None:
    group = ctl.cli
    ours = {name for name, module in ctl._ELSEWHERE.items() if module == "shadowmesh.cli.status"}
    assert set(re.findall(r"^\| `shadowmesh (\w+)", PAGE, re.MULTILINE)) == ours
    options: set[str] = set()
    for name in ours:
        command = group.get_command(click.Context(group), name)
        assert command is not None
        options.update(option for each in command.params for option in each.opts if option.startswith("--"))
    assert options - {"--count", "--interval", "--times"} <= set(re.findall(r"--[a-z-]+", PAGE))


def test_every_code_of_a_diagnosis_is_there_and_no_other() -> None:
    source = (ROOT / "src/shadowmesh/daemon/diagnosis.py").read_text()
    codes = {*KINDS, *re.findall(r'_found\(\s*"(\w+)"', source), "duplicate_local_ip", "duplicate_id"}
    section = PAGE.partition("\n### What is wrong\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    assert {code for cell in cells for code in re.findall(r"`(\w+)`", cell)} == codes


@pytest.mark.parametrize("name", ["status", "peers"])
def test_every_heading_of_the_tables_is_explained(name: str) -> None:
    world = MemoryMesh(2)
    reported = Reported(world, world.nodes[0])
    world.meet(*world.nodes)
    with (console := tables.console()).capture() as capture:
        console.print(getattr(tables, name)(reported.report.status()))
    headings = set(re.findall(r"\b[A-Z]{3,}\b", capture.get())) - {"MTU"}
    assert headings
    assert {each for each in headings if each not in PAGE} == set()


def curl(served: Served, script: str) -> str:
    text = script.replace("127.0.0.1:9090", f"127.0.0.1:{served.port}")
    text = text.replace("/run/shadowmesh/api.token", str(served.token_file))
    return subprocess.run(["bash", "-euc", text], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_the_examples_with_curl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ping_module, "ANSWER_SECONDS", 0.2)
    section = PAGE.partition("\n## The API\n")[2]
    looks, changes = re.findall(r"(?:^    .*\n)+", section, re.MULTILINE)[:2]
    served = Served(tmp_path)
    try:
        for line in looks.splitlines():
            assert curl(served, line.replace("curl ", "curl -sf "))
        define, _, calls = changes.partition('}"; }\n')
        answers = [json.loads(curl(served, f'{define}}}"; }}\n{call}')) for call in calls.splitlines()]
    finally:
        served.close()
    assert answers[0]["status"] == "down"
    assert "applied" in answers[2]
    assert answers[3]["peer"] == "desktop"
    assert served.trusted == [("10.10.10.2", "k3v5qhmzq2wzr5wq6zj2m7c4yfyd3b2a")]
