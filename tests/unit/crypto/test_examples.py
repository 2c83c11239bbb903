"""Keys that everybody knows are named; random ones pass."""

from __future__ import annotations

import hashlib
import random

import pytest

from shadowmesh.crypto.examples import public_example


@pytest.mark.parametrize(
    ("digits", "name"),
    [
        ("00" * 32, "one byte repeated"),
        ("ff" * 32, "one byte repeated"),
        (bytes(range(32)).hex(), "a row of bytes that counts evenly"),
        (bytes(range(31, -1, -1)).hex(), "a row of bytes that counts evenly"),
        (bytes(range(0, 64, 2)).hex(), "a row of bytes that counts evenly"),
        ("0123456789abcdef" * 4, '"0123456789abcdef" repeated'),
        ("deadbeef" * 8, '"deadbeef" repeated'),
        ("1234567890" * 6 + "1234", '"1234567890" repeated'),
        ("00112233445566778899aabbccddeeff" * 2, "one half written twice"),
        (
            "a1b2c3d4e5f6a7b8c9d0e1f2a3b4c5d6e7f8a9b0c1d2e3f4a5b6c7d8e9f0a1b2",
            "a row of digits that counts up",
        ),
        ("00" * 31 + "01", "made of 2 different bytes only"),
        (b"correct horse battery staple and".hex(), "plain text written in hex"),
        (b"change this password to a secret".hex(), "the example of Go's crypto/cipher"),
        (hashlib.sha256(b"").hexdigest(), 'the SHA-256 of ""'),
        (hashlib.sha256(b"password").hexdigest(), 'the SHA-256 of "password"'),
        (
            "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4",
            "the AES-256 key of NIST SP 800-38A",
        ),
    ],
)
def test_names_the_example(digits: str, name: str) -> None:
    assert public_example(bytes.fromhex(digits)) == name


def test_random_keys_pass_also_of_digits_only() -> None:
    source = random.Random(1)
    for _ in range(2000):
        assert public_example(source.randbytes(32)) is None
        assert public_example(bytes.fromhex("".join(source.choices("0123456789", k=64)))) is None
