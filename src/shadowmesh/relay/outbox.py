"""Frames that wait while a client's socket takes no more: bounded, oldest dropped first.

A fresh packet is worth more than an old one (its sender has long sent the old one again), so a full outbox
loses its head, as in tailscale's `derpserver.go`. Three bounds hold at any time:

- `Memory.max_frames` frames (`queue_size` of the configuration);
- `MAX_BYTES` per connection: more than the 6 MiB that Linux allows as receive window of one TCP connection
  (`tcp_rmem`), so that a single flow fills its window before anything is dropped, and still less than a
  second of delay at 100 Mbit/s;
- `Memory.limit` bytes for all connections together, so that many slow readers cannot take the host's memory.
"""

from __future__ import annotations

from collections import Counter, deque

MAX_BYTES = 8 << 20
MAX_TOTAL_BYTES = 256 << 20


class Memory:
    """What the outboxes of a relay share: bounds, the counter of drops, what they hold together.

    max_frames: of one outbox; limit, used: bytes of all; frames: of all.
    """

    __slots__ = ("drops", "frames", "limit", "max_frames", "used")

    def __init__(self, max_frames: int, drops: Counter[str], limit: int = MAX_TOTAL_BYTES) -> None:
        self.max_frames = max_frames
        self.drops = drops
        self.limit = limit
        self.used = 0
        self.frames = 0


class Outbox:
    """The waiting frames of one connection, with the time each was read."""

    __slots__ = ("_frames", "_max_bytes", "_memory", "bytes")

    def __init__(self, memory: Memory, max_bytes: int = MAX_BYTES) -> None:
        self._frames: deque[tuple[bytes, float]] = deque()
        self._max_bytes = max_bytes
        self._memory = memory
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: bytes, read_at: float) -> None:
        """Queue `frame`, dropping the oldest while a bound is exceeded (`queue_full`, `relay_memory`)."""
        memory, frames, size = self._memory, self._frames, len(frame)
        while frames and (len(frames) >= memory.max_frames or self.bytes + size > self._max_bytes):
            self.pop()
            memory.drops["queue_full"] += 1
        while frames and memory.used + size > memory.limit:
            self.pop()
            memory.drops["relay_memory"] += 1
        if memory.used + size > memory.limit:
            memory.drops["relay_memory"] += 1
            return
        frames.append((frame, read_at))
        self.bytes += size
        memory.used += size
        memory.frames += 1

    def pop(self) -> tuple[bytes, float]:
        """The oldest frame and when it was read. IndexError if there is none."""
        item = self._frames.popleft()
        size = len(item[0])
        self.bytes -= size
        self._memory.used -= size
        self._memory.frames -= 1
        return item

    def clear(self, reason: str) -> None:
        """Drop everything, counted under `reason`."""
        self._memory.drops[reason] += len(self._frames)
        while self._frames:
            self.pop()
