"""A TUN device without a kernel behind it, for tests."""

from __future__ import annotations

import socket
from collections.abc import Sequence

from shadowmesh.errors import OffloadError, TunError
from shadowmesh.tun.base import Network, TunDevice
from shadowmesh.wire import offload
from shadowmesh.wire.ip import Bytes


class MemoryTun(TunDevice):
    """One end of a pair: what one end writes, the other reads, with real file descriptors for an event loop.

    Without `offload` only finished packets come out, as from a kernel without virtio_net_hdr.
    """

    def __init__(self, end: socket.socket, name: str, mtu: int, *, offload: bool) -> None:
        end.setblocking(False)
        self.name = name
        self.mtu = mtu
        self.offload = ("csum", "tso4", "tso6", "ecn", "uso") if offload else ()
        self.warnings = ()
        self.routes: tuple[Network, ...] = ()
        self._end = end

    def fileno(self) -> int:
        return self._end.fileno()

    def read_into(self, buffer: memoryview) -> int:
        try:
            size = self._end.recv_into(buffer)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise TunError(f"TUN device {self.name} is gone: {error.strerror}") from error
        if not size:
            raise TunError(f"TUN device {self.name} is gone")
        return size

    def write(self, record: memoryview) -> bool:
        if self.offload:
            return self._send(record)
        try:
            written = [self.write_packet(packet) for packet in offload.segment(record)]
        except OffloadError:
            return False
        return all(written)

    def write_packet(self, packet: Bytes) -> bool:
        return self._send(offload.PLAIN, packet)

    def _send(self, *parts: Bytes) -> bool:
        try:
            self._end.sendmsg(parts)
        except OSError:
            return False
        return True

    def set_routes(self, routes: Sequence[Network]) -> None:
        self.routes = tuple(routes)

    def close(self) -> None:
        self._end.close()


def memory_pair(mtu: int = 1400, *, offload: bool = True) -> tuple[MemoryTun, MemoryTun]:
    """(device for the program under test, the kernel's side of it for the test).

    Without `offload`, both sides cut what is written to them. A few hundred kilobytes fit between them, then
    writes return False.
    """
    # SOCK_SEQPACKET keeps the bounds of records and shows the other side's end, which datagrams do not.
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return MemoryTun(ours, "memory0", mtu, offload=offload), MemoryTun(theirs, "kernel", mtu, offload=offload)
