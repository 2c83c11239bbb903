"""The full load of `bench soak` as a program: honest pairs, each frame of which has to arrive.

All pairs in turn send as much as goes, then at a quarter of that rate, which gives latencies; then with
frames of another size. The first SIGTERM ends the sending, the second the connections.
"""

from __future__ import annotations

import gc
import json
import signal
import socket
import struct
import sys
import time
from contextlib import suppress
from itertools import cycle

from bench.load import Load
from bench.peers import Crowd
from bench.relay_report import BURSTS
from bench.soak_client import PATIENCE, Place
from bench.stats import percentile
from shadowmesh.testing.program import LabError
from shadowmesh.testing.websocket import CLOSE, frame

RUN = 3.0
"""Units of the place's pace, seconds: less than a relay lets a client be silent."""
PEER_ID = "bench"
"""Under which the relay knows the peers (see `bench.peers`)."""
_KEEP_EVERY = 0.5


def main() -> None:
    """Argument: a Place as JSON, with twice as many peers as pairs.

    Prints a JSON line for each run, then one with the totals.
    """
    place = Place.from_json(sys.argv[1])
    ends: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: ends.append(number))
    crowd = Crowd(place.relay)
    try:
        crowd.grow(place.count)
        _send(crowd, place, ends)
        while len(ends) < 2:
            crowd.keep()
            time.sleep(_KEEP_EVERY * place.pace)
        for end in crowd.sockets:
            _leave(end)
    except LabError as error:
        sys.exit(f"honest pairs: {error}")
    finally:
        crowd.close()


def _send(crowd: Crowd, place: Place, ends: list[int]) -> None:
    gc.collect()
    gc.disable()
    pairs = place.count // 2
    load = Load(crowd.flows(pairs), lambda: 0.0)
    for size, frames in cycle(BURSTS.items()):
        if ends:
            break
        bursts = crowd.bursts(pairs, size, frames)
        crowd.keep()
        full = load.saturate(bursts, 0.0, RUN * place.pace)
        crowd.keep()
        rate = full.frames / full.seconds / frames / 4
        _, latencies, _ = load.paced([(each,) for each in bursts], [rate], 0.0, RUN * place.pace)
        times = latencies[""]
        _say(
            at=time.monotonic(),
            payload=size,
            frames=full.frames / full.seconds,
            gbit=full.payload * 8e-9 / full.seconds,
            p50=percentile(times, 50) / 1e6 if times else 0.0,
            p99=percentile(times, 99) / 1e6 if times else 0.0,
        )
    sent, payload = load.arrived
    _say(totals={"dialled": place.count, "frames": sent, "payload": payload})


def _say(**facts: object) -> None:
    print(json.dumps(facts), flush=True)


def _leave(end: socket.socket) -> None:
    """Close in order."""
    end.settimeout(PATIENCE)
    with suppress(OSError):
        end.sendall(frame(CLOSE, struct.pack("!H", 1000)))
        while end.recv(65536):
            pass
