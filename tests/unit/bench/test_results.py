from __future__ import annotations

from bench.results import Results
from bench.stats import Spread

EVERYTHING = ("bare", "proxy", "wireguard", "nebula", "shadowmesh")


def results(measures: tuple[str, ...], subjects: tuple[str, ...] = EVERYTHING) -> Results:
    return Results("cubic", subjects, measures)


def verdicts(found: Results) -> dict[str, tuple[float | None, bool]]:
    return {verdict.mark.what: (verdict.value, verdict.met) for verdict in found.verdicts()}


def test_values_of_rounds_are_collected() -> None:
    found = results(("tcp1",))
    for value in (2.0, 9.0, 3.0):
        found.add("bare", {"tcp1": value})
    assert found.spread("bare", "tcp1") == Spread(3.0, 2.0, 9.0)
    assert found.spread("bare", "tcp8") is None
    assert found.spread("proxy", "tcp1") is None


def test_marks_are_ratios_of_medians() -> None:
    found = results(("tcp1", "ping"))
    for own, proxy, wireguard in ((1.0, 10.0, 0.2), (3.0, 10.0, 0.2), (1.4, 11.0, 0.1)):
        found.add("shadowmesh", {"tcp1": own, "ping": 0.5})
        found.add("proxy", {"tcp1": proxy})
        found.add("wireguard", {"tcp1": wireguard})
        found.add("nebula", {"ping": 0.3})
    assert verdicts(found) == {
        "TCP, 1 stream, against the nginx TCP proxy": (1.4 / 10.0, False),
        "TCP, 1 stream, against wireguard-go": (1.4 / 0.2, False),
        "idle ping median, against nebula": (0.5 / 0.3, False),
    }


def test_only_what_was_asked_for_is_judged() -> None:
    assert verdicts(results(("tcp8",))) == {}
    assert verdicts(results(("tcp1",), ("bare", "shadowmesh"))) == {}
    assert list(verdicts(results(("tcp1",), ("proxy", "shadowmesh")))) == [
        "TCP, 1 stream, against the nginx TCP proxy"
    ]


def test_what_was_asked_for_but_gave_no_number_is_missed() -> None:
    found = results(("memory", "rss"))
    found.add("shadowmesh", {"start": 55.0, "idle": 25.0, "rss daemon in A": 90.0, "rss daemon in B": 90.1})
    found.add("shadowmesh", {"relay ready": 0.6, "daemon ready": 0.61})
    assert [(verdict.value, verdict.met) for verdict in found.verdicts()] == [
        (55.0, True),
        (25.0, True),
        (None, False),
        (0.6, True),
        (0.61, False),
        (90.0, True),
        (90.1, False),
    ]
    assert "no number (mark ≤ 160)" in str(found.verdicts()[2])
