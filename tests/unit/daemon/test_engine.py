"""The data path between devices in memory: what arrives, in which order and how many messages."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import pytest

from shadowmesh.daemon.engine import BIG, FULL, LINK_GRACE, MAX_READS, UNREACHABLE_RATE
from shadowmesh.errors import TunError
from shadowmesh.mesh.handshake import QUEUE_SECONDS
from shadowmesh.mesh.mesh import HOLD_BACK
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import is_valid, tcp_packet, udp_packet, unfinished
from shadowmesh.tun.base import MAX_RECORD
from shadowmesh.wire import frame, offload, record
from shadowmesh.wire.offload import PLAIN

HEADERS = 28 + 4  # of a datagram: IP, UDP, its number
LONGEST = 65_535 - HEADERS


@pytest.fixture
def net() -> Iterator[Net]:
    """Three devices that know each other."""
    net = Net("a", "b", "c")
    net.meet()
    yield net
    net.close()


@pytest.fixture
def strangers() -> Iterator[Net]:
    """Two devices that have not met."""
    net = Net("a", "b")
    yield net
    net.close()


def datagram(source: Station, destination: Station | str, number: int = 0, size: int = 20) -> bytes:
    """A record with a finished datagram: HEADERS, then `size` bytes."""
    to = destination if isinstance(destination, str) else destination.ip
    return PLAIN + udp_packet(source.ip, to, number.to_bytes(4) + bytes(size))


def bulk(source: Station, destination: Station, size: int = 60_000, gso: int = 1000) -> bytes:
    """A record as TCP segmentation offload gives it."""
    payload = bytes(range(256)) * (size // 256 + 1)
    return bytes(unfinished(tcp_packet(source.ip, destination.ip, payload[:size]), gso))


def icmp(records: list[bytes]) -> list[tuple[int, int]]:
    """Type and code of the ICMP errors in these records; all must be right, and nothing else be there."""
    packets = [each[offload.HEADER_SIZE :] for each in records]
    assert all(is_valid(packet) and packet[9] == 1 for packet in packets)
    return [(packet[20], packet[21]) for packet in packets]


NO_ROUTE, HELD_BACK = (3, 0), (3, 1)


def test_one_packet(net: Net) -> None:
    a, b, c = net.stations
    a.give(datagram(a, b))
    net.run()
    assert b.taken() == [datagram(a, b)]
    assert c.taken() == a.taken() == []
    assert (a.engine.packets_out, b.engine.packets_in) == (1, 1)
    assert len(a.sent()) == 1


def test_one_wake_up_is_one_message(net: Net) -> None:
    a, b, _ = net.stations
    records = [datagram(a, b, number, size=number) for number in range(50)]
    a.give(*records)
    net.run()
    assert b.taken() == records
    assert len(a.sent()) == 1
    assert (a.engine.packets_out, b.engine.packets_in) == (50, 50)


@pytest.mark.parametrize("plain", [(), ("b",)])
def test_datagrams_of_one_burst_are_one_write_where_the_device_can_cut(plain: tuple[str, ...]) -> None:
    net = Net("a", "b", plain=plain)
    net.meet()
    a, b = net.stations
    records = [bytes(unfinished(udp_packet(a.ip, b.ip, bytes([number]) * 100))) for number in range(20)]
    a.give(*records)
    net.run()
    taken = b.taken()
    assert len(taken) == (20 if plain else 1)
    cut = [packet for each in taken for packet in offload.segment(memoryview(each))]
    assert [packet[20:] for packet in cut] == [
        packet[20:] for each in records for packet in offload.segment(memoryview(each))
    ]
    assert (a.engine.packets_out, b.engine.packets_in) == (20, 20)
    net.close()


def test_a_wake_up_has_an_end(net: Net) -> None:
    a, b, _ = net.stations
    records = [datagram(a, b, number) for number in range(MAX_READS + 2)]
    a.give(*records)
    net.loop.turn()
    assert a.engine.packets_out == MAX_READS
    net.run()
    assert b.taken() == records
    assert len(a.sent()) == 2


def test_bulk_travels_as_the_device_gave_it(net: Net) -> None:
    a, b, _ = net.stations
    records = [bulk(a, b, size) for size in (60_000, 65_495, 1001, 1002, 65_000)]
    a.give(*records)
    net.run()
    assert b.taken() == records
    assert len(a.sent()) == 4  # 1001 and 1002 go together


def test_several_peers_in_one_wake_up(net: Net) -> None:
    a, b, c = net.stations
    to_b, to_c = ([datagram(a, to, number) for number in range(10)] for to in (b, c))
    a.give(*chain.from_iterable(zip(to_b, to_c, strict=True)))
    net.run()
    assert (b.taken(), c.taken()) == (to_b, to_c)
    assert len(a.sent()) == 2


@pytest.mark.parametrize("size", [1000, BIG - HEADERS - 1, BIG, 20_000, FULL, LONGEST])
def test_large_packets_of_several_peers(net: Net, size: int) -> None:
    a, b, c = net.stations
    to_b, to_c = ([datagram(a, to, n, size if n % 2 else 10) for n in range(4)] for to in (b, c))
    a.give(*chain.from_iterable(zip(to_b, to_c, strict=True)))
    net.run()
    assert (b.taken(), c.taken()) == (to_b, to_c)


def test_what_was_set_aside_goes_before_what_comes_later(net: Net) -> None:
    """b's batch is full and gone while packets for c are set aside; the next for c must not overtake them."""
    a, b, c = net.stations
    to_b = [datagram(a, b, 0), datagram(a, b, 1, LONGEST), datagram(a, b, 2)]
    to_c = [datagram(a, c, number) for number in range(4)]
    a.give(to_b[0], to_c[0], to_b[1], to_c[1], to_b[2], to_c[2], to_c[3])
    net.run()
    assert (b.taken(), c.taken()) == (to_b, to_c)


