"""The network key and the API key: what is taken, and that no text ever holds it."""

from __future__ import annotations

import pytest

from shadowmesh.config.secret import ApiKey, SecretKey, network_key, relay_key

KEY = "9f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
MAKE = "make one with: shadowmesh keygen (the same key on every device of the network)"


def test_reveals_only_when_asked() -> None:
    key = network_key(KEY.upper())
    assert key.reveal() == bytes.fromhex(KEY)
    assert network_key(key) is key
    for shape in (repr(key), str(key), f"{key}", repr([key])):
        assert shape.strip("[]") == "SecretKey(hidden)"


def test_digits_only() -> None:
    digits = "4820957136640218937456102938475665748392011837465092736450918273"
    assert network_key(digits).reveal().hex() == digits
    assert isinstance(network_key(digits), SecretKey)


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("YOUR_64_CHAR_HEX_KEY", f"is the guide's placeholder; {MAKE}"),
        (KEY[:-1], f"has 63 hex digits where 64 belong; {MAKE}"),
        (KEY + "00", f"has 66 hex digits where 64 belong; {MAKE}"),
        ("", f"has 0 hex digits where 64 belong; {MAKE}"),
        (KEY[:-1] + "g", f"character 64 of 64 is no hex digit (0-9, a-f); {MAKE}"),
        ("0x" + KEY, f"character 2 of 66 is no hex digit (0-9, a-f); {MAKE}"),
        ("0" * 64, f"is a key that public examples use (one byte repeated); {MAKE}"),
        ("deadbeef" * 8, f'is a key that public examples use ("deadbeef" repeated); {MAKE}'),
    ],
)
def test_refuses_without_showing(value: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        network_key(value)
    assert str(caught.value) == words


API_KEY = "smk_abcdefgh_0123456789abcdefghijklmnopqrstuvwxyz-_ABCDE"


def test_an_api_key_reveals_only_when_asked() -> None:
    key = relay_key(API_KEY)
    assert isinstance(key, ApiKey)
    assert key.reveal() == API_KEY
    assert relay_key(key) is key
    for shape in (repr(key), str(key), f"{key}", repr([key])):
        assert shape.strip("[]") == "ApiKey(hidden)"


@pytest.mark.parametrize(
    "value", [API_KEY[:-1], API_KEY + "A", "x" + API_KEY, API_KEY.upper(), "Bearer " + API_KEY]
)
def test_an_api_key_is_refused_without_showing_it(value: str) -> None:
    with pytest.raises(ValueError, match="is no API key") as caught:
        relay_key(value)
    assert "abcdefghijklm" not in str(caught.value).lower()
