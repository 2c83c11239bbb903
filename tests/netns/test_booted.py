"""The Debian that boots for a test: fresh each time, shut off, gone afterwards; and how it is made."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shadowmesh.testing import booted
from shadowmesh.testing.booted import Booted, base, hindrance
from shadowmesh.testing.program import LabError

pytestmark = [pytest.mark.netns, pytest.mark.booted]


@pytest.fixture(autouse=True)
def possible() -> None:
    if reason := hindrance():
        pytest.skip(reason)


def test_each_boot_is_fresh_and_shut_off(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with Booted() as debian:
        debian.copy(tmp_path / "file", "/root/sub/file")
        debian.write("/root/script", "#!/bin/sh\ncat sub/file\n", mode=0o755)
        assert debian.shell("./script && tee -a /etc/passwd >/dev/null", input="x").stdout == "text"
        assert debian.shell("hostname; ls /sys/class/net; test -c /dev/net/tun").stdout == "debian\nlo\n"
        assert debian.active("dbus")
        assert debian.show("dbus", "SubState") == "running"
        assert not debian.active("nothing")
        with pytest.raises(LabError, match=r"exit 3: status 3\nwords"):
            debian.shell("echo words; exit 3")
        with pytest.raises(LabError, match=r"(?s)no miracle within 0 s.*--- journal\n.+"):
            debian.wait_for(lambda: False, "miracle", timeout=0)
    with Booted() as debian:
        assert not debian.path("/root/sub").exists()
        assert not debian.path("/etc/passwd").read_text().endswith("x")


@pytest.mark.parametrize("obedient", [True, False])
def test_nothing_is_left_of_it_whatever_happens(monkeypatch: pytest.MonkeyPatch, obedient: bool) -> None:
    """Also after an error, and of one that does not let itself be powered off."""
    leaders = []

    def use() -> None:
        with Booted() as debian:
            leaders.append(debian._leader)
            if not obedient:
                debian.shell("systemctl mask --runtime poweroff.target")
                monkeypatch.setattr(booted, "_POWER_OFF_SECONDS", 0.2)
            debian.shell("false")

    with pytest.raises(LabError, match="status 1"):
        use()
    assert not Path(f"/proc/{leaders[0]}").exists()


def test_one_that_cannot_be_made_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = tmp_path / "bin/debootstrap"
    fake.parent.mkdir()
    fake.write_text('#!/bin/sh\nmkdir -p "$4/etc"\necho no mirror answers\nexit 1\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{fake.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    with pytest.raises(LabError, match=r"debootstrap .*: status 1\nno mirror answers"):
        base()
    assert [file.suffix for file in (tmp_path / "cache/shadowmesh").iterdir()] == [".lock"]
