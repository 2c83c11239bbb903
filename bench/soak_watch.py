"""What `bench soak` sees of the relay from outside, again and again: /proc, /metrics and the probe."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from bench import processor
from bench.soak_probe import Probe
from shadowmesh.testing import guide
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError, Program

_PREFIX = "shadowmesh_relay_"

Metrics = Mapping[str, float]
"""Name without prefix to value; `NAME{LABEL}` for each value of the one label beside the region."""


class Sample(NamedTuple):
    """The relay at one moment."""

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
        """Frames that the account of the metrics does not explain: 0."""
        m = self.metrics
        dropped = sum(value for name, value in m.items() if name.startswith("drops_total{"))
        return abs(m["frames_total"] - m["frames_relayed_total"] - dropped - m["frames_queued"]) + abs(
            dropped - m["frames_dropped"]
        )


def take(lab: Lab, relay: Program, probe: Probe) -> Sample:
    """Look at a running relay."""
    process = Path(f"/proc/{relay.pid}")
    look = probe.glance(relay)
    return Sample(
        at=time.monotonic(),
        cpu=processor.run_seconds(relay.pid),
        rss=processor.memory_kb((process / "status").read_text()) * 1024 / 1e6,
        private=private_kb((process / "smaps_rollup").read_text()) * 1024 / 1e6,
        fds=len(os.listdir(process / "fd")),
        threads=len(os.listdir(process / "task")),
        tasks=tuple(look["tasks"]),
        blocks=look["blocks"],
        metrics=scrape(lab),
    )


def scrape(lab: Lab) -> Metrics:
    """All metrics of the relay."""
    code, text = lab.relay.get("/metrics", guide.METRICS_PORT)
    if code != 200:
        raise LabError(f"/metrics answered {code}")
    return read_metrics(text)


def read_metrics(text: str) -> Metrics:
    """The samples of a scrape that have at most one label beside the region."""
    found = {}
    for name, labels, value in re.findall(rf"^{_PREFIX}(\w+)\{{(.*)\}} (\S+)$", text, re.MULTILINE):
        others = [text for label, text in re.findall(r'(\w+)="([^"]*)"', labels) if label != "region"]
        if len(others) < 2:
            found[f"{name}{{{others[0]}}}" if others else name] = float(value)
    return found


def private_kb(smaps: str) -> int:
    """Memory that is not shared, KiB, from /proc/PID/smaps_rollup."""
    return sum(map(int, re.findall(r"^Private_\w+:\s+(\d+) kB$", smaps, re.MULTILINE)))
