"""Files that are written whole, and never over one that is there without keeping it."""

from __future__ import annotations

import errno
import fcntl
import itertools
import os
import pwd
import secrets
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from shadowmesh.errors import StartError

DIRECTORY = "/etc/shadowmesh"
RELAY_CONFIG, CLIENT_CONFIG, KEY = "relay-config.yaml", "client-config.yaml", "encryption.key"
USER = "shadowmesh"
"""Whom the services run as."""
LOCK_SECONDS = 5.0
"""As long another program of ours is waited for."""


def refuse_existing(path: str, force: bool) -> None:
    """Raises StartError if there is something at `path` that is to stay there, or nothing can be written."""
    if os.path.exists(path) and not os.path.isfile(path):
        what = "a directory; name a file in it" if os.path.isdir(path) else "no regular file"
        raise StartError(f"{path} is {what}; nothing is changed")
    if os.path.lexists(path) and not force:
        raise StartError(f"{path} is there already; --force replaces it, and keeps it as {path}.bak")
    directory = os.path.dirname(os.path.realpath(path))
    while not os.path.lexists(directory):
        directory = os.path.dirname(directory)
    if not os.path.isdir(directory):
        raise StartError(f"cannot write {path}: {directory} is no directory; nothing is changed")
    if os.geteuid() != 0 and not os.access(directory, os.W_OK | os.X_OK):  # said before anything is asked
        raise StartError(_trouble(path, PermissionError(errno.EACCES, os.strerror(errno.EACCES))))


def write_new(
    path: str,
    text: str,
    *,
    force: bool = False,
    keep: bool = True,
    mode: int = 0o600,
    for_service: bool = False,
) -> str:
    """Write a file; where the one is that was there and that `force` replaced, or "".

    `keep`: one that is replaced stays under another name. `for_service`: root gives the file to the user of
    the services, if there is one. Raises StartError in words; then nothing has changed.
    """
    path = os.path.realpath(path)  # what a symbolic link leads to is replaced, not the link
    beside, backup = f"{path}.{secrets.token_hex(4)}.new", ""
    try:
        os.makedirs(os.path.dirname(path), 0o755, exist_ok=True)
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w") as file:
                if for_service and os.geteuid() == 0:
                    with suppress(KeyError):
                        os.fchown(descriptor, pwd.getpwnam(USER).pw_uid, -1)
                os.fchmod(descriptor, mode)
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            if force:
                backup = _keep(path) if keep and os.path.lexists(path) else ""
                os.rename(beside, path)
            else:
                os.link(beside, path)  # unlike a rename it never replaces anything
        finally:
            with suppress(FileNotFoundError):
                os.unlink(beside)
    except FileExistsError:
        refuse_existing(path, force=False)
        raise StartError(f"{path} was there a moment ago; try again") from None
    except OSError as error:
        raise StartError(_trouble(path, error)) from None
    return backup


def put_aside(path: str) -> str:
    """Give a file another name, if it is there; the name, or "". Raises StartError."""
    if not os.path.lexists(path):
        return ""
    try:
        backup = _keep(path)
        os.unlink(path)
    except OSError as error:
        raise StartError(_trouble(path, error)) from None
    return backup


def _keep(path: str) -> str:
    """Give a file a second name, the first free one of FILE.bak, FILE.bak2, …"""
    for number in itertools.count(1):
        backup = f"{path}.bak{number if number > 1 else ''}"
        with suppress(FileExistsError):
            os.link(path, backup)
            return backup
    raise AssertionError


@contextmanager
def locked(path: str) -> Iterator[None]:
    """Keep other programs of ours from changing the file meanwhile, if it is there, by a file PATH.lock.

    That one stays. Nobody but its owner can open it: whoever can read a file or directory can lock it for
    ever. Raises StartError.
    """
    path = os.path.realpath(path)
    if not os.path.lexists(path):
        yield
        return
    beside = f"{path}.lock"
    try:
        lock = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise StartError(_trouble(beside, error)) from None
    try:
        deadline = time.monotonic() + LOCK_SECONDS
        while not _lock(lock):
            if time.monotonic() >= deadline:
                raise StartError(
                    f"another program has been changing {path} for {LOCK_SECONDS:g} s; nothing is changed, "
                    "try again when it has ended"
                )
            time.sleep(0.05)
        yield
    finally:
        os.close(lock)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _trouble(path: str, error: OSError) -> str:
    remedy = ""
    if isinstance(error, PermissionError) and os.geteuid() != 0:
        remedy = "; use sudo, or write it elsewhere with --output FILE"
    return f"cannot write {path}: {error.strerror}{remedy}; nothing is changed"
