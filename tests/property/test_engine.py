"""Invariant: what a device gives, in whatever wake-ups, arrives exactly once and in the order of its flow."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.wire import offload
from shadowmesh.wire.offload import PLAIN

# (destination, payload bytes, segment size or 0 for a finished packet)
PACKETS = st.tuples(
    st.integers(0, 1),
    st.one_of(st.integers(0, 200), st.integers(7_000, 9_000), st.integers(40_000, 65_400)),
    st.sampled_from([0, 0, 48, 200, 1000]),
)
# A wake-up; the link may pause after some frame, until the wake-up is over.
WAKE_UPS = st.lists(st.tuples(st.lists(PACKETS, min_size=1, max_size=5), st.integers(-1, 3)), max_size=6)


@pytest.fixture(scope="module")
def net() -> Iterator[Net]:
    net = Net("a", "b", "c")
    net.meet()
    yield net
    net.close()


def make(source: Station, destination: Station, number: int, size: int, gso: int) -> bytes:
    payload = bytes([number & 255]) * size
    if gso:
        return bytes(unfinished(tcp_packet(source.ip, destination.ip, payload, sequence=number), gso))
    return PLAIN + udp_packet(source.ip, destination.ip, payload)


def finished(records: list[bytes]) -> list[bytes]:
    """The packets that a kernel makes of these records."""
    return [packet for each in records for packet in offload.segment(memoryview(bytearray(each)))]


@settings(max_examples=60)
@given(wake_ups=WAKE_UPS)
def test_every_packet_arrives_once_and_in_order(
    net: Net, wake_ups: list[tuple[list[tuple[int, int, int]], int]]
) -> None:
    a, *others = net.stations
    number = 0
    for packets, takes in wake_ups:
        expected: tuple[list[bytes], list[bytes]] = ([], [])
        a.link.takes = takes
        for to, size, gso in packets:
            number += 1
            record = make(a, others[to], number, size, gso)
            expected[to].append(record)
            a.give(record)
        net.run()
        a.engine.resume()
        net.run()
        for station, records in zip(others, expected, strict=True):
            assert finished(station.taken()) == finished(records)
    assert a.drops == {}
