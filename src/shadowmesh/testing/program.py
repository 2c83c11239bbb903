"""A real program under test: its process, its log, and waiting for it by condition."""

from __future__ import annotations

import re
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


class LabError(Exception):
    """The laboratory or a program in it did not do what was asked; the text ends with that program's log."""


def wait_for(condition: Callable[[], T | None], what: str, timeout: float = 10.0) -> T:
    """Call `condition` until it gives something true, and return that.

    Raises LabError naming `what` after `timeout` seconds; what the condition itself raises goes through.
    """
    deadline = time.monotonic() + timeout
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise LabError(f"no {what} within {timeout:g} s")
        time.sleep(0.02)


class Program:
    """A running process, with its output in the file `log`."""

    def __init__(self, name: str, process: subprocess.Popen[bytes], log: Path) -> None:
        self.name = name
        self.log = log
        self._process = process

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def status(self) -> int | None:
        """Exit status, negative for the signal that ended it; None while it runs."""
        return self._process.poll()

    def text(self) -> str:
        """All that the program has written so far."""
        return self.log.read_text(errors="replace")

    def signal(self, number: int) -> None:
        """Send one signal, to this process only; nothing happens when it has ended."""
        self._process.send_signal(number)

    def wait(self, timeout: float = 10.0) -> int:
        """Wait for the end and return the exit status."""
        try:
            return self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise LabError(
                f"{self.name} (pid {self.pid}) did not end within {timeout:g} s\n{self.text()}"
            ) from None

    def stop(self, timeout: float = 10.0) -> int:
        """SIGTERM, then wait for the end and return the exit status."""
        self.signal(signal.SIGTERM)
        return self.wait(timeout)

    def kill(self) -> int:
        """SIGKILL: no clean-up of its own."""
        self.signal(signal.SIGKILL)
        return self.wait()

    def wait_for(self, condition: Callable[[], T | None], what: str, timeout: float = 10.0) -> T:
        """Like `wait_for`, but fails at once when the program ends, and shows its log."""

        def alive_and_true() -> T | None:
            if self.status is not None:
                raise LabError(f"{self.name} ended with status {self.status} before: {what}")
            return condition()

        try:
            return wait_for(alive_and_true, what, timeout)
        except LabError as error:
            raise LabError(f"{error}\n--- {self.name}\n{self.text()}") from None

    def wait_for_text(self, pattern: str, timeout: float = 10.0) -> re.Match[str]:
        """Wait until the log matches the regular expression `pattern`."""
        return self.wait_for(lambda: re.search(pattern, self.text()), f"log line /{pattern}/", timeout)
