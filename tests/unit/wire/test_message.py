"""Peer messages: the three that make a handshake, and their sizes."""

from __future__ import annotations

import pytest

from shadowmesh.errors import MessageError
from shadowmesh.wire.message import (
    ANSWER_OVERHEAD,
    FINISH_OVERHEAD,
    HELLO_SIZE,
    MAX_HANDSHAKE_PAYLOAD,
    SEALED,
    Answer,
    Finish,
    Hello,
    pack_answer,
    pack_finish,
    pack_hello,
    unpack_handshake,
)

HELLO = pack_hello(b"send", bytes(1248))
ANSWER = pack_answer(b"send", b"recv", bytes(1200))
FINISH = pack_finish(b"send", b"recv", bytes(64))


def test_sizes_of_the_page() -> None:
    assert (len(HELLO), len(ANSWER), len(FINISH)) == (HELLO_SIZE, ANSWER_OVERHEAD, FINISH_OVERHEAD)
    assert (HELLO_SIZE, ANSWER_OVERHEAD, FINISH_OVERHEAD) == (1256, 1212, 76)


def test_what_was_packed_is_unpacked() -> None:
    assert unpack_handshake(HELLO) == Hello(b"send", bytes(1248))
    assert unpack_handshake(ANSWER + b"more") == Answer(b"send", b"recv", bytes(1200) + b"more")
    assert unpack_handshake(FINISH + b"more") == Finish(b"send", b"recv", bytes(64) + b"more")


@pytest.mark.parametrize("message", [ANSWER, FINISH])
def test_the_longest_payload(message: bytes) -> None:
    unpack_handshake(message + bytes(MAX_HANDSHAKE_PAYLOAD))
    with pytest.raises(MessageError):
        unpack_handshake(message + bytes(MAX_HANDSHAKE_PAYLOAD + 1))


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"\x11",
        HELLO[:-1],
        HELLO + b"\x00",
        ANSWER[:-1],
        FINISH[:-1],
        SEALED + bytes(1252),
        b"\x10" + HELLO[1:],
        b"\x15" + HELLO[1:],
        b"\x21" + HELLO[1:],  # version 2
        HELLO[:3] + b"\x01" + HELLO[4:],
        ANSWER[:1] + b"\x01" + ANSWER[2:],
    ],
)
def test_anything_else_is_refused(message: bytes) -> None:
    with pytest.raises(MessageError):
        unpack_handshake(message)
