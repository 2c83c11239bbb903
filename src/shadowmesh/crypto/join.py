"""The two signatures that let a client join a relay (docs/protocol.md, section 3).

This is the only part of `crypto` that the relay imports: it verifies that a client holds the network key
without ever knowing it.
"""

from __future__ import annotations

import hashlib

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from shadowmesh.errors import JoinError

_NETWORK = b"shadowmesh/v1 join network\x00"
_DEVICE = b"shadowmesh/v1 join device\x00"

# Every encoding of a point whose order divides 8, with bit 255 (the sign of x) cleared. OpenSSL takes
# such a key and then accepts signatures that nobody made. Same list as libsodium's ge25519_has_small_order.
_SMALL_ORDER = frozenset(
    bytes.fromhex(point)
    for point in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
)


def has_small_order(public_key: bytes) -> bool:
    """Whether a 32-byte Ed25519 public key is a point of small order, under which anything verifies."""
    return public_key[:31] + bytes((public_key[31] & 0x7F,)) in _SMALL_ORDER


def sign_join(
    nonce: bytes, claims: bytes, network_key: Ed25519PrivateKey, device_key: Ed25519PrivateKey
) -> tuple[bytes, bytes]:
    """Sign the decoded bytes of the claims under a relay's 32-byte nonce.

    Returns (network signature, device signature), 64 bytes each.
    """
    bound = nonce + hashlib.sha256(claims).digest()
    return network_key.sign(_NETWORK + bound), device_key.sign(_DEVICE + bound)


def verify_join(
    nonce: bytes,
    claims: bytes,
    network: bytes,
    device: bytes,
    network_signature: bytes,
    device_signature: bytes,
) -> None:
    """Check both signatures of a join under the 32-byte public keys that its claims name.

    Raises JoinError, which says which of the two keys or signatures is at fault.
    """
    bound = nonce + hashlib.sha256(claims).digest()
    for what, key, prefix, signature in (
        ("network", network, _NETWORK, network_signature),
        ("device", device, _DEVICE, device_signature),
    ):
        if len(key) != 32 or has_small_order(key):
            raise JoinError(f"the {what} key is of small order or has not 32 bytes")
        try:
            Ed25519PublicKey.from_public_bytes(key).verify(signature, prefix + bound)
        except (InvalidSignature, ValueError):
            raise JoinError(f"the {what} signature does not verify") from None
