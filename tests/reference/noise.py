"""The Noise Protocol Framework, revision 34, and the hfs extension, revision 1, straight from their text.

DH is X25519, the cipher ChaChaPoly, the hash SHA-256, the KEM of hfs ML-KEM-768. A pattern is one list of
tokens for each message. Every key that a real party would generate is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from reference import mlkem
from reference.aead import TAG, TagError, decrypt, encrypt, hmac_sha256, sha256
from reference.curve25519 import CurveError, x25519, x25519_public

SHADOWMESH = "Noise_XXhfs+psk0_25519+MLKEM768_ChaChaPoly_SHA256"
PATTERNS = {
    "Noise_NNpsk0_25519_ChaChaPoly_SHA256": ["psk e", "e ee"],
    "Noise_XX_25519_ChaChaPoly_SHA256": ["e", "e ee s es", "s se"],
    "Noise_XXpsk0_25519_ChaChaPoly_SHA256": ["psk e", "e ee s es", "s se"],
    "Noise_XXpsk3_25519_ChaChaPoly_SHA256": ["e", "e ee s es", "s se psk"],
    SHADOWMESH: ["psk e e1", "e ee ekem1 s es", "s se"],
}


class NoiseError(ValueError):
    """A handshake message does not verify."""


def hkdf(chaining_key: bytes, material: bytes, outputs: int) -> list[bytes]:
    """Noise section 4.3, not RFC 5869."""
    temp = hmac_sha256(chaining_key, material)
    out = [b""]
    for i in range(1, outputs + 1):
        out.append(hmac_sha256(temp, out[-1] + bytes([i])))
    return out[1:]


@dataclass
class CipherState:
    """Section 5.1; without a key it passes plaintext through."""

    key: bytes | None = None
    n: int = 0

    def nonce(self) -> bytes:
        return bytes(4) + self.n.to_bytes(8, "little")

    def encrypt(self, ad: bytes, plaintext: bytes) -> bytes:
        if self.key is None:
            return plaintext
        sealed = encrypt(self.key, self.nonce(), plaintext, ad)
        self.n += 1
        return sealed

    def decrypt(self, ad: bytes, sealed: bytes) -> bytes:
        if self.key is None:
            return sealed
        plaintext = decrypt(self.key, self.nonce(), sealed, ad)
        self.n += 1
        return plaintext


class SymmetricState:
    """Section 5.2."""

    def __init__(self, name: str, prologue: bytes) -> None:
        raw = name.encode()
        self.h = raw.ljust(32, b"\0") if len(raw) <= 32 else sha256(raw)
        self.ck = self.h
        self.cipher = CipherState()
        self.mix_hash(prologue)

    def mix_hash(self, data: bytes) -> None:
        self.h = sha256(self.h + data)

    def mix_key(self, material: bytes) -> None:
        self.ck, key = hkdf(self.ck, material, 2)
        self.cipher = CipherState(key)

    def mix_key_and_hash(self, material: bytes) -> None:
        self.ck, temp, key = hkdf(self.ck, material, 3)
        self.mix_hash(temp)
        self.cipher = CipherState(key)

    def encrypt_and_hash(self, plaintext: bytes) -> bytes:
        sealed = self.cipher.encrypt(self.h, plaintext)
        self.mix_hash(sealed)
        return sealed

    def decrypt_and_hash(self, sealed: bytes) -> bytes:
        plaintext = self.cipher.decrypt(self.h, sealed)
        self.mix_hash(sealed)
        return plaintext

    def split(self) -> tuple[bytes, bytes]:
        first, second = hkdf(self.ck, b"", 2)
        return first, second


@dataclass
class Secrets:
    """What one party brings: private keys, `kem_seed` = d ‖ z (initiator), `kem_random` = m (responder)."""

    static: bytes = bytes(32)
    ephemeral: bytes = bytes(32)
    psk: bytes = b""
    kem_seed: bytes = bytes(64)
    kem_random: bytes = bytes(32)


@dataclass
class Handshake:
    """One party of one handshake; `write` and `read` are called in turn."""

    name: str
    initiator: bool
    prologue: bytes
    secrets: Secrets
    state: SymmetricState = field(init=False)
    messages: list[list[str]] = field(init=False)
    remote_static: bytes = b""
    remote_ephemeral: bytes = b""
    remote_kem: bytes = b""

    def __post_init__(self) -> None:
        self.state = SymmetricState(self.name, self.prologue)
        self.messages = [line.split() for line in PATTERNS[self.name]]

    @property
    def has_psk(self) -> bool:
        return bool(self.secrets.psk)

    def _dh(self, token: str) -> bytes:
        """`ee`, `es`, `se`: the initiator's key is named first."""
        mine, theirs = (token[0], token[1]) if self.initiator else (token[1], token[0])
        private = self.secrets.ephemeral if mine == "e" else self.secrets.static
        return x25519(private, self.remote_ephemeral if theirs == "e" else self.remote_static)

    def write(self, payload: bytes = b"") -> bytes:
        """The next message."""
        state, out = self.state, b""
        for token in self.messages.pop(0):
            if token == "e":
                public = x25519_public(self.secrets.ephemeral)
                out += public
                state.mix_hash(public)
                if self.has_psk:
                    state.mix_key(public)
            elif token == "s":
                out += state.encrypt_and_hash(x25519_public(self.secrets.static))
            elif token == "e1":
                out += state.encrypt_and_hash(self._kem_keys()[0])
            elif token == "ekem1":
                shared, ciphertext = mlkem.encapsulate(self.remote_kem, self.secrets.kem_random)
                out += state.encrypt_and_hash(ciphertext)
                state.mix_key(shared)
            elif token == "psk":
                state.mix_key_and_hash(self.secrets.psk)
            else:
                state.mix_key(self._dh(token))
        return out + state.encrypt_and_hash(payload)

    def read(self, message: bytes) -> bytes:
        """The payload of the other party's next message. After NoiseError the handshake is unusable."""
        try:
            return self._read(message)
        except (TagError, CurveError, mlkem.KemError) as error:
            raise NoiseError(str(error)) from error

    def _read(self, message: bytes) -> bytes:
        state = self.state

        def take(size: int) -> bytes:
            nonlocal message
            if len(message) < size:
                raise NoiseError("too short")
            part, message = message[:size], message[size:]
            return part

        def take_encrypted(size: int) -> bytes:
            return state.decrypt_and_hash(take(size + (TAG if state.cipher.key else 0)))

        for token in self.messages.pop(0):
            if token == "e":
                self.remote_ephemeral = take(32)
                state.mix_hash(self.remote_ephemeral)
                if self.has_psk:
                    state.mix_key(self.remote_ephemeral)
            elif token == "s":
                self.remote_static = take_encrypted(32)
            elif token == "e1":
                self.remote_kem = take_encrypted(mlkem.EK_SIZE)
                mlkem.check_encapsulation_key(self.remote_kem)
            elif token == "ekem1":
                ciphertext = take_encrypted(mlkem.CT_SIZE)
                state.mix_key(mlkem.decapsulate(self._kem_keys()[1], ciphertext))
            elif token == "psk":
                state.mix_key_and_hash(self.secrets.psk)
            else:
                state.mix_key(self._dh(token))
        return state.decrypt_and_hash(message)

    def _kem_keys(self) -> tuple[bytes, bytes]:
        return mlkem.keygen(self.secrets.kem_seed[:32], self.secrets.kem_seed[32:])

    def split(self) -> tuple[bytes, bytes]:
        """(sending key, receiving key); the initiator sends with Split's first."""
        first, second = self.state.split()
        return (first, second) if self.initiator else (second, first)
