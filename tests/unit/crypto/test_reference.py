"""The slow second implementation itself: known answers of the standards, published vectors, its own files."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from reference import aead, curve25519, keys, messages, mlkem, noise
from vectors import generate

VECTORS = Path(__file__).parents[2] / "vectors"
MLKEM: dict[str, Any] = json.loads((VECTORS / "mlkem768.json").read_text())
CACOPHONY: list[dict[str, Any]] = json.loads((VECTORS / "cacophony.json").read_text())["vectors"]


def unhex(text: str) -> bytes:
    return bytes.fromhex(text)


def test_committed_vectors_are_what_the_reference_makes() -> None:
    for name, text in generate.files().items():
        assert (VECTORS / name).read_text() == text, (
            f"{name}: run PYTHONPATH=tests python -m vectors.generate"
        )


def test_x25519_rfc_7748() -> None:
    scalar = unhex("a546e36bf0527c9d3b16154b82465edd62144c0ac1fc5a18506a2244ba449ac4")
    u = unhex("e6db6867583030db3594c1a424b15f7c726624ec26b3353b10a903a6d0ab1c4c")
    shared = "c3da55379de9c6908e94ea4df28d084f32eccf03491c71f754b4075577a28552"
    assert curve25519.x25519(scalar, u).hex() == shared
    with pytest.raises(curve25519.CurveError):
        curve25519.x25519(scalar, bytes(32))


def test_ed25519_rfc_8032() -> None:
    seed = unhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
    public = unhex("3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c")
    signature = unhex(
        "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
        "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
    )
    assert curve25519.ed25519_public(seed) == public
    assert curve25519.ed25519_sign(seed, b"\x72") == signature
    assert curve25519.ed25519_verify(public, b"\x72", signature)
    assert not curve25519.ed25519_verify(public, b"\x73", signature)


def test_small_order_keys_are_all_of_order_8_or_less() -> None:
    """Encodings of y ≥ p are read modulo p here, as OpenSSL does."""
    points = set()
    for key in keys.SMALL_ORDER:
        y = int.from_bytes(key, "little") % curve25519.P
        for sign in (0, 1):
            if y not in (1, curve25519.P - 1) or not sign:
                points.add((curve25519.recover_x(y, sign), y))
    assert len(points) == 8
    assert all(curve25519.multiply(8, point) == (0, 1) for point in points)


def test_chacha20_poly1305_rfc_8439() -> None:
    key = bytes(range(0x80, 0xA0))
    nonce, aad = unhex("070000004041424344454647"), unhex("50515253c0c1c2c3c4c5c6c7")
    plaintext = (
        b"Ladies and Gentlemen of the class of '99: If I could offer you only one tip for the future, "
        b"sunscreen would be it."
    )
    sealed = aead.encrypt(key, nonce, plaintext, aad)
    assert sealed[:16].hex() == "d31a8d34648e60db7b86afbc53ef7ec2"
    assert sealed[-16:].hex() == "1ae10b594f09e26a7e902ecbd0600691"
    assert aead.decrypt(key, nonce, sealed, aad) == plaintext
    with pytest.raises(aead.TagError):
        aead.decrypt(key, nonce, sealed, aad + b"\0")


def test_hkdf_rfc_5869() -> None:
    okm = aead.hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)), 42)
    assert okm.hex() == (
        "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865"
    )


@pytest.mark.parametrize("case", MLKEM["acvp_keygen"] + MLKEM["kat"])
def test_mlkem_key_generation(case: dict[str, str]) -> None:
    ek, dk = mlkem.keygen(unhex(case["d"]), unhex(case["z"]))
    assert ek.hex() == case["ek"]
    assert hashlib.sha256(dk).hexdigest() == case["dk_sha256"]


@pytest.mark.parametrize("case", MLKEM["acvp_encapsulation"] + MLKEM["kat"])
def test_mlkem_encapsulation(case: dict[str, str]) -> None:
    shared, ciphertext = mlkem.encapsulate(unhex(case["ek"]), unhex(case["m"]))
    assert (shared.hex(), ciphertext.hex()) == (case["shared_secret"], case["ciphertext"])


def test_mlkem_decapsulation() -> None:
    dk = unhex(MLKEM["acvp_decapsulation"]["dk"])
    for case in MLKEM["acvp_decapsulation"]["tests"]:
        assert mlkem.decapsulate(dk, unhex(case["ciphertext"])).hex() == case["shared_secret"]
    for case in MLKEM["kat"]:
        _, dk = mlkem.keygen(unhex(case["d"]), unhex(case["z"]))
        assert mlkem.decapsulate(dk, unhex(case["ciphertext"])).hex() == case["shared_secret"]
        assert mlkem.decapsulate(dk, unhex(case["forged_ciphertext"])).hex() == case["forged_shared_secret"]


def test_mlkem_refuses_what_is_not_reduced() -> None:
    ek, dk = mlkem.keygen(bytes(32), bytes(32))
    with pytest.raises(mlkem.KemError):
        mlkem.encapsulate(b"\xff\xff\xff" + ek[3:], bytes(32))
    with pytest.raises(mlkem.KemError):
        mlkem.decapsulate(dk, bytes(mlkem.CT_SIZE - 1))


@pytest.mark.parametrize("case", CACOPHONY, ids=lambda case: str(case["protocol_name"]))
def test_cacophony(case: dict[str, Any]) -> None:
    parties = [
        noise.Handshake(
            case["protocol_name"],
            role == "init",
            unhex(case[f"{role}_prologue"]),
            noise.Secrets(
                static=unhex(case.get(f"{role}_static", "00" * 32)),
                ephemeral=unhex(case[f"{role}_ephemeral"]),
                psk=unhex("".join(case.get(f"{role}_psks", []))),
            ),
        )
        for role in ("init", "resp")
    ]
    ciphers: list[noise.CipherState] = []
    for i, message in enumerate(case["messages"]):
        payload, expected = unhex(message["payload"]), unhex(message["ciphertext"])
        if parties[0].messages:
            assert parties[i % 2].write(payload) == expected
            assert parties[1 - i % 2].read(expected) == payload
            continue
        if not ciphers:
            assert parties[0].state.h == parties[1].state.h == unhex(case["handshake_hash"])
            ciphers = [noise.CipherState(party.split()[0]) for party in parties]
        assert ciphers[i % 2].encrypt(b"", payload) == expected


def test_message_sizes_of_the_page() -> None:
    case = generate.handshake(b"x" * 10, b"y" * 20)
    sizes = [len(step["message"]) // 2 for step in case["messages"]]
    assert sizes == [1256, 1212 + 10, 76 + 20]
    assert len(case["prologue"]) // 2 == 83
    assert len(messages.seal(bytes(32), 0, 0, bytes(16))) == 32 + 16
    assert 33 + 32 + messages.MAX_PLAINTEXT == 65_665