@pytest.mark.parametrize("total", [BIG, FULL, record.MAX_PLAINTEXT], ids=["big", "full", "plaintext"])
def test_batches_around_every_boundary(net: Net, total: int) -> None:
    """Two packets whose records together have about so many bytes, and others around them."""
    a, b, c = net.stations
    first = datagram(a, b, 0, 1000)
    for more in range(-24, 25):
        size = total + more - 2 * record.HEADER_SIZE - 1000 - 2 * HEADERS
        records = [first, datagram(a, b, 1, size), datagram(a, b, 2, 1)]
        other = datagram(a, c, 3)
        a.give(first, other, *records[1:])
        net.run()
        assert b.taken() == records
        assert c.taken() == [other]


def test_the_end_of_the_window(net: Net) -> None:
    """Batches, each too large for company, fill the window to about where the largest record still fits."""
    a, b, c = net.stations
    limit = FULL + record.HEADER_SIZE + MAX_RECORD
    for more in range(-24, 25, 2):
        rest = limit + more - 2 * (record.HEADER_SIZE + HEADERS + 40_000) - record.HEADER_SIZE - HEADERS
        to_b = [datagram(a, b, 0, 40_000), datagram(a, b, 2, rest)]
        to_c = [datagram(a, c, 1, 40_000), bulk(a, c, 65_495)]
        a.give(to_b[0], to_c[0], to_b[1], to_c[1])
        net.run()
        assert (b.taken(), c.taken()) == (to_b, to_c)


def test_a_packet_of_more_than_128_segments_is_cut(net: Net) -> None:
    a, b, _ = net.stations
    before, after, whole = datagram(a, b, 1), datagram(a, b, 2), bulk(a, b, 30_000, gso=100)
    a.give(before, whole, after, bulk(a, b, 3000))
    net.run()
    first, *pieces, last, other = b.taken()
    assert (first, last, other) == (before, after, bulk(a, b, 3000))
    payloads = [piece[offload.HEADER_SIZE + 40 :] for piece in pieces]
    assert [len(payload) for payload in payloads] == [12_800, 12_800, 4400]
    assert b"".join(payloads) == whole[offload.HEADER_SIZE + 40 :]


def test_a_record_that_no_kernel_gives_is_lost_alone(net: Net) -> None:
    a, b, _ = net.stations
    bad = bytearray(bulk(a, b))
    bad[1] = 7  # no gso_type
    a.give(datagram(a, b, 1), bad, datagram(a, b, 2))
    net.run()
    assert b.taken() == [datagram(a, b, 1), datagram(a, b, 2)]
    assert a.drops == {"bad_offload": 1}


def test_no_ip_packet(net: Net) -> None:
    a, *_ = net.stations
    a.give(PLAIN, PLAIN + b"\x45", PLAIN + bytes(60))
    net.run()
    assert a.drops == {"bad_packet": 3}
    assert a.taken() == []


def test_a_receiver_without_offload() -> None:
    net = Net("a", "b", plain={"b"})
    net.meet()
    a, b = net.stations
    a.give(bulk(a, b, 5000))
    net.run()
    packets = [each[offload.HEADER_SIZE :] for each in b.taken()]
    assert len(packets) == 5
    assert all(is_valid(packet) for packet in packets)
    net.close()


# Before there is a session


def test_first_packets_go_in_the_finish(strangers: Net) -> None:
    a, b = strangers.stations
    records = [datagram(a, b, number) for number in range(5)]
    a.give(*records)
    strangers.run()
    assert b.taken() == records
    assert a.peer(b).messages_out == 1  # the finish
    assert a.engine.packets_out == 5


