"""Invariant: what waits, for a link or for an address, arrives once and in the order of its connection."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.daemon.engine import READ_ON
from shadowmesh.daemon.queue import LONG_MESSAGE
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import udp_packet
from shadowmesh.wire import offload
from shadowmesh.wire.offload import PLAIN

SIZES = st.one_of(st.integers(4, 300), st.integers(900, 1100), st.integers(8_000, 60_000))
GIVE = st.tuples(st.just("give"), st.integers(0, 1), st.integers(0, 2), SIZES)
EVENTS = st.one_of(
    GIVE,
    GIVE,
    st.tuples(st.sampled_from(["hold", "release"]), st.integers(0, 1), st.just(0), st.just(0)),
    st.tuples(st.sampled_from(["full", "free", "late", "run"]), st.just(0), st.just(0), st.integers(1, 3)),
)


def address(station: Station) -> bytes:
    found = station.context.network.ip_address(bytes(map(int, station.ip.split("."))))
    assert found is not None
    return found


@settings(max_examples=150, deadline=None)
@given(events=st.lists(EVENTS, max_size=40))
def test_every_packet_arrives_once_and_in_the_order_of_its_connection(
    events: list[tuple[str, int, int, int]],
) -> None:
    net = Net("a", "b", "c")
    try:
        net.meet()
        play(net, events)
    finally:
        net.close()


def play(net: Net, events: list[tuple[str, int, int, int]]) -> None:
    a, *others = net.stations
    engine = a.engine
    engine._queue.message = LONG_MESSAGE
    given: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
    arrived: defaultdict[tuple[int, int], list[int]] = defaultdict(list)

    def take() -> None:
        for to, station in enumerate(others):
            for each in station.taken():
                packet = each[offload.HEADER_SIZE :]
                arrived[to, packet[21] - 100].append(int.from_bytes(packet[28:32]))

    for number, (what, to, connection, size) in enumerate(events):
        match what:
            case "give":
                given[to, connection].append(number)
                data = number.to_bytes(4) + bytes(size - 4)
                a.give(PLAIN + udp_packet(a.ip, others[to].ip, data, 100 + connection))
                net.loop.turn()  # or else the socket pair is full
            case "hold":
                engine.hold(address(others[to]))
            case "release":
                engine.release(address(others[to]))
            case "full":
                a.link.takes = size
            case "free":
                a.link.takes = -1
                engine.resume()
            case "late":
                net.run(2 * READ_ON)
            case "run":
                net.run()
        if what != "give":
            take()
    a.link.takes = -1
    engine.resume()
    for station in others:
        engine.release(address(station))
    net.run(0.01)
    take()
    assert arrived == given
    assert not engine._held
    assert not a.drops
