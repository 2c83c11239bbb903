"""Counts of work that no clock and no other load of the machine changes, of processes that run.

Instructions are counted by callgrind (user space only), system calls by strace: while `work` runs, so that
neither start nor end is in it. What runs by timers meanwhile is: little, next to hundreds of frames.
"""

from __future__ import annotations

import re
import signal
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

from shadowmesh.testing.program import LabError, wait_for

TOOLS = {"valgrind": "valgrind", "vgdb": "valgrind", "strace": "strace"}
START_SECONDS = 60.0
"""A program takes ten times as long to start under valgrind."""
Counts = dict[str, float]


class Callgrind:
    """Instructions of one program, which is started with `prefix` in front of its command line."""

    def __init__(self, directory: Path) -> None:
        self._file = directory / "callgrind"
        self._dumps = 0
        self.prefix = [
            "valgrind",
            "--quiet",
            "--tool=callgrind",
            "--instr-atstart=no",
            f"--callgrind-out-file={self._file}",
            f"--vgdb-prefix={directory / 'vgdb'}",
        ]

    def begin(self, pid: int) -> None:
        """Count from now on: until then the program runs five times as fast."""
        self._tell(pid, "instrumentation", "on")

    def end(self, pid: int) -> None:
        """Count no more."""
        self._tell(pid, "instrumentation", "off")

    def count(self, pid: int, work: Callable[[], None]) -> Counts:
        """How many `instructions` the program needs while `work` runs."""
        self._tell(pid, "zero")
        work()
        self._tell(pid, "dump")
        self._dumps += 1
        text = Path(f"{self._file}.{self._dumps}").read_text()
        total = re.search(r"^totals: (\d+)$", text, re.MULTILINE)
        if total is None or total[1] == "0":
            raise LabError(f"callgrind counted nothing: {text[-500:]}")
        return {"instructions": int(total[1])}

    def _tell(self, pid: int, *words: str) -> None:
        argv = ["vgdb", f"--vgdb-prefix={self._file.with_name('vgdb')}", f"--pid={pid}", *words]
        done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=START_SECONDS)
        if done.returncode:
            raise LabError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")


def system_calls(pid: int, work: Callable[[], None]) -> Counts:
    """How many system calls of each kind all threads of a process make while `work` runs."""
    with tempfile.NamedTemporaryFile("r") as table, tempfile.NamedTemporaryFile("r") as said:
        argv = ["strace", "-f", "-c", "-U", "calls,name", "-o", table.name, "-p", str(pid)]
        with open(said.name, "w") as errors, subprocess.Popen(argv, stderr=errors) as strace:
            try:
                wait_for(lambda: "attached" in said.read() or strace.poll() is not None, "strace")
                if strace.poll() is not None:
                    raise LabError(f"strace does not run: {Path(said.name).read_text()}")
                work()
            finally:
                strace.send_signal(signal.SIGINT)
                strace.wait(10)
        return parse_calls(table.read())


def parse_calls(text: str) -> Counts:
    """System calls by name, from the table of `strace -c -U calls,name`."""
    rows = re.findall(r"^ *(\d+) +(\w+) *$", text, re.MULTILINE)
    return {name: float(calls) for calls, name in rows if name != "total"}
