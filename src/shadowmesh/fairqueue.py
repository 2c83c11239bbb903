"""FQ-CoDel: one queue for each flow, served in turn, each kept short by the time its packets wait. Pure.

RFC 8290 shares by deficit round robin: a flow that has just begun to send, or sends little, goes first, so a
lone packet never waits behind bulk. RFC 8289 (CoDel) drops or marks at the head of a flow whose packets have
waited longer than `target` for a whole `interval`, faster and faster until its sender slows down.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from math import inf, sqrt
from typing import Generic, TypeVar

T = TypeVar("T")

TARGET = 0.02
"""Seconds. RFC 8289 takes 5 ms, but here flows that send little do not wait for those that fill their queue,
and with more to send in reserve a single flow fills the line after a loss, too."""
INTERVAL = 0.1
QUANTUM = 3000
"""Bytes that a flow sends in its turn: two packets."""
BUCKETS = 1024
"""Flows are told apart by a hash, so that no crowd of them takes memory or time."""
_MTU = 1514  # a flow with no more than this waiting is not dropped from
_REACH = 2  # average packets among which a drop that is due finds the one that it hits
_GOLDEN = (sqrt(5.0) - 1.0) / 2.0  # its multiples, without their whole parts, fill 0 … 1 evenly
_SOON = 16  # intervals within which the drop rate of the last time is worth something

QUEUE_DELAY, QUEUE_FULL = "queue_delay", "queue_full"
"""Reasons for drops."""


class _Flow(Generic[T]):
    """One flow: its packets as (time of arrival, size, packet), and the state of CoDel by the RFC's names."""

    __slots__ = (
        "ahead",
        "bytes",
        "count",
        "deficit",
        "drop_next",
        "dropping",
        "first_above",
        "last_count",
        "packets",
    )

    def __init__(self) -> None:
        self.packets: deque[tuple[float, int, T]] = deque()
        self.bytes = 0
        self.deficit = 0
        self.ahead = 0.0  # bytes before the end of the one that a drop hits which is due; 0: none is
        self.dropping = False
        self.count = self.last_count = 0
        self.drop_next = -inf
        self.first_above = 0.0


