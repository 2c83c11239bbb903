"""Bulk to a peer that takes long messages, on a link that is fast: several packets in one message."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest

from shadowmesh.daemon.queue import LONG_MESSAGE
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import tcp_packet, unfinished
from shadowmesh.wire import frame
from shadowmesh.wire.record import LARGEST_PLAINTEXT, MAX_PLAINTEXT

WRITE = (64_704, 64_704, 1_348)
"""Bytes of TCP data in the packets that Linux makes of a write of 128 KiB, with an MTU of 1400."""


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net("a", "b", "c")
    net.meet()
    for station in net.stations:
        station.engine._queue.message = LARGEST_PLAINTEXT
    yield net
    net.close()


def bulk(source: Station, destination: Station, *sizes: int) -> list[bytes]:
    """Records as TCP segmentation offload gives them."""
    return [
        bytes(unfinished(tcp_packet(source.ip, destination.ip, bytes([number]) * size), 1348))
        for number, size in enumerate(sizes)
    ]


def sizes(station: Station) -> list[int]:
    """Of the frames sent since the last time."""
    return [len(each) for each in station.sent()]


def test_a_write_of_128_kib_is_one_message(net: Net) -> None:
    a, b, _ = net.stations
    records = bulk(a, b, *WRITE)
    a.give(*records)
    net.run()
    assert b.taken() == records
    (size,) = sizes(a)
    assert sum(WRITE) < size <= frame.MAX_FRAME
    assert (a.engine.packets_out, b.engine.packets_in) == (3, 3)


def test_packets_that_do_not_fit_beside_each_other_stay_in_order(net: Net) -> None:
    a, b, _ = net.stations
    records = bulk(a, b, *[64_704] * 5)
    a.give(*records)
    net.run()
    assert b.taken() == records
    assert len(sizes(a)) == 3
    records = bulk(a, b, 9_000, 64_704, 30_000, 64_704, 1_348)
    a.give(*records)
    net.run()
    assert b.taken() == records
    assert len(sizes(a)) == 2


def test_bulk_of_two_peers_in_turns(net: Net) -> None:
    a, b, c = net.stations
    to_b, to_c = bulk(a, b, 64_704, 64_704), bulk(a, c, 64_704, 64_704)
    a.give(to_b[0], to_c[0], to_b[1], to_c[1])
    net.run()
    assert (b.taken(), c.taken()) == (to_b, to_c)


@pytest.mark.parametrize("why", ["peer", "relay", "slow link"])
def test_who_takes_less_gets_less(net: Net, why: str) -> None:
    a, b, _ = net.stations
    session = a.peer(b).sending
    assert session is not None
    if why == "peer":  # of a version that does not say
        session.info = dataclasses.replace(session.info, max_plaintext=MAX_PLAINTEXT)
    elif why == "relay":
        a.link.max_frame = frame.MIN_MAX_FRAME
    else:
        a.engine._queue.message = LONG_MESSAGE
    records = bulk(a, b, *WRITE)
    a.give(*records)
    net.run()
    assert b.taken() == records
    assert max(sizes(a)) <= frame.MIN_MAX_FRAME


def test_what_has_waited_for_a_relay_goes_as_long_messages_too(net: Net) -> None:
    a, b, _ = net.stations
    address = a.context.network.ip_address(b.context.local.ips[0])
    assert address is not None
    a.engine.hold(address)
    records = bulk(a, b, *WRITE)
    a.give(*records)
    net.run()
    assert not b.taken()
    a.engine.release(address)
    net.run()
    assert b.taken() == records
    assert len(sizes(a)) == 1


def test_a_full_link_gets_no_more_than_has_been_read(net: Net) -> None:
    a, b, _ = net.stations
    records = bulk(a, b, *[64_704] * 5)
    a.link.takes = 1
    a.give(*records)
    net.run()
    assert b.taken() == records[:3]  # the third had been read already
    a.engine.resume()
    net.run()
    assert b.taken() == records[3:]
