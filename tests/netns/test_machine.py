"""A machine of the laboratory: what is done to its files is not done to ours."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError

pytestmark = pytest.mark.netns


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Lab("a") as lab:
        yield Machine(lab["a"])


def test_files_of_this_machine_stay_as_they_are(machine: Machine) -> None:
    before = Path("/etc/passwd").read_bytes()
    machine.write("/opt/new/file", "text")
    machine.shell("echo x >>/etc/passwd; rm /usr/bin/env; touch /var/one /run/two here")
    assert machine.path("/opt/new/file").read_text() == "text"
    assert machine.path("/var/one").exists()
    assert Path("/etc/passwd").read_bytes() == before
    assert Path("/usr/bin/env").exists()
    for name in ("/opt/new", "/var/one", "/run/two", "/here", "/var/tmp/here"):
        assert not Path(name).exists()


def test_a_place_that_would_be_ours_is_refused(machine: Machine) -> None:
    with pytest.raises(ValueError, match="/root/file would be written on this machine"):
        machine.write("/root/file", "")


def test_a_copy_of_a_directory(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "there").write_text("text")
    machine.copy("/opt/tree", tmp_path)
    assert machine.shell("cat /opt/tree/there; rm /opt/tree/there; touch /opt/tree/new").stdout == "text"
    assert os.listdir(tmp_path) == ["there"]


def test_commands_run_as_root_without_our_environment(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "ours")
    assert machine.shell("sudo X=1 sh -c 'echo $X $SECRET; id -u'").stdout == "1\n0\n"
    with pytest.raises(LabError, match="status 3"):
        machine.shell("exit 3")


def test_nothing_is_left(tmp_path: Path) -> None:
    with Lab("a", keep=tmp_path) as lab:
        machine = Machine(lab["a"])
        program = machine.start("sleep 60", name="sleep")
    assert program.status is not None
    assert not machine.path("/").exists()
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
