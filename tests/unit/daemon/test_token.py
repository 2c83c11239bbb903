"""The API's token: who may read it, and whose it is."""

from __future__ import annotations

import fcntl
import grp
import os
import stat
import types
from pathlib import Path

import pytest

from shadowmesh.daemon.token import Token


def test_a_fresh_token_that_owner_and_group_may_read(tmp_path: Path) -> None:
    path = tmp_path / "run" / "api.token"
    mask = os.umask(0o077)
    try:
        token = Token(str(path))
    finally:
        os.umask(mask)
    assert token.trouble == ""
    text = path.read_text()
    assert (len(text), text[-1]) == (44, "\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
    assert token.matches(text.strip())
    assert not token.matches("")
    assert not token.matches("é")
    assert text.strip() not in repr(token)
    token.close()
    assert not path.exists()


def test_each_start_has_another(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    path.write_text("x" * 200)
    path.chmod(0o666)
    first = Token(str(path))
    text = path.read_text().strip()
    assert len(text) == 43
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    first.close()
    second = Token(str(path))
    assert not second.matches(text)
    second.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_the_group_may_read_it_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grp, "getgrnam", lambda name: types.SimpleNamespace(gr_gid=4242))
    path = tmp_path / "run" / "api.token"
    token = Token(str(path))
    assert (path.stat().st_gid, path.parent.stat().st_gid) == (4242, 4242)
    token.close()


def test_two_daemons_do_not_share_one(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    first = Token(str(path))
    text = path.read_text()
    second = Token(str(path))
    assert "another daemon uses it; give this one a daemon.token_file of its own" in second.trouble
    assert not second.matches(text.strip())
    second.close()
    assert path.read_text() == text
    assert first.matches(text.strip())
    first.close()


def test_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "passwd").write_text("precious")
    (tmp_path / "api.token").symlink_to(tmp_path / "passwd")
    token = Token(str(tmp_path / "api.token"))
    assert "cannot write" in token.trouble
    assert (tmp_path / "passwd").read_text() == "precious"
    token.close()


def test_a_directory_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    token = Token(str(tmp_path / "file" / "api.token"))
    assert token.trouble.startswith(f"cannot write {tmp_path}/file/api.token (daemon.token_file): ")
    assert not token.matches("None")
    token.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to give a file away")
def test_a_file_of_somebody_else_gets_no_token(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    path.touch(0o600)
    os.chown(path, 65534, 65534)
    token = Token(str(path))
    assert f"{path} is somebody else's" in token.trouble
    assert path.read_bytes() == b""
    token.close()
    assert os.listdir(tmp_path) == ["api.token"]


def test_a_file_with_another_name_gets_no_token(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    (tmp_path / "other").touch()
    os.link(tmp_path / "other", path)
    token = Token(str(path))
    assert f"{path} is somebody else's" in token.trouble
    token.close()


@pytest.mark.parametrize("suffix", ["", ".lock"])
def test_what_is_no_file_gets_no_token_and_nobody_waits_for_it(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "api.token"
    os.mkfifo(f"{path}{suffix}")
    token = Token(str(path))
    assert f"{path}{suffix} is somebody else's, or no file; remove it" in token.trouble
    token.close()


@pytest.mark.parametrize("suffix", [".lock", ".new"])
def test_links_beside_it_lead_nowhere(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "passwd").write_text("precious")
    path = tmp_path / "api.token"
    Path(f"{path}{suffix}").symlink_to(tmp_path / "passwd")
    token = Token(str(path))
    assert bool(token.trouble) is (suffix == ".lock")  # what is left of a broken run is removed
    assert (tmp_path / "passwd").read_text() == "precious"
    token.close()


def test_nothing_matches_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    token = Token(str(tmp_path / "file" / "api.token"))
    assert not token.matches(token._token.decode())


def test_whoever_may_read_the_token_cannot_keep_a_daemon_from_it(tmp_path: Path) -> None:
    """A lock needs no right to write; the file here was left behind by a kill -9."""
    path = tmp_path / "api.token"
    path.write_text("x" * 43)
    with path.open("rb") as reader:
        fcntl.flock(reader, fcntl.LOCK_EX)
        token = Token(str(path))
        assert token.trouble == ""
        with path.open("rb") as other:
            fcntl.flock(other, fcntl.LOCK_EX)
            assert Token(str(path)).trouble.endswith("a daemon.token_file of its own")
        lock = tmp_path / "api.token.lock"
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600
        token.close()
    assert os.listdir(tmp_path) == []


def test_a_lock_that_others_could_read_is_closed_to_them(tmp_path: Path) -> None:
    lock = tmp_path / "api.token.lock"
    lock.touch(0o666)
    lock.chmod(0o666)
    token = Token(str(tmp_path / "api.token"))
    assert stat.S_IMODE(lock.stat().st_mode) == 0o600
    token.close()


def test_the_file_appears_whole_and_an_older_one_with_its_readers_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "api.token"
    path.write_text("x" * 200)
    seen: list[tuple[int, int]] = []
    replace = os.replace

    def noting(new: Path, old: Path) -> None:
        seen.append((stat.S_IMODE(new.stat().st_mode), new.stat().st_size))
        replace(new, old)

    monkeypatch.setattr(os, "replace", noting)
    with path.open("rb") as reader:
        token = Token(str(path))
        assert reader.read() == b"x" * 200  # whoever had it open before sees nothing of the new one
    assert seen == [(0o640, 44)]
    token.close()


@pytest.mark.parametrize("again", [False, True])
def test_a_lock_that_was_removed_before_it_was_ours_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    lock = tmp_path / "api.token.lock"
    flock = fcntl.flock
    locks = 0

    def late(file: int, operation: int) -> None:
        nonlocal locks
        locks += 1
        if locks == 1:  # the daemon before us ends now
            lock.unlink()
            if again:
                lock.touch(0o600)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    token = Token(str(tmp_path / "api.token"))
    assert locks == 2
    assert "another daemon" in Token(str(tmp_path / "api.token")).trouble
    token.close()
