"""Everything that is derived from the network key and from the device seed (docs/protocol.md, 1 and 2).

Nothing here shows a secret: `repr` of every class names public values only.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import re

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from shadowmesh.wire.ip import is_unroutable

KEY_SIZE = 32
ADDRESS_SIZE = 16

_NETWORK_SALT = b"shadowmesh/v1"
_DEVICE_SALT = b"shadowmesh/v1 device"
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")
_MAPPED_IP4 = bytes(10) + b"\xff\xff"


def _derive(secret: bytes, salt: bytes, info: bytes) -> bytes:
    return HKDF(hashes.SHA256(), KEY_SIZE, salt, info).derive(secret)


def fingerprint(static_public: bytes) -> str:
    """What a person compares to know a device: 32 lower-case base32 digits of its X25519 public key."""
    digest = hashlib.sha256(b"shadowmesh/v1 fingerprint" + static_public).digest()
    return base64.b32encode(digest[:20]).decode().lower()


class NetworkKeys:
    """What everybody who holds the network key K (32 bytes) can compute.

    `network_id` is the public half of `signing_key` (Ed25519), 32 bytes; `peer_psk` is 32 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        if len(secret) != KEY_SIZE:
            raise ValueError("the network key has 32 bytes")
        self.signing_key = Ed25519PrivateKey.from_private_bytes(_derive(secret, _NETWORK_SALT, b"network"))
        self.network_id = self.signing_key.public_key().public_bytes_raw()
        self.peer_psk = _derive(secret, _NETWORK_SALT, b"peer psk")
        self._address_key = _derive(secret, _NETWORK_SALT, b"address")

    def __repr__(self) -> str:
        return f"<NetworkKeys network_id={self.network_id.hex()}>"

    def _address(self, kind: bytes, value: bytes) -> bytes:
        return hmac.digest(self._address_key, kind + b"\x00" + value, "sha256")[:ADDRESS_SIZE]

    def ip_address(self, ip: bytes) -> bytes | None:
        """The 16-byte blind address of an overlay IP (4 or 16 bytes, network order).

        None for multicast, link-local, loopback, unspecified and the limited broadcast, which have none.
        """
        if len(ip) == 16 and ip.startswith(_MAPPED_IP4):
            ip = ip[12:]
        if is_unroutable(ip):
            return None
        return self._address(b"ip4" if len(ip) == 4 else b"ip6", ip)

    def name_address(self, name: str) -> bytes | None:
        """The 16-byte blind address of a peer's name (`peer.id`), None if the name can have none."""
        if not name.isascii():  # lower() would turn some other letters into ASCII ones
            return None
        name = name.lower()
        return self._address(b"name", name.encode()) if _NAME.fullmatch(name) else None


class DeviceKeys:
    """One device in one network: unlinkable to the same device in another.

    `device_id` (32 bytes) is the public half of `signing_key`, known to the relay; `static_public`
    (32 bytes) is the X25519 key that peers know it by.
    """

    def __init__(self, seed: bytes, network_id: bytes) -> None:
        if len(seed) != KEY_SIZE:
            raise ValueError("the device seed has 32 bytes")
        self.signing_key = Ed25519PrivateKey.from_private_bytes(
            _derive(seed, _DEVICE_SALT, b"relay\x00" + network_id)
        )
        self.device_id = self.signing_key.public_key().public_bytes_raw()
        self.static_private = X25519PrivateKey.from_private_bytes(
            _derive(seed, _DEVICE_SALT, b"peer\x00" + network_id)
        )
        self.static_public = self.static_private.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"<DeviceKeys device_id={self.device_id.hex()}>"
