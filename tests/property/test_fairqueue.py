"""What is pushed into a fair queue comes out once or is dropped once, in the order of its flow, bounded."""

from __future__ import annotations

from collections import defaultdict

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.fairqueue import FairQueue

Packet = tuple[int, int]
PUSH = st.tuples(st.integers(0, 5), st.integers(1, 70_000), st.floats(0, 0.2))
POP = st.tuples(st.just(-1), st.just(0), st.floats(0, 0.2))


@given(
    st.lists(st.one_of(PUSH, POP), max_size=200), st.integers(1, 200_000), st.integers(1, 50), st.booleans()
)
def test_nothing_is_lost_unseen(
    steps: list[tuple[int, int, float]], most: int, packets: int, ecn: bool
) -> None:
    dropped: list[Packet] = []
    queue: FairQueue[Packet] = FairQueue(
        most,
        packets,
        lambda packet, _: dropped.append(packet),
        (lambda packet: packet[1] % 2 == 0) if ecn else None,
    )
    now, pushed, popped = 0.0, [], []
    sizes: dict[Packet, int] = {}
    for number, (flow, size, wait) in enumerate(steps):
        now += wait
        if flow < 0:
            if (packet := queue.pop(now)) is not None:
                popped.append(packet)
        else:
            sizes[flow, number] = size
            pushed.append((flow, number))
            queue.push(flow, (flow, number), size, now)
        left = set(pushed) - set(popped) - set(dropped)
        assert len(queue) == len(left) <= packets
        assert queue.bytes == sum(sizes[packet] for packet in left) <= most
    while (packet := queue.pop(now)) is not None:
        popped.append(packet)
    assert sorted(popped + dropped) == sorted(pushed)
    order = defaultdict(list)
    for packet in popped:
        order[packet[0]].append(packet)
    assert all(each == sorted(each) for each in order.values())


@given(st.lists(st.integers(40, 16_000), min_size=2, max_size=5), st.integers(100, 400))
def test_backlogged_flows_get_the_same_bytes(sizes: list[int], turns: int) -> None:
    queue: FairQueue[int] = FairQueue(1 << 30, 1 << 30, lambda *_: None)
    for flow, size in enumerate(sizes):
        for _ in range(turns * 16_000 // size + 1):
            queue.push(flow, flow, size, 0.0)
    sent = [0] * len(sizes)
    while min(sent) < 16_000 * 20:
        packet = queue.pop(0.0)
        assert packet is not None
        sent[packet] += sizes[packet]
    assert max(sent) - min(sent) <= 2 * (max(sizes) + 3000)