def test_what_does_not_fit_in_the_finish_follows_in_order(strangers: Net) -> None:
    a, b = strangers.stations
    records = [datagram(a, b, 0), bulk(a, b), datagram(a, b, 1), bulk(a, b, 65_000), datagram(a, b, 2)]
    a.give(*records)
    strangers.run()
    assert b.taken() == records


def test_a_peer_that_does_not_answer(strangers: Net) -> None:
    a, b = strangers.stations
    strangers.deaf.add(b)
    a.give(datagram(a, b))
    strangers.run(QUEUE_SECONDS - 0.01)
    assert a.taken() == []
    strangers.run(0.02)
    assert icmp(a.taken()) == [HELD_BACK]
    assert a.drops == {"no_answer": 1}


# What cannot be delivered


def test_an_absent_peer_is_told_at_once(strangers: Net) -> None:
    a, b = strangers.stations
    strangers.leave(b)
    a.give(datagram(a, b))
    strangers.run()
    assert icmp(a.taken()) == [HELD_BACK]
    a.give(datagram(a, b), datagram(a, b))
    strangers.run()
    assert icmp(a.taken()) == [HELD_BACK] * 2
    assert a.drops == {"not_here": 1, "held_back": 2}


def test_a_peer_that_has_left_and_comes_back(net: Net) -> None:
    a, b, _ = net.stations
    addresses = list(b.context.addresses)
    net.leave(b)
    a.give(datagram(a, b))
    net.run()
    a.give(datagram(a, b))
    net.run()
    assert icmp(a.taken()) == [HELD_BACK]
    assert a.engine.packets_out == 1
    net.holders.update(dict.fromkeys(addresses, b))
    net.run(HOLD_BACK[0])
    a.give(datagram(a, b, 7))
    net.run()
    assert b.taken() == [datagram(a, b, 7)]
    assert a.taken() == []


def test_a_short_loss_of_the_relay_is_silent(net: Net) -> None:
    a, b, _ = net.stations
    a.connect(ready=False)
    net.run(LINK_GRACE)
    a.give(datagram(a, b), datagram(a, b))
    net.run()
    assert a.taken() == []
    assert a.drops == {"no_relay": 2}
    assert a.engine.packets_out == 0
    a.connect()
    a.give(datagram(a, b))
    net.run()
    assert b.taken() == [datagram(a, b)]


def test_a_lost_relay_is_told(net: Net) -> None:
    a, b, _ = net.stations
    a.connect(ready=False)
    net.run(LINK_GRACE + 0.1)
    a.give(datagram(a, b), bulk(a, b))
    net.run()
    assert icmp(a.taken()) == [HELD_BACK] * 2
    assert a.drops == {"no_relay": 2}


def test_packets_for_a_stranger_wait_for_the_relay(strangers: Net) -> None:
    a, b = strangers.stations
    a.connect(ready=False)
    a.give(datagram(a, b))
    strangers.run(LINK_GRACE - 0.1)
    a.connect()
    strangers.run(0.05)
    assert b.taken() == [datagram(a, b)]


def test_no_route(net: Net) -> None:
    a, *_ = net.stations
    a.give(datagram(a, "192.0.2.1"))
    net.run()
    (error,) = a.taken()
    assert icmp([error]) == [NO_ROUTE]
    assert error[offload.HEADER_SIZE + 28 :] == datagram(a, "192.0.2.1")[offload.HEADER_SIZE :]
    assert a.drops == {"no_route": 1}
    assert a.engine.packets_out == 0


def test_icmp_errors_are_few(net: Net) -> None:
    a, *_ = net.stations
    for _ in range(2):
        a.give(*[datagram(a, "192.0.2.1")] * 40)
        net.run(1.0)
        assert len(a.taken()) == UNREACHABLE_RATE
    assert a.drops == {"no_route": 80}


@pytest.mark.parametrize("target", ["224.0.0.251", "255.255.255.255", "10.10.10.255", "169.254.1.1"])
def test_what_the_kernel_sends_unasked_is_dropped_silently(net: Net, target: str) -> None:
    a, *_ = net.stations
    a.give(datagram(a, target))
    net.run()
    assert a.taken() == []
    assert a.drops == {"multicast": 1}


def test_a_source_that_is_not_ours(net: Net) -> None:
    a, b, c = net.stations
    a.give(datagram(c, b), datagram(c, "192.0.2.1"))
    net.run()
    assert a.taken() == b.taken() == []
    assert a.drops["foreign_own_source"] >= 1


# What peers and the relay send


