"""Packets that wait for a slow link: fair between connections, and short (`shadowmesh.fairqueue`).

The kernel's queue of a TUN device is 500 packets of up to 64 KiB, first come, first served: seconds on a
usual uplink. So what the link does not take soon is read into this one.
"""

from __future__ import annotations

from collections.abc import Callable

from shadowmesh.fairqueue import FairQueue
from shadowmesh.wire import ip, offload, record

MAX_BYTES = 16 << 20
MAX_PACKETS = 4096
MESSAGE_SECONDS = 0.004
"""What one message takes on the link: for so long a small packet may have to wait for the one before it."""
LEAST_MESSAGE = 2800
MOST_MESSAGE = 48 * 1024
LEAST_PIECE = 8 * 1024
"""Packets are not cut below this while the link takes all: pieces cost time, and a burst may be beginning."""
_MEASURED = 0.1  # seconds over which the link's rate is measured

Packet = tuple[bytes, int, bytearray]
"""`ip.flow_key`, kind of the record and its body."""


class PacketQueue:
    """What the engine has read from the TUN device and the link has not taken.

    dropped: called with the reason for each packet that is lost. message: bytes that are worth sending at
    once, by the rate at which they are sent. most: bytes of a packet that goes in one piece past this queue.
    rate: bytes per second that were sent of late.
    """

    def __init__(self, dropped: Callable[[str], None]) -> None:
        self._queue: FairQueue[Packet] = FairQueue(
            MAX_BYTES, MAX_PACKETS, lambda _, reason: dropped(reason), _mark
        )
        self.message = MOST_MESSAGE // 4
        self.most = offload.MAX_RECORD
        self.rate = 0.0
        self._since = 0.0
        self._sent = 0

    def __len__(self) -> int:
        return len(self._queue)

    def push(self, kind: int, body: memoryview, now: float) -> bool:
        """Add the record of a packet, one with many segments in pieces; False if it is no IP packet.

        Raises OffloadError as `offload.split` does.
        """
        if kind == record.PACKET or (kind == record.OFFLOAD and (len(body) <= self.message or not body[1])):
            return self._push(kind, body, now)
        known = True
        for piece in offload.split(body, self.message):
            known &= self._push(*piece, now)
        return known

    def _push(self, kind: int, body: memoryview | bytes, now: float) -> bool:
        start = offload.HEADER_SIZE if kind == record.OFFLOAD else 0
        key = ip.flow_key(body, start, len(body))
        if not key:
            return False
        self._queue.push(ip.connection_key(body, start), (key, kind, bytearray(body)), len(body), now)
        return True

    def pop(self, now: float) -> Packet | None:
        """The packet whose turn it is, None if none waits."""
        return self._queue.pop(now)

    def sent(self, size: int, now: float) -> None:
        """A message of `size` bytes has been sent."""
        self._sent += size
        elapsed = now - self._since
        if elapsed >= _MEASURED:
            if elapsed < 2 * _MEASURED:
                self.rate = self._sent / elapsed
                best = int(self.rate * MESSAGE_SECONDS)
                self.message = min(max(best, LEAST_MESSAGE), MOST_MESSAGE)
                self.most = max(self.message, LEAST_PIECE) if best < MOST_MESSAGE else offload.MAX_RECORD
            self._since, self._sent = now, 0


def _mark(packet: Packet) -> bool:
    _, kind, body = packet
    return ip.mark_congestion(memoryview(body)[offload.HEADER_SIZE if kind == record.OFFLOAD else 0 :])
