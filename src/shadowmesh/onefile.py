"""The programs as single files: PyInstaller's bootloader unpacks one, starts it as its child, and waits.

The program is the child. The bootloader stays what was started (systemd's main process), passes signals on,
and removes the unpacked files when the child ends, by whatever. What it cannot do is done here: the child
does not outlive it, files of two that were both killed go at the next start, a signal to both is one signal.
"""

from __future__ import annotations

import fcntl
import os
import select
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

bootloader: int | None = None
"""Its process id, in the child of one; else None."""

ECHO_SECONDS = 1.0
"""A signal to a process group, as Ctrl-C, or to a whole service comes twice: directly, and passed on."""
UNPACK_SECONDS = 60.0
"""Within this a start has unpacked its files and locked them."""
END_SECONDS = 12.0
"""What a program that lost its bootloader has to end by itself; a relay takes 8."""
MARK = ".shadowmesh-onefile"
"""An empty file among ours, unpacked before all others."""

_asked = -ECHO_SECONDS


def unpacked() -> Path | None:
    """Where a bootloader has unpacked this program; None if it is installed, as a directory or by pip."""
    files = Path(getattr(sys, "_MEIPASS", ""))
    return files if files.name.startswith("_MEI") else None


def run(main: Callable[[], None], files: Path) -> None:
    """Run a program whose `files` a bootloader has unpacked, until it ends."""
    global bootloader
    bootloader = parent = os.getppid()
    # Held until the end: neither `sweep` of another one nor systemd-tmpfiles removes what is locked.
    fcntl.flock(os.open(files, os.O_RDONLY), fcntl.LOCK_SH)
    threading.Thread(target=_follow, args=(parent, files), name="bootloader", daemon=True).start()
    sweep(files.parent)
    try:
        main()
    finally:
        if os.getppid() != parent:
            shutil.rmtree(files, ignore_errors=True)


def echo() -> bool:
    """Whether a signal that asks for the end is the one before, passed on by the bootloader."""
    global _asked
    now = time.monotonic()
    if bootloader is not None and now - _asked < ECHO_SECONDS:
        return True
    _asked = now
    return False


def interrupt_once() -> None:
    """For commands at a terminal: of Ctrl-C and what the bootloader passes on of it, one counts."""

    def interrupt(number: int, _: object) -> None:
        if not echo():
            raise KeyboardInterrupt

    if bootloader is not None:
        signal.signal(signal.SIGINT, interrupt)


def sweep(directory: Path) -> None:
    """Remove what others have left there, killed before they could do it themselves, also while unpacking."""
    for files in directory.glob("_MEI*"):
        with suppress(OSError):
            ours = files.lstat().st_uid == (files / MARK).lstat().st_uid == os.geteuid()
            if not ours or time.time() - files.lstat().st_mtime < UNPACK_SECONDS:
                continue
            lock = os.open(files, os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY)
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(files)
            finally:
                os.close(lock)


def _follow(parent: int, files: Path) -> None:
    """End with the bootloader when that is killed: as asked by SIGTERM, or at last without being asked."""
    with suppress(ProcessLookupError):
        select.select([os.pidfd_open(parent)], [], [])
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(END_SECONDS)
    shutil.rmtree(files, ignore_errors=True)
    os._exit(128 + signal.SIGKILL)
