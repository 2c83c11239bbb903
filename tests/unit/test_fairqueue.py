from __future__ import annotations

from collections import Counter
from math import inf, sqrt
from random import Random

from shadowmesh.fairqueue import INTERVAL, QUANTUM, QUEUE_DELAY, QUEUE_FULL, TARGET, FairQueue

SIZE = 1500


class Queue(FairQueue[tuple[str, int]]):
    """Of packets (flow, number); remembers what it drops and marks."""

    def __init__(self, *, ecn: bool = False, max_bytes: int = 1 << 30, max_packets: int = 1 << 30) -> None:
        self.lost: list[tuple[tuple[str, int], str]] = []
        self.marked: list[tuple[str, int]] = []
        self.keys: dict[str, int] = {}  # the hashes of these are themselves: no two flows share a bucket
        super().__init__(
            max_bytes, max_packets, lambda *drop: self.lost.append(drop), self.set_mark if ecn else None
        )

    def set_mark(self, packet: tuple[str, int]) -> bool:
        self.marked.append(packet)
        return True

    def fill(self, flow: str, count: int, now: float = 0.0, size: int = SIZE, first: int = 0) -> None:
        key = self.keys.setdefault(flow, len(self.keys))
        for number in range(first, first + count):
            self.push(key, (flow, number), size, now)

    def taken(self, count: int, now: float = 0.0) -> list[tuple[str, int]]:
        return [packet for _ in range(count) if (packet := self.pop(now)) is not None]


def test_one_flow_keeps_its_order() -> None:
    queue = Queue()
    queue.fill("a", 10)
    assert (len(queue), queue.bytes) == (10, 10 * SIZE)
    assert queue.taken(11) == [("a", number) for number in range(10)]
    assert (len(queue), queue.bytes) == (0, 0)


def test_flows_share_by_bytes_not_by_packets() -> None:
    queue = Queue()
    queue.fill("small", 1000, size=500)
    queue.fill("large", 1000, size=10_000)
    sizes = {"small": 500, "large": 10_000}
    sent: Counter[str] = Counter()
    while sent["small"] < 500_000:
        (flow, _), *_ = queue.taken(1)
        sent[flow] += sizes[flow]
        assert abs(sent["small"] - sent["large"]) <= 10_000 + 2 * QUANTUM


def test_a_lone_packet_waits_for_nobody() -> None:
    queue = Queue()
    queue.fill("bulk", 100)
    queue.fill("more bulk", 100)
    queue.taken(20)
    queue.fill("ping", 1)
    assert queue.pop(0.0) == ("ping", 0)


