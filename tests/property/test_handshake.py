"""Invariant: any bytes in any step of a handshake raise HandshakeError and change nothing.

Join signatures raise JoinError, sealed messages SealedError.
"""

from __future__ import annotations

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmesh.crypto.join import verify_join
from shadowmesh.crypto.noise import XX_HFS_PSK0, HandshakeState
from shadowmesh.crypto.session import OVERHEAD, Opener, Sealer
from shadowmesh.errors import HandshakeError, JoinError, SealedError
from shadowmesh.wire.message import HELLO_SIZE

SIZES = (HELLO_SIZE - 8, 1200, 64)  # of Noise 1, 2 and 3 without payload
KEYS = [X25519PrivateKey.from_private_bytes(bytes([i]) * 32) for i in (1, 2)]


def sides() -> tuple[HandshakeState, HandshakeState]:
    one, other = (
        HandshakeState(XX_HFS_PSK0, initiator=initiator, prologue=b"", static=key, psk=bytes(32))
        for initiator, key in zip((True, False), KEYS, strict=True)
    )
    return one, other


junk = st.one_of(
    st.binary(max_size=80),
    st.tuples(st.sampled_from(SIZES), st.binary(min_size=1, max_size=40)).map(
        lambda each: (each[1] * each[0])[: each[0]]
    ),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.tuples(st.integers(0, 2), junk), max_size=6), st.integers(0, 2**20))
def test_a_handshake_among_junk(noise: list[tuple[int, bytes]], at: int) -> None:
    """The genuine messages, cut, changed and among others, still make the same two keys on both sides."""
    writer, reader = sides()
    for step in range(3):
        real = writer.write_message(b"payload")
        where = at % len(real)
        changed = real[:where] + bytes((real[where] ^ 1,)) + real[where + 1 :]
        before = reader.handshake_hash
        for bad in (changed, real[:where], real + b"\0", *(each for when, each in noise if when == step)):
            try:
                reader.read_message(bad)
            except HandshakeError:
                assert reader.handshake_hash == before
            else:
                raise AssertionError("a forgery was read")
        assert reader.read_message(real) == b"payload"
        writer, reader = reader, writer
    assert writer.split() == reader.split()


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(
    st.binary(max_size=40) | st.just(bytes(32)),
    st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
    st.binary(max_size=40) | st.binary(min_size=32, max_size=32),
    st.binary(max_size=70) | st.binary(min_size=64, max_size=64),
    st.binary(max_size=70),
)
def test_joins(nonce: bytes, network: bytes, device: bytes, one: bytes, other: bytes) -> None:
    try:
        verify_join(nonce, b"{}", network, device, one, other)
    except JoinError:
        return
    raise AssertionError("a join that nobody signed")


@settings(suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(max_size=100) | st.binary(min_size=12, max_size=60).map(b"\x14\0\0\0".__add__)))
def test_sealed_messages(junk: list[bytes]) -> None:
    """And no junk uses up a counter of the genuine ones."""
    sealer, opener, out = Sealer(bytes(32), bytes(4)), Opener(bytes(32)), memoryview(bytearray(64))
    for bad in junk:
        try:
            opener.open_into(memoryview(bad), out)
        except SealedError:
            continue
        raise AssertionError("a forgery was opened")
    real = sealer.seal(b"genuine")
    assert opener.open_into(memoryview(real), out) == len(real) - OVERHEAD
