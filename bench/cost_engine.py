"""Packets through two daemon engines in memory, as a program for `bench.cost` to count in.

For each line on its input, the name of a case and a number of rounds, it does so much and says `done`.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

from shadowmesh.daemon.queue import LEAST_PIECE
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.wire.offload import MAX_RECORD, PLAIN

_SEGMENT = 1348


def cases(one: Station, other: Station) -> dict[str, Sequence[bytes]]:
    """The records that the kernel has for `one` in each round."""
    datagram = udp_packet(one.ip, other.ip, bytes(1200))
    bulk = tcp_packet(one.ip, other.ip, bytes(47 * _SEGMENT))
    return {
        "64 KiB": [bytes(unfinished(bulk, _SEGMENT))],
        "1.2 KB": [PLAIN + datagram],
        "50 of 100 B": [PLAIN + udp_packet(one.ip, other.ip, bytes(100))] * 50,
        SLOW: [PLAIN + udp_packet(one.ip, other.ip, bytes(100))] * 50,
    }


SLOW = "50 of 100 B, slow link"
"""Where small packets of other connections do not wait behind bulk."""


def carry(net: Net, records: Sequence[bytes]) -> None:
    """Let records go from the kernel of one station to that of the other."""
    one, other = net.stations
    one.give(*records)
    net.run()
    one.link.frames.clear()
    assert other.taken()


def main() -> None:
    """Say `ready`, then do what is asked for until the input ends."""
    net = Net("a", "b")
    net.meet()
    known = cases(*net.stations)
    print("ready", flush=True)
    for line in sys.stdin:
        name, rounds = line.rsplit(" ", 1)
        net.stations[0].engine._queue.most = LEAST_PIECE if name == SLOW else MAX_RECORD
        for _ in range(int(rounds)):
            carry(net, known[name])
        print("done", flush=True)
    net.close()
