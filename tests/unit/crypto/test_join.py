"""join: both signatures against the second implementation, and what must not verify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from reference import keys
from shadowmesh.crypto.join import has_small_order, sign_join, verify_join
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.errors import JoinError

VECTORS = Path(__file__).parents[2] / "vectors"
CASE: dict[str, Any] = json.loads((VECTORS / "join.json").read_text())
SMALL_ORDER = [bytes.fromhex(text) for text in json.loads((VECTORS / "keys.json").read_text())["small_order"]]

NETWORK = NetworkKeys(bytes(range(32)))
DEVICE = DeviceKeys(bytes(range(32, 64)), NETWORK.network_id)
NONCE, CLAIMS = bytes.fromhex(CASE["nonce"]), CASE["claims_text"].encode()
SIGNATURES = sign_join(NONCE, CLAIMS, NETWORK.signing_key, DEVICE.signing_key)


def verify(**changed: bytes) -> None:
    good = {
        "nonce": NONCE,
        "claims": CLAIMS,
        "network": NETWORK.network_id,
        "device": DEVICE.device_id,
        "network_signature": SIGNATURES[0],
        "device_signature": SIGNATURES[1],
    }
    verify_join(**(good | changed))


def test_signatures_are_those_of_the_vectors() -> None:
    assert [s.hex() for s in SIGNATURES] == [CASE["network_signature"], CASE["device_signature"]]
    verify()


def test_both_implementations_verify_each_other() -> None:
    nonce, claims = bytes(reversed(range(32))), b"{}"
    network, device = sign_join(nonce, claims, NETWORK.signing_key, DEVICE.signing_key)
    assert keys.verify_join(NETWORK.network_id, "network", nonce, claims, network)
    assert keys.verify_join(DEVICE.device_id, "device", nonce, claims, device)
    assert not keys.verify_join(DEVICE.device_id, "network", nonce, claims, device)


@pytest.mark.parametrize(
    ("changed", "at_fault"),
    [
        ({"nonce": bytes(32)}, "network"),
        ({"claims": CLAIMS + b" "}, "network"),
        ({"network": DEVICE.device_id}, "network"),
        ({"device": NETWORK.network_id}, "device"),
        ({"network": NETWORK.network_id + b"\0"}, "network"),
        ({"device": b"\x02" + bytes(31)}, "device"),  # no point of the curve
        ({"network_signature": SIGNATURES[1]}, "network"),
        ({"device_signature": SIGNATURES[0]}, "device"),
        ({"network_signature": b""}, "network"),
        ({"device_signature": SIGNATURES[1][:63]}, "device"),
        ({"device_signature": SIGNATURES[1] + b"\0"}, "device"),
    ],
)
def test_what_does_not_verify(changed: dict[str, bytes], at_fault: str) -> None:
    with pytest.raises(JoinError, match=at_fault):
        verify(**changed)


def test_one_key_in_both_roles_needs_two_signatures() -> None:
    """The roles are separated by the signed text, not only by the key."""
    with pytest.raises(JoinError, match="device"):
        verify(device=NETWORK.network_id, device_signature=SIGNATURES[0])


@pytest.mark.parametrize("position", range(64))
def test_every_byte_of_a_signature_counts(position: int) -> None:
    for which, name in enumerate(("network_signature", "device_signature")):
        bad = bytearray(SIGNATURES[which])
        bad[position] ^= 1
        with pytest.raises(JoinError):
            verify(**{name: bytes(bad)})


@pytest.mark.parametrize("key", SMALL_ORDER, ids=bytes.hex)
def test_small_order_keys_are_refused(key: bytes) -> None:
    assert has_small_order(key)
    with pytest.raises(JoinError, match="small order"):
        verify(network=key)
    with pytest.raises(JoinError, match="small order"):
        verify(device=key)


def test_why_small_order_keys_are_refused() -> None:
    """OpenSSL takes a signature of nothing under the neutral element: nobody has to know a key."""
    neutral = b"\x01" + bytes(31)
    Ed25519PublicKey.from_public_bytes(neutral).verify(neutral + bytes(32), b"any message")
    with pytest.raises(JoinError):
        verify(network=neutral, network_signature=neutral + bytes(32))


def test_keys_of_devices_are_not_of_small_order() -> None:
    for seed in range(16):
        public = Ed25519PrivateKey.from_private_bytes(bytes([seed]) * 32).public_key().public_bytes_raw()
        assert not has_small_order(public)
