"""The token that whoever changes something by the local API must show: a file that its readers may use.

It is made anew at each start, so one that leaked is good until the next one.
"""

from __future__ import annotations

import errno
import fcntl
import grp
import hmac
import os
import secrets
import stat
from contextlib import suppress
from pathlib import Path

GROUP = "shadowmesh"
MODE = 0o640
DIRECTORY_MODE = 0o750
_BYTES = 32


class Token:
    """A fresh token in a file of mode 0640, of the group `shadowmesh` where there is one; gone after `close`.

    trouble: why there is no file, in words; empty if there is one. Without one nobody can change anything by
    the local API, but the daemon does its work.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.trouble = ""
        self._token = secrets.token_urlsafe(_BYTES).encode()
        self._lock = -1
        try:
            self._lock = _lock(Path(path))
            _write(Path(path), self._token + b"\n")
        except BlockingIOError:
            self.trouble = f"{path}: another daemon uses it; give this one a daemon.token_file of its own"
        except OSError as error:
            self.trouble = f"cannot write {path} (daemon.token_file): {error.strerror}"
            self._unlock()

    def __repr__(self) -> str:
        return f"<Token {self.path}>"

    def matches(self, shown: str) -> bool:
        """Whether this is the token, in constant time; never while there is no file."""
        return not self.trouble and hmac.compare_digest(self._token, shown.encode("utf-8", "replace"))

    def close(self) -> None:
        """Remove the file."""
        if self._lock >= 0:
            with suppress(OSError):
                os.unlink(self.path)
        self._unlock()

    def _unlock(self) -> None:
        if self._lock >= 0:
            with suppress(OSError):
                os.unlink(_beside(Path(self.path), ".lock"))
            os.close(self._lock)
            self._lock = -1


def _lock(path: Path) -> int:
    """A descriptor that keeps other daemons from this token file: of a file beside it, which goes with it.

    Not of the token file itself: whoever may read that could lock it, too. Raises BlockingIOError if another
    process has it, PermissionError if it is another user's.
    """
    if not path.parent.exists():
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True)
        _give(path.parent, _group())
        path.parent.chmod(DIRECTORY_MODE)  # whatever the umask
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    lock = _beside(path, ".lock")
    while True:
        file = os.open(lock, flags, 0o600)
        try:
            _check_ours(lock, found := os.fstat(file))
            os.fchmod(file, 0o600)
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.stat(lock, follow_symlinks=False).st_ino == found.st_ino:
                    return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the daemon before us has just removed it


def _write(path: Path, text: bytes) -> None:
    """A new file under this name at once, whole and with its rights; only one of our own goes for it."""
    new = _beside(path, ".new")
    with suppress(FileNotFoundError):
        _check_ours(path, os.stat(path, follow_symlinks=False))
    with suppress(FileNotFoundError):
        os.unlink(new)  # of a run that was broken off
    file = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        os.write(file, text)
        _give(file, _group())
        os.fchmod(file, MODE)
        os.replace(new, path)
    except BaseException:
        with suppress(OSError):
            os.unlink(new)
        raise
    finally:
        os.close(file)


def _beside(path: Path, suffix: str) -> Path:
    return path.with_name(f"{path.name}{suffix}")


def _check_ours(path: Path, found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid() or found.st_nlink > 1:
        raise PermissionError(errno.EPERM, f"{path} is somebody else's, or no file; remove it")


def _give(file: Path | int, group: int) -> None:
    """Give a file to the group; one that we may not give away stays with ours."""
    with suppress(PermissionError):
        os.chown(file, -1, group)


def _group() -> int:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return -1
