from __future__ import annotations

from collections import Counter

import pytest

from shadowmesh.relay.outbox import Memory, Outbox


def drain(outbox: Outbox) -> list[bytes]:
    return [outbox.pop()[0] for _ in range(len(outbox))]


def test_first_in_first_out_with_the_time_of_reading() -> None:
    outbox = Outbox(Memory(10, Counter()))
    outbox.push(b"a", 1.0)
    outbox.push(b"b", 2.0)
    assert outbox.pop() == (b"a", 1.0)
    assert outbox.pop() == (b"b", 2.0)
    with pytest.raises(IndexError):
        outbox.pop()


def test_too_many_frames_drop_the_oldest() -> None:
    drops: Counter[str] = Counter()
    outbox = Outbox(Memory(3, drops))
    for letter in b"abcde":
        outbox.push(bytes((letter,)), 0.0)
    assert drain(outbox) == [b"c", b"d", b"e"]
    assert drops == {"queue_full": 2}


def test_a_smaller_bound_holds_from_the_next_frame_on() -> None:
    drops: Counter[str] = Counter()
    memory = Memory(4, drops)
    outbox = Outbox(memory)
    for letter in b"abcd":
        outbox.push(bytes((letter,)), 0.0)
    memory.max_frames = 2
    outbox.push(b"e", 0.0)
    assert drain(outbox) == [b"d", b"e"]
    assert drops == {"queue_full": 3}
    assert (memory.used, memory.frames) == (0, 0)


def test_too_many_bytes_drop_the_oldest() -> None:
    drops: Counter[str] = Counter()
    outbox = Outbox(Memory(100, drops), max_bytes=10)
    for frame in (b"aaaa", b"bbbb", b"c", b"dddddddd"):
        outbox.push(frame, 0.0)
    assert outbox.bytes == 9
    assert drain(outbox) == [b"c", b"dddddddd"]
    assert drops == {"queue_full": 2}


def test_all_outboxes_together_are_bounded_and_each_drops_only_its_own() -> None:
    drops: Counter[str] = Counter()
    memory = Memory(100, drops, limit=10)
    slow, other = Outbox(memory), Outbox(memory)
    for frame in (b"aaaa", b"bbbb", b"cccc"):
        slow.push(frame, 0.0)
    other.push(b"xxxx", 0.0)
    assert (memory.used, memory.frames) == (8, 2)
    assert drain(other) == []
    assert drain(slow) == [b"bbbb", b"cccc"]
    assert drops == {"relay_memory": 2}
    assert (memory.used, memory.frames) == (0, 0)


def test_clear_counts_under_its_reason_and_gives_the_memory_back() -> None:
    drops: Counter[str] = Counter()
    memory = Memory(10, drops)
    outbox = Outbox(memory)
    outbox.push(b"a", 0.0)
    outbox.push(b"b", 0.0)
    outbox.clear("disconnected")
    assert (len(outbox), outbox.bytes, memory.used, memory.frames) == (0, 0, 0, 0)
    assert drops == {"disconnected": 2}
