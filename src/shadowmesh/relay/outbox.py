"""Frames that wait while a client's socket takes no more: bounded, oldest dropped first.

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

from collections import OrderedDict, deque
from typing import Protocol

MAX_BYTES = 8 << 20
FRAME_COST = 128
"""Bytes that Python needs for a waiting frame beside its own; they count as memory, or else short frames
would take several times what `Memory.limit` says."""


class Owner(Protocol):
    """Whose outbox it is."""

    def lose(self, reason: str, destination: bytes = b"", frames: int = 1) -> None:
        """So many of its frames are lost."""


class Memory:
    """What the outboxes of a relay share: bounds, what they hold together, and which of them hold how much.

    max_frames: of one outbox; limit, used: bytes of all, with `FRAME_COST`; frames: of all.
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

    def shrink(self) -> None:
        """Drop frames of the fattest until all are within the limit (`relay_memory`)."""
        while self._taken and self.used > self.limit:
            fattest = next(iter(self._classes[self._taken.bit_length() - 1]))
            fattest.pop()
            fattest.owner.lose("relay_memory")

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

    __slots__ = ("_frames", "_max_bytes", "_memory", "bytes", "least", "most", "owner", "size_class")

    def __init__(self, memory: Memory, owner: Owner, max_bytes: int = MAX_BYTES) -> None:
        self._frames: deque[tuple[bytes, float]] = deque()
        self._max_bytes = max_bytes
        self._memory = memory
        self.owner = owner
        self.bytes = 0
        self.size_class, self.least, self.most = 0, 1, 0

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: bytes, read_at: float) -> None:
        """Queue `frame`, dropping the oldest while a bound is exceeded (`queue_full`, `relay_memory`)."""
        memory, frames, size = self._memory, self._frames, len(frame) + FRAME_COST
        while frames and (len(frames) >= memory.max_frames or self.bytes + size > self._max_bytes):
            self.pop()
            self.owner.lose("queue_full")
        frames.append((frame, read_at))
        memory.frames += 1
        memory.used += size
        self.bytes += size
        if self.bytes > self.most:
            memory.place(self)
        if memory.used > memory.limit:
            memory.shrink()

    def pop(self) -> tuple[bytes, float]:
        """The oldest frame and when it was read. IndexError if there is none."""
        item = self._frames.popleft()
        memory, size = self._memory, len(item[0]) + FRAME_COST
        memory.frames -= 1
        memory.used -= size
        self.bytes -= size
        if self.bytes < self.least:
            memory.place(self)
        return item

    def clear(self, reason: str) -> None:
        """Drop everything, counted under `reason`."""
        if frames := len(self._frames):
            memory = self._memory
            memory.frames -= frames
            memory.used -= self.bytes
            self._frames.clear()
            self.bytes = 0
            memory.place(self)
            self.owner.lose(reason, frames=frames)
