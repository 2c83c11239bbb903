"""ML-KEM-768, written from FIPS 203 with its algorithm numbers. Slow, not constant-time, for tests only.

All randomness is an argument: `keygen(d, z)` and `encapsulate(ek, m)` are the standard's _internal forms.
"""

from __future__ import annotations

import hashlib

N, Q, K = 256, 3329, 3
ETA, DU, DV = 2, 10, 4  # η1 = η2 = 2 for this parameter set
EK_SIZE, DK_SIZE, CT_SIZE = 384 * K + 32, 768 * K + 96, 32 * (DU * K + DV)

Poly = list[int]  # 256 coefficients, or their NTT
Vector = list[Poly]


class KemError(ValueError):
    """A key or a ciphertext fails the input checks of section 7."""


def _bit_reverse_7(i: int) -> int:
    return int(f"{i:07b}"[::-1], 2)


ZETAS = [pow(17, _bit_reverse_7(i), Q) for i in range(128)]
GAMMAS = [pow(17, 2 * _bit_reverse_7(i) + 1, Q) for i in range(128)]


def _g(data: bytes) -> tuple[bytes, bytes]:
    digest = hashlib.sha3_512(data).digest()
    return digest[:32], digest[32:]


def _h(data: bytes) -> bytes:
    return hashlib.sha3_256(data).digest()


def _j(data: bytes) -> bytes:
    return hashlib.shake_256(data).digest(32)


def encode(f: Poly, bits: int) -> bytes:
    """ByteEncode, Algorithm 5."""
    return sum(value << i * bits for i, value in enumerate(f)).to_bytes(32 * bits, "little")


def decode(data: bytes, bits: int) -> Poly:
    """ByteDecode, Algorithm 6."""
    number, modulus = int.from_bytes(data, "little"), Q if bits == 12 else 1 << bits
    return [(number >> i * bits & (1 << bits) - 1) % modulus for i in range(N)]


