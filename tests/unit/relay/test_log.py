from __future__ import annotations

from structlog.testing import capture_logs

from shadowmesh.relay.log import LimitedLog, RoutingLog
from shadowmesh.relay.router import Outcome, Router

X, Y, Z = (bytes([n] * 16) for n in (1, 2, 3))


def test_a_line_tells_how_many_before_it_were_left_out() -> None:
    log = LimitedLog(0.001, 2.0)
    with capture_logs() as lines:
        for number in range(5):
            if log.ready():
                log.info("something happens", number=number)
        log._bucket._tokens = 2
        for number in (5, 6):
            assert log.ready()
            log.info("something happens", number=number)
    facts = [(line["number"], line.get("unlogged_before")) for line in lines]
    assert facts == [(0, None), (1, None), (5, 3), (6, None)]


def test_those_left_out_at_the_end_of_a_crowd_are_told_when_no_more_come() -> None:
    log = LimitedLog(0.001, 2.0)

    def happen(times: int) -> None:
        for _ in range(times):
            if log.ready():
                log.info("something happens")

    with capture_logs() as lines:
        log.flush()
        happen(4)
        log.flush()
        happen(1)
        log._bucket._tokens = 1
        log.flush()  # more came since
        assert len(lines) == 2
        log.flush()
        log.flush()
    assert lines[2:] == [
        {
            "event": "lines left out",
            "count": 3,
            "like": "something happens",
            "log_level": "info",
            "logger_name": "relay",
        }
    ]
    with capture_logs() as lines:
        happen(2)
        log.flush()
        log.flush()  # the rate holds for it, too
        assert lines == []
        log.flush(last=True)
        log.flush(last=True)
    assert [line["count"] for line in lines] == [2]


def test_the_routing_log_tells_of_each_change() -> None:
    router: Router[str] = Router(10)
    router.join("b", bytes(32), b"B" * 32, b"", [Y], 0.0)
    log, names = RoutingLog(50), {"device": "aa"}
    with capture_logs() as lines:
        joined = router.join("a", bytes(32), b"A" * 32, b"", [X, Y], 0.0)
        log.claims(names, set(), joined)
        log.claims(names, {X}, router.claim(joined.member, [Z], [X], 0.0))
        log.claims(names, {Z}, Outcome(joined.member))
        log.leaves(names, joined.member.held)
        log.leaves(names, set())
        log.drop(names, "not_here", X)
        log.drop(names, "bad_frame")
    for line in lines:
        assert [line.pop(key) for key in ("device", "log_level", "logger_name")] == ["aa", "info", "relay"]
    assert lines == [
        {"event": "addresses claimed", "addresses": "01010101"},
        {"event": "address refused", "address": "02020202", "why": "address_in_use"},
        {"event": "addresses claimed", "addresses": "03030303"},
        {"event": "addresses released", "addresses": "01010101"},
        {"event": "addresses in grace", "addresses": "03030303"},
        {"event": "frame dropped", "reason": "not_here", "destination": "01010101"},
        {"event": "frame dropped", "reason": "bad_frame"},
    ]
