"""Frames that wait while a client's socket takes no more: bounded, fair, oldest dropped first.

Each sending device has its turn, however many addresses it has, and small frames are not behind large ones
(`shadowmesh.fairqueue`): their order is no matter to the protocol. What has waited for too long is dropped
before the outbox is full: bulk slows down by the loss, and to wait for it would help nobody.

A fresh packet is worth more than an old one (its sender has long sent the old one again), so a full outbox
loses its head, as in tailscale's `derpserver.go`. Three bounds hold at any time:

- `Memory.max_frames` frames (`queue_size` of the configuration);
- `MAX_BYTES` per connection: more than the 6 MiB that Linux allows as receive window of one TCP connection
  (`tcp_rmem`), so that a single flow fills its window before anything is dropped, and still less than a
  second of delay at 100 Mbit/s;
- `Memory.limit` bytes for all connections together, so that many slow readers cannot take the host's memory.
  Beyond it the fattest outbox loses its head: who is a little slow pays nothing for who is very slow.

To find the fattest takes no search: outboxes are kept in classes of like size, eight to each doubling, and a
bit for each class says whether there is one. So a push costs the same whether ten or a hundred thousand wait,
and what is called the fattest is within an eighth of it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from sys import maxsize
from typing import Protocol

from shadowmesh.fairqueue import QUEUE_FULL, FairQueue

MAX_BYTES = 8 << 20
SMALL = 1024
"""Bytes of a frame that has its turn beside its sender's larger ones."""
FRAME_COST = 128
"""Bytes that Python needs for a waiting frame beside its own; they count as memory, or else short frames
would take several times what `Memory.limit` says."""


class Owner(Protocol):
    """Whose outbox it is."""

    def lose(self, reason: str, destination: bytes = b"", frames: int = 1) -> None:
        """So many of its frames are lost."""


class Memory:
    """What the outboxes of a relay share: bounds, what they hold together, and which of them hold how much.

    max_frames: of one outbox; limit, used: bytes of all, with `FRAME_COST`, and what waits in connections;
    frames: of all.
    """

    __slots__ = ("_classes", "_taken", "frames", "limit", "max_frames", "used")

    def __init__(self, max_frames: int, limit: int) -> None:
        self.max_frames = max_frames
        self.limit = limit
        self.used = 0
        self.frames = 0
        self._classes: dict[int, OrderedDict[Outbox, None]] = {}
        self._taken = 0  # bit n: class n has an outbox

    def has_room(self, size: int) -> bool:
        """Whether a frame of `size` bytes may wait without the loss of another."""
        return self.used + size + FRAME_COST <= self.limit

    def resize(self, max_frames: int, limit: int) -> None:
        """Set the bounds. Above the limit frames are dropped at once, above `max_frames` at the next push."""
        self.max_frames, self.limit = max_frames, limit
        self.shrink()

    def charge(self, size: int) -> bool:
        """Count bytes that wait elsewhere; whether there is room, if need be at the cost of the fattest.

        The bytes are counted anyway, and given back by `used`.
        """
        self.used += size
        self.shrink()
        return self.used <= self.limit

    def shrink(self) -> None:
        """Drop frames of the fattest until all are within the limit (`relay_memory`)."""
        while self._taken and self.used > self.limit:
            fattest = next(iter(self._classes[self._taken.bit_length() - 1]))
            fattest.drop("relay_memory")

    def place(self, outbox: Outbox) -> None:
        """Sort an outbox in, whose size has left the bounds of its class."""
        old, size = outbox.size_class, outbox.bytes
        if old:
            same = self._classes[old]
            del same[outbox]
            if not same:
                del self._classes[old]
                self._taken ^= 1 << old
        if not size:
            outbox.size_class, outbox.least, outbox.most = 0, 1, 0
            return
        # The highest four bits of a size say its class, so sizes up to 15 have one each.
        shift = max(0, size.bit_length() - 4)
        high = size >> shift
        outbox.size_class = new = 8 * shift + high
        outbox.least, outbox.most = high << shift, ((high + 1) << shift) - 1
        self._classes.setdefault(new, OrderedDict())[outbox] = None
        self._taken |= 1 << new


class Outbox:
    """The waiting frames of one connection, with the time each was read.

    bytes: of its frames, with `FRAME_COST`; size_class: of `Memory`, for sizes from `least` to `most`, 0 when
    it is empty.
    """

    __slots__ = ("_max_bytes", "_memory", "_queue", "bytes", "least", "most", "owner", "size_class")

    def __init__(self, memory: Memory, owner: Owner, max_bytes: int = MAX_BYTES) -> None:
        # A turn is as long as bulk frames usually are; the bounds are kept here.
        self._queue: FairQueue[tuple[bytes, float]] = FairQueue(
            maxsize, maxsize, self._lost, quantum=16384, shared=True
        )
        self._max_bytes = max_bytes
        self._memory = memory
        self.owner = owner
        self.bytes = 0
        self.size_class, self.least, self.most = 0, 1, 0

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, frame: bytes, read_at: float, sender: Hashable) -> None:
        """Queue a frame, dropping the oldest while a bound is exceeded (`queue_full`, `relay_memory`)."""
        memory, queue, size = self._memory, self._queue, len(frame) + FRAME_COST
        while len(queue) and (len(queue) >= memory.max_frames or self.bytes + size > self._max_bytes):
            queue.drop(QUEUE_FULL)
        memory.frames += 1
        memory.used += size
        self.bytes += size
        queue.push((sender, len(frame) <= SMALL), (frame, read_at), size, read_at)
        if self.bytes > self.most:
            memory.place(self)
        if memory.used > memory.limit:
            memory.shrink()

    def pop(self, now: float) -> tuple[bytes, float] | None:
        """The frame whose turn it is and when it was read; None if there is none.

        Drops what has waited for too long (`queue_delay`).
        """
        item = self._queue.pop(now)
        if item is not None:
            self._taken(item[0])
        return item

    def drop(self, reason: str) -> None:
        """Drop a frame of the sender with the most bytes, its oldest. Something has to wait."""
        self._queue.drop(reason)

    def _lost(self, item: tuple[bytes, float], reason: str) -> None:
        self._taken(item[0])
        self.owner.lose(reason)

    def _taken(self, frame: bytes) -> None:
        memory, size = self._memory, len(frame) + FRAME_COST
        memory.frames -= 1
        memory.used -= size
        self.bytes -= size
        if self.bytes < self.least:
            memory.place(self)

    def clear(self, reason: str) -> None:
        """Drop everything, counted under `reason`."""
        if frames := len(self._queue.clear()):
            memory = self._memory
            memory.frames -= frames
            memory.used -= self.bytes
            self.bytes = 0
            memory.place(self)
            self.owner.lose(reason, frames=frames)
