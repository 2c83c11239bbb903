"""The Noise Protocol Framework (revision 34) with the KEM tokens of "hybrid forward secrecy", as data.

A pattern is a table of tokens; `HandshakeState` walks it. ShadowMesh uses `XX_HFS_PSK0` only; the other
patterns that this engine can run exist so that tests can hold it against published vectors.

Sources: Perrin, "The Noise Protocol Framework", revision 34; Perrin, "KEM-based Hybrid Forward Secrecy for
Noise", revision 1 (2018-11-17); ML-KEM is FIPS 203; X25519 is RFC 7748; ChaCha20-Poly1305 is RFC 8439.
"""

from __future__ import annotations

import copy
import hashlib
import hmac
from dataclasses import dataclass

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey, MLKEM768PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305

from shadowmesh.errors import HandshakeError, LocalProtocolError

_DH_SIZE = 32
_TAG_SIZE = 16
_KEM_PUBLIC_SIZE = 1184
_KEM_CIPHERTEXT_SIZE = 1088


@dataclass(frozen=True)
class Pattern:
    """A handshake: its full Noise name, and the tokens of each message, the initiator's first."""

    name: str
    messages: tuple[tuple[str, ...], ...]


XX_HFS_PSK0 = Pattern(
    "Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256",
    (("psk", "e", "e1"), ("e", "ee", "ekem1", "s", "es"), ("s", "se")),
)


class Ephemerals:
    """Where a handshake gets its fresh keys from: the operating system. Tests replace it by fixed keys."""

    def x25519(self) -> X25519PrivateKey:
        """A new X25519 key pair."""
        return X25519PrivateKey.generate()

    def mlkem768(self) -> MLKEM768PrivateKey:
        """A new ML-KEM-768 key pair."""
        return MLKEM768PrivateKey.generate()

    def encapsulate(self, public_key: bytes) -> tuple[bytes, bytes]:
        """(32-byte shared secret, 1088-byte ciphertext) for a 1184-byte encapsulation key; ValueError."""
        return MLKEM768PublicKey.from_public_bytes(public_key).encapsulate()


