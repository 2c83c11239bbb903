"""A network namespace for one block of a test, in the same thread."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager

_CLONE_NEWNET = 0x40000000
_SIOCSIFFLAGS = 0x8914
_IFF_UP = 1


@contextmanager
def own_namespace() -> Iterator[None]:
    """Run the block in a new network namespace with nothing but `lo`; needs root.

    Sockets and devices made in it stay there and work on after the block. It has no name, so nothing is left
    behind whatever happens: it ends with the last of them.
    """
    libc = ctypes.CDLL(None, use_errno=True)  # os.setns and os.unshare come with Python 3.12
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        if libc.unshare(_CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "cannot make a network namespace")
        try:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
                fcntl.ioctl(control, _SIOCSIFFLAGS, struct.pack("16sH22x", b"lo", _IFF_UP))
            yield
        finally:
            if libc.setns(home, _CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "cannot go back to the network namespace")
    finally:
        os.close(home)