def compress(f: Poly, bits: int) -> Poly:
    """Equation 4.7; Q is odd, so adding Q // 2 rounds to nearest."""
    return [((x << bits) + Q // 2) // Q % (1 << bits) for x in f]


def decompress(f: Poly, bits: int) -> Poly:
    """Equation 4.8."""
    return [(y * Q + (1 << bits - 1)) >> bits for y in f]


def sample_ntt(seed: bytes) -> Poly:
    """Algorithm 7: uniform coefficients from SHAKE128 by rejection."""
    out: Poly = []
    stream = hashlib.shake_128(seed).digest(168 * 16)  # ≈ 1,456 accepted values where 256 are needed
    for i in range(0, len(stream), 3):
        a, b, c = stream[i : i + 3]
        out += [d for d in (a + 256 * (b % 16), b // 16 + 16 * c) if d < Q]
    return out[:N]


def sample_cbd(seed: bytes, nonce: int) -> Poly:
    """Algorithm 8 on PRF(seed, nonce): the centred binomial distribution with η = 2."""
    stream = hashlib.shake_256(seed + bytes([nonce])).digest(64 * ETA)
    bits = [byte >> i & 1 for byte in stream for i in range(8)]
    return [(bits[4 * i] + bits[4 * i + 1] - bits[4 * i + 2] - bits[4 * i + 3]) % Q for i in range(N)]


def ntt(f: Poly) -> Poly:
    """Algorithm 9."""
    f, i, length = list(f), 1, 128
    while length >= 2:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = ZETAS[i] * f[j + length]
                f[j], f[j + length] = (f[j] + t) % Q, (f[j] - t) % Q
            i += 1
        length //= 2
    return f


def inverse_ntt(f: Poly) -> Poly:
    """Algorithm 10."""
    f, i, length = list(f), 127, 2
    while length <= 128:
        for start in range(0, N, 2 * length):
            for j in range(start, start + length):
                t = f[j]
                f[j], f[j + length] = (t + f[j + length]) % Q, ZETAS[i] * (f[j + length] - t) % Q
            i -= 1
        length *= 2
    return [x * 3303 % Q for x in f]


def multiply(f: Poly, g: Poly) -> Poly:
    """MultiplyNTTs, Algorithms 11 and 12."""
    out: Poly = []
    for i, gamma in enumerate(GAMMAS):
        a0, a1, b0, b1 = *f[2 * i : 2 * i + 2], *g[2 * i : 2 * i + 2]
        out += [(a0 * b0 + a1 * b1 * gamma) % Q, (a0 * b1 + a1 * b0) % Q]
    return out


def add(*polys: Poly) -> Poly:
    return [sum(column) % Q for column in zip(*polys, strict=True)]


def subtract(f: Poly, g: Poly) -> Poly:
    return [(a - b) % Q for a, b in zip(f, g, strict=True)]


def dot(f: Vector, g: Vector) -> Poly:
    return add(*(multiply(a, b) for a, b in zip(f, g, strict=True)))


def matrix(rho: bytes) -> list[Vector]:
    """A[i][j] from SHAKE128(ρ ‖ j ‖ i)."""
    return [[sample_ntt(rho + bytes([j, i])) for j in range(K)] for i in range(K)]


def keygen(d: bytes, z: bytes) -> tuple[bytes, bytes]:
    """Algorithms 13 and 16: (encapsulation key, decapsulation key)."""
    rho, sigma = _g(d + bytes([K]))
    a = matrix(rho)
    s = [ntt(sample_cbd(sigma, i)) for i in range(K)]
    e = [ntt(sample_cbd(sigma, K + i)) for i in range(K)]
    t = [add(dot(a[i], s), e[i]) for i in range(K)]
    ek = b"".join(encode(f, 12) for f in t) + rho
    dk = b"".join(encode(f, 12) for f in s)
    return ek, dk + ek + _h(ek) + z


def _vector(data: bytes, bits: int) -> Vector:
    size = 32 * bits
    return [decode(data[i * size : (i + 1) * size], bits) for i in range(K)]


def _encrypt(ek: bytes, m: bytes, r: bytes) -> bytes:
    """K-PKE.Encrypt, Algorithm 14."""
    t, a = _vector(ek[:-32], 12), matrix(ek[-32:])
    y = [ntt(sample_cbd(r, i)) for i in range(K)]
    columns = [[a[j][i] for j in range(K)] for i in range(K)]
    u = [add(inverse_ntt(dot(columns[i], y)), sample_cbd(r, K + i)) for i in range(K)]
    v = add(inverse_ntt(dot(t, y)), sample_cbd(r, 2 * K), decompress(decode(m, 1), 1))
    return b"".join(encode(compress(f, DU), DU) for f in u) + encode(compress(v, DV), DV)


def _decrypt(dk: bytes, ciphertext: bytes) -> bytes:
    """K-PKE.Decrypt, Algorithm 15."""
    split = 32 * DU * K
    u = [decompress(f, DU) for f in _vector(ciphertext[:split], DU)]
    v = decompress(decode(ciphertext[split:], DV), DV)
    w = subtract(v, inverse_ntt(dot(_vector(dk, 12), [ntt(f) for f in u])))
    return encode(compress(w, 1), 1)


def check_encapsulation_key(ek: bytes) -> None:
    """Section 7.2: the size, and every coefficient reduced modulo q."""
    if len(ek) != EK_SIZE or b"".join(encode(f, 12) for f in _vector(ek[:-32], 12)) != ek[:-32]:
        raise KemError("encapsulation key")


def encapsulate(ek: bytes, m: bytes) -> tuple[bytes, bytes]:
    """Algorithms 17 and 20: (shared secret, ciphertext)."""
    check_encapsulation_key(ek)
    shared, r = _g(m + _h(ek))
    return shared, _encrypt(ek, m, r)


def decapsulate(dk: bytes, ciphertext: bytes) -> bytes:
    """Algorithms 18 and 21: the shared secret, a pseudorandom one for a forged ciphertext."""
    if len(ciphertext) != CT_SIZE or len(dk) != DK_SIZE or _h(dk[384 * K : -64]) != dk[-64:-32]:
        raise KemError("ciphertext or decapsulation key")
    m = _decrypt(dk[: 384 * K], ciphertext)
    ek, h, z = dk[384 * K : -64], dk[-64:-32], dk[-32:]
    shared, r = _g(m + h)
    return shared if _encrypt(ek, m, r) == ciphertext else _j(z + ciphertext)
