from __future__ import annotations

import random
from collections import Counter

import pytest

from shadowmesh.relay.outbox import FRAME_COST, SMALL, Memory, Outbox

NO_LIMIT = 1 << 60


class Owner:
    """Counts what it loses."""

    def __init__(self) -> None:
        self.lost: Counter[str] = Counter()

    def lose(self, reason: str, destination: bytes = b"", frames: int = 1) -> None:
        self.lost[reason] += frames


def outbox_of(memory: Memory, owner: Owner | None = None, **bounds: int) -> Outbox:
    return Outbox(memory, owner or Owner(), **bounds)


def fill(outbox: Outbox, frames: int, size: int = 1000 - FRAME_COST) -> None:
    for _ in range(frames):
        outbox.push(bytes(size), 0.0, b"sender")


def drain(outbox: Outbox) -> list[bytes]:
    return [item[0] for _ in range(len(outbox)) if (item := outbox.pop(0.0))]


def test_first_in_first_out_with_the_time_of_reading() -> None:
    outbox = outbox_of(Memory(10, NO_LIMIT))
    outbox.push(b"a", 1.0, b"sender")
    outbox.push(b"b", 2.0, b"sender")
    assert outbox.pop(2.0) == (b"a", 1.0)
    assert outbox.pop(2.0) == (b"b", 2.0)
    assert outbox.pop(2.0) is None


def test_too_many_frames_drop_the_oldest() -> None:
    owner = Owner()
    outbox = outbox_of(Memory(3, NO_LIMIT), owner)
    for letter in b"abcde":
        outbox.push(bytes((letter,)), 0.0, b"sender")
    assert drain(outbox) == [b"c", b"d", b"e"]
    assert owner.lost == {"queue_full": 2}


def test_a_smaller_bound_holds_from_the_next_frame_on() -> None:
    owner, memory = Owner(), Memory(4, NO_LIMIT)
    outbox = outbox_of(memory, owner)
    for letter in b"abcd":
        outbox.push(bytes((letter,)), 0.0, b"sender")
    memory.resize(2, NO_LIMIT)
    outbox.push(b"e", 0.0, b"sender")
    assert drain(outbox) == [b"d", b"e"]
    assert owner.lost == {"queue_full": 3}
    assert (memory.used, memory.frames) == (0, 0)


def test_too_many_bytes_drop_the_oldest() -> None:
    owner = Owner()
    outbox = outbox_of(Memory(100, NO_LIMIT), owner, max_bytes=10 + 2 * FRAME_COST)
    for frame in (b"aaaa", b"bbbb", b"c", b"dddddddd"):
        outbox.push(frame, 0.0, b"sender")
    assert outbox.bytes == 9 + 2 * FRAME_COST
    assert drain(outbox) == [b"c", b"dddddddd"]
    assert owner.lost == {"queue_full": 2}


def from_(sender: int, size: int) -> bytes:
    return bytes(17) + bytes((sender,) * 16) + bytes(size - 33)


def test_each_sender_has_its_turn_and_small_frames_do_not_wait_for_large_ones() -> None:
    outbox = outbox_of(Memory(1000, NO_LIMIT))
    for _ in range(50):
        outbox.push(from_(1, 60_000), 0.0, 1)
    for _ in range(10):
        outbox.push(from_(2, 60_000), 0.0, 2)
    assert outbox.pop(0.0) == (from_(1, 60_000), 0.0)
    outbox.push(from_(1, SMALL), 0.0, 1)
    outbox.push(from_(3, SMALL), 0.0, 3)
    first = drain(outbox)[:20]
    assert first.index(from_(1, SMALL)) <= 1
    assert first.index(from_(3, SMALL)) <= 2
    assert first.count(from_(2, 60_000)) == 9


