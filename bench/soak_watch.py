"""What `bench soak` and `bench flap` see of a program, again and again: /proc, /metrics and the probe."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

from bench import processor
from bench.soak_probe import Probe
from shadowmesh.testing import guide
from shadowmesh.testing.netlab import Host
from shadowmesh.testing.program import LabError, Program

RELAY, DAEMON = "shadowmesh_relay_", "shadowmesh_daemon_"
"""What the names of their metrics begin with."""

Metrics = Mapping[str, float]
"""Name without prefix to value; `NAME{LABEL}` for each value of the one label beside the region."""


class Sample(NamedTuple):
    """A program at one moment."""

    at: float
    """Monotonic seconds."""
    cpu: float
    """Processor seconds until then."""
    rss: float
    private: float
    """Memory, MB: resident, and of it what no other process shares."""
    fds: int
    threads: int
    tasks: tuple[str, ...]
    """Of asyncio, by their functions."""
    blocks: int
    """Of memory, in the Python allocator."""
    metrics: Metrics

    @property
    def lost(self) -> float:
        """Frames that the account of a relay's metrics does not explain: 0."""
        m = self.metrics
        dropped = sum(value for name, value in m.items() if name.startswith("drops_total{"))
        return abs(m["frames_total"] - m["frames_relayed_total"] - dropped - m["frames_queued"]) + abs(
            dropped - m["frames_dropped"]
        )


def take(program: Program, probe: Probe, metrics: Callable[[], Metrics]) -> Sample:
    """Look at a running program; `metrics` scrapes it."""
    process = Path(f"/proc/{program.pid}")
    look = probe.glance(program)
    return Sample(
        at=time.monotonic(),
        cpu=processor.run_seconds(program.pid),
        rss=processor.memory_kb((process / "status").read_text()) * 1024 / 1e6,
        private=private_kb((process / "smaps_rollup").read_text()) * 1024 / 1e6,
        fds=len(os.listdir(process / "fd")),
        threads=len(os.listdir(process / "task")),
        tasks=tuple(look["tasks"]),
        blocks=look["blocks"],
        metrics=metrics(),
    )


def scrape(host: Host, port: int = guide.METRICS_PORT, prefix: str = RELAY) -> Metrics:
    """All metrics of a program on this host."""
    code, text = host.get("/metrics", port)
    if code != 200:
        raise LabError(f"/metrics answered {code}")
    return read_metrics(text, prefix)


def read_metrics(text: str, prefix: str = RELAY) -> Metrics:
    """The samples of a scrape that have at most one label beside the region."""
    found = {}
    for name, labels, value in re.findall(rf"^{prefix}(\w+)(?:\{{(.*)\}})? (\S+)$", text, re.MULTILINE):
        others = [text for label, text in re.findall(r'(\w+)="([^"]*)"', labels) if label != "region"]
        if len(others) < 2:
            found[f"{name}{{{others[0]}}}" if others else name] = float(value)
    return found


def private_kb(smaps: str) -> int:
    """Memory that is not shared, KiB, from /proc/PID/smaps_rollup."""
    return sum(map(int, re.findall(r"^Private_\w+:\s+(\d+) kB$", smaps, re.MULTILINE)))
