from __future__ import annotations

import pytest

from shadowmesh.relay.admission import Admission, GoneLimiter, source_of


def connect(admission: Admission, source: str) -> int | None:
    refusal = admission.refuses(source)
    if refusal is None:
        admission.open(source)
    return refusal


@pytest.mark.parametrize(("max_connections", "unjoined"), [(1, 64), (256, 64), (1000, 250)])
def test_unjoined_connections_are_bounded(max_connections: int, unjoined: int) -> None:
    admission = Admission(max_connections)
    answers = [connect(admission, f"s{number}") for number in range(unjoined + 1)]
    assert answers == [None] * unjoined + [503]
    admission.leave_unjoined("s0")
    assert connect(admission, "s0") is None


def test_sixteen_unjoined_connections_per_source() -> None:
    admission = Admission(1000)
    assert [connect(admission, "a") for _ in range(17)] == [None] * 16 + [429]
    assert connect(admission, "b") is None
    admission.leave_unjoined("a")
    assert connect(admission, "a") is None


def test_utilization() -> None:
    admission = Admission(1000)
    admission.joined = 42
    assert admission.utilization_percent == pytest.approx(4.2)


@pytest.mark.parametrize(
    ("ip", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(ip: str, source: str) -> None:
    assert source_of(ip) == source


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
