"""What waits for addresses for which a relay has much waiting already: a queue for each, until it has less.

At full speed whoever sends is faster than whoever receives, and what is too much has to wait somewhere. At
the relay it would be lost, or hold up what others send; in the TUN device what is small would wait behind.
"""

from __future__ import annotations

from asyncio import AbstractEventLoop, Handle, TimerHandle
from collections.abc import Callable
from math import inf

from shadowmesh.daemon.queue import PacketQueue

HELD_FOR = 1.0
"""Seconds after which a relay that has not said so is taken to have room again."""
MOST_HELD = 16
"""Addresses with a queue of their own."""
HELD_BYTES = 64 << 20
"""In all these queues: the windows of some TCP connections at full speed, so that nothing has to be lost."""
TARGET = 0.2
"""Seconds that packets may wait: the windows of many connections, on a machine that has other work, too."""
TURN = 512 * 1024
"""Bytes that go out of such a queue before the relay is listened to again."""


class Holds:
    """The queues, by address and link. drain: sends so many bytes from one, as far as its link takes them."""

    def __init__(
        self,
        loop: AbstractEventLoop,
        dropped: Callable[[str], None],
        drain: Callable[[PacketQueue, float, float], None],
    ) -> None:
        self.queues: dict[tuple[bytes, object], PacketQueue] = {}
        self._loop = loop
        self._dropped = dropped
        self._drain = drain
        self._more: Handle | None = None
        self._ends: TimerHandle | None = None

    def stop(self) -> None:
        """Forget everything."""
        self.queues.clear()
        for handle in (self._more, self._ends):
            if handle is not None:
                handle.cancel()

    def hold(self, address: bytes, via: object, link: PacketQueue) -> None:
        """What is for this address is to wait, and to go by `link` then."""
        queue = self.queues.get((address, via))
        if queue is None:
            if len(self.queues) >= MOST_HELD:
                return
            queue = self.queues[address, via] = PacketQueue(self._dropped, link, TARGET)
        queue.open = False
        queue.message = link.message
        queue.slow_until = self._loop.time() + HELD_FOR
        if self._ends is None:
            self._ends = self._loop.call_at(queue.slow_until, self._end)

    def release(self, address: bytes, via: object) -> None:
        """It needs not wait any more."""
        queue = self.queues.get((address, via))
        if queue is not None:
            queue.open = True
            self.drain()

    def forget(self, via: object) -> None:
        """This link is there no more: what waited for it finds another."""
        for key in [key for key in self.queues if key[1] is via]:
            queue = self.queues.pop(key)
            queue.open, queue.link = True, None
            self._drain(queue, self._loop.time(), inf)

    def bound(self) -> None:
        """Something has been added."""
        while sum(queue.bytes for queue in self.queues.values()) > HELD_BYTES:
            max(self.queues.values(), key=lambda queue: queue.bytes).shed()

    def drain(self) -> None:
        """Send what may go; the rest when others have had their turn."""
        now, more = self._loop.time(), False
        for key, queue in list(self.queues.items()):
            self._drain(queue, now, TURN)
            if queue.link is not None and queue.link.waits:
                self._drain(queue.link, now, inf)  # a slow one, which has a queue of its own
            if queue.open and not queue:
                del self.queues[key]
            else:
                more |= queue.passable
        if more and self._more is None:
            self._more = self._loop.call_soon(self._go_on)

    def _go_on(self) -> None:
        self._more = None
        self.drain()

    def _end(self) -> None:
        """A relay can have forgotten, or left; one that still has much waiting says so again."""
        now = self._loop.time()
        for queue in self.queues.values():
            queue.open |= now >= queue.slow_until
        ends = [queue.slow_until for queue in self.queues.values() if not queue.open]
        self._ends = self._loop.call_at(min(ends), self._end) if ends else None
        self.drain()
