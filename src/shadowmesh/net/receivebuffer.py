"""How much a fast TCP connection holds that has come and not been read: what is small waits behind it all.

Linux lets the receive buffer grow while the process reads late, to 6 MiB and more (`tcp_rmem`). At full
speed, where processes have to wait for a core, that is 10 ms and more, and pays for nothing: what a sender
needs under way is what the line takes in one round trip. So the buffer is bounded to that on short ways (a
LAN, the same host). On longer ways Linux' own bound is the smaller one, and stays.
"""

from __future__ import annotations

import socket
import struct
import sys
from contextlib import suppress

from shadowmesh.net.sendbuffer import RECEIVE_LOCK, unlock

RATE = 1.25e9
"""Bytes per second, 10 Gbit/s, for which there is to be room, twice."""
LEAST = 512 * 1024
"""Bytes: several reads, so that the sender goes on while we do not."""
MOST = 4 << 20
"""What needs more is left to the system."""

_SO_RCVBUFFORCE = 33  # asm-generic/socket.h
_info = struct.Struct("=148xI")  # min_rtt, microseconds: struct tcp_info of linux/tcp.h


class ReceiveBuffer:
    """Keeps one TCP socket's receive buffer so. Does nothing where the system has no such thing."""

    __slots__ = ("_connection", "_size")

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._size = 0

    def look(self) -> None:
        """Set it by the round trip; to be called now and then, as ways change."""
        if sys.platform != "linux":
            return
        connection = self._connection
        with suppress(OSError, struct.error):  # a kernel before 5.14, or a socket that is gone
            info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _info.size)
            (round_trip,) = _info.unpack(info)
            size = max(int(2 * RATE * round_trip / 1e6), LEAST)
            if size > MOST:
                self._release()
            elif not self._size / 2 < size < self._size * 2:
                unlock(connection, RECEIVE_LOCK)
                self._size = size
                self._set(size)

    def _set(self, size: int) -> None:
        connection = self._connection
        try:
            connection.setsockopt(socket.SOL_SOCKET, _SO_RCVBUFFORCE, size)
        except PermissionError:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size)
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) < 2 * size:
            unlock(connection, RECEIVE_LOCK)  # net.core.rmem_max allows less: the system's is better

    def _release(self) -> None:
        if self._size:
            self._size = 0
            unlock(self._connection, RECEIVE_LOCK)
