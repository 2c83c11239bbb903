"""What a relay frees comes back without new pages."""

from __future__ import annotations

import os
import subprocess
import sys


def test_a_relay_keeps_its_heap() -> None:
    """The pages of what is freed stay with the process; how many faults that saves is up to the kernel.

    glibc moves its bounds with what a process has freed before: the tunable keeps the first one.
    """
    script = """
import sys
from pathlib import Path
from shadowmesh.relay.heap import keep_heap
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
if sys.argv[1] == "kept":
    keep_heap()
before = resident()
frames = [bytes(140_000) for _ in range(12)]
taken = resident() - before
del frames
print((resident() - before) / taken)
"""
    env = {**os.environ, "GLIBC_TUNABLES": "glibc.malloc.mmap_threshold=131072"}
    stays = {
        how: float(subprocess.check_output([sys.executable, "-c", script, how], env=env))
        for how in ("kept", "not")
    }
    assert stays["not"] < 0.1 < 0.9 < stays["kept"]
