"""How the work of a daemon grows with peers and routes: its engine in memory, in this process, on one core.

Nothing is timed but the callbacks of the one station that counts, as processor time of this thread.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from ipaddress import ip_address, ip_network
from pathlib import Path
from time import thread_time_ns
from typing import TypeVar

from bench import processor
from bench.stats import median
from shadowmesh.mesh.routes import Routes
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.memory import MemoryMesh, local_settings
from shadowmesh.testing.packets import udp_packet
from shadowmesh.wire.offload import PLAIN

Numbers = dict[str, float]
T = TypeVar("T")
PAYLOAD = 1200
"""Bytes of the datagrams."""
_AT_ONCE = 64
"""Messages of one kind in a row; as many fit into the socket of a device in memory."""
_PREFIXES = int(ip_address("100.64.0.0"))


def _timed(call: Callable[[], T]) -> tuple[T, int]:
    begin = thread_time_ns()
    result = call()
    return result, thread_time_ns() - begin


def _read(net: Net, station: Station) -> int:
    """Let a station read its TUN device, and travel what it sends; nanoseconds of the station."""
    return _timed(net.loop.readers[station.tun.fileno()])[1]


def _travel(net: Net) -> list[tuple[Station, int]]:
    """Let all frames arrive: for each, who got it and the nanoseconds that took."""
    spent = []
    while net.travelling:
        _, data = net.travelling.popleft()
        holder = net.holders[data[1:17]]
        spent.append((holder, _timed(lambda to=holder, data=data: to.engine.on_frame(memoryview(data)))[1]))  # type: ignore[misc]
    return spent


def _datagram(sender: Station, receiver: Station) -> bytes:
    return PLAIN + udp_packet(sender.ip, receiver.ip, bytes(PAYLOAD))


def _meet(net: Net, one: Station, others: Sequence[Station]) -> tuple[list[int], list[int]]:
    """Handshakes of one station with all others: nanoseconds of it, and of each of them."""
    own, theirs = [], []
    for other in others:
        one.give(_datagram(one, other))
        asked, spent = _read(net, one), _travel(net)
        own.append(asked + sum(nanoseconds for station, nanoseconds in spent if station is one))
        theirs.append(sum(nanoseconds for station, nanoseconds in spent if station is other))
        other.taken()
    assert len(one.mesh.peers) >= len(others)
    return own, theirs


def _net(count: int) -> Net:
    return Net(*(f"station {number}" for number in range(count)))


def messages(daemons: int, rounds: int) -> Numbers:
    """µs to seal and send a message of one datagram, to each peer in turn, and to open one of each."""
    net = _net(daemons)
    one, *others = net.stations
    _meet(net, one, others)
    sent, received = [], []
    for first in range(0, rounds, _AT_ONCE):
        # All of a kind in a row, as in a process of its own: what others do would have emptied the caches.
        turn = [others[number % len(others)] for number in range(first, first + _AT_ONCE)]
        for other in turn:
            one.give(_datagram(one, other))
            sent.append(_read(net, one))
        _travel(net)
        for other in turn:
            other.give(_datagram(other, one))
            _read(net, other)
        received += [nanoseconds for _, nanoseconds in _travel(net)]
        assert len(one.taken()) == _AT_ONCE
        for other in others:
            other.taken()
    net.close()
    return {f"send {daemons}": median(sent) / 1e3, f"receive {daemons}": median(received) / 1e3}


def handshakes(count: int) -> Numbers:
    """Handshakes in a second of one core that one end begins or answers, and memory of a session."""
    net = _net(count + 2)
    first, second, *others = net.stations
    # What a station allocates once, when it is first used, is not to count as its sessions'.
    own, theirs = _meet(net, first, others)
    before = _resident()
    _meet(net, second, others)
    grown = (_resident() - before) / len(others)
    net.close()
    # The first has what is made once in it.
    return {
        "begun": 1e9 / median(own[1:]),
        "answered": 1e9 / median(theirs[1:]),
        "session": grown / 2 / 1e3,  # both ends are in this process
    }


def _resident() -> int:
    return processor.memory_kb(Path("/proc/self/status").read_text()) * 1024


def routes(entries: int, rounds: int) -> Numbers:
    """µs to find where a packet goes, of a connection that is known and of a new one."""
    via = "10.10.10.2"
    table = [(str(ip_network((_PREFIXES + 256 * number, 24))), via) for number in range(entries)]
    mesh = MemoryMesh(1)
    mesh.add("router", "10.10.10.9/24", routes=table)
    context = mesh.nodes[-1].context
    assert context.local == local_settings("router", "10.10.10.9/24", routes=table)
    found = Routes(context)
    source = ip_address("10.10.10.9").packed
    keys = [
        source + (_PREFIXES + 256 * (number * 7919 % entries) + 1 + number // entries % 250).to_bytes(4)
        for number in range(rounds)
    ]
    new = [_timed(lambda key=key: found.flow(key))[1] for key in dict.fromkeys(keys)]  # type: ignore[misc]
    _, known = _timed(lambda: [found.flow(key) for key in keys])
    assert all(flow is not None and flow.next_hop == ip_address(via).packed for flow in found.flows.values())
    return {f"known {entries}": known / len(keys) / 1e3, f"new {entries}": median(new) / 1e3}
