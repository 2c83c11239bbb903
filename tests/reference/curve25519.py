"""X25519 (RFC 7748) and Ed25519 (RFC 8032) in plain integers: slow, not constant-time, for tests only."""

from __future__ import annotations

import hashlib

P = 2**255 - 19
ORDER = 2**252 + 27742317777372353535851937790883648493
D = -121665 * pow(121666, -1, P) % P
SQRT_MINUS_1 = pow(2, (P - 1) // 4, P)

Point = tuple[int, int]  # affine coordinates on the Edwards curve

BASE_U = (9).to_bytes(32, "little")


class CurveError(ValueError):
    """A point is not on the curve, or a shared secret is all zeros."""


def x25519(scalar: bytes, u: bytes) -> bytes:
    """RFC 7748 section 5; an all-zero result (small-order `u`) is refused as in section 6.1."""
    k = int.from_bytes(scalar, "little") & ~7 & (1 << 255) - 1 | 1 << 254
    x1 = (int.from_bytes(u, "little") & (1 << 255) - 1) % P
    x2, z2, x3, z3 = 1, 0, x1, 1
    for bit in range(254, -1, -1):
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
        a, b = x2 + z2, x2 - z2
        da, cb = (x3 - z3) * a % P, (x3 + z3) * b % P
        aa, bb = a * a % P, b * b % P
        e = aa - bb
        x3, z3 = (da + cb) ** 2 % P, x1 * (da - cb) ** 2 % P
        x2, z2 = aa * bb % P, e * (aa + 121665 * e) % P
        if k >> bit & 1:
            x2, z2, x3, z3 = x3, z3, x2, z2
    shared = x2 * pow(z2, -1, P) % P if z2 else 0
    if shared == 0:
        raise CurveError("all-zero shared secret")
    return shared.to_bytes(32, "little")


def x25519_public(scalar: bytes) -> bytes:
    """The public key of a private scalar."""
    return x25519(scalar, BASE_U)


def add(a: Point, b: Point) -> Point:
    """The complete addition law of -x² + y² = 1 + dx²y²."""
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2
    x = (x1 * y2 + x2 * y1) * pow(1 + t, -1, P)
    y = (y1 * y2 + x1 * x2) * pow(1 - t, -1, P)
    return x % P, y % P


def multiply(scalar: int, point: Point) -> Point:
    """Double and add."""
    result = (0, 1)
    while scalar:
        if scalar & 1:
            result = add(result, point)
        point = add(point, point)
        scalar >>= 1
    return result


def recover_x(y: int, sign: int) -> int:
    """The x of a compressed point; RFC 8032 section 5.1.3."""
    if y >= P:
        raise CurveError("y is not canonical")
    u, v = y * y - 1, D * y * y + 1
    square = u * pow(v, -1, P) % P
    x = pow(square, (P + 3) // 8, P)
    if (x * x - square) % P:
        x = x * SQRT_MINUS_1 % P
    if (x * x - square) % P or (x == 0 and sign):
        raise CurveError("not on the curve")
    return P - x if x & 1 != sign else x


def compress(point: Point) -> bytes:
    """y with the lowest bit of x in bit 255."""
    x, y = point
    return (y | (x & 1) << 255).to_bytes(32, "little")


def decompress(data: bytes) -> Point:
    """The inverse of `compress`."""
    value = int.from_bytes(data, "little")
    y = value & (1 << 255) - 1
    return recover_x(y, value >> 255), y


BASE: Point = (recover_x(4 * pow(5, -1, P) % P, 0), 4 * pow(5, -1, P) % P)


def _expand(seed: bytes) -> tuple[int, bytes]:
    digest = hashlib.sha512(seed).digest()
    return int.from_bytes(digest[:32], "little") & ~7 & (1 << 254) - 1 | 1 << 254, digest[32:]


def _challenge(*parts: bytes) -> int:
    return int.from_bytes(hashlib.sha512(b"".join(parts)).digest(), "little") % ORDER


def ed25519_public(seed: bytes) -> bytes:
    """The public key of a 32-byte seed."""
    return compress(multiply(_expand(seed)[0], BASE))


def ed25519_sign(seed: bytes, message: bytes) -> bytes:
    """The 64-byte signature, deterministic."""
    secret, prefix = _expand(seed)
    public = compress(multiply(secret, BASE))
    r = _challenge(prefix, message)
    big_r = compress(multiply(r, BASE))
    s = (r + _challenge(big_r, public, message) * secret) % ORDER
    return big_r + s.to_bytes(32, "little")


def ed25519_verify(public: bytes, message: bytes, signature: bytes) -> bool:
    """RFC 8032 section 5.1.7, cofactorless. It accepts small-order public keys: the caller refuses them."""
    s = int.from_bytes(signature[32:], "little")
    if len(signature) != 64 or s >= ORDER:
        return False
    try:
        a, r = decompress(public), decompress(signature[:32])
    except CurveError:
        return False
    return multiply(s, BASE) == add(r, multiply(_challenge(signature[:32], public, message), a))
