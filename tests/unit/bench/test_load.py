"""The load generator's loop, on socket pairs with nothing between them."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from bench import load
from bench.load import FIRST_BYTE, Burst, Flow, Load
from shadowmesh.testing.program import LabError

Pairs = list[tuple[socket.socket, socket.socket]]


@pytest.fixture
def pairs() -> Iterator[Pairs]:
    with ExitStack() as stack:
        made = [socket.socketpair() for _ in range(3)]
        for end in (end for pair in made for end in pair):
            stack.enter_context(end)
        yield made


def burst(size: int, kind: str = "", frames: int = 1, first: int = FIRST_BYTE) -> Burst:
    return Burst(kind, frames, size, [bytes([first]), bytes(size - 1)], size)


def make(pairs: Pairs) -> Load:
    return Load([Flow(*pair) for pair in pairs], lambda: 0.0)


# Of 4 MB a socket takes a part only.
@pytest.mark.parametrize(("size", "frames"), [(100, 1), (3000, 8), (4_000_000, 1)])
def test_at_full_load_whole_bursts_are_counted(size: int, frames: int, pairs: Pairs) -> None:
    under = make(pairs)
    for _ in range(2):  # nothing of the first is left for the second
        sample = under.saturate([burst(size, frames=frames)] * 3, 0.0, 0.05)
        assert sample.frames > 0
        assert sample.payload * frames == sample.frames * size
        assert 0.05 <= sample.seconds < 5.0


def test_every_flow_has_its_turn(pairs: Pairs) -> None:
    flows = [Flow(*pair) for pair in pairs]
    Load(flows, lambda: 0.0).saturate([burst(500)] * 3, 0.0, 0.02)
    counts = [flow.arrived / 500 for flow in flows]
    assert max(counts) - min(counts) <= load.IN_FLIGHT


def test_paced_bursts_come_at_the_rate_asked_for(pairs: Pairs) -> None:
    both = [(burst(2000, "bulk"), burst(100, "small"))] * 3
    sample, latencies, late = make(pairs).paced(both, [3000.0, 1000.0], 0.02, 0.1)
    assert len(late) == pytest.approx(480, rel=0.2)  # with those of the warm-up
    assert len(latencies["bulk"]) == pytest.approx(300, rel=0.3)
    assert len(latencies["small"]) == pytest.approx(100, rel=0.5)
    assert sample.payload > 0
    assert all(0 < time < 5e9 for times in latencies.values() for time in times)


def test_what_was_due_while_the_sender_was_held_up_is_counted_from_then(
    pairs: Pairs,
) -> None:
    def stalls() -> float:  # asked as counting begins
        time.sleep(0.1)
        return 0.0

    under = Load([Flow(*pair) for pair in pairs], stalls)
    _, latencies, late = under.paced([(burst(100),)] * 3, [1000.0], 0.0, 0.15)
    for times in (latencies[""], late):
        assert max(times) > 90e6
        assert len([time for time in times if time > 40e6]) == pytest.approx(60, rel=0.4)


def test_a_lost_burst_is_an_error(pairs: Pairs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "DRAIN_SECONDS", 0.02)
    under = Load([Flow(pairs[0][0], pairs[1][1])], lambda: 0.0)
    with pytest.raises(LabError, match=r"^24 bursts did not come through"):
        under.saturate([burst(100)], 0.0, 0.01)


def test_what_does_not_begin_like_a_burst_is_an_error(pairs: Pairs) -> None:
    with pytest.raises(LabError, match=r"a receiver got b'\\x81"):
        make(pairs).saturate([burst(100, first=0x81)] * 3, 0.0, 0.01)


def test_bytes_that_nobody_sent_are_an_error(pairs: Pairs) -> None:
    pairs[0][0].sendall(bytes([FIRST_BYTE]))
    with pytest.raises(LabError, match="a receiver got"):
        make(pairs).paced([(burst(100),)] * 3, [100.0], 0.0, 0.05)


def test_words_to_a_sender_are_shown(pairs: Pairs) -> None:
    pairs[0][1].sendall(b"no such destination")
    with pytest.raises(LabError, match="no such destination"):
        make(pairs).saturate([burst(100)] * 3, 0.0, 0.05)


def test_a_lost_connection_is_an_error(pairs: Pairs) -> None:
    pairs[0][0].shutdown(socket.SHUT_WR)
    with pytest.raises((LabError, BrokenPipeError)):
        make(pairs).saturate([burst(100)] * 3, 0.0, 0.05)
