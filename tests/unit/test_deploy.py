"""deploy/systemd: the guide's units, of which nothing is lost but what we change on purpose, and hardened."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Never

import pytest

from shadowmesh.relay.admission import Admission
from shadowmesh.relay.program import FILES_BESIDE_CLIENTS
from shadowmesh.testing import guide

ROOT = Path(__file__).parents[2]
RELAY = ROOT / "deploy/systemd/shadowmesh-relay.service"
DAEMON = ROOT / "deploy/systemd/shadowmesh-daemon.service"
CHANGED = {
    RELAY: {
        "Type=simple": "Type=notify",
        "ReadWritePaths=/var": "ReadWritePaths=-/var",
    },
    DAEMON: {
        "Type=simple": "Type=notify",
        "User=root": "User=shadowmesh",
        "/usr/local/bin": "/opt/shadowmesh/.venv/bin",
        "[Unit] Wants=network-online.target": "[Unit] Description=ShadowMesh Daemon",
        "network-online": "network",
    },
}
EXPOSURE = {RELAY: 1.2, DAEMON: 1.9}
OF_THE_GUIDE = 8.5
"""The exposure of its relay's unit."""

units = pytest.mark.parametrize("unit", [RELAY, DAEMON], ids=lambda unit: unit.stem)

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


def the_guides_unit(unit: Path) -> str:
    page = (ROOT / "tests/guide/deployment-guide.md").read_text()
    units = (block.text for block in guide.blocks(page) if block.text.startswith("[Unit]"))
    return next(text for text in units if f"/{unit.stem} " in text)


@units
def test_the_unit_has_every_setting_of_the_guides(unit: Path) -> None:
    wanted = settings(the_guides_unit(unit))
    assert len(wanted) > 8
    for old, new in CHANGED[unit].items():
        wanted = [line.replace(old, new) for line in wanted]
    assert not set(wanted) - set(settings(unit.read_text()))


@units
def test_no_setting_stands_twice_with_different_values(unit: Path) -> None:
    """A later line replaces an earlier one, but those that are lists."""
    keys = [line.partition("=")[0] for line in settings(unit.read_text())]
    assert {key for key in keys if keys.count(key) > 1} == {"[Service] SystemCallFilter"}


@units
def test_the_service_is_watched_and_started_again(unit: Path) -> None:
    """A hanging one within half a minute; not one whose configuration is wrong, which ends with status 2."""
    lines = set(unit.read_text().splitlines())
    stop = "TimeoutStopSec=15" if unit == RELAY else "TimeoutStopSec=10"
    assert {"WatchdogSec=30", "NotifyAccess=all", "RestartPreventExitStatus=2", stop} <= lines
    assert lines & {"Restart=always", "Restart=on-failure"}


@units
def test_the_service_sees_what_it_needs_of_proc(unit: Path) -> None:
    """The boot time in /proc/stat for process metrics, the switches of IPv6 and forwarding in /proc/sys."""
    assert not [line for line in settings(unit.read_text()) if "ProcSubset" in line]


def test_the_client_has_one_capability_and_no_core() -> None:
    found = {line.removeprefix("[Service] ") for line in settings(DAEMON.read_text())}
    assert found >= {
        *("CapabilityBoundingSet=CAP_NET_ADMIN", "AmbientCapabilities=CAP_NET_ADMIN", "NoNewPrivileges=true"),
        *("LoadCredential=encryption.key:/etc/shadowmesh/encryption.key", "LimitCORE=0", "User=shadowmesh"),
        *("RuntimeDirectory=shadowmesh", "StateDirectory=shadowmesh", "StateDirectoryMode=0700"),
        *("DevicePolicy=closed", "DeviceAllow=/dev/net/tun rw"),
    }


def test_the_docs_say_how_exposed_the_client_is() -> None:
    page = (ROOT / "docs/service.md").read_text()
    assert f"`systemd-analyze security` gives it {EXPOSURE[DAEMON]}" in " ".join(page.split())


def test_the_docs_say_how_exposed_the_relay_is() -> None:
    page = (ROOT / "docs/deploy.md").read_text()
    said = f"exposure {EXPOSURE[RELAY]} of 10 by `systemd-analyze security` of systemd 252"
    assert f"{said}; the guide's has {OF_THE_GUIDE})" in " ".join(page.split())


@needs_systemd
@units
def test_systemd_finds_nothing_wrong_with_the_unit(unit: Path, tmp_path: Path) -> None:
    program = tmp_path / unit.stem
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    copy = tmp_path / unit.name
    copy.write_text(re.sub(rf"ExecStart=\S+/{unit.stem} ", f"ExecStart={program} ", unit.read_text()))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--recursive-errors=no", "--man=no", copy],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def exposure(unit: Path) -> float:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--no-pager", unit],
        capture_output=True,
        text=True,
        timeout=60,
    )
    match = re.search(rf"Overall exposure level for {unit.name}: ([\d.]+)", done.stdout)
    assert match is not None, done.stdout + done.stderr
    return float(match[1])


@needs_systemd
@units
def test_the_service_is_exposed_to_little(unit: Path) -> None:
    assert exposure(unit) <= EXPOSURE[unit]


@needs_systemd
def test_the_guides_relay_is_exposed_to_much(tmp_path: Path) -> None:
    """A newer systemd may look at more."""
    unit = tmp_path / RELAY.name
    unit.write_text(the_guides_unit(RELAY))
    assert exposure(unit) == pytest.approx(OF_THE_GUIDE, abs=0.3)


def test_the_pages_say_how_many_clients_the_open_files_of_the_unit_are_for() -> None:
    (allowed,) = re.findall(r"^LimitNOFILE=(\d+)$", RELAY.read_text(), re.MULTILINE)
    monitoring, deploy = ((ROOT / f"docs/{name}.md").read_text() for name in ("monitoring", "deploy"))

    def needed(connections: int) -> int:
        return connections + Admission[Never](connections).max_unjoined + FILES_BESIDE_CLIENTS

    assert needed(51_400) <= int(allowed) < needed(51_500)
    assert f"1000 clients need {needed(1000)}; the\nunit's {allowed} is enough for about 51,400" in monitoring
    assert f"LimitNOFILE={needed(100_000)}`" in monitoring
    assert f"`LimitNOFILE={allowed}` is enough for a `max_connections` of about 51,400" in deploy