@pytest.mark.parametrize("field", [{0: 2}, {1: 3}, {1: 4}, {4: 0, 5: 0}, {4: 1, 5: 0}, {10: 0x65}, {13: 0}])
def test_hostile_offload_records_are_dropped(net: Net, field: dict[int, int]) -> None:
    a, b, _ = net.stations
    bad = bytearray(bulk(a, b, 2000))
    for at, value in field.items():
        bad[at] = value
    records = record.pack(record.OFFLOAD, bytes(bad)) + record.pack(record.PACKET, datagram(a, b)[10:])
    session = a.peer(b).sending
    assert session is not None
    sealed = session.sealer.seal(records + record.padding(len(records)))
    a.link.send_frame(frame.pack(session.remote, session.local, sealed))
    net.run()
    assert b.taken() == [datagram(a, b)]
    assert sum(b.drops.values()) == 1


def test_what_the_header_of_a_peer_says_never_reaches_the_kernel(net: Net) -> None:
    a, b, _ = net.stations
    told = bytearray(bulk(a, b, 2000))
    told[2:4], told[6:10] = b"\xff\xff", b"\x01\x00\x02\x00"  # hdr_len, csum_start, csum_offset
    session = a.peer(b).sending
    assert session is not None
    records = record.pack(record.OFFLOAD, bytes(told))
    sealed = session.sealer.seal(records + record.padding(len(records)))
    a.link.send_frame(frame.pack(session.remote, session.local, sealed))
    net.run()
    assert b.taken() == [bulk(a, b, 2000)]


@pytest.mark.parametrize("data", [b"", b"\x10", b"\x10" + bytes(32), b"\x11" + bytes(40)])
def test_bad_frames_are_counted(net: Net, data: bytes) -> None:
    a, *_ = net.stations
    a.engine.on_frame(memoryview(data))
    assert a.drops == {"bad_frame": 1}


def test_a_kernel_that_refuses(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b, _ = net.stations
    write = b.tun.write
    monkeypatch.setattr(b.tun, "write", lambda data: data[-1] == 1 and write(data))
    good = PLAIN + udp_packet(a.ip, b.ip, b"\x01")
    a.give(datagram(a, b), good)
    net.run()
    assert b.taken() == [good]
    assert b.drops == {"tun_refused": 1}
    assert b.engine.packets_in == 1


# A link that takes no more


def test_a_full_link_leaves_packets_in_the_kernel(net: Net) -> None:
    a, b, _ = net.stations
    records = [bulk(a, b, 60_000 + number) for number in range(4)]
    a.link.takes = 1
    a.give(*records)
    net.run()
    assert b.taken() == records[:1]
    assert a.tun.fileno() not in net.loop.readers
    a.engine.resume()
    net.run()
    assert b.taken() == records[1:]


def test_a_full_link_stops_a_wake_up_between_batches_too(net: Net) -> None:
    a, b, c = net.stations
    records = [datagram(a, (b, c)[number % 2], number, 20_000) for number in range(8)]
    a.link.takes = 1
    a.give(*records)
    net.run()
    assert b.taken() + c.taken() == records[:2]  # the second had been read already
    a.engine.resume()
    net.run()
    assert sorted(b.taken() + c.taken()) == sorted(records[2:])


def test_pause_and_resume_may_come_twice(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.pause()
    a.engine.pause()
    a.engine.resume()
    a.engine.resume()
    a.give(datagram(a, b))
    net.run()
    assert b.taken() == [datagram(a, b)]


# Ends


def test_a_lost_device_is_reported_once(net: Net) -> None:
    a, b, _ = net.stations
    a.give(datagram(a, b))
    a.kernel.close()
    net.run()
    assert b.taken() == [datagram(a, b)]
    name, facts = a.events[-1]
    assert name == "tun_lost"
    assert isinstance(facts["error"], TunError)
    a.engine.resume()
    assert a.tun.fileno() not in net.loop.readers
    assert [name for name, _ in a.events].count("tun_lost") == 1


def test_a_stopped_engine_is_quiet(net: Net) -> None:
    a, b, _ = net.stations
    a.engine.stop()
    a.give(datagram(a, b))
    a.engine.resume()
    net.run(30)
    assert b.taken() == []
    a.engine.joined()
    assert a.tun.fileno() not in net.loop.readers


def test_timers_outlive_a_bug_in_one(strangers: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = strangers.stations
    strangers.deaf.add(b)
    a.give(datagram(a, b))
    strangers.run()
    tick = a.mesh.tick
    calls: list[Any] = []

    def once(now: float) -> None:
        tick(now)
        calls.append(now)
        if len(calls) == 1:
            raise ZeroDivisionError

    monkeypatch.setattr(a.mesh, "tick", once)
    strangers.run(3.0)
    assert icmp(a.taken()) == [HELD_BACK]
    assert [type(error) for error in strangers.loop.errors] == [ZeroDivisionError]
    strangers.loop.errors.clear()
