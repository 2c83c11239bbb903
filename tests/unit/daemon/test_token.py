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
    assert "the file is somebody else's" in token.trouble
    assert path.read_bytes() == b""
    token.close()


def test_a_file_with_another_name_gets_no_token(tmp_path: Path) -> None:
    path = tmp_path / "api.token"
    (tmp_path / "other").touch()
    os.link(tmp_path / "other", path)
    token = Token(str(path))
    assert "the file is somebody else's" in token.trouble
    token.close()


def test_nothing_matches_without_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    token = Token(str(tmp_path / "file" / "api.token"))
    assert not token.matches(token._token.decode())


def test_an_older_token_is_gone_before_others_may_read_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "api.token"
    path.write_text("x" * 200)
    sizes: list[int] = []
    fchmod = os.fchmod

    def noting(file: int, mode: int) -> None:
        sizes.append(os.fstat(file).st_size)
        fchmod(file, mode)

    monkeypatch.setattr(os, "fchmod", noting)
    Token(str(path)).close()
    assert sizes == [0]


@pytest.mark.parametrize("again", [False, True])
def test_a_file_that_was_removed_before_the_lock_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, again: bool
) -> None:
    path = tmp_path / "api.token"
    flock = fcntl.flock
    locks = 0

    def late(file: int, operation: int) -> None:
        nonlocal locks
        locks += 1
        if locks == 1:  # the daemon before us ends now
            path.unlink()
            if again:
                path.touch(0o600)
        flock(file, operation)

    monkeypatch.setattr(fcntl, "flock", late)
    token = Token(str(path))
    assert locks == 2
    assert token.matches(path.read_text().strip())
    token.close()