def _hkdf(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    temporary = hmac.digest(chaining_key, material, "sha256")
    out = [hmac.digest(temporary, b"\x01", "sha256")]
    for i in range(2, outputs + 1):
        out.append(hmac.digest(temporary, out[-1] + bytes((i,)), "sha256"))
    return out


class _SymmetricState:
    """Noise sections 5.1 and 5.2 in one. All fields are immutable, so a shallow copy is a snapshot."""

    __slots__ = ("_chaining_key", "_hash", "_key", "_nonce")

    def __init__(self, protocol_name: str) -> None:
        name = protocol_name.encode()
        self._hash = name.ljust(32, b"\x00") if len(name) <= 32 else hashlib.sha256(name).digest()
        self._chaining_key = self._hash
        self._key: ChaCha20Poly1305 | None = None
        self._nonce = 0

    def mix_hash(self, data: bytes) -> None:
        self._hash = hashlib.sha256(self._hash + data).digest()

    def mix_key(self, material: bytes) -> None:
        self._chaining_key, key = _hkdf(self._chaining_key, material, 2)
        self._key, self._nonce = ChaCha20Poly1305(key), 0

    def mix_key_and_hash(self, material: bytes) -> None:
        self._chaining_key, hashed, key = _hkdf(self._chaining_key, material, 3)
        self.mix_hash(hashed)
        self._key, self._nonce = ChaCha20Poly1305(key), 0

    @property
    def overhead(self) -> int:
        return 0 if self._key is None else _TAG_SIZE

    def _next_nonce(self) -> bytes:
        nonce = bytes(4) + self._nonce.to_bytes(8, "little")
        self._nonce += 1
        return nonce

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        data = plaintext
        if self._key is not None:
            data = self._key.encrypt(self._next_nonce(), plaintext, self._hash)
        self.mix_hash(data)
        return data

    def decrypt_and_hash(self, data: bytes) -> bytes:
        plaintext = data
        if self._key is not None:
            plaintext = self._key.decrypt(self._next_nonce(), data, self._hash)
        self.mix_hash(data)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        first, second = _hkdf(self._chaining_key, b"", 2)
        return first, second

    @property
    def hash(self) -> bytes:
        return self._hash


class HandshakeState:
    """One side of one handshake. `write_message` and `read_message` are called in turn, as the pattern says.

    static: our X25519 key. psk: 32 bytes, for patterns with a psk token.
    A read that fails raises HandshakeError and leaves the state as it was, so a forgery costs nothing.
    """

    def __init__(
        self,
        pattern: Pattern,
        *,
        initiator: bool,
        prologue: bytes,
        static: X25519PrivateKey,
        psk: bytes | None = None,
        ephemerals: Ephemerals | None = None,
    ) -> None:
        self._pattern = pattern
        self._initiator = initiator
        self._static = static
        self._psk = psk
        self._uses_psk = any("psk" in tokens for tokens in pattern.messages)
        if self._uses_psk and (psk is None or len(psk) != 32):
            raise LocalProtocolError("this pattern needs a psk of 32 bytes")
        self._ephemerals = ephemerals or Ephemerals()
        self._step = 0
        self._e: X25519PrivateKey | None = None
        self._e1: MLKEM768PrivateKey | None = None
        self._remote_e: bytes | None = None
        self._remote_e1: bytes | None = None
        self._remote_static: bytes | None = None
        self._symmetric = _SymmetricState(pattern.name)
        self._symmetric.mix_hash(prologue)

    def __repr__(self) -> str:
        role = "initiator" if self._initiator else "responder"
        return f"<HandshakeState {role} step={self._step}>"

    @property
    def finished(self) -> bool:
        """Whether every message of the pattern has been written or read."""
        return self._step == len(self._pattern.messages)

    @property
    def remote_static(self) -> bytes:
        """The other side's X25519 public key, 32 bytes, once the pattern has shown it."""
        if self._remote_static is None:
            raise LocalProtocolError("the remote static key is not known yet")
        return self._remote_static

    @property
    def handshake_hash(self) -> bytes:
        """The 32-byte hash of everything said so far (Noise section 11.2)."""
        return self._symmetric.hash

    def split(self) -> tuple[bytes, bytes]:
        """(key of initiator to responder, key of responder to initiator), 32 bytes each."""
        if not self.finished:
            raise LocalProtocolError("the handshake is not finished")
        return self._symmetric.split()

    def copy(self) -> HandshakeState:
        """The same state once more: what is done to one does not show in the other."""
        twin = copy.copy(self)
        twin._symmetric = copy.copy(self._symmetric)
        return twin

    def write_message(self, payload: bytes) -> bytes:
        """The next message. Raises HandshakeError if the other side's keys cannot be worked with."""
        tokens = self._tokens(writing=True)
        trial = self.copy()
        try:
            message = b"".join(trial._write(token) for token in tokens)
        except ValueError as error:  # an X25519 result of zero, or an encapsulation key out of range
            raise HandshakeError("a key of the other side cannot be used") from error
        message += trial._symmetric.encrypt_and_hash(payload)
        self._adopt(trial)
        return message

    def read_message(self, message: bytes) -> bytes:
        """The payload of the other side's next message. Raises HandshakeError, having changed nothing."""
        tokens = self._tokens(writing=False)
        trial = self.copy()
        try:
            rest = message
            for token in tokens:
                rest = trial._read(token, rest)
            payload = trial._symmetric.decrypt_and_hash(rest)
        except (InvalidTag, ValueError) as error:
            raise HandshakeError("a handshake message does not verify") from error
        self._adopt(trial)
        return payload

    def _tokens(self, *, writing: bool) -> tuple[str, ...]:
        if self.finished or (self._step % 2 == 0) != (self._initiator == writing):
            raise LocalProtocolError("not this side's turn in the handshake")
        return self._pattern.messages[self._step]

    def _adopt(self, trial: HandshakeState) -> None:
        self.__dict__.update(trial.__dict__)
        self._step += 1

    def _write(self, token: str) -> bytes:
        symmetric = self._symmetric
        if token == "e":
            self._e = self._ephemerals.x25519()
            return self._mix_ephemeral(self._e.public_key().public_bytes_raw())
        if token == "s":
            return symmetric.encrypt_and_hash(self._static.public_key().public_bytes_raw())
        if token == "e1":
            self._e1 = self._ephemerals.mlkem768()
            return symmetric.encrypt_and_hash(self._e1.public_key().public_bytes_raw())
        if token == "ekem1":
            if self._remote_e1 is None:
                raise LocalProtocolError("ekem1 comes before e1")
            secret, ciphertext = self._ephemerals.encapsulate(self._remote_e1)
            data = symmetric.encrypt_and_hash(ciphertext)
            symmetric.mix_key(secret)
            return data
        self._mix(token)
        return b""

    def _read(self, token: str, data: bytes) -> bytes:
        symmetric = self._symmetric
        if token == "e":
            self._remote_e, rest = _take(data, _DH_SIZE)
            self._mix_ephemeral(self._remote_e)
            return rest
        if token == "s":
            sealed, rest = _take(data, _DH_SIZE + symmetric.overhead)
            self._remote_static = symmetric.decrypt_and_hash(sealed)
            return rest
        if token == "e1":
            sealed, rest = _take(data, _KEM_PUBLIC_SIZE + symmetric.overhead)
            self._remote_e1 = symmetric.decrypt_and_hash(sealed)
            return rest
        if token == "ekem1":
            if self._e1 is None:
                raise LocalProtocolError("ekem1 comes before e1")
            sealed, rest = _take(data, _KEM_CIPHERTEXT_SIZE + symmetric.overhead)
            symmetric.mix_key(self._e1.decapsulate(symmetric.decrypt_and_hash(sealed)))
            return rest
        self._mix(token)
        return data

    def _mix_ephemeral(self, public: bytes) -> bytes:
        self._symmetric.mix_hash(public)
        if self._uses_psk:
            self._symmetric.mix_key(public)  # Noise section 9.2
        return public

    def _mix(self, token: str) -> None:
        """psk, and the DH tokens: the first letter is the initiator's key, the second the responder's."""
        if token == "psk":
            self._symmetric.mix_key_and_hash(self._psk or b"")
            return
        ours, theirs = (token[0], token[1]) if self._initiator else (token[1], token[0])
        private = self._e if ours == "e" else self._static
        public = self._remote_e if theirs == "e" else self._remote_static
        if private is None or public is None:
            raise LocalProtocolError(f"{token} comes before its keys")
        self._symmetric.mix_key(private.exchange(X25519PublicKey.from_public_bytes(public)))


def _take(data: bytes, size: int) -> tuple[bytes, bytes]:
    if len(data) < size:
        raise HandshakeError("a handshake message is too short")
    return data[:size], data[size:]
