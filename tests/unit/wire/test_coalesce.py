"""UDP packets joined to one: what is joined, what the kernel gets, and what goes alone."""

from __future__ import annotations

import struct
from collections.abc import Callable

import pytest

from shadowmesh.testing.packets import is_valid, slow_sum, tcp_packet, udp_packet, unfinished
from shadowmesh.wire import offload, record
from shadowmesh.wire.coalesce import MAX_COUNT, MIN_COUNT, coalesce

PAIR4, PAIR6 = ("10.10.10.1", "10.10.10.7"), ("fd00::1", "fd00::7")
PAIRS = [PAIR4, PAIR6]


def datagram(
    pair: tuple[str, str], size: int, number: int = 0, change: dict[int, bytes] | None = None
) -> bytes:
    """As a kernel gives it; change: bytes of the packet by place; the IPv4 checksum is right all the same."""
    packet = bytearray(udp_packet(*pair, bytes([number % 256]) * size))
    if pair == PAIR4:
        packet[4:6] = number.to_bytes(2, "big")
    for at, data in (change or {}).items():
        packet[at : at + len(data)] = data
    if pair == PAIR4:
        packet[10:12] = bytes(2)
        packet[10:12] = struct.pack(">H", 0xFFFF - slow_sum(bytes(packet[:20])))
    return bytes(unfinished(bytes(packet)))


def after(bodies: list[bytes], kind: int = record.OFFLOAD) -> list[tuple[bytes, int]]:
    """(body, of how many packets) of the records that are left of these."""
    message = b"".join(record.pack(kind, body) for body in bodies)
    plain = memoryview(bytearray(message))
    left, counts = coalesce(plain, record.split(plain, len(message)))
    return [(bytes(plain[start:end]), counts.get(start, 1)) for _, start, end in left]


def finished(body: bytes) -> bytes:
    (packet,) = offload.segment(memoryview(body))
    return packet


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("sizes", [[1] * 4, [100] * 7, [1200] * 40, [100] * 5 + [99], [1200] * 4 + [1]])
def test_one_flow_is_one_packet_with_offload(pair: tuple[str, str], sizes: list[int]) -> None:
    given = [datagram(pair, size, number) for number, size in enumerate(sizes)]
    ((body, count),) = after(given)
    assert count == len(sizes)
    its = memoryview(bytearray(body))
    offload.sanitize(its)
    assert struct.unpack("<BBHHHH", its[:10])[:4] == (1, 5, 28 if pair == PAIR4 else 48, sizes[0])
    cut = offload.segment(its)
    assert cut == [finished(each) for each in given]
    assert all(is_valid(packet) for packet in cut)


def test_the_header_checksum_of_the_whole_is_right() -> None:
    ((body, _),) = after([datagram(PAIR4, 100)] * 9)
    assert slow_sum(body[10:30]) == 0xFFFF


@pytest.mark.parametrize("pair", PAIRS)
def test_no_more_than_a_kernel_takes(pair: tuple[str, str]) -> None:
    assert [count for _, count in after([datagram(pair, 10, n) for n in range(100)])] == [MAX_COUNT, 36]
    # The last one is shorter, and one too many.
    bodies = [datagram(pair, 10, n) for n in range(MAX_COUNT)] + [datagram(pair, 9)]
    assert [count for _, count in after(bodies)] == [MAX_COUNT, 1]
    # An IPv4 packet has at most 65,535 bytes.
    for last, counts in ((13102, [4, 1]), (13100, [4, 1]), (13099, [5])):
        bodies = [datagram(pair, 13102)] * 4 + [datagram(pair, last)]
        assert [count for _, count in after(bodies)] == counts


def test_identification_may_count_or_not() -> None:
    for numbers in ([7] * 6, [0xFFFE, 0xFFFF, 0, 1, 2, 3], [9, 3, 4, 4, 1000, 2]):
        assert [count for _, count in after([datagram(PAIR4, 50, n) for n in numbers])] == [6]


@pytest.mark.parametrize("count", range(1, MIN_COUNT))
def test_few_stay_as_they_are(count: int) -> None:
    given = [datagram(PAIR4, 100, number) for number in range(count)]
    assert after(given) == [(each, 1) for each in given]


def wrong(at: int) -> Callable[[bytes], bytes]:
    return lambda body: body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


