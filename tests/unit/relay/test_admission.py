from __future__ import annotations

from itertools import count

import pytest

from shadowmesh.relay.admission import SOON, Admission, GoneLimiter, Refusal


class Client:
    """A connection that has not joined."""

    def __init__(self, source: str, opened_at: float = 0.0) -> None:
        self.source = source
        self.opened_at = opened_at

    def __repr__(self) -> str:
        return f"{self.source} at {self.opened_at}"


class Door:
    """An Admission, and who waits."""

    def __init__(self, max_connections: int = 256) -> None:
        self.admission: Admission[Client] = Admission(max_connections)
        self.waiting: list[Client] = []

    def connect(self, source: str, now: float = 0.0) -> Refusal | Client:
        refusal = self.admission.refuses(source, now)
        if refusal is not None:
            return refusal
        client = Client(source, now)
        gone = self.admission.open(client)
        self.waiting.append(client)
        if gone is not None:
            self.leave(gone)
        return client

    def leave(self, client: Client) -> None:
        self.waiting.remove(client)
        self.admission.leave_unjoined(client)
        assert self.admission.unjoined == len(self.waiting)


@pytest.mark.parametrize(("max_connections", "unjoined"), [(1, 64), (256, 64), (1000, 250)])
def test_unjoined_connections_are_bounded(max_connections: int, unjoined: int) -> None:
    """Of an honest crowd nobody has to go who may be about to join; who comes too late has to wait."""
    door = Door(max_connections)
    clients = [door.connect(f"192.0.2.{number}", number / 1000) for number in range(unjoined)]
    assert door.connect("198.51.100.1", SOON - 0.001) == "too_many_unjoined"
    assert door.waiting == clients
    newcomer = door.connect("198.51.100.1", SOON)
    assert door.waiting == [*clients[1:], newcomer]


@pytest.mark.parametrize("source", ["192.0.2.{}", "2001:db8:{}:1::/64"])
def test_the_oldest_of_the_source_that_has_most_has_to_go(source: str) -> None:
    """A newcomer need not wait for those who hold many places, however often they come anew."""
    door = Door(256)
    times = count()
    for number in range(64):
        door.connect(source.format(number // 16), next(times) / 1000)
    first = door.waiting[0]
    honest = door.connect("198.51.100.1", next(times) / 1000)
    assert isinstance(honest, Client)
    assert first not in door.waiting
    for _ in range(20):  # it stays, whatever they do within its second
        for number in range(4):
            door.connect(source.format(number), next(times) / 1000)
        another = door.connect("198.51.100.2", next(times) / 1000)
        assert isinstance(another, Client)
        assert honest in door.waiting
        door.leave(another)


def test_a_prefix_of_ipv6_is_one_crowd_but_many_sources() -> None:
    """One customer has 65,536 of /64, each of which might hold a place."""
    door = Door(256)
    for number in range(64):
        assert isinstance(door.connect(f"2001:db8:1:{number:x}::/64"), Client)
    assert door.connect("2001:db8:1:ffff::/64", 0.5) == "too_many_unjoined"
    assert isinstance(door.connect("2001:db8:2:1::/64", 0.5), Client)
    assert isinstance(door.connect("192.0.2.1", 0.5), Client)
    assert sum("2001:db8:1:" in client.source for client in door.waiting) == 62


def test_who_has_one_or_two_stays_a_second() -> None:
    """An attacker with as many sources as there are places gets them only as often as they are free."""
    door = Door(256)
    honest = door.connect("198.51.100.1", 0.0)
    for number in range(1000):
        door.connect(f"192.0.{number // 200}.{number % 200}", number * SOON / 1001)
        assert honest in door.waiting
    assert len(door.waiting) == 64


def test_sixteen_unjoined_connections_per_source() -> None:
    door = Door(1000)
    clients = [door.connect("192.0.2.1") for _ in range(17)]
    assert clients[16] == "too_many_from_source"
    assert door.admission.refuses("192.0.2.1", 0.0, shared=True) is None, "it may be many"
    assert isinstance(door.connect("192.0.2.2"), Client)
    door.leave(door.waiting[0])
    assert isinstance(door.connect("192.0.2.1"), Client)


def test_utilization() -> None:
    admission: Admission[Client] = Admission(1000)
    admission.joined = 42
    assert admission.utilization_percent == pytest.approx(4.2)


def test_a_full_relay_lets_in_only_who_says_that_it_was_here() -> None:
    door = Door(2)
    admission = door.admission
    admission.joined = 2
    assert admission.full
    assert (admission.refuses("a", 0.0), admission.refuses("a", 0.0, rejoin=True)) == ("full", None)
    admission.joined = 0
    for number in range(64):
        door.connect(f"192.0.2.{number}")
    admission.joined = 2
    assert admission.refuses("a", 0.0, rejoin=True) == "too_many_unjoined"
    assert admission.refuses("a", SOON, rejoin=True) is None


def test_new_bounds_send_nobody_away() -> None:
    admission: Admission[Client] = Admission(1000)
    admission.joined = 500
    admission.resize(400)
    assert (admission.full, admission.max_unjoined, admission.utilization_percent) == (True, 100, 125.0)
    admission.resize(501)
    assert not admission.full


def test_gone_once_a_second_for_each_destination() -> None:
    limiter = GoneLimiter()
    asked = [(b"x", 0.0), (b"x", 0.5), (b"y", 0.5), (b"x", 1.0), (b"x", 1.9)]
    assert [limiter.allows(*ask) for ask in asked] == [True, False, True, True, False]


def test_gone_ten_a_second_in_all_with_a_burst_of_32() -> None:
    limiter = GoneLimiter()
    allowed = [limiter.allows(number.to_bytes(16, "big"), 0.0) for number in range(100)]
    assert allowed == [True] * 32 + [False] * 68
    later = [limiter.allows(number.to_bytes(16, "big"), 1.0) for number in range(100, 200)]
    assert sum(later) == 10


def test_gone_memory_is_bounded() -> None:
    limiter = GoneLimiter()
    for number in range(1000):
        limiter.allows(number.to_bytes(16, "big"), number / 5)
    assert len(limiter._last) <= 64
