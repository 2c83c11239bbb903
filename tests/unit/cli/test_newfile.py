"""Files appear whole or not at all, and what was there is never lost."""

from __future__ import annotations

import fcntl
import os
import re
import stat
from pathlib import Path

import pytest

from shadowmesh.cli import newfile
from shadowmesh.cli.newfile import locked, refuse_existing, write_new
from shadowmesh.errors import StartError


def names(directory: Path) -> list[str]:
    return sorted(each.name for each in directory.iterdir())


def test_a_new_file_and_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "c.yaml"
    assert write_new(str(path), "text\n") == ""
    assert path.read_text() == "text\n"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert names(path.parent) == ["c.yaml"]
    assert (
        stat.S_IMODE((write_new(str(tmp_path / "r"), "", mode=0o644), tmp_path / "r")[1].stat().st_mode)
        == 0o644
    )


def test_one_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("old")
    with pytest.raises(
        StartError, match=r"c.yaml is there already; --force replaces it, and keeps it as .*c.yaml.bak$"
    ):
        write_new(str(path), "new")
    with pytest.raises(StartError, match="there already"):
        refuse_existing(str(path), force=False)
    refuse_existing(str(path), force=True)
    assert (path.read_text(), names(tmp_path)) == ("old", ["c.yaml"])


def test_what_is_no_file_is_named(tmp_path: Path) -> None:
    """Whatever `force` says: root would replace a device by a file."""
    (tmp_path / "file").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path)
    for path, words in (
        (f"{tmp_path}", f"{tmp_path} is a directory; name a file in it; nothing is changed"),
        (f"{tmp_path}/link", f"{tmp_path}/link is a directory; name a file in it; nothing is changed"),
        (f"{tmp_path}/pipe", f"{tmp_path}/pipe is no regular file; nothing is changed"),
        ("/dev/null", "/dev/null is no regular file; nothing is changed"),
        (
            f"{tmp_path}/file/a/x",
            f"cannot write {tmp_path}/file/a/x: {tmp_path}/file is no directory; nothing is changed",
        ),
    ):
        for force in (False, True):
            with pytest.raises(StartError, match=f"^{re.escape(words)}$"):
                refuse_existing(path, force)
    with pytest.raises(StartError, match="file is no directory"):
        write_new(f"{tmp_path}/file/x", "")
    assert names(tmp_path) == ["file", "link", "pipe"]


def test_force_keeps_each(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("1")
    path.chmod(0o640)
    assert write_new(str(path), "2", force=True) == f"{path}.bak"
    assert write_new(str(path), "3", force=True) == f"{path}.bak2"
    assert write_new(str(path), "4", force=True, keep=False) == ""
    assert names(tmp_path) == ["c.yaml", "c.yaml.bak", "c.yaml.bak2"]
    texts = [(tmp_path / name).read_text() for name in names(tmp_path)]
    assert texts == ["4", "1", "2"]
    assert stat.S_IMODE(os.stat(f"{path}.bak").st_mode) == 0o640


def test_a_link_leads_on(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "there")
    write_new(str(tmp_path / "link"), "text")
    assert (tmp_path / "there").read_text() == "text"
    assert (tmp_path / "link").is_symlink()


def test_nothing_is_left_of_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    path = tmp_path / "c.yaml"
    path.write_text("old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(
        StartError, match=r"cannot write .*c.yaml: No space left on device; nothing is changed"
    ):
        write_new(str(path), "new", force=True)
    assert (path.read_text(), names(tmp_path)) == ("old", ["c.yaml"])


def test_no_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    list_of_all = tmp_path / "list"
    list_of_all.touch()
    monkeypatch.setattr(os, "makedirs", denied)
    monkeypatch.setattr(os, "open", denied)
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    words = "Permission denied; use sudo, or write it elsewhere with --output FILE; nothing is changed"
    with pytest.raises(StartError, match=words):
        write_new(str(tmp_path / "x"), "")
    with pytest.raises(StartError, match=rf"list\.lock: {words}"), locked(str(list_of_all)):
        pass


def test_only_who_may_write_a_file_can_lock_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others, who can read its directory or the file itself, keep nobody waiting."""
    monkeypatch.setattr(newfile, "LOCK_SECONDS", 0.0)
    path = tmp_path / "list"
    with locked(str(path)):  # nothing is there to be changed
        assert names(tmp_path) == []
    path.write_text("10.10.10.1 laptop\n")
    for readable in (tmp_path, path):
        held = os.open(readable, os.O_RDONLY)
        fcntl.flock(held, fcntl.LOCK_EX)
        with locked(str(path)):
            assert stat.S_IMODE((tmp_path / "list.lock").stat().st_mode) == 0o600
        os.close(held)


def test_one_at_a_time_and_the_other_does_not_wait_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "list"
    path.touch()
    (tmp_path / "link").symlink_to(path)
    monkeypatch.setattr(newfile, "LOCK_SECONDS", 0.1)
    words = r"another program has been changing .*/list for 0\.1 s; nothing is changed"
    with locked(str(path)), pytest.raises(StartError, match=words), locked(str(tmp_path / "link")):
        pass
    with locked(str(path)):
        pass


def test_a_lock_file_that_leads_elsewhere_is_not_followed(tmp_path: Path) -> None:
    path = tmp_path / "list"
    path.touch()
    (tmp_path / "list.lock").symlink_to(tmp_path / "elsewhere")
    words = r"cannot write .*list\.lock: .*; nothing is changed"
    with pytest.raises(StartError, match=words), locked(str(path)):
        pass
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_the_service_gets_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newfile, "USER", "nobody")
    write_new(str(tmp_path / "a"), "", for_service=True)
    assert (tmp_path / "a").owner() == "nobody"
    monkeypatch.setattr(newfile, "USER", "there-is-no-such-user")
    write_new(str(tmp_path / "b"), "", for_service=True)
    assert (tmp_path / "b").stat().st_uid == 0
