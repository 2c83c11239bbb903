"""Peer messages: the payload of a relay data frame, or a datagram on a direct path (docs/protocol.md, 4).

    hello   11 000000 ‖ sender index 4 ‖ Noise 1                        1256 B
    answer  12 000000 ‖ sender index 4 ‖ receiver index 4 ‖ Noise 2     1212 + P
    finish  13 000000 ‖ sender index 4 ‖ receiver index 4 ‖ Noise 3       76 + P
    sealed  14 000000 ‖ receiver index 4 ‖ counter 8, little-endian ‖ ciphertext ‖ tag 16    32 + P

An index is the four bytes by which its receiver finds the session; it is kept as bytes because that is
what a table is looked up with.
"""

from __future__ import annotations

from typing import NamedTuple

from shadowmesh.errors import MessageError

HELLO = b"\x11\x00\x00\x00"
ANSWER = b"\x12\x00\x00\x00"
FINISH = b"\x13\x00\x00\x00"
SEALED = b"\x14\x00\x00\x00"
SEALED_TYPE = 0x14

HELLO_SIZE = 1256
ANSWER_OVERHEAD = 1212
FINISH_OVERHEAD = 76
SEALED_OVERHEAD = 32
MAX_HANDSHAKE_PAYLOAD = 16_384


class Hello(NamedTuple):
    """First message of a handshake; `noise` is 1248 bytes."""

    sender: bytes
    noise: bytes


class Answer(NamedTuple):
    """Second message of a handshake."""

    sender: bytes
    receiver: bytes
    noise: bytes


class Finish(NamedTuple):
    """Third message of a handshake."""

    sender: bytes
    receiver: bytes
    noise: bytes


def pack_hello(sender: bytes, noise: bytes) -> bytes:
    """The bytes of a hello."""
    return HELLO + sender + noise


def pack_answer(sender: bytes, receiver: bytes, noise: bytes) -> bytes:
    """The bytes of an answer."""
    return ANSWER + sender + receiver + noise


def pack_finish(sender: bytes, receiver: bytes, noise: bytes) -> bytes:
    """The bytes of a finish."""
    return FINISH + sender + receiver + noise


def unpack_handshake(message: bytes) -> Hello | Answer | Finish:
    """A hello, answer or finish. Raises MessageError for any other type or an impossible size."""
    size = len(message)
    match message[:4]:
        case b"\x11\x00\x00\x00" if size == HELLO_SIZE:
            return Hello(message[4:8], message[8:])
        case b"\x12\x00\x00\x00" if ANSWER_OVERHEAD <= size <= ANSWER_OVERHEAD + MAX_HANDSHAKE_PAYLOAD:
            return Answer(message[4:8], message[8:12], message[12:])
        case b"\x13\x00\x00\x00" if FINISH_OVERHEAD <= size <= FINISH_OVERHEAD + MAX_HANDSHAKE_PAYLOAD:
            return Finish(message[4:8], message[8:12], message[12:])
    raise MessageError("not a handshake message of this version")
