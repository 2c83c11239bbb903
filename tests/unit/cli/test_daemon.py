"""`shadowmesh-daemon` as a program: its exit status and what it says, never with a traceback."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from shadowmesh import __version__
from shadowmesh.testing import guide

KEY = "6b8c5c1d5e2d4f7f9a0b1c2d3e4f50617283940a5b6c7d8e9fa0b1c2d3e4f506"


def daemon(*arguments: str, before: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*before, sys.executable, "-m", "shadowmesh.cli.daemon", *arguments],
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert "Traceback" not in done.stderr + done.stdout
    assert KEY not in done.stderr + done.stdout
    return done


def written(path: Path, text: str) -> str:
    file = path / "client-config.yaml"
    file.write_text(text)
    file.chmod(0o600)
    return str(file)


def test_version() -> None:
    done = daemon("--version")
    assert (done.returncode, done.stdout) == (0, f"shadowmesh-daemon {__version__}\n")


def test_no_file_named() -> None:
    done = daemon()
    assert done.returncode == 2
    assert "usage: shadowmesh-daemon" in done.stderr


def test_no_such_file(tmp_path: Path) -> None:
    done = daemon(str(tmp_path / "none.yaml"))
    assert done.returncode == 2
    assert "none.yaml" in done.stderr


def test_every_mistake_with_its_place(tmp_path: Path) -> None:
    """The guide's file as it stands: its three placeholders."""
    file = written(tmp_path, guide.CLIENT_CONFIG)
    done = daemon(file)
    assert (done.returncode, done.stdout) == (2, "")
    *lines, end = (line.partition(" [error] ")[2] for line in done.stderr.splitlines())
    assert end == "daemon cannot start [daemon] problems=3"
    assert [line.split(": ")[1] for line in lines] == ["network.local_ip", "encryption.key", "relay.server"]
    places = [line.removeprefix(file + ":").split(": ")[0].split(":") for line in lines]
    assert all(row.isdigit() and column.isdigit() for row, column in places)


def test_without_the_right_to_make_a_device(tmp_path: Path) -> None:
    """The guide's "Permission denied" creating TUN: what to do, and nothing made."""
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        pytest.skip("no /dev/net/tun")
    # A user namespace without a mapping: root's own files, but no right to the network.
    before = ("unshare", "--user") if os.geteuid() == 0 else ()
    if before and (
        not shutil.which("unshare") or subprocess.run([*before, "true"], capture_output=True).returncode
    ):
        pytest.skip("cannot give up root here: no user namespaces")
    text = guide.client_config(ip="10.10.10.1/24", key=KEY, peer_id="a", server="ws://127.0.0.1:1")
    state = {"daemon": {"state_directory": str(tmp_path / "state")}, "network": {"device_name": "smtest0"}}
    done = daemon(written(tmp_path, guide.merged(text, state)), before=before)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert "[error] daemon cannot start [daemon] why=" in line
    assert "Permission denied creating TUN device smtest0" in line
    assert "sudo" in done.stderr
    assert not (tmp_path / "state").exists()
