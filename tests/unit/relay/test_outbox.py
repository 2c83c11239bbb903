from __future__ import annotations

from collections import Counter

import pytest

from shadowmesh.relay.outbox import Memory, Outbox


def drain(outbox: Outbox) -> list[bytes]:
    return [outbox.pop()[0] for _ in range(len(outbox))]


def test_first_in_first_out_with_the_time_of_queueing() -> None:
    outbox = Outbox(10, Counter(), Memory())
    outbox.push(b"a", 1.0)
    outbox.push(b"b", 2.0)
    assert outbox.pop() == (b"a", 1.0)
    assert outbox.pop() == (b"b", 2.0)
    with pytest.raises(IndexError):
        outbox.pop()


def test_too_many_frames_drop_the_oldest() -> None:
    drops: Counter[str] = Counter()
    outbox = Outbox(3, drops, Memory())
    for letter in b"abcde":
        outbox.push(bytes((letter,)), 0.0)
    assert drain(outbox) == [b"c", b"d", b"e"]
    assert drops == {"queue_full": 2}


def test_too_many_bytes_drop_the_oldest() -> None:
    drops: Counter[str] = Counter()
    outbox = Outbox(100, drops, Memory(), max_bytes=10)
    for frame in (b"aaaa", b"bbbb", b"c", b"dddddddd"):
        outbox.push(frame, 0.0)
    assert outbox.bytes == 9
    assert drain(outbox) == [b"c", b"dddddddd"]
    assert drops == {"queue_full": 2}


def test_all_outboxes_together_are_bounded_and_each_drops_only_its_own() -> None:
    drops: Counter[str] = Counter()
    memory = Memory(limit=10)
    slow, other = Outbox(100, drops, memory), Outbox(100, drops, memory)
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
    memory = Memory()
    outbox = Outbox(10, drops, memory)
    outbox.push(b"a", 0.0)
    outbox.push(b"b", 0.0)
    outbox.clear("disconnected")
    assert (len(outbox), outbox.bytes, memory.used, memory.frames) == (0, 0, 0, 0)
    assert drops == {"disconnected": 2}
