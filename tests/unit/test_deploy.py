"""deploy/systemd: the guide's unit, of which nothing is lost but what we change on purpose, and hardened."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from shadowmesh.testing import guide

ROOT = Path(__file__).parents[2]
UNIT = ROOT / "deploy/systemd/shadowmesh-relay.service"
CHANGED = {
    "Type=simple": "Type=notify",
    "ReadWritePaths=/var": "ReadWritePaths=-/var",
}
EXPOSURE = 1.5

needs_systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed")


def settings(text: str) -> list[str]:
    """`[Section] Key=value` for each setting of a unit."""
    section, found = "", []
    for line in text.splitlines():
        if line.startswith("["):
            section = line
        elif line and not line.startswith("#"):
            found.append(f"{section} {line}")
    return found


def the_guides_unit() -> str:
    page = (ROOT / "tests/guide/deployment-guide.md").read_text()
    return next(block.text for block in guide.blocks(page) if block.text.startswith("[Unit]"))


def test_the_unit_has_every_setting_of_the_guides() -> None:
    wanted = settings(the_guides_unit())
    assert len(wanted) > 18
    for old, new in CHANGED.items():
        wanted = [line.replace(old, new) for line in wanted]
    assert not set(wanted) - set(settings(UNIT.read_text()))


def test_no_setting_stands_twice_with_different_values() -> None:
    """A later line replaces an earlier one, but those that are lists."""
    keys = [line.partition("=")[0] for line in settings(UNIT.read_text())]
    assert {key for key in keys if keys.count(key) > 1} == {"[Service] SystemCallFilter"}


def test_the_service_sees_what_its_process_metrics_need() -> None:
    """prometheus_client gives none of them where it cannot read the boot time in /proc/stat."""
    assert not [line for line in settings(UNIT.read_text()) if "ProcSubset" in line]


@needs_systemd
def test_systemd_finds_nothing_wrong_with_the_unit(tmp_path: Path) -> None:
    program = tmp_path / "shadowmesh-relay"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("/opt/shadowmesh/shadowmesh-relay", str(program)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


@needs_systemd
def test_the_service_is_exposed_to_little() -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", UNIT],
        capture_output=True,
        text=True,
        timeout=60,
    )
    match = re.search(r"Overall exposure level for shadowmesh-relay.service: ([\d.]+)", done.stdout)
    assert match is not None, done.stdout + done.stderr
    assert float(match[1]) <= EXPOSURE
