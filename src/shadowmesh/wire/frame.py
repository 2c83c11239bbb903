"""The data frame between client and relay, protocol section 3.

    10 ‖ destination 16 ‖ source 16 ‖ payload        34 … max_frame bytes, one WebSocket BINARY message

The relay passes it on unchanged. Hot paths slice by hand with these constants.
"""

from __future__ import annotations

from shadowmesh.errors import FrameError

DATA = 0x10
ADDRESS_SIZE = 16
HEADER_SIZE = 33
MIN_FRAME = 34
MAX_FRAME = 131072
"""What a relay of ours announces as `max_frame`."""
MIN_MAX_FRAME = 66048
"""The least `max_frame` a relay may announce: room for the largest sealed message, 65,632 + 33 bytes."""


def pack(destination: bytes, source: bytes, payload: bytes | bytearray | memoryview) -> bytes:
    """Return the frame that carries `payload` from one blind address (16 bytes) to another."""
    return b"".join((b"\x10", destination, source, payload))


def unpack(frame: bytes | bytearray | memoryview) -> tuple[bytes, bytes, memoryview]:
    """Return (destination, source, payload); the payload is a view into `frame`.

    Raises FrameError when it is too short, or its first byte is not DATA.
    """
    if len(frame) < MIN_FRAME:
        raise FrameError(f"data frame of {len(frame)} bytes, the least is {MIN_FRAME}")
    if frame[0] != DATA:
        raise FrameError(f"data frame of unknown type {frame[0]:#04x}")
    view = memoryview(frame)
    return bytes(view[1:17]), bytes(view[17:HEADER_SIZE]), view[HEADER_SIZE:]
