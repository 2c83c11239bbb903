"""How long the programs take from their start until they are of use, by the time of their own log lines."""

from __future__ import annotations

import secrets
import time
from datetime import datetime

from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import LabError, Program

CONNECTED = "connected to the relay"


def start_times() -> dict[str, float]:
    """Seconds until a relay serves, and until a daemon is connected to it."""
    with Lab("a") as lab:
        began = time.time()
        relay = lab.start_relay()
        between = time.time()
        # Not asked whether it is connected, which would cost it time.
        daemon = lab.start_client("a", "10.10.10.1/24", secrets.token_hex(32), wait=False)
        daemon.wait_for(lambda: CONNECTED in daemon.text(), "relay connection")
        return {
            "relay ready": said(relay, "relay is ready") - began,
            "daemon ready": said(daemon, CONNECTED) - between,
        }


def said(program: Program, words: str) -> float:
    """When a program logged them first, in seconds like those of time.time."""
    for line in program.text().splitlines():
        when, _, event = line.partition(" ")
        if words in event:
            return datetime.fromisoformat(when).timestamp()
    raise LabError(f"{program.name} did not say {words!r}\n{program.text()[-500:]}")