def test_a_new_flow_is_an_old_one_after_its_first_turn() -> None:
    queue = Queue()
    queue.fill("bulk", 100)
    queue.taken(10)
    queue.fill("new", 100)
    flows = [flow for flow, _ in queue.taken(12)]
    assert flows[:2] == ["new"] * (QUANTUM // SIZE)
    assert 4 <= flows.count("bulk") <= 6


def test_what_empties_its_queue_again_and_again_is_no_new_flow_each_time() -> None:
    queue = Queue()
    queue.fill("bulk", 1000)
    queue.taken(4)
    flows: list[str] = []
    for number in range(100):
        queue.fill("pulse", 2, first=number)
        flows += [flow for flow, _ in queue.taken(2)]
    assert flows.count("bulk") >= 45


def test_short_waits_are_borne() -> None:
    queue = Queue()
    for step in range(1000):
        now = step * 0.001
        queue.fill("a", 1, now)
        if step >= 15:  # each waits for 15 ms
            assert queue.pop(now) is not None
    assert not queue.lost


def standing(queue: Queue, seconds: float, waits: float = 2 * TARGET) -> list[float]:
    """Times of what became of a flow whose packets wait too long: drops, or marks."""
    times: list[float] = []
    for step in range(int(seconds * 1000)):
        now = step * 0.001
        queue.fill("a", 2, now)
        if now < waits:
            continue
        before = len(queue.lost) + len(queue.marked)
        queue.pop(now)
        times += [now] * (len(queue.lost) + len(queue.marked) - before)
    return times


def test_drops_follow_the_control_law_of_rfc_8289() -> None:
    queue = Queue()
    times = standing(queue, 2.0)
    assert times[0] >= INTERVAL
    assert {reason for _, reason in queue.lost} == {QUEUE_DELAY}
    expected, due = [], times[0]
    for count in range(1, len(times)):
        due += INTERVAL / sqrt(count)
        expected.append(due)
    assert all(abs(seen - law) <= 0.003 for seen, law in zip(times[1:8], expected, strict=False)), times[:9]


def test_a_mark_takes_the_place_of_a_drop() -> None:
    dropping, marking = Queue(), Queue(ecn=True)
    drops, marks = standing(dropping, 1.0), standing(marking, 1.0)
    assert not marking.lost
    assert marks[:5] == drops[:5]


def share_of_small(shared: bool) -> float:
    """Of the drops of one flow, those of small packets, which are half of its bytes and three of four."""
    random, lost = Random(1), Counter[int]()
    queue: FairQueue[int] = FairQueue(
        1 << 30, 1 << 30, lambda size, reason: lost.update([size]), shared=shared
    )
    now, ahead = 0.0, 0.05
    for _ in range(60_000):
        size = random.choices((2800, 8400), (3, 1))[0]
        now += size / 2.3e6
        queue.push("a", size, size, now)
        while queue.bytes > ahead * 2.3e6:
            if queue.pop(now) is None:
                break
    assert lost.total() > 500
    return lost[2800] / lost.total()


def test_a_drop_hits_a_packet_by_its_bytes_where_they_are_of_several_connections() -> None:
    assert 0.4 < share_of_small(shared=True) < 0.6
    assert share_of_small(shared=False) > 0.7


def drops_of(shared: bool, overload: float) -> int:
    """Of a line for 1000 packets of 1500 bytes a second, of which more come, for ten seconds."""
    lost: Counter[str] = Counter()
    queue: FairQueue[int] = FairQueue(
        1 << 30, 1 << 30, lambda _, reason: lost.update([reason]), shared=shared
    )
    came = 0.0
    for step in range(10_000):
        came += overload
        while came >= 1:
            queue.push("a", 0, SIZE, step / 1000)
            came -= 1
        queue.pop(step / 1000)
    return lost[QUEUE_DELAY]


def test_a_choice_by_bytes_takes_no_drops_away() -> None:
    """However long the queue is: else it would stay so, where many connections share it."""
    for overload in (1.02, 1.1, 1.3):
        assert drops_of(True, overload) >= 0.9 * drops_of(False, overload) > 0


def test_what_was_due_in_a_long_queue_is_not_put_off_in_a_short_one() -> None:
    queue: FairQueue[int] = FairQueue(1 << 30, 1 << 30, lambda *_: None, shared=True)
    for _ in range(1000):
        queue.push("a", 0, 60_000, 0.0)
    for step in range(60):
        queue.pop(1.0 + step / 1000)
    while len(queue) > 1:
        queue.drop(QUEUE_FULL)
    lost: list[int] = []
    queue._dropped = lambda number, reason: lost.append(number)
    for number in range(100):
        queue.push("a", number, 1000, 2.0)
    queue.pop(2.0)
    while len(queue) > 10 and not lost:
        queue.pop(3.0 + len(queue) / 100)
    assert len(queue) > 90


def test_the_last_packet_is_never_dropped() -> None:
    queue = Queue()
    for second in range(1, 100):
        queue.fill("a", 1, second - 0.5)
        assert queue.pop(float(second)) is not None
    assert not queue.lost


def test_dropping_begins_where_it_had_ended_a_moment_ago() -> None:
    queue = Queue()
    standing(queue, 2.0)
    flow = next(iter(queue._flows.values()))
    count = flow.count
    assert count > 4
    while queue.pop(2.0) is not None:
        pass
    assert not flow.dropping or not flow.packets
    queue.fill("a", 100, 2.0)
    for step in range(30):
        queue.pop(2.1 + step * 0.01)
    assert flow.dropping
    assert flow.count > 1


def test_a_full_queue_drops_from_the_fattest_its_oldest() -> None:
    queue = Queue(max_packets=10)
    queue.fill("thin", 3)
    queue.fill("fat", 10)
    assert queue.lost == [(("fat", number), QUEUE_FULL) for number in range(3)]
    queue.fill("thin", 1, first=3)
    assert queue.lost[3:] == [(("fat", 3), QUEUE_FULL)]


def test_whose_packets_wait() -> None:
    queue = Queue()
    assert not queue.holds(0)
    queue.fill("a", 1)
    assert [queue.holds(key) for key in (queue.keys["a"], 1)] == [True, False]
    queue.pop(0.0)
    assert not queue.holds(queue.keys["a"])


def test_bytes_are_bounded() -> None:
    queue = Queue(max_bytes=10_000)
    queue.fill("a", 20, size=1000)
    queue.fill("b", 1, size=9000)
    assert queue.bytes <= 10_000


def test_clear_gives_back_what_waits() -> None:
    queue = Queue()
    queue.fill("a", 2)
    queue.fill("b", 1)
    assert sorted(queue.clear()) == [("a", 0), ("a", 1), ("b", 0)]
    assert (len(queue), queue.bytes, queue.pop(inf)) == (0, 0, None)
    queue.fill("a", 1)
    assert queue.pop(0.0) == ("a", 0)


def test_a_new_flow_that_is_empty_waits_among_the_old_ones() -> None:
    queue = Queue()
    queue.fill("bulk", 100, size=QUANTUM // 6)
    queue.taken(7)  # its second turn has begun
    queue.fill("pulse", 1)
    assert [flow for flow, _ in queue.taken(2)] == ["pulse", "bulk"]
    queue.fill("pulse", 1, first=1)
    assert queue.taken(1)[0][0] == "bulk"


def test_the_drop_rate_of_long_ago_is_worth_nothing() -> None:
    queue = Queue()
    standing(queue, 2.0)
    flow = next(iter(queue._flows.values()))
    assert flow.count - flow.last_count > 1
    while queue.pop(2.0) is not None:
        pass
    assert not flow.dropping
    queue.fill("a", 100, 10.0)
    now = 10.1
    while not flow.dropping:
        queue.pop(now)
        now += 0.01
    assert flow.count == 1
