"""keys: against the vectors of the protocol page and those of the second implementation."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys, fingerprint

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "keys.json").read_text())
K, SEED = bytes(range(32)), bytes(range(32, 64))


def test_vectors_of_the_protocol_page() -> None:
    """Typed from docs/protocol.md, section 1, not from a file."""
    network = NetworkKeys(K)
    device = DeviceKeys(SEED, network.network_id)
    assert network.network_id.hex() == "2c7500443b24a109ec0d0ed7f2bbe0732df3ce0393d27c4771411a552f17da63"
    assert network.peer_psk.hex() == "a8830d6802fa2c691f8812819172543629732aad92d65bd4a6c016e7a02c5778"
    addresses = [
        network.ip_address(bytes([10, 10, 10, 1])),
        network.ip_address(b"\xfd" + bytes(14) + b"\x01"),
        network.name_address("laptop"),
    ]
    assert [address and address.hex() for address in addresses] == [
        "01ef81d938159a2d654cde065ab9058f",
        "509bdb8eb419ecb0a80ea8b9ab7fb961",
        "f083b1eea54555e3028a9af46a5b8abf",
    ]
    assert device.device_id.hex() == "623c645a1f3c728afc68038a87ebccd53dd84ac1e9a56fc2591af9c372f92199"
    assert device.static_public.hex() == "318385e1e7ccc9fff9b978b9286522fbf30cc40f2cde8d0394dfd3fd3817236f"


@pytest.mark.parametrize("case", VECTORS["derivations"])
def test_derivations(case: dict[str, str]) -> None:
    network = NetworkKeys(bytes.fromhex(case["network_key"]))
    device = DeviceKeys(bytes.fromhex(case["device_seed"]), network.network_id)
    assert {
        "network_signing_seed": network.signing_key.private_bytes_raw().hex(),
        "network_id": network.network_id.hex(),
        "peer_psk": network.peer_psk.hex(),
        "device_signing_seed": device.signing_key.private_bytes_raw().hex(),
        "device_id": device.device_id.hex(),
        "static_private": device.static_private.private_bytes_raw().hex(),
        "static_public": device.static_public.hex(),
        "fingerprint": fingerprint(device.static_public),
    }.items() <= case.items()


@pytest.mark.parametrize(("text", "address"), VECTORS["ip_addresses"].items())
def test_ip_addresses(text: str, address: str | None) -> None:
    found = NetworkKeys(K).ip_address(ipaddress.ip_address(text).packed)
    assert (found and found.hex()) == address


@pytest.mark.parametrize(("name", "address"), VECTORS["name_addresses"].items())
def test_name_addresses(name: str, address: str | None) -> None:
    found = NetworkKeys(K).name_address(name)
    assert (found and found.hex()) == address


def test_devices_are_unlinkable_between_networks() -> None:
    here, there = (DeviceKeys(SEED, NetworkKeys(key).network_id) for key in (K, K[::-1]))
    assert here.device_id != there.device_id
    assert here.static_public != there.static_public


def test_repr_shows_public_values_only() -> None:
    network = NetworkKeys(K)
    device = DeviceKeys(SEED, network.network_id)
    shown = repr(network) + repr(device)
    assert network.network_id.hex() in shown
    for secret in (K, SEED, network.peer_psk, device.static_private.private_bytes_raw()):
        assert secret.hex() not in shown
        assert repr(secret) not in shown


@pytest.mark.parametrize("size", [0, 31, 33])
def test_secrets_have_32_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        NetworkKeys(bytes(size))
    with pytest.raises(ValueError, match="32 bytes"):
        DeviceKeys(bytes(size), bytes(32))
