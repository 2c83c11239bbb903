"""Section 4: peer messages, records and the sealed session."""

from __future__ import annotations

from dataclasses import dataclass, field

from reference.aead import TagError, decrypt, encrypt

HELLO, ANSWER, FINISH, SEALED = (bytes([kind, 0, 0, 0]) for kind in (0x11, 0x12, 0x13, 0x14))
HELLO_SIZE = 1256
ANSWER_OVERHEAD, FINISH_OVERHEAD, SEALED_OVERHEAD = 1212, 76, 32

PADDING, PACKET, OFFLOAD, JSON = range(4)
MAX_RECORDS = 4096
MAX_PLAINTEXT = 65_600
KEEPALIVE = bytes.fromhex("0000000c") + bytes(12)

WINDOW = 8192
RESERVED_COUNTER = 2**64 - 1  # neither sent nor accepted


class FormatError(ValueError):
    """Bytes that are not a message or not whole records."""


class Refused(ValueError):
    """A sealed message that does not verify or was seen before."""


def prologue(network: bytes, initiator: bytes, responder: bytes) -> bytes:
    """83 bytes: who handshakes with whom, by the addresses of the hello's frame."""
    return b"shadowmesh/v1 peer\0" + network + initiator + responder


def hello(sender: int, noise: bytes) -> bytes:
    return HELLO + sender.to_bytes(4) + noise


def answer(sender: int, receiver: int, noise: bytes) -> bytes:
    return ANSWER + sender.to_bytes(4) + receiver.to_bytes(4) + noise


def finish(sender: int, receiver: int, noise: bytes) -> bytes:
    return FINISH + sender.to_bytes(4) + receiver.to_bytes(4) + noise


def record(kind: int, body: bytes) -> bytes:
    return bytes([kind]) + len(body).to_bytes(3) + body


def pad(plaintext: bytes) -> bytes:
    """Append the padding record that completes 16 bytes, where one is needed."""
    if plaintext and len(plaintext) % 16 == 0:
        return plaintext
    missing = -len(plaintext) % 16
    while missing < 4:
        missing += 16
    return plaintext + record(PADDING, bytes(missing - 4))


def records(plaintext: bytes) -> list[tuple[int, bytes]]:
    """All (kind, body) of a plaintext, padding too; raises FormatError unless they fill it exactly."""
    found: list[tuple[int, bytes]] = []
    at = 0
    while at < len(plaintext):
        end = at + 4 + int.from_bytes(plaintext[at + 1 : at + 4])
        if at + 4 > len(plaintext) or end > len(plaintext) or len(found) == MAX_RECORDS:
            raise FormatError("records do not fill the plaintext")
        found.append((plaintext[at], plaintext[at + 4 : end]))
        at = end
    return found


def nonce(counter: int) -> bytes:
    return bytes(4) + counter.to_bytes(8, "little")


def seal(key: bytes, receiver: int, counter: int, plaintext: bytes) -> bytes:
    """A whole sealed message, header included."""
    header = SEALED + receiver.to_bytes(4) + counter.to_bytes(8, "little")
    return header + encrypt(key, nonce(counter), plaintext)


@dataclass
class Receiver:
    """One direction of a session: its key and the counters it has seen, all of them."""

    key: bytes
    seen: set[int] = field(default_factory=set)

    def acceptable(self, counter: int) -> bool:
        """The replay rule for a message whose tag verifies."""
        highest = max(self.seen, default=0)
        return counter > highest - WINDOW and counter not in self.seen and counter != RESERVED_COUNTER

    def open(self, message: bytes) -> bytes:
        """The plaintext, at most once for each counter."""
        if len(message) < SEALED_OVERHEAD or message[:4] != SEALED:
            raise FormatError("not a sealed message")
        counter = int.from_bytes(message[8:16], "little")
        try:
            plaintext = decrypt(self.key, nonce(counter), message[16:])
        except TagError:
            raise Refused("tag") from None
        if not self.acceptable(counter):
            raise Refused("replay")
        self.seen.add(counter)
        return plaintext
