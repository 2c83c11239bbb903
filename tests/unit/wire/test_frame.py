"""Data frames: layout, and what is refused."""

from __future__ import annotations

import pytest

from shadowmesh.errors import FrameError
from shadowmesh.wire.frame import DATA, HEADER_SIZE, MAX_FRAME, MIN_FRAME, MIN_MAX_FRAME, pack, unpack

DESTINATION = bytes(range(16))
SOURCE = bytes(range(16, 32))


def test_layout() -> None:
    assert pack(DESTINATION, SOURCE, memoryview(b"xy")).hex() == "10" + bytes(range(32)).hex() + "7879"
    assert len(pack(DESTINATION, SOURCE, b"x")) == HEADER_SIZE + 1 == MIN_FRAME
    # The largest sealed message: 16 bytes of header, 65,600 of plaintext, 16 of tag.
    assert HEADER_SIZE + 16 + 65_600 + 16 <= MIN_MAX_FRAME < MAX_FRAME


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_unpack(kind: type[bytes]) -> None:
    destination, source, payload = unpack(kind(pack(DESTINATION, SOURCE, b"payload")))
    assert (destination, source, bytes(payload)) == (DESTINATION, SOURCE, b"payload")


def test_payload_is_no_copy() -> None:
    frame = bytearray(pack(DESTINATION, SOURCE, b"x"))
    frame[-1:] = b"y"
    assert bytes(unpack(frame)[2]) == b"y"


@pytest.mark.parametrize("frame", [b"", bytes([DATA]), pack(DESTINATION, SOURCE, b""), b"\x11" + bytes(40)])
def test_refused(frame: bytes) -> None:
    with pytest.raises(FrameError):
        unpack(frame)
