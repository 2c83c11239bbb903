"""Section 1 and 2: derivations, blind addresses, fingerprints; section 3: the signatures of a join."""

from __future__ import annotations

import base64
import ipaddress
import re

from reference.aead import hkdf, hmac_sha256, sha256
from reference.curve25519 import ed25519_public, ed25519_sign, ed25519_verify, x25519_public

NETWORK_SALT = b"shadowmesh/v1"
DEVICE_SALT = b"shadowmesh/v1 device"

SMALL_ORDER = {
    bytes.fromhex(text)
    for text in (
        "00" * 32,
        "01" + "00" * 31,
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
        "ec" + "ff" * 30 + "7f",
        "ed" + "ff" * 30 + "7f",
        "ee" + "ff" * 30 + "7f",
    )
}

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")


def network_seed(secret: bytes) -> bytes:
    """Ed25519 seed of the network signing key."""
    return hkdf(secret, NETWORK_SALT, b"network")


def network_id(secret: bytes) -> bytes:
    return ed25519_public(network_seed(secret))


def peer_psk(secret: bytes) -> bytes:
    return hkdf(secret, NETWORK_SALT, b"peer psk")


def address_key(secret: bytes) -> bytes:
    return hkdf(secret, NETWORK_SALT, b"address")


def device_seed(seed: bytes, network: bytes) -> bytes:
    """Ed25519 seed of the device id that one network sees."""
    return hkdf(seed, DEVICE_SALT, b"relay\0" + network)


def device_id(seed: bytes, network: bytes) -> bytes:
    return ed25519_public(device_seed(seed, network))


def static_private(seed: bytes, network: bytes) -> bytes:
    """X25519 static key that one network's peers see."""
    return hkdf(seed, DEVICE_SALT, b"peer\0" + network)


def static_public(seed: bytes, network: bytes) -> bytes:
    return x25519_public(static_private(seed, network))


def blind_address(key: bytes, kind: str, value: bytes) -> bytes:
    """16 bytes from the address key; the caller has put `value` into its one form."""
    return hmac_sha256(key, kind.encode() + b"\0" + value)[:16]


def ip_address(key: bytes, text: str) -> bytes | None:
    """The blind address of an overlay IP, None for those that have none."""
    ip = ipaddress.ip_address(text)
    if isinstance(ip, ipaddress.IPv6Address) and ip.ipv4_mapped:
        ip = ip.ipv4_mapped
    broadcast = ip.packed == b"\xff\xff\xff\xff"
    if broadcast or ip.is_multicast or ip.is_link_local or ip.is_loopback or ip.is_unspecified:
        return None
    return blind_address(key, f"ip{ip.version}", ip.packed)


def name_address(key: bytes, text: str) -> bytes | None:
    """The blind address of a peer id, None when it has not the form of a name."""
    if not text.isascii() or not NAME.fullmatch(text.lower()):
        return None
    return blind_address(key, "name", text.lower().encode())


def fingerprint(static: bytes) -> str:
    """32 letters of lower-case base32."""
    return base64.b32encode(sha256(b"shadowmesh/v1 fingerprint" + static)[:20]).decode().lower()


def is_small_order(public: bytes) -> bool:
    """Whether an Ed25519 public key is one that must be refused."""
    return public[:31] + bytes([public[31] & 0x7F]) in SMALL_ORDER


def _join_message(role: str, nonce: bytes, claims: bytes) -> bytes:
    return b"shadowmesh/v1 join " + role.encode() + b"\0" + nonce + sha256(claims)


def sign_join(seed: bytes, role: str, nonce: bytes, claims: bytes) -> bytes:
    """`role` is "network" or "device", `seed` that key's Ed25519 seed."""
    return ed25519_sign(seed, _join_message(role, nonce, claims))


def verify_join(public: bytes, role: str, nonce: bytes, claims: bytes, signature: bytes) -> bool:
    """One of the two signatures of a join."""
    return not is_small_order(public) and ed25519_verify(
        public, _join_message(role, nonce, claims), signature
    )
