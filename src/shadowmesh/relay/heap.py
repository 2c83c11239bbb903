"""A heap that is kept: frames that wait for a moment do not come as new pages each time."""

from __future__ import annotations

import ctypes
import sys
from contextlib import suppress

KEPT = 4 << 20
"""Bytes at the end of the heap that stay when they are free: less would not do under eight streams."""
LARGEST = 1 << 20
"""Bytes from which on an allocation has pages of its own: by default 128 KiB, the size of a frame."""
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # malloc.h


def keep_heap() -> None:
    """Have glibc keep some of what is freed at the end of its heap (mallopt(3)).

    By default it gives back what is more than 256 KiB, and the kernel has to clear each page that is new
    again: a tenth of a relay's processor time under bulk. A daemon, seldom busy, better gives it back.
    """
    if sys.platform == "linux":
        with suppress(AttributeError):  # another C library
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_TRIM_THRESHOLD, KEPT)
            mallopt(_M_MMAP_THRESHOLD, LARGEST)
