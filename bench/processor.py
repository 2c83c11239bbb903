"""Processor time and memory, as /proc tells them."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from shadowmesh.testing.program import Program

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")


class Clock(NamedTuple):
    """A moment: the time, and what all cores together had been doing until then."""

    now: float
    """Monotonic seconds."""
    unused: float
    """Core seconds idle, waiting for a disk, or stolen by the hypervisor."""
    cores: int

    @classmethod
    def read(cls) -> Clock:
        return cls(time.monotonic(), *unused_seconds(Path("/proc/stat").read_text()))

    def busy_since(self, before: Clock) -> float:
        """Core seconds of work in between.

        Taken from what was not used, as the kernel measures idle time but only samples the other kinds.
        """
        return max(0.0, (self.now - before.now) * self.cores - (self.unused - before.unused))


def unused_seconds(stat: str) -> tuple[float, int]:
    """Core seconds without work since boot, and the number of cores, from /proc/stat."""
    fields = stat.split("\n", 1)[0].split()
    return sum(int(fields[index]) for index in (4, 5, 8)) * _TICK, len(
        re.findall(r"^cpu\d", stat, re.MULTILINE)
    )


def process_seconds(stat: str) -> float:
    """User and system seconds of a process and of the children it has waited for, from /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()  # the name before it may have spaces
    return sum(map(int, fields[11:15])) * _TICK


def run_seconds(pid: int) -> float:
    """Seconds that all threads of a process have run, to the nanosecond; ended threads are not in it."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def memory_kb(status: str, field: str = "VmRSS") -> int:
    """Resident memory in KiB, from /proc/PID/status; field VmHWM is the most there ever was."""
    found = re.search(rf"^{field}:\s+(\d+) kB$", status, re.MULTILINE)
    return int(found[1]) if found else 0


def program_memory_kb(program: Program) -> int:
    """Resident memory of a running program, KiB."""
    return memory_kb(Path(f"/proc/{program.pid}/status").read_text())


def load(seconds: float = 0.5) -> float:
    """Mean number of busy cores during this long a wait."""
    before = Clock.read()
    time.sleep(seconds)
    after = Clock.read()
    return after.busy_since(before) / (after.now - before.now)


class Meter:
    """Processor seconds from now on; `idle` is the load (cores) that was there before and is taken off."""

    def __init__(self, programs: Mapping[str, Program], idle: float) -> None:
        self._programs = programs
        self._idle = idle
        self._before = Clock.read()
        self._own = self._read()

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds of the whole machine, and of each program."""
        after = Clock.read()
        machine = after.busy_since(self._before) - self._idle * (after.now - self._before.now)
        own = {name: seconds - self._own[name] for name, seconds in self._read().items()}
        return max(0.0, machine), own

    def _read(self) -> dict[str, float]:
        programs = self._programs.items()
        return {name: process_seconds(Path(f"/proc/{p.pid}/stat").read_text()) for name, p in programs}
