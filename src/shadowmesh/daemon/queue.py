"""Packets that wait for a slow link: fair between connections, and short (`shadowmesh.fairqueue`).

The kernel's queue of a TUN device is 500 packets of up to 64 KiB, first come, first served: seconds on a
usual uplink. So what a link does not take soon is read into this one. Each link has its own, so that a full
one holds nothing up but itself, and so has each address for which a relay has much waiting.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from sys import maxsize

from shadowmesh.fairqueue import QUANTUM, QUEUE_FULL, TARGET, FairQueue
from shadowmesh.mesh.peer import Flow
from shadowmesh.wire import ip, offload, record

MAX_BYTES = 16 << 20
MAX_PACKETS = 4096
MESSAGE_SECONDS = 0.004
"""What one message takes on the link: for so long a small packet may have to wait for the one before it."""
LEAST_MESSAGE = 2800
LONG_MESSAGE = 48 * 1024
"""Bytes of a message that nothing more is added to, but for a bulk transfer on a fast link."""
LEAST_PIECE = 8 * 1024
"""Packets are not cut below this while the link takes all: pieces cost time, and a burst may be beginning."""
_MEASURED = 0.1  # seconds over which the link's rate is measured
_PADDING = bytes(record.MOST_PADDING)

Packet = tuple[bytes, int, bytearray]
"""`ip.flow_key`, kind of the record, and the record with room for padding behind it."""


class PacketQueue:
    """One link, and what the engine has read from the TUN device and the link has not taken.

    dropped: called with the reason for each packet that is lost. link: the queue of the link, where this is
    of an address; target: seconds that packets may wait (`shadowmesh.fairqueue`). message: bytes that are
    worth sending at once, by the rate at which they are sent. most: bytes of a packet that goes in one piece
    past this queue. rate: bytes per second that were sent of late. open: the link takes more; waits: packets
    have to go through here, until `slow_until`; blocked_at: when it was last not open.
    """

    def __init__(
        self, dropped: Callable[[str], None], link: PacketQueue | None = None, target: float = TARGET
    ) -> None:
        self._queue: FairQueue[Packet] = FairQueue(
            MAX_BYTES if link is None else maxsize,
            MAX_PACKETS,
            lambda _, reason: dropped(reason),
            _mark,
            quantum=QUANTUM if link is None else LONG_MESSAGE,  # where packets are not cut, turns are longer
            target=target,
        )
        self.link = link
        self.open = True
        self.waits = False
        self.slow_until = self.blocked_at = 0.0
        self.batch = bytearray()  # records for `flow` that have left the queue, and not been sent yet
        self.flow: Flow | None = None
        self.message = LONG_MESSAGE // 4
        self.most = offload.MAX_RECORD
        self.rate = 0.0
        self._since = 0.0
        self._sent = 0

    def __len__(self) -> int:
        return len(self._queue) + bool(self.batch)

    def push(self, kind: int, body: memoryview, now: float) -> None:
        """Add the record of an IP packet; on a slow link one with many segments in pieces.

        Raises OffloadError as `offload.split` does.
        """
        start = offload.HEADER_SIZE if kind == record.OFFLOAD else 0
        key, connection = ip.flow_key(body, start, len(body)), ip.connection_key(body, start)
        if kind == record.OFFLOAD and body[1] and self.message < min(len(body), LONG_MESSAGE):
            pieces: Iterable[tuple[int, memoryview | bytes]] = offload.split(body, self.message)
        else:
            pieces = ((kind, body),)
        for kind, piece in pieces:
            size = len(piece)
            packet = bytearray().join((record.header.pack(kind << 24 | size), piece, _PADDING))
            self._queue.push(connection, (key, kind, packet), size, now)

    @property
    def bytes(self) -> int:
        """What waits, without a batch that is about to be sent."""
        return self._queue.bytes

    def shed(self) -> None:
        """Drop a packet of the connection that has most waiting. Something has to wait."""
        self._queue.drop(QUEUE_FULL)

    def may_pass(self, body: memoryview, kind: int) -> bool:
        """Whether the record of a packet overtakes nothing of its own connection if it does not wait here."""
        start = offload.HEADER_SIZE if kind == record.OFFLOAD else 0
        return not self.batch and not self._queue.holds(ip.connection_key(body, start))

    @property
    def passable(self) -> bool:
        """Whether what waits here may go."""
        return self.open and (self.link is None or self.link.open or self.link.waits)

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
                self.message = min(max(best, LEAST_MESSAGE), record.LARGEST_PLAINTEXT)
                self.most = max(self.message, LEAST_PIECE) if best < LONG_MESSAGE else offload.MAX_RECORD
            self._since, self._sent = now, 0


def _mark(packet: Packet) -> bool:
    _, kind, whole = packet
    body = memoryview(whole)[record.HEADER_SIZE : -record.MOST_PADDING]
    return ip.mark_congestion(body[offload.HEADER_SIZE if kind == record.OFFLOAD else 0 :])
