"""session: sealed messages against the vectors, the edges of the replay window, and what must not open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from hypothesis import given, settings
from hypothesis import strategies as st

from reference import messages
from shadowmesh.crypto.session import COUNTER_LIMIT, OVERHEAD, WINDOW, Opener, ReplayWindow, Sealer
from shadowmesh.errors import LocalProtocolError, SealedError

VECTORS: dict[str, Any] = json.loads((Path(__file__).parents[2] / "vectors" / "sealed.json").read_text())
KEY, INDEX = bytes(range(32)), b"\xff\xee\xdd\xcc"


def seal(counter: int, plaintext: bytes = b"text", key: bytes = KEY) -> bytes:
    """A message by the plain cipher and the page's layout."""
    number = counter.to_bytes(8, "little")
    return b"\x14\0\0\0" + INDEX + number + ChaCha20Poly1305(key).encrypt(bytes(4) + number, plaintext, None)


def open_(opener: Opener, message: bytes) -> bytes:
    out = bytearray(len(message))
    return bytes(out[: opener.open_into(memoryview(message), memoryview(out))])


@pytest.mark.parametrize("case", VECTORS["messages"])
def test_vectors(case: dict[str, Any]) -> None:
    key, plaintext = bytes.fromhex(case["key"]), bytes.fromhex(case["plaintext"])
    sealer = Sealer(key, case["receiver_index"].to_bytes(4))
    sealer.counter = case["counter"]
    assert sealer.seal(plaintext).hex() == case["message"]
    assert sealer.counter == case["counter"] + 1
    assert open_(Opener(key), bytes.fromhex(case["message"])) == plaintext


@pytest.mark.parametrize("case", VECTORS["windows"], ids=lambda case: str(case["what"]))
def test_windows(case: dict[str, Any]) -> None:
    window = ReplayWindow()
    assert [window.accept(counter) for counter in case["counters"]] == case["accepted"]
    opener, accepted = Opener(KEY), []
    for counter in case["counters"]:
        try:
            accepted.append(open_(opener, seal(counter)) == b"text")
        except SealedError:
            accepted.append(False)
    assert accepted == case["accepted"]


def test_whole_window_is_usable_once() -> None:
    window = ReplayWindow()
    high = 10 * WINDOW + 17
    assert window.accept(high)
    behind = range(high - 2 * WINDOW, high)
    assert [c for c in behind if window.accept(c)] == list(range(high - WINDOW + 1, high))
    assert not any(window.accept(c) for c in behind)


@pytest.mark.parametrize("stride", [1, 63, 64, 65, WINDOW - 1])
def test_a_long_run_meets_no_stale_bits(stride: int) -> None:
    """Several times round any ring: whatever is new is accepted, and only once."""
    window = ReplayWindow()
    for counter in range(0, max(5 * WINDOW, 40 * stride), stride):
        assert window.accept(counter)
        assert not window.accept(counter)


def test_seal_into_a_larger_buffer() -> None:
    sealer, out = Sealer(KEY, INDEX), bytearray(b"\xee" * 100)
    assert sealer.seal_into(memoryview(b"text"), memoryview(out)) == 4 + OVERHEAD
    assert out[:36] == seal(0)
    assert out[36:] == b"\xee" * 64


def test_largest_message() -> None:
    plaintext = bytes(range(256)) * 257
    plaintext = plaintext[: messages.MAX_PLAINTEXT]
    sealed = Sealer(KEY, INDEX).seal(plaintext)
    assert len(sealed) == 65_632
    assert messages.Receiver(KEY).open(sealed) == plaintext
    assert open_(Opener(KEY), sealed) == plaintext


def test_empty_plaintext() -> None:
    assert open_(Opener(KEY), Sealer(KEY, INDEX).seal(b"")) == b""


def test_counter_runs_up_to_its_limit() -> None:
    """2^64 - 1 is reserved by Noise, section 5.1."""
    sealer = Sealer(KEY, INDEX)
    sealer.counter = COUNTER_LIMIT - 1
    assert open_(Opener(KEY), sealer.seal(b"last")) == b"last"
    for _ in range(2):
        with pytest.raises(LocalProtocolError):
            sealer.seal(b"one more")


def test_forgeries_change_nothing() -> None:
    """Flip each byte under the tag, the counter's too; then the genuine message still opens, once."""
    opener, message = Opener(KEY), seal(5, b"sixteen bytes ok")
    for position in range(8, len(message)):
        bad = bytearray(message)
        bad[position] ^= 1
        with pytest.raises(SealedError, match="verify"):
            open_(opener, bytes(bad))
    assert open_(opener, message) == b"sixteen bytes ok"
    with pytest.raises(SealedError, match="replayed"):
        open_(opener, message)


def test_a_forged_high_counter_does_not_move_the_window() -> None:
    opener = Opener(KEY)
    with pytest.raises(SealedError):
        open_(opener, seal(2**40, key=bytes(32)))
    assert open_(opener, seal(0)) == b"text"


@pytest.mark.parametrize("size", [0, 1, 15, 16, 31])
def test_short_messages(size: int) -> None:
    with pytest.raises(SealedError, match="size"):
        open_(Opener(KEY), seal(0)[:size])


def test_a_buffer_too_small_loses_nothing() -> None:
    opener, message = Opener(KEY), seal(0)
    with pytest.raises(SealedError, match="size"):
        opener.open_into(memoryview(message), memoryview(bytearray(3)))
    assert open_(opener, message) == b"text"


def test_directions_do_not_open_each_other() -> None:
    """A reflected message fails: each direction has its own key."""
    first, second = bytes(32), bytes([1]) * 32
    sealed = Sealer(first, INDEX).seal(b"text")
    with pytest.raises(SealedError):
        open_(Opener(second), sealed)
    assert open_(Opener(first), sealed) == b"text"


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 3 * WINDOW), max_size=60), st.integers(0, 300))
def test_missing_counts_what_a_set_would(counters: list[int], run: int) -> None:
    window = ReplayWindow()
    seen: set[int] = set()
    for counter in [*counters, *range(run)]:
        if window.accept(counter):
            seen.add(counter)
    end = max(seen, default=-1) + 1
    recent = range(max(0, end - WINDOW), end)
    assert window.missing() == (len(set(recent) - seen), len(recent))
