"""A relay has much waiting for an address: what goes there waits here, and nothing else does."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shadowmesh.daemon import holds
from shadowmesh.daemon.engine import BULK, READ_ON
from shadowmesh.daemon.queue import LONG_MESSAGE
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.wire.offload import PLAIN


@pytest.fixture
def net() -> Iterator[Net]:
    """Three devices that know each other, by links that were fast of late."""
    net = Net("a", "b", "c")
    net.meet()
    for station in net.stations:
        station.engine._queue.message = LONG_MESSAGE  # a fast link
    yield net
    net.close()


def small(source: Station, destination: Station, number: int = 0) -> bytes:
    return PLAIN + udp_packet(source.ip, destination.ip, number.to_bytes(4))


def bulk(source: Station, destination: Station, size: int = 60_000) -> bytes:
    return bytes(unfinished(tcp_packet(source.ip, destination.ip, bytes(size)), 1000))


def address(station: Station) -> bytes:
    """That of its overlay IP."""
    found = station.context.network.ip_address(bytes(map(int, station.ip.split("."))))
    assert found is not None
    return found


def held(station: Station) -> int:
    """Packets that wait for an address there."""
    return sum(len(queue) for queue in station.engine._held.values())


def test_bulk_waits_and_goes_on_in_its_order(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    records = [bulk(a, b, 50_000 + number) for number in range(6)]
    for each in records:
        a.give(each)
        net.run()
    assert not b.taken()
    assert held(a) == 6
    a.engine.release(address(b))
    a.give(bulk(a, b, 59_999))
    net.run()
    assert b.taken() == [*records, bulk(a, b, 59_999)]
    assert not a.engine._held
    assert a.engine.packets_out == 7


def test_what_is_small_does_not_wait(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b), small(a, b, 1), bulk(a, b))
    net.run()
    assert b.taken() == [small(a, b, 1)]


def test_a_small_packet_does_not_overtake_its_own_connection(net: Net) -> None:
    a, b, _ = net.stations
    last = PLAIN + tcp_packet(a.ip, b.ip, b"end")
    a.engine.hold(address(b))
    a.give(bulk(a, b), last)
    net.run()
    assert not b.taken()
    a.engine.release(address(b))
    net.run()
    assert b.taken() == [bulk(a, b), last]


def test_what_is_not_small_waits(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(PLAIN + udp_packet(a.ip, b.ip, bytes(BULK)))
    net.run()
    assert held(a) == 1


def test_other_peers_do_not_wait(net: Net) -> None:
    a, b, c = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b), bulk(a, c), bulk(a, b), bulk(a, c))
    net.run()
    assert (b.taken(), c.taken()) == ([], [bulk(a, c)] * 2)


def test_a_relay_that_forgets_has_room_again(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b))
    net.run(holds.HELD_FOR / 2)
    a.engine.hold(address(b))  # it says so again
    net.run(holds.HELD_FOR * 0.9)
    assert held(a) == 1
    net.run(holds.HELD_FOR * 0.2)
    assert b.taken() == [bulk(a, b)]
    assert not a.engine._held


def test_a_full_link_keeps_what_may_go(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    records = [bulk(a, b, 50_000 + number) for number in range(4)]
    a.give(*records)
    net.run()
    a.link.takes = 1
    a.engine.release(address(b))
    net.run(READ_ON / 2)
    assert b.taken() == records[:1]
    a.link.takes = -1
    a.engine.resume()
    net.run()
    assert b.taken() == records[1:]


def test_a_slow_link_has_a_queue_of_its_own(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b))
    net.run()
    a.link.takes = 1
    a.give(small(a, b))
    net.run(2 * READ_ON)
    b.taken()
    a.engine.release(address(b))
    net.run()
    assert not a.engine._held
    assert not b.taken()
    a.link.takes = -1
    a.engine.resume()
    net.run()
    assert sum(map(len, b.taken())) > 60_000


def test_the_relay_is_listened_to_between_turns(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "TURN", 100_000)
    a, b, _ = net.stations
    a.engine.hold(address(b))
    for _ in range(6):
        a.give(bulk(a, b))
        net.run()
    a.engine.release(address(b))
    assert held(a) == 4
    a.engine.hold(address(b))
    net.run()
    assert len(b.taken()) == 2
    assert held(a) == 4
    a.engine.release(address(b))
    net.run()
    assert len(b.taken()) == 4


def test_the_room_of_one_is_not_that_of_another(net: Net) -> None:
    a, b, c = net.stations
    for station in (b, c):
        a.engine.hold(address(station))
    a.engine.release(address(c))
    a.give(bulk(a, b), bulk(a, c))
    net.run()
    assert (b.taken(), c.taken()) == ([], [bulk(a, c)])


def test_addresses_with_a_queue_are_bounded(net: Net) -> None:
    a, *_ = net.stations
    for number in range(holds.MOST_HELD + 3):
        a.engine.hold(number.to_bytes(16))
    assert len(a.engine._held) == holds.MOST_HELD
    net.run(holds.HELD_FOR)
    assert not a.engine._held


def test_bytes_are_bounded_and_the_fullest_loses(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holds, "HELD_BYTES", 150_000)
    a, b, c = net.stations
    for station in (b, c):
        a.engine.hold(address(station))
    a.give(bulk(a, c, 20_000))
    for _ in range(4):
        a.give(bulk(a, b))
        net.run()
    assert held(a) == 3
    assert a.drops == {"queue_full": 2}
    for station in (b, c):
        a.engine.release(address(station))
    net.run()
    assert (len(b.taken()), len(c.taken())) == (2, 1)


def test_without_a_relay_nothing_is_kept(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b), bulk(a, b))
    net.run()
    a.connect(False)
    a.engine.lost()
    net.run(holds.HELD_FOR)
    assert not a.engine._held
    assert a.drops == {"no_relay": 2}


def test_what_waited_finds_the_link_there_is(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b))
    net.run()
    a.engine.use(a.link, a.mesh)
    net.run()
    assert b.taken() == [bulk(a, b)]
    assert not a.engine._held


def test_what_waits_ends_with_the_engine(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.hold(address(b))
    a.give(bulk(a, b))
    net.run()
    a.engine.stop()
    net.run(2 * holds.HELD_FOR)
    assert not a.engine._held
    assert not b.taken()


def test_addresses_that_nobody_knows_cost_nothing(net: Net) -> None:
    a, *_ = net.stations
    a.engine.release(bytes(16))
    a.engine.hold(bytes(16), "no link of this name")
    assert not a.engine._held