def test_a_device_gets_no_more_by_having_many_addresses() -> None:
    outbox = outbox_of(Memory(1000, NO_LIMIT))
    for number in range(640):
        outbox.push(from_(number % 64, 1200), 0.0, b"many")
    for _ in range(100):
        outbox.push(from_(200, 1200), 0.0, b"one")
    assert drain(outbox)[:200].count(from_(200, 1200)) >= 85


def test_what_is_charged_is_paid_by_the_fattest_if_there_is_one() -> None:
    owner, memory = Owner(), Memory(1000, 10_000)
    outbox = outbox_of(memory, owner)
    fill(outbox, 10)
    assert memory.charge(2_500)
    assert (memory.used, len(outbox), owner.lost) == (9_500, 7, {"relay_memory": 3})
    assert not memory.charge(8_000)
    assert (memory.used, len(outbox)) == (10_500, 0)
    assert memory.charge(-10_500)
    assert memory.used == 0


def test_what_waits_too_long_is_dropped_before_the_outbox_is_full() -> None:
    owner, memory = Owner(), Memory(1000, NO_LIMIT)
    outbox = outbox_of(memory, owner)
    for step in range(200):
        outbox.push(from_(1, 1400), step * 0.01, 1)
        outbox.push(from_(1, 1400), step * 0.01, 1)
        outbox.pop(step * 0.01)
    assert owner.lost.keys() == {"queue_delay"}
    assert memory.frames == len(outbox) == 200 - owner.lost["queue_delay"]
    drain(outbox)
    assert (memory.frames, memory.used, outbox.bytes) == (0, 0, 0)


