"""Sealed messages of one session: ChaCha20-Poly1305 (RFC 8439), an explicit counter, a replay window.

Hot path: both sides work into buffers of the caller and allocate nothing but views.
"""

from __future__ import annotations

import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shadowmesh.errors import LocalProtocolError, SealedError

HEADER_SIZE = 16  # type 1 ‖ zeros 3 ‖ receiver index 4 ‖ counter 8 (little-endian)
TAG_SIZE = 16
OVERHEAD = HEADER_SIZE + TAG_SIZE
WINDOW = 8192  # how far behind the highest counter a message may still arrive: 512 MiB of bulk
COUNTER_LIMIT = 2**64 - 1

_TYPE_SEALED = b"\x14\x00\x00\x00"
_COUNTER_AT = 8

_header = struct.Struct("<8sQ")
_nonce = struct.Struct("<4xQ")
_counter = struct.Struct("<Q")

# One block more than the window needs, rounded up so that the ring index is a mask (RFC 6479).
_BLOCKS = 256
_BLOCK_MASK = _BLOCKS - 1


class ReplayWindow:
    """Accepts each counter at most once, and none that is WINDOW or more behind the highest (RFC 6479)."""

    __slots__ = ("_bits", "highest")

    def __init__(self) -> None:
        self.highest = -1
        self._bits = [0] * _BLOCKS

    def accept(self, counter: int) -> bool:
        """Whether this counter is new; it is remembered. Call it for verified messages only."""
        highest = self.highest
        block = counter >> 6
        if counter > highest:
            if counter >= COUNTER_LIMIT:
                return False  # reserved (Noise section 5.1)
            top = highest >> 6
            if block != top:
                bits = self._bits
                for i in range(max(top + 1, block - _BLOCKS + 1), block + 1):
                    bits[i & _BLOCK_MASK] = 0
            self.highest = counter
        elif counter <= highest - WINDOW:
            return False
        bit = 1 << (counter & 63)
        i = block & _BLOCK_MASK
        if self._bits[i] & bit:
            return False
        self._bits[i] |= bit
        return True

    def missing(self) -> tuple[int, int]:
        """(counters not accepted yet, counters in all) of those within WINDOW behind the highest."""
        first, end = max(0, self.highest + 1 - WINDOW), self.highest + 1
        seen = 0
        for block in range(first >> 6, (end + 63) >> 6):
            bits = self._bits[block & _BLOCK_MASK]
            if block == first >> 6:
                bits &= -1 << (first & 63)
            seen += bits.bit_count()  # above the highest there are none
        return end - first - seen, end - first


class Sealer:
    """The sending half of a session. key: 32 bytes; receiver_index: the 4 bytes that the other side chose."""

    __slots__ = ("_aead", "_prefix", "counter")

    def __init__(self, key: bytes, receiver_index: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._prefix = _TYPE_SEALED + receiver_index
        self.counter = 0

    def seal_into(self, plaintext: memoryview | bytes, out: memoryview) -> int:
        """Write one sealed message to the front of `out`, which has room for len(plaintext) + OVERHEAD.

        Returns the message's size. Raises LocalProtocolError when the counter is used up.
        """
        counter = self.counter
        if counter >= COUNTER_LIMIT:
            raise LocalProtocolError("this session's counter is used up")
        self.counter = counter + 1
        size = len(plaintext) + OVERHEAD
        _header.pack_into(out, 0, self._prefix, counter)
        self._aead.encrypt_into(_nonce.pack(counter), plaintext, None, out[HEADER_SIZE:size])
        return size

    def seal(self, plaintext: bytes) -> bytes:
        """One sealed message as bytes, for the few small ones beside the data path."""
        out = bytearray(len(plaintext) + OVERHEAD)
        self.seal_into(plaintext, memoryview(out))
        return bytes(out)


class Opener:
    """The receiving half of a session."""

    __slots__ = ("_aead", "_window")

    def __init__(self, key: bytes) -> None:
        self._aead = ChaCha20Poly1305(key)
        self._window = ReplayWindow()

    def open_into(self, message: memoryview, out: memoryview) -> int:
        """Write the plaintext of one sealed message to the front of `out`; returns its size.

        Raises SealedError for a forgery and for a replay; a message that fails changes nothing.
        """
        size = len(message) - OVERHEAD
        if size < 0 or size > len(out):
            raise SealedError("a sealed message has a wrong size")
        (counter,) = _counter.unpack_from(message, _COUNTER_AT)
        try:
            self._aead.decrypt_into(_nonce.pack(counter), message[HEADER_SIZE:], None, out[:size])
        except InvalidTag:
            raise SealedError("a sealed message does not verify") from None
        if not self._window.accept(counter):
            raise SealedError("a sealed message was replayed or comes too late")
        return size

    @property
    def highest(self) -> int:
        """The highest counter that was accepted so far, -1 before the first."""
        return self._window.highest

    def missing(self) -> tuple[int, int]:
        """(not come, sealed) of the last WINDOW messages of the other side, up to the highest that came."""
        return self._window.missing()
