"""Invariant: under loss, duplication, reordering and damage each record arrives at most once and never wrong.

What arrives is exactly what the reference's window, a plain set, lets through.
"""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from reference import messages
from shadowmesh.crypto.session import WINDOW, Opener, ReplayWindow, Sealer
from shadowmesh.errors import SealedError

KEY, INDEX = bytes(range(32)), b"\xff\xee\xdd\xcc"

# Leaps land where a ring of 64-bit blocks could go wrong: at blocks, the window, the ring's length, far away.
leaps = st.one_of(
    st.integers(0, 3),
    st.sampled_from([63, 64, 65, WINDOW - 1, WINDOW, WINDOW + 1, 2 * WINDOW - 64, 2 * WINDOW, 2**40]),
    st.integers(0, 3 * WINDOW),
)


def open_(opener: Opener, message: bytes) -> bytes | None:
    out = bytearray(len(message))
    try:
        return bytes(out[: opener.open_into(memoryview(message), memoryview(out))])
    except SealedError:
        return None


@given(
    sent=st.lists(st.tuples(leaps, st.lists(st.binary(max_size=40), min_size=1, max_size=3)), max_size=12),
    order=st.lists(st.tuples(st.integers(0, 11), st.none() | st.integers(8, 200)), max_size=40),
)
def test_each_record_at_most_once(
    sent: list[tuple[int, list[bytes]]], order: list[tuple[int, int | None]]
) -> None:
    sealer, opener, reference = Sealer(KEY, INDEX), Opener(KEY), messages.Receiver(KEY)
    wire = []
    for number, (leap, bodies) in enumerate(sent):
        sealer.counter += leap
        unique = [number.to_bytes(2) + i.to_bytes(2) + body for i, body in enumerate(bodies)]
        plaintext = messages.pad(b"".join(messages.record(messages.PACKET, body) for body in unique))
        wire.append((sealer.counter, sealer.seal(plaintext), unique))
    delivered: list[bytes] = []
    for which, damage in order:
        if which >= len(wire):
            continue
        counter, message, unique = wire[which]
        if damage is not None:
            bad = bytearray(message)
            bad[8 + damage % (len(bad) - 8)] ^= 0x10
            assert open_(opener, bytes(bad)) is None
            continue
        opened = open_(opener, message)
        assert (opened is not None) == reference.acceptable(counter)
        if opened is not None:
            reference.seen.add(counter)
            bodies = [body for kind, body in messages.records(opened) if kind == messages.PACKET]
            assert bodies == unique
            delivered += bodies
    assert len(delivered) == len(set(delivered))


@given(moves=st.lists(st.tuples(st.booleans(), leaps), max_size=200))
def test_window_is_the_plain_set(moves: list[tuple[bool, int]]) -> None:
    """Counters that leap ahead of the highest or lie behind it."""
    window, reference = ReplayWindow(), messages.Receiver(KEY)
    for ahead, distance in moves:
        highest = max(reference.seen, default=0)
        counter = highest + distance if ahead else max(0, highest - distance)
        expected = reference.acceptable(counter)
        assert window.accept(counter) == expected
        if expected:
            reference.seen.add(counter)
