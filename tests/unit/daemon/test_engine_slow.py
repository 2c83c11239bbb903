"""The engine over a link that takes little: what it reads on, in which order it sends, what it cuts."""

from __future__ import annotations

from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from shadowmesh.daemon.engine import READ_ON, SLOW_FOR
from shadowmesh.fairqueue import INTERVAL
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.wire import offload
from shadowmesh.wire.offload import PLAIN


@pytest.fixture
def net() -> Iterator[Net]:
    """Three devices that know each other."""
    net = Net("a", "b", "c")
    net.meet()
    yield net
    net.close()


def datagram(source: Station, destination: Station, number: int = 0, size: int = 20) -> bytes:
    return PLAIN + udp_packet(source.ip, destination.ip, number.to_bytes(4) + bytes(size))


def bulk(source: Station, destination: Station, size: int = 60_000) -> bytes:
    return bytes(unfinished(tcp_packet(source.ip, destination.ip, bytes(size)), 1000))


def block(net: Net, station: Station) -> None:
    """Its link takes one more frame and then nothing for long enough."""
    station.link.takes = 1
    station.give(bulk(station, net.stations[1], 1001))
    net.run(2 * READ_ON)
    station.taken()
    station.sent()
    net.stations[1].taken()


def release(net: Net, station: Station, frames: int) -> None:
    """Its link takes so many frames more."""
    station.link.takes = frames
    station.engine.resume()
    net.run()


def test_a_link_blocked_for_a_moment_leaves_packets_in_the_kernel(net: Net) -> None:
    a, b, _ = net.stations
    a.link.takes = 1
    a.give(bulk(a, b, 1001))
    net.run(READ_ON / 2)
    assert a.tun.fileno() not in net.loop.readers


def test_a_slow_link_is_read_on_for_and_a_small_packet_goes_first(net: Net) -> None:
    a, b, c = net.stations
    block(net, a)
    assert a.tun.fileno() in net.loop.readers
    a.give(*(bulk(a, b) for _ in range(5)))
    net.run()
    a.give(datagram(a, c, 7))
    net.run()
    assert not a.sent()
    release(net, a, 3)
    assert c.taken() == [datagram(a, c, 7)]
    assert len(a.sent()) == 3


