"""Each event is counted, and logged as loudly and as often as it deserves."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from structlog.typing import FilteringBoundLogger

import shadowmesh
from shadowmesh.crypto.keys import fingerprint
from shadowmesh.daemon import events as events_module
from shadowmesh.daemon.events import BURST, COMINGS_AND_GOINGS, QUIET_FOR, Events
from shadowmesh.mesh.peer import Peer

Line = tuple[str, str, dict[str, Any]]


class Log:
    """Takes down (level, words, facts)."""

    def __init__(self) -> None:
        self.lines: list[Line] = []

    def __getattr__(self, level: str) -> Callable[..., None]:
        return lambda words, **facts: self.lines.append((level, words, facts))


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def log() -> Log:
    return Log()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def events(log: Log, clock: Clock) -> Events:
    return Events(cast(FilteringBoundLogger, log), clock)


def test_every_event_of_the_mesh_and_the_link_is_known() -> None:
    source = Path(shadowmesh.__file__).parent
    files = [*(source / "mesh").glob("*.py"), *(source / "daemon").glob("[el]*.py")]
    names = {name for file in files for name in re.findall(r'event\(\s*"([a-z_]+)"', file.read_text("utf-8"))}
    assert names == events_module._EVENTS.keys() | {"tun_lost"}  # that one ends the daemon


@pytest.mark.parametrize(
    ("name", "level"),
    [
        ("session", "info"),
        ("relay_joined", "info"),
        ("relay_lost", "warning"),
        ("relay_unreachable", "warning"),
        ("identity_new", "info"),
        ("identity_changed", "warning"),
        ("identity_refused", "warning"),
        ("address_conflict", "warning"),
        ("probe_ack", "debug"),
    ],
)
def test_levels(events: Events, log: Log, name: str, level: str) -> None:
    events(name, a=1)
    assert [line[0] for line in log.lines] == [level]
    assert events.counts == {name: 1}


def test_facts_in_words(events: Events, log: Log) -> None:
    events("identity_refused", ip=bytes([10, 10, 10, 7]), static=b"k" * 32, nothing=None)
    events("address_refused", address=b"\xab" * 16, code="address_in_use")
    events("session", peer=Peer(b"k" * 32))
    assert [facts for _, _, facts in log.lines] == [
        {"ip": "10.10.10.7", "static": fingerprint(b"k" * 32)},
        {"address": "ab" * 16, "code": "address_in_use"},
        {"peer": fingerprint(b"k" * 32)},
    ]


def test_the_same_warning_once_a_minute(events: Events, log: Log, clock: Clock) -> None:
    for _ in range(10):
        events("address_conflict", ip=bytes([10, 10, 10, 7]))
    events("address_conflict", ip=bytes([10, 10, 10, 8]))
    assert len(log.lines) == 2
    clock.now += QUIET_FOR
    events("address_conflict", ip=bytes([10, 10, 10, 7]))
    assert len(log.lines) == 3
    assert events.counts == {"address_conflict": 12}


def test_a_flapping_relay(events: Events, log: Log, clock: Clock) -> None:
    """Every loss is shown, until there are many."""
    for number in range(20):
        events("relay_lost", reason="the relay restarts", retry_in=number)
        events("relay_joined", relay="ws://r")
        clock.now += 1.0
    assert len(log.lines) == 2 * COMINGS_AND_GOINGS
    clock.now += QUIET_FOR
    events("relay_lost", reason="the relay restarts", retry_in=3)
    assert log.lines[-1][2]["retry_in"] == 3


def test_a_relay_that_invents_problems(events: Events, log: Log, clock: Clock) -> None:
    for number in range(10 * BURST):
        events("relay_problem", code=f"problem {number}", detail="")
    assert len(log.lines) == BURST
    events("relay_lost", reason="at last")
    assert log.lines[-1][1] == "lost the relay"
    assert events.counts["relay_problem"] == 10 * BURST


def test_new_keys_are_no_news(events: Events, log: Log) -> None:
    peer = Peer(b"k" * 32)
    for rekey in (False, True, True):
        events("session", peer=peer, rekey=rekey)
    assert [level for level, _, _ in log.lines] == ["info", "debug", "debug"]
    assert all("rekey" not in facts for _, _, facts in log.lines)


def test_an_unknown_event_is_a_bug(events: Events) -> None:
    with pytest.raises(KeyError):
        events("typo")
