from __future__ import annotations

import pytest

from shadowmesh.relay.admission import Admission, GoneLimiter, Refusal


def connect(admission: Admission, source: str) -> Refusal | None:
    refusal = admission.refuses(source)
    if refusal is None:
        admission.open(source)
    return refusal


@pytest.mark.parametrize(("max_connections", "unjoined"), [(1, 64), (256, 64), (1000, 250)])
def test_unjoined_connections_are_bounded(max_connections: int, unjoined: int) -> None:
    admission = Admission(max_connections)
    answers = [connect(admission, f"s{number}") for number in range(unjoined + 1)]
    assert answers == [None] * unjoined + ["too_many_unjoined"]
    admission.leave_unjoined("s0")
    assert connect(admission, "s0") is None


def test_sixteen_unjoined_connections_per_source() -> None:
    admission = Admission(1000)
    assert [connect(admission, "a") for _ in range(17)] == [None] * 16 + ["too_many_from_source"]
    assert connect(admission, "b") is None
    admission.leave_unjoined("a")
    assert connect(admission, "a") is None


def test_utilization() -> None:
    admission = Admission(1000)
    admission.joined = 42
    assert admission.utilization_percent == pytest.approx(4.2)


def test_a_full_relay_lets_in_only_who_says_that_it_was_here() -> None:
    admission = Admission(2)
    admission.joined = 2
    assert admission.full
    assert (admission.refuses("a"), admission.refuses("a", rejoin=True)) == ("full", None)
    admission.unjoined = admission.max_unjoined
    assert admission.refuses("a", rejoin=True) == "too_many_unjoined"


def test_new_bounds_send_nobody_away() -> None:
    admission = Admission(1000)
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