class FairQueue(Generic[T]):
    """Packets of many flows, at most `max_bytes` and `max_packets`; beyond, the fattest flow loses its head.

    dropped: called with each packet that is dropped and why; mark: puts a congestion mark (RFC 3168) into a
    packet instead of its loss, False where it cannot. shared: each flow is of several connections, and what
    is called a packet here is one or more of theirs, so that its chance to be dropped has to go by its bytes:
    else whose packets are small would lose more often, and get less. bytes: all that waits.
    """

    def __init__(
        self,
        max_bytes: int,
        max_packets: int,
        dropped: Callable[[T, str], None],
        mark: Callable[[T], bool] | None = None,
        *,
        quantum: int = QUANTUM,
        target: float = TARGET,
        interval: float = INTERVAL,
        shared: bool = False,
    ) -> None:
        self.bytes = 0
        self._max_bytes = max_bytes
        self._max_packets = max_packets
        self._quantum = quantum
        self._packets = 0
        self._target = target
        self._interval = interval
        self._shared = shared
        self._odds = 0.0
        self._dropped = dropped
        self._mark = mark
        self._flows: dict[int, _Flow[T]] = {}
        self._fattest: _Flow[T] | None = None  # of those that pushed, when they did: to search would be slow
        # RFC 8290 section 4.2; as keys in the order in which their turn comes.
        self._new: OrderedDict[_Flow[T], None] = OrderedDict()
        self._old: OrderedDict[_Flow[T], None] = OrderedDict()

    def __len__(self) -> int:
        return self._packets

    def push(self, key: Hashable, packet: T, size: int, now: float) -> None:
        """Add a packet of `size` bytes, at least one, to the flow that `key` names."""
        bucket = hash(key) % BUCKETS
        flow = self._flows.get(bucket)
        if flow is None:
            flow = self._flows[bucket] = _Flow()
        flow.packets.append((now, size, packet))
        flow.bytes += size
        self.bytes += size
        self._packets += 1
        if flow not in self._new and flow not in self._old:
            flow.deficit = self._quantum
            self._new[flow] = None
        if self._fattest is None or flow.bytes > self._fattest.bytes:
            self._fattest = flow
        while self.bytes > self._max_bytes or self._packets > self._max_packets:
            self.drop(QUEUE_FULL)

    def holds(self, key: Hashable) -> bool:
        """Whether a packet of this flow waits, or of one that cannot be told from it."""
        flow = self._flows.get(hash(key) % BUCKETS)
        return flow is not None and bool(flow.packets)

    def pop(self, now: float) -> T | None:
        """The packet whose turn it is, None if none waits (RFC 8290 section 4.2)."""
        new, old = self._new, self._old
        while new or old:
            turn = new or old
            flow = next(iter(turn))
            if flow.deficit <= 0:
                flow.deficit += self._quantum
                del turn[flow]
                old[flow] = None
                continue
            found = self._codel(flow, now)
            if found is not None:
                flow.deficit -= found[1]
                return found[2]
            del turn[flow]
            if turn is new and old:
                old[flow] = None  # or a flow could stay a new one by being empty now and then
        return None

    def drop(self, reason: str) -> None:
        """Drop the head of the fattest flow. Something has to wait."""
        flow = self._fattest
        if flow is None or not flow.packets:
            flow = self._fattest = max(self._flows.values(), key=lambda each: each.bytes)
        _, _, packet = self._take(flow)
        self._dropped(packet, reason)

    def clear(self) -> list[T]:
        """Forget everything; what has waited."""
        left = [packet for flow in self._flows.values() for _, _, packet in flow.packets]
        self._flows.clear()
        self._fattest = None
        self._new.clear()
        self._old.clear()
        self.bytes = self._packets = 0
        return left

    # -- CoDel, RFC 8289 section 5

    def _take(self, flow: _Flow[T]) -> tuple[float, int, T]:
        head = flow.packets.popleft()
        flow.bytes -= head[1]
        self.bytes -= head[1]
        self._packets -= 1
        return head

    def _dequeue(self, flow: _Flow[T], now: float) -> tuple[tuple[float, int, T] | None, bool]:
        """The head of a flow, and whether it may be dropped: `dodequeue` of the RFC."""
        if not flow.packets:
            flow.first_above = 0.0
            return None, False
        head = self._take(flow)
        if now - head[0] < self._target or flow.bytes <= _MTU:
            flow.first_above = 0.0
        elif not flow.first_above:
            flow.first_above = now + self._interval
        elif now >= flow.first_above:
            return head, True
        return head, False

    def _codel(self, flow: _Flow[T], now: float) -> tuple[float, int, T] | None:
        """The next packet of a flow that is not dropped: `dequeue` of the RFC, with its ECN."""
        head, late = self._dequeue(flow, now)
        if flow.dropping:
            if not late:
                flow.dropping = False
            while flow.dropping and now >= flow.drop_next and head is not None:
                if self._spares(flow, head[1]):
                    break
                flow.count += 1
                marked = self._mark is not None and self._mark(head[2])
                if not marked:
                    self._dropped(head[2], QUEUE_DELAY)
                    head, late = self._dequeue(flow, now)
                    if not late:
                        flow.dropping = False
                        break
                flow.drop_next = self._law(flow.drop_next, flow.count)
                if marked:
                    break
        elif late and head is not None and not self._spares(flow, head[1]):
            if self._mark is None or not self._mark(head[2]):
                self._dropped(head[2], QUEUE_DELAY)
                head, _ = self._dequeue(flow, now)
            flow.dropping = True
            delta = flow.count - flow.last_count
            soon = now - flow.drop_next < _SOON * self._interval
            flow.count = flow.last_count = delta if delta > 1 and soon else 1
            flow.drop_next = self._law(now, flow.count)
        return head

    def _spares(self, flow: _Flow[T], size: int) -> bool:
        """Whether the drop that is due hits a later packet: any byte of the next few has the same odds."""
        if not self._shared:
            return False
        reach = _REACH * (flow.bytes + size) / (len(flow.packets) + 1)
        if not flow.ahead:
            self._odds = (self._odds + _GOLDEN) % 1.0
            flow.ahead = self._odds * reach
        flow.ahead = max(0.0, min(flow.ahead, reach) - size)
        return flow.ahead > 0.0

    def _law(self, time: float, count: int) -> float:
        return time + self._interval / sqrt(count)
