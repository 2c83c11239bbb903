"""What a relay frees comes back without new pages."""

from __future__ import annotations

import subprocess
import sys


def test_a_relay_keeps_its_heap() -> None:
    """What is freed comes back without a page fault for each of its pages."""
    script = """
import resource, sys
from shadowmesh.relay.heap import keep_heap
if sys.argv[1] == "kept":
    keep_heap()
for _ in range(200):
    frames = [bytes(130_992) for _ in range(24)]
    del frames
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""
    faults = {
        how: int(subprocess.run([sys.executable, "-c", script, how], capture_output=True, check=True).stdout)
        for how in ("kept", "not")
    }
    assert 3 * faults["kept"] < faults["not"]
