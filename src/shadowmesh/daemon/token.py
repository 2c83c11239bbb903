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
        self._file = -1
        try:
            self._file = _locked(Path(path))
            os.pwrite(self._file, self._token + b"\n", 0)
            os.ftruncate(self._file, len(self._token) + 1)
        except BlockingIOError:
            self.trouble = f"{path}: another daemon uses it; give this one a daemon.token_file of its own"
        except OSError as error:
            self.trouble = f"cannot write {path} (daemon.token_file): {error.strerror}"

    def __repr__(self) -> str:
        return f"<Token {self.path}>"

    def matches(self, shown: str) -> bool:
        """Whether this is the token, in constant time; never while there is no file."""
        return not self.trouble and hmac.compare_digest(self._token, shown.encode("utf-8", "replace"))

    def close(self) -> None:
        """Remove the file."""
        if self._file >= 0:
            with suppress(OSError):
                os.unlink(self.path)
            os.close(self._file)
            self._file = -1


def _locked(path: Path) -> int:
    """A descriptor of the file at `path`, ours alone.

    Raises BlockingIOError if another process has it, PermissionError if it is another user's.
    """
    group = _group()
    if not path.parent.exists():
        path.parent.mkdir(mode=DIRECTORY_MODE, parents=True)
        _give(path.parent, group)
        path.parent.chmod(DIRECTORY_MODE)  # whatever the umask
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            found = os.fstat(file)
            if found.st_uid != os.geteuid() or found.st_nlink > 1:
                raise PermissionError(errno.EPERM, "the file is somebody else's; remove it")
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            try:
                kept = os.stat(path, follow_symlinks=False).st_ino == found.st_ino
            except FileNotFoundError:
                kept = False
            if kept:
                # Empty first: nobody who may open the file from now on reads an older token's rest.
                os.ftruncate(file, 0)
                _give(file, group)
                os.fchmod(file, MODE)
                return file
        except BaseException:
            os.close(file)
            raise
        os.close(file)  # the daemon before us has just removed it


def _give(file: Path | int, group: int) -> None:
    """Give a file to the group; one that we may not give away stays with ours."""
    with suppress(PermissionError):
        os.chown(file, -1, group)


def _group() -> int:
    try:
        return grp.getgrnam(GROUP).gr_gid
    except KeyError:
        return -1