@pytest.mark.parametrize(
    ("pair", "spoilt"),
    [
        *((pair, wrong(at)) for pair in PAIRS for at in (0, 1)),  # flags, gso
        *((PAIR4, wrong(10 + at)) for at in (0, 1, 2, 3, 6, 7, 8, 9, 10, 11, 12, 19, 20, 23, 24, 25, 26, 27)),
        *((PAIR6, wrong(10 + at)) for at in (0, 1, 3, 4, 5, 6, 7, 8, 39, 40, 43, 44, 45, 46, 47)),
    ],
)
@pytest.mark.parametrize("place", [0, 4, 7])
def test_whatever_is_other_or_wrong_goes_alone(
    pair: tuple[str, str], spoilt: Callable[[bytes], bytes], place: int
) -> None:
    given = [datagram(pair, 100, 5) for _ in range(8)]
    given[place] = spoilt(given[place])
    left = after(given)
    assert (given[place], 1) in left
    assert sum(count for _, count in left) == 8
    assert max(count for _, count in left) == (7 if place == 7 else 4)


def test_all_wrong_alike_stay_wrong() -> None:
    for at in (0, 1, 12, 20, 21, 22, 34, 36, 37):
        given = [wrong(at)(datagram(PAIR4, 100, 5))] * 8
        assert after(given) == [(each, 1) for each in given], at
    for at in (0, 1, 14, 16, 20, 54, 56, 57):
        given = [wrong(at)(datagram(PAIR6, 100))] * 8
        assert after(given) == [(each, 1) for each in given], at


@pytest.mark.parametrize("pair", PAIRS)
def test_a_last_one_that_is_wrong_goes_alone(pair: tuple[str, str]) -> None:
    headers = 38 if pair == PAIR4 else 58
    for at in (*range(2), *range(10, headers)):
        if pair == PAIR4 and at in (14, 15):
            continue  # the identification, and so the header's checksum is wrong: below
        given = [datagram(pair, 100, 5) for _ in range(8)] + [wrong(at)(datagram(pair, 60, 5))]
        assert after(given)[1:] == [(given[-1], 1)], at


KINDS_OF_ALONE = {
    "may be fragmented": [datagram(PAIR4, 100, n, {6: b"\0"}) for n in range(8)],
    "more fragments": [datagram(PAIR4, 100, n, {6: b"\x60"}) for n in range(8)],
    "a later fragment": [datagram(PAIR4, 100, n, {6: b"\x40\x01"}) for n in range(8)],
    "no payload": [datagram(PAIR4, 0, n) for n in range(8)],
    "no payload of IPv6": [datagram(PAIR6, 0, n) for n in range(8)],
    "TCP": [bytes(unfinished(tcp_packet(*PAIR4, b"x" * 9)))] * 8,
    "an extension header": [wrong(16)(datagram(PAIR6, 100))] * 8,
    "not IPv6": [datagram(PAIR6, 100)[:10] + b"\x50" + datagram(PAIR6, 100)[11:]] * 8,
    "two flows in turn": [datagram(PAIR4, 100, n, {20: bytes([n % 2])}) for n in range(8)],
    "growing": [datagram(PAIR4, 100 + n, n) for n in range(8)],
    "shrinking": [datagram(PAIR4, 100 - n, n) for n in range(8)],
    "datagrams of several segments": [bytes(unfinished(udp_packet(*PAIR4, bytes(90)), 30))] * 8,
    "not a packet": [bytes(50)] * 8,
    "short": [b"\1"] * 8,
    "empty": [b""] * 8,
}


@pytest.mark.parametrize("name", KINDS_OF_ALONE)
def test_what_goes_alone(name: str) -> None:
    given = KINDS_OF_ALONE[name]
    assert after(given) == [(each, 1) for each in given]


def test_finished_packets_and_other_kinds_stay() -> None:
    given = [finished(datagram(PAIR4, 100, number)) for number in range(8)]
    assert after(given, record.PACKET) == [(each, 1) for each in given]
    assert after([datagram(PAIR4, 100)] * 8, record.JSON) == [(datagram(PAIR4, 100), 1)] * 8
    message = record.pack(record.OFFLOAD, datagram(PAIR4, 100)) * 5 + record.pack(4, datagram(PAIR4, 60))
    plain = memoryview(bytearray(message))
    left, _ = coalesce(plain, record.split(plain, len(message)))
    assert [kind for kind, _, _ in left] == [record.OFFLOAD, 4]


@pytest.mark.parametrize("pair", PAIRS)
def test_an_empty_datagram_or_less_at_the_end_is_not_swallowed(pair: tuple[str, str]) -> None:
    for last in (datagram(pair, 0), datagram(pair, 0)[:-1], b""):
        assert [count for _, count in after([datagram(pair, 9)] * 5 + [last])] == [5, 1]


def test_what_is_around_stays() -> None:
    other = datagram(PAIR6, 33)
    flow, second = [datagram(PAIR4, 100, n) for n in range(6)], [datagram(PAIR4, 70, n) for n in range(5)]
    left = after([other, *flow, other, *second, other])
    assert [count for _, count in left] == [1, 6, 1, 5, 1]
    assert [left[at][0] for at in (0, 2, 4)] == [other] * 3
