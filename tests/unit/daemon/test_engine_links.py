"""The engine over several links: one that takes no more holds up what goes by it, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from shadowmesh.daemon import queue as queue_module
from shadowmesh.daemon.engine import READ_ON, SLOW_FOR
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.wire import frame, message, offload
from shadowmesh.wire.offload import PLAIN

ONE, TWO = "one", "two"


class Links:
    """Two links of a station; `takes` says how many frames each takes before it is full."""

    ready = True
    max_frame = frame.MAX_FRAME

    def __init__(self, station: Station) -> None:
        self.since = station.net.loop.now
        self.takes = {ONE: -1, TWO: -1}
        self.frames: list[tuple[object, bytes]] = []
        self._station = station

    def send_frame(self, data: memoryview | bytes, via: object = None) -> None:
        for each in (ONE, TWO) if via is None else (str(via),):
            self.frames.append((each, bytes(data)))
            self.takes[each] -= 1
            if self.takes[each] == 0:
                self._station.engine.pause(each)
        self._station.net.travelling.append((self._station, bytes(data)))

    def sent(self) -> list[object]:
        """By which links sealed messages went since the last time."""
        frames, self.frames = self.frames, []
        return [via for via, each in frames if each[frame.HEADER_SIZE :][:4] == message.SEALED]


class Fork:
    """Device a with links ONE and TWO, b is reached by ONE, c by TWO."""

    def __init__(self, net: Net) -> None:
        self.net = net
        self.a, self.b, self.c = net.stations
        self.engine = self.a.engine
        self.links = Links(self.a)
        self.engine.use(self.links, self.a.mesh)
        for via in (ONE, TWO):
            self.engine.joined(via)
        self.a.peer(self.b).via, self.a.peer(self.c).via = ONE, TWO
        net.run()
        self.forget()

    def forget(self) -> None:
        self.links.sent()
        for station in self.net.stations:
            station.taken()

    def give(self, *records: bytes | bytearray) -> None:
        self.a.give(*records)
        self.net.run()

    def fill(self) -> None:
        """ONE takes no more."""
        self.links.takes[ONE] = 1
        self.give(datagram(self.a, self.b))
        self.forget()

    def release(self, frames: int = -1) -> None:
        self.links.takes[ONE] = frames
        self.engine.resume(ONE)
        self.net.run()


@pytest.fixture
def fork() -> Iterator[Fork]:
    net = Net("a", "b", "c")
    net.meet()
    yield Fork(net)
    net.close()


def datagram(source: Station, destination: Station, number: int = 0) -> bytes:
    return PLAIN + udp_packet(source.ip, destination.ip, number.to_bytes(4))


def bulk(source: Station, destination: Station, size: int = 60_000) -> bytes:
    return bytes(unfinished(tcp_packet(source.ip, destination.ip, bytes(size)), 1000))


def test_a_full_link_holds_up_nothing_but_its_own(fork: Fork) -> None:
    a, b, c = fork.net.stations
    fork.fill()
    fork.give(datagram(a, b, 1), bulk(a, c), datagram(a, b, 2), datagram(a, c, 3))
    assert set(fork.links.sent()) == {TWO}
    assert len(c.taken()) == 2
    assert b.taken() == []
    assert a.tun.fileno() in fork.net.loop.readers
    fork.release()
    assert b.taken() == [datagram(a, b, 1), datagram(a, b, 2)]
    assert set(fork.links.sent()) == {ONE}
    assert not a.drops


def test_a_link_that_takes_a_little_now_and_then_holds_up_nothing_but_its_own(fork: Fork) -> None:
    a, b, c = fork.net.stations
    fork.fill()
    for number in range(50):
        fork.give(bulk(a, b, 9000), datagram(a, c, number))
        assert c.taken() == [datagram(a, c, number)]
        fork.net.run(0.003)
        fork.release(1)
        assert fork.links.sent().count(ONE) == 1


def test_small_packets_go_before_bulk_on_the_full_link(fork: Fork) -> None:
    a, b, _ = fork.net.stations
    fork.fill()
    fork.net.run(READ_ON)
    for _ in range(4):
        fork.give(bulk(a, b))
    fork.give(datagram(a, b, 7))
    fork.release(3)
    assert datagram(a, b, 7) in b.taken()
    assert len(fork.links.sent()) == 3


def test_what_waits_for_a_link_is_bounded(fork: Fork, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "MAX_BYTES", 100_000)
    a, b, _ = fork.net.stations
    fork.engine.opened(ONE)
    fork.fill()
    for _ in range(10):
        fork.give(bulk(a, b))
    assert a.drops["queue_full"] > 10
    fork.release()
    assert sum(map(len, b.taken())) < 110_000


def test_handshakes_and_keepalives_pass_a_full_link(fork: Fork) -> None:
    a, b, _ = fork.net.stations
    fork.fill()
    session = a.peer(b).sending
    assert session is not None
    a.mesh.keepalive(session)
    a.engine.send(session.remote, session.local, b"hello")
    assert [via for via, _ in fork.links.frames] == [ONE, ONE, TWO]


def test_a_link_full_for_a_moment_is_a_straight_way_again(fork: Fork) -> None:
    a, b, _ = fork.net.stations
    fork.fill()
    fork.give(datagram(a, b))
    fork.release()
    fork.forget()
    fork.give(bulk(a, b))
    assert fork.links.sent() == [ONE]
    assert len(b.taken()) == 1


def test_a_slow_link_gets_small_messages_for_a_second(fork: Fork) -> None:
    a, b, c = fork.net.stations
    fork.fill()
    fork.net.run(2 * READ_ON)
    fork.release()
    fork.give(bulk(a, b), bulk(a, c))
    sent = fork.links.sent()
    assert (sent.count(ONE), sent.count(TWO)) == (5, 1)
    fork.net.run(SLOW_FOR)
    fork.give(datagram(a, b))
    fork.forget()
    fork.give(bulk(a, b))
    assert fork.links.sent() == [ONE]


def test_large_packets_are_cut_by_the_rate_of_their_own_link(fork: Fork) -> None:
    a, b, c = fork.net.stations
    for _ in range(20):
        fork.give(bulk(a, b, 1001))
        fork.net.run(0.02)
    fork.forget()
    fork.give(bulk(a, c), bulk(a, b))
    sent = fork.links.sent()
    assert (sent.count(TWO), 6 <= sent.count(ONE) <= 9) == (1, True)
    got = [packet for each in b.taken() for packet in offload.segment(memoryview(each))]
    assert got == offload.segment(memoryview(bulk(a, b)))


def test_and_so_are_messages(fork: Fork) -> None:
    a, b, c = fork.net.stations
    for _ in range(20):
        fork.give(bulk(a, b, 1001))
        fork.net.run(0.02)
    fork.forget()
    for peer in (c, b):
        fork.give(*(PLAIN + udp_packet(a.ip, peer.ip, bytes(1200)) for _ in range(30)))
    sent = fork.links.sent()
    assert (sent.count(TWO), sent.count(ONE)) == (1, 5)


def test_what_waits_goes_by_the_path_that_its_peer_has_then(fork: Fork) -> None:
    a, b, _ = fork.net.stations
    fork.fill()
    fork.give(datagram(a, b, 1))
    a.peer(b).via = TWO
    fork.release()
    assert fork.links.sent() == [TWO]
    assert b.taken() == [datagram(a, b, 1)]


def test_and_waits_again_where_that_is_full(fork: Fork) -> None:
    a, b, c = fork.net.stations
    fork.fill()
    fork.give(datagram(a, b, 1))
    fork.links.takes[TWO] = 1
    fork.give(datagram(a, c))
    a.peer(b).via = TWO
    fork.forget()
    fork.release()
    assert (fork.links.sent(), b.taken()) == ([], [])
    fork.links.takes[TWO] = -1
    fork.engine.resume(TWO)
    fork.net.run()
    assert fork.links.sent() == [TWO]
    assert b.taken() == [datagram(a, b, 1)]
    assert a.engine.packets_out == 3


def test_with_a_link_goes_what_waits_for_it(fork: Fork) -> None:
    a, b, _ = fork.net.stations
    fork.fill()
    fork.give(datagram(a, b, 1), datagram(a, b, 2))
    fork.engine.lost(ONE)
    assert a.drops == {"no_relay": 2}
    fork.give(datagram(a, b, 3))
    fork.engine.resume(ONE)  # the socket's end comes after that of the link
    fork.engine.pause(ONE)
    fork.give(datagram(a, b, 4))
    assert b.taken() == [datagram(a, b, 3), datagram(a, b, 4)]
    assert ONE not in fork.links.sent()
    assert not a.engine._slow


def test_what_waits_for_a_link_that_was_alone_goes_by_it_when_there_are_others(fork: Fork) -> None:
    a, b, _ = fork.net.stations
    a.peer(b).via = None
    fork.engine.pause()
    fork.net.run(2 * READ_ON)
    fork.give(datagram(a, b, 1))
    assert not fork.links.sent()
    a.peer(b).via = ONE
    fork.engine.resume()
    fork.net.run()
    assert b.taken() == [datagram(a, b, 1)]
    assert fork.links.sent() == [ONE]