def test_one_outbox_holds_more_than_one_tcp_window() -> None:
    owner = Owner()
    fill(outbox_of(Memory(1000, NO_LIMIT), owner), 6 * 1024 * 1024 // 65_536, 65_536)
    assert not owner.lost


def test_the_fattest_pays_not_the_one_that_happens_to_push() -> None:
    memory = Memory(1000, 100_000)
    fat, lean = Owner(), Owner()
    first = outbox_of(memory, fat)
    fill(first, 90)
    second = outbox_of(memory, lean)
    fill(second, 20)
    assert (len(first), len(second)) == (80, 20)
    assert (fat.lost, lean.lost) == ({"relay_memory": 10}, {})
    fill(second, 100)
    assert memory.used == 100_000
    assert {len(first) // 4, len(second) // 4} == {12}, "now both are as fat, within an eighth"
    assert sum((fat.lost + lean.lost).values()) == 110


def test_the_limit_from_both_sides() -> None:
    owner, memory = Owner(), Memory(1000, 10_000)
    outbox = outbox_of(memory, owner)
    fill(outbox, 10)
    assert (memory.used, owner.lost) == (10_000, {})
    fill(outbox, 1, 0)
    assert (len(outbox), owner.lost) == (10, {"relay_memory": 1})


def test_short_frames_cost_what_they_take() -> None:
    memory = Memory(1_000_000, 1000 * FRAME_COST)
    outbox = outbox_of(memory)
    fill(outbox, 10_000, 34)
    assert len(outbox) == 1000 * FRAME_COST // (34 + FRAME_COST)


def test_a_frame_larger_than_the_limit_is_lost() -> None:
    owner, memory = Owner(), Memory(1000, 1000)
    outbox = outbox_of(memory, owner)
    fill(outbox, 1, 1000)
    assert (len(outbox), memory.used, memory.frames) == (0, 0, 0)
    fill(outbox, 1)
    assert (len(outbox), owner.lost) == (1, {"relay_memory": 1})


def test_a_smaller_limit_holds_at_once() -> None:
    memory = Memory(1000, NO_LIMIT)
    outboxes = [outbox_of(memory) for _ in range(10)]
    for number, outbox in enumerate(outboxes, 1):
        fill(outbox, 10 * number)
    memory.resize(1000, 200_000)
    assert 199_000 < memory.used <= 200_000
    assert [len(outbox) for outbox in outboxes[:2]] == [10, 20]
    assert {len(outbox) for outbox in outboxes[2:]} <= {*range(20, 26)}


def test_clear_counts_under_its_reason_and_gives_the_memory_back() -> None:
    owner, memory = Owner(), Memory(10, NO_LIMIT)
    outbox = outbox_of(memory, owner)
    outbox.clear("nothing was there")
    outbox.push(b"a", 0.0, b"sender")
    outbox.push(b"b", 0.0, b"sender")
    outbox.clear("disconnected")
    assert (len(outbox), outbox.bytes, memory.used, memory.frames) == (0, 0, 0, 0)
    assert owner.lost == {"disconnected": 2}
    assert not memory._classes


def test_the_account_adds_up_whatever_happens() -> None:
    """And the fattest is the fattest, within an eighth, after any steps."""
    chance, memory = random.Random(5), Memory(50, 60_000)
    owners = [Owner() for _ in range(20)]
    outboxes = [outbox_of(memory, owner) for owner in owners]
    pushed = popped = 0
    for _ in range(20_000):
        outbox = chance.choice(outboxes)
        match chance.randrange(8):
            case 0 if outbox:
                outbox.pop(0.0)
                popped += 1
            case 1 if not chance.randrange(20):
                outbox.clear("left")
            case 2 if not chance.randrange(50):
                memory.resize(chance.randrange(1, 60), chance.randrange(60_000))
            case _:
                before = {each: each.bytes for each in outboxes}
                lost = [owner.lost["relay_memory"] for owner in owners]
                outbox.push(bytes(chance.choice((0, 34, 1400, 9000))), 0.0, b"sender")
                pushed += 1
                before[outbox] = max(before[outbox], outbox.bytes)
                for each, owner, earlier in zip(outboxes, owners, lost, strict=True):
                    if owner.lost["relay_memory"] > earlier and each is not outbox:
                        assert before[each] * 9 / 8 >= max(other.bytes for other in outboxes)
        assert memory.used == sum(each.bytes for each in outboxes) <= memory.limit
        assert memory.frames == sum(map(len, outboxes))
        assert pushed == popped + memory.frames + sum(owner.lost.total() for owner in owners)
        classed = {each for same in memory._classes.values() for each in same}
        assert classed == {each for each in outboxes if each.bytes}
        assert memory._taken == sum(1 << number for number in memory._classes)


@pytest.mark.parametrize("readers", [1, 10, 1000])
def test_a_push_costs_the_same_however_many_stalled_readers_there_are(readers: int) -> None:
    """Counted, not timed: an outbox is sorted in anew at most three times for each push."""
    sorted_in = 0

    class Counting(Memory):
        def place(self, outbox: Outbox) -> None:
            nonlocal sorted_in
            sorted_in += 1
            super().place(outbox)

    memory = Counting(1_000_000, 4_000_000)
    outboxes = [outbox_of(memory, max_bytes=NO_LIMIT) for _ in range(readers)]
    for number in range(8000):
        fill(outboxes[number % readers], 1)
    assert memory.used == 4_000_000
    assert sorted_in <= 3 * 8000


def test_a_frame_is_dropped_for_its_delay_by_its_bytes() -> None:
    """Of a sender whose frames are of several connections; half of the bytes are in small ones."""
    left: Counter[int] = Counter()
    chance, outbox, now = random.Random(1), outbox_of(Memory(NO_LIMIT, NO_LIMIT)), 0.0
    for _ in range(20_000):
        size = chance.choices((2800, 8400), (3, 1))[0] - FRAME_COST
        now += (size + FRAME_COST) / 2.3e6
        outbox.push(bytes(size), now, b"sender")
        left[size] += 1
        while outbox.bytes > 0.05 * 2.3e6 and (item := outbox.pop(now)) is not None:
            left[len(item[0])] -= 1
    while (item := outbox.pop(0.0)) is not None:
        left[len(item[0])] -= 1
    assert left.total() > 100
    assert 0.35 < left[2800 - FRAME_COST] / left.total() < 0.65
