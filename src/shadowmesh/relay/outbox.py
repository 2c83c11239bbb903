"""Frames that wait while a client's socket takes no more: bounded, oldest dropped first.

A fresh packet is worth more than an old one (its sender has long sent the old one again), so a full outbox
loses its head, as in tailscale's `derpserver.go`. Three bounds hold at any time:

- `max_frames` frames (`queue_size` of the configuration);
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
    """What all outboxes of a relay hold together, in bytes and frames."""

    __slots__ = ("frames", "limit", "used")

    def __init__(self, limit: int = MAX_TOTAL_BYTES) -> None:
        self.limit = limit
        self.used = 0
        self.frames = 0


class Outbox:
    """FIFO of (frame, time it was queued). Drops are counted in `drops` under their reason."""

    __slots__ = ("_drops", "_frames", "_max_bytes", "_max_frames", "_memory", "bytes")

    def __init__(
        self, max_frames: int, drops: Counter[str], memory: Memory, max_bytes: int = MAX_BYTES
    ) -> None:
        self._frames: deque[tuple[bytes, float]] = deque()
        self._max_frames = max_frames
        self._max_bytes = max_bytes
        self._drops = drops
        self._memory = memory
        self.bytes = 0

    def __len__(self) -> int:
        return len(self._frames)

    def push(self, frame: bytes, now: float) -> None:
        """Queue `frame`, dropping the oldest while a bound is exceeded (`queue_full`, `relay_memory`)."""
        memory, size = self._memory, len(frame)
        while self._frames and (len(self._frames) >= self._max_frames or self.bytes + size > self._max_bytes):
            self.pop()
            self._drops["queue_full"] += 1
        while self._frames and memory.used + size > memory.limit:
            self.pop()
            self._drops["relay_memory"] += 1
        if memory.used + size > memory.limit:
            self._drops["relay_memory"] += 1
            return
        self._frames.append((frame, now))
        self.bytes += size
        memory.used += size
        memory.frames += 1

    def pop(self) -> tuple[bytes, float]:
        """The oldest frame and when it was queued. IndexError if there is none."""
        item = self._frames.popleft()
        size = len(item[0])
        self.bytes -= size
        self._memory.used -= size
        self._memory.frames -= 1
        return item

    def clear(self, reason: str) -> None:
        """Drop everything, counted under `reason`."""
        self._drops[reason] += len(self._frames)
        while self._frames:
            self.pop()
