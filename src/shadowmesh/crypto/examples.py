"""Keys that everybody knows: those of documentation, blogs, standards and tired fingers.

Only configuration refuses them. Libraries take any key, for test vectors need such ones.
"""

from __future__ import annotations

import hashlib
import itertools

_PUBLISHED = {
    "603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4": "the AES-256 key of NIST SP 800-38A",
    "1c9240a5eb55d38af333888604f6b5f0473917c1402b80099dca5cbc207075c0": "a key of RFC 8439",
    "9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60": "a key of RFC 8032",
    "6368616e676520746869732070617373776f726420746f206120736563726574": "the example of Go's crypto/cipher",
    "ac0974bec39a17e36ba4a6b4d238ff944bacb478cbed5efcae784d7bf4f2ff80": "the first Hardhat account",
}
_WORDS = (
    *("", "a", "abc", "test", "key", "secret", "password", "changeme", "hello", "hello world", "Hello World"),
    *("foo", "admin", "example", "shadowmesh", "ShadowMesh", "123456", "mysecret", "secretkey"),
)
_FEWEST_DISTINCT_BYTES = 8  # 32 random bytes have fewer once in 10^47, random decimal digits once in 10^33


def public_example(key: bytes) -> str | None:
    """Say which public example or pattern the 32-byte `key` is; None for a key that looks random.

    The answer completes "this key is …" and does not repeat the key. A random key is mistaken
    for an example less than once in 10^12, one of random decimal digits too.
    """
    digits = key.hex()
    if digits in _PUBLISHED:
        return _PUBLISHED[digits]
    if key == key[:1] * len(key):
        return "one byte repeated"
    steps = {(b - a) % 256 for a, b in itertools.pairwise(key)}
    if len(steps) == 1:
        return "a row of bytes that counts evenly"
    for period in range(1, len(digits) // 2 + 1):
        if digits[period:] == digits[:-period]:
            return f'"{digits[:period]}" repeated' if period <= 16 else "one half written twice"
    if _counts(digits, 1) or _counts(digits, 2):
        return "a row of digits that counts up"
    if len(set(key)) < _FEWEST_DISTINCT_BYTES:
        return f"made of {len(set(key))} different bytes only"
    if all(chr(b).isascii() and (chr(b).isalpha() or chr(b) == " ") for b in key):
        return "plain text written in hex"
    for word in _WORDS:
        if key == hashlib.sha256(word.encode()).digest():
            return f'the SHA-256 of "{word}"'
    return None


def _counts(digits: str, stride: int) -> bool:
    """Whether each digit is the next one of the digit `stride` before it: 0123…, or a1b2c3d4e5f6a7…"""
    pairs = {a + b for a, b in zip(digits, digits[stride:], strict=False)}
    return pairs <= {
        "01",
        "12",
        "23",
        "34",
        "45",
        "56",
        "67",
        "78",
        "89",
        "90",
        "9a",
        "ab",
        "bc",
        "cd",
        "de",
        "ef",
        "f0",
        "fa",
    }