def test_all_arrives_whole_and_in_order_of_its_flow(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    records = [bulk(a, b, 50_000 + number) for number in range(5)]
    a.give(*records)
    release(net, a, -1)
    got = [packet for each in b.taken() for packet in offload.segment(memoryview(each))]
    assert got == [packet for each in records for packet in offload.segment(memoryview(each))]
    assert not a.drops


def test_messages_are_small_while_the_link_is_slow(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    a.give(*(bulk(a, b) for _ in range(3)))
    release(net, a, -1)
    assert max(map(len, a.sent())) < 14_000


def test_it_is_fast_again_a_second_later(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    release(net, a, -1)
    net.run(SLOW_FOR + 0.1)
    a.give(datagram(a, b))
    net.run()
    a.sent()
    a.engine._queue.message = a.engine._queue.most = offload.MAX_RECORD
    a.give(bulk(a, b))
    net.run()
    assert len(a.sent()) == 1


def test_what_waits_too_long_is_dropped_and_counted(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    for _ in range(60):
        a.give(bulk(a, b, 9000))
        net.run(INTERVAL / 10)
        a.link.takes = 1
        a.engine.resume()
    assert a.drops.keys() == {"queue_delay"}


def test_congestion_is_marked_where_the_sender_knows_marks(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    packet = bytearray(datagram(a, b, size=9000))
    packet[offload.HEADER_SIZE + 1] |= 2
    packet[offload.HEADER_SIZE + 11] -= 2
    for _ in range(100):
        a.give(packet, packet)
        net.run(INTERVAL / 10)
        a.link.takes = 1
        a.engine.resume()
    net.run()
    assert not a.drops
    assert {each[offload.HEADER_SIZE + 1] & 3 for each in b.taken()} == {2, 3}


def test_nothing_waits_without_a_relay(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    a.give(*(bulk(a, b, 1001) for _ in range(5)))
    net.run()
    a.connect(ready=False)
    a.engine.resume()
    net.run()
    assert a.drops == {"no_relay": 5}
    assert not a.engine._queue


def test_what_is_sent_slowly_goes_in_pieces_though_the_link_takes_all(net: Net) -> None:
    a, b, _ = net.stations
    for _ in range(20):
        a.give(bulk(a, b, 1001))
        net.run(0.02)
    a.sent()
    b.taken()
    record = bulk(a, b)
    a.give(record)
    net.run()
    assert 6 <= len(a.sent()) <= 9
    got = [packet for each in b.taken() for packet in offload.segment(memoryview(each))]
    assert got == offload.segment(memoryview(record))


def slow_down(net: Net) -> None:
    """a sends little to b for a while."""
    a, b, _ = net.stations
    for _ in range(20):
        a.give(bulk(a, b, 1001))
        net.run(0.02)
    a.sent()
    b.taken()


def test_what_is_sent_slowly_goes_in_messages_of_the_size_of_a_piece(net: Net) -> None:
    a, b, _ = net.stations
    slow_down(net)
    records = [datagram(a, b, number, 1200) for number in range(40)]
    a.give(*records)
    net.run()
    assert max(map(len, a.sent())) < 8 * 1024 + 1400
    assert b.taken() == records


def test_a_link_that_is_alone_in_its_network_has_a_rate_of_its_own_beside_another_network(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.use(a.link, a.mesh, dict.fromkeys(a.context.addresses, "lane"))
    slow_down(net)
    a.give(bulk(a, b))
    net.run()
    assert 6 <= len(a.sent()) <= 9
    a.engine.use(a.link, a.mesh)
    a.give(bulk(a, b))
    net.run()
    assert len(a.sent()) == 1


def test_what_waits_there_goes_by_another_link_after_a_reload(net: Net) -> None:
    a, b, _ = net.stations
    lanes = dict.fromkeys(a.context.addresses, "lane")
    a.engine.use(a.link, a.mesh, lanes, ["lane"])
    a.give(datagram(a, b))
    net.run()
    assert not a.sent()
    a.engine.use(a.link, a.mesh, lanes)
    net.run()
    assert b.taken() == [datagram(a, b)]


def small_beside_bulk(net: Net, *small: bytes) -> list[int]:
    """The sizes of the messages to b while a sends bulk, then `small`, then bulk to it in one wake-up."""
    a, b, _ = net.stations
    records = [*(datagram(a, b, number, 1000) for number in range(3)), *small, datagram(a, b, 9, 1000)]
    a.give(*records)
    net.run()
    taken = b.taken()
    assert sorted(taken) == sorted(records)
    assert [each for each in taken if each not in small] == [each for each in records if each not in small]
    return [len(each) for each in a.sent()]


def test_a_small_packet_does_not_wait_in_a_message_with_bulk(net: Net) -> None:
    """The relay sends ahead what is small, where its line to the peer is the slow one."""
    a, b, _ = net.stations
    other = PLAIN + tcp_packet(a.ip, b.ip, b"!")
    assert len(small_beside_bulk(net, other)) == 1  # at full speed nothing is gained by it
    slow_down(net)
    alone, bulky = small_beside_bulk(net, other)
    assert (alone < 200, bulky > 4000) == (True, True)


def test_it_overtakes_nothing_of_its_own_connection(net: Net) -> None:
    a, b, _ = net.stations
    slow_down(net)
    assert len(small_beside_bulk(net, datagram(a, b, 7))) == 1


def test_little_before_it_is_nothing_to_go_past(net: Net) -> None:
    a, b, _ = net.stations
    slow_down(net)
    a.give(datagram(a, b, 1, 500), PLAIN + tcp_packet(a.ip, b.ip, b"!"))
    net.run()
    assert len(a.sent()) == 1


def test_what_was_about_to_go_in_a_network_that_ends_goes_no_more(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    a.give(*(bulk(a, b) for _ in range(3)))
    release(net, a, 1)
    assert a.engine._queue.batch
    other = Mock(wraps=a.mesh, next_deadline=None)
    other.flow = Mock(return_value=None)  # the other network has no such peer
    a.link.takes = -1
    a.engine.use(a.link, other)
    net.run()
    assert not other.session.called
    assert a.drops.keys() == {"no_route"}


def test_a_reload_loses_nothing_that_waits(net: Net) -> None:
    a, b, _ = net.stations
    block(net, a)
    records = [bulk(a, b, 50_000 + number) for number in range(3)]
    a.give(*records)
    release(net, a, 1)
    a.engine.use(a.link, a.mesh, full=[None])
    net.run()
    assert len(a.sent()) == 1
    release(net, a, -1)
    got = [packet for each in b.taken() for packet in offload.segment(memoryview(each))]
    assert sorted(got) == sorted(packet for each in records for packet in offload.segment(memoryview(each)))
    assert not a.drops


def test_a_stopped_engine_leaves_no_timer(net: Net) -> None:
    a, b, _ = net.stations
    a.link.takes = 1
    a.give(bulk(a, b, 1001))
    net.run()
    a.engine.stop()
    net.run(1.0)
    assert a.tun.fileno() not in net.loop.readers
