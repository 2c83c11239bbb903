"""Invariant: a file of API keys gives back the keys it was written from, and any other bytes give keys or one
StartError."""

from __future__ import annotations

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.errors import StartError
from shadowmesh.relay.keyfile import NAME, parse, render
from shadowmesh.relay.keys import Key, Previous

TIMES = st.integers(0, 253402300799)
DIGESTS = st.binary(min_size=32, max_size=32)
RATES = st.just(0) | st.integers(10_000, 2**53 - 1)
KEYS = st.builds(
    Key,
    id=st.text("abcdefghijklmnopqrstuvwxyz234567", min_size=8, max_size=8),
    name=st.from_regex(NAME, fullmatch=True),
    digest=DIGESTS,
    created=TIMES,
    expires=st.none() | TIMES,
    network=st.none() | DIGESTS,
    max_connections=st.integers(0, 2**53 - 1),
    max_addresses=st.integers(0, 2**53 - 1),
    bytes_per_second=RATES,
    revoked=st.none() | TIMES,
    previous=st.none() | st.builds(Previous, DIGESTS, TIMES),
)
LISTS = st.lists(KEYS, max_size=4, unique_by=(lambda key: key.id, lambda key: key.name))


@given(LISTS)
def test_what_is_written_is_read_again(keys: list[Key]) -> None:
    assert parse(render(keys), "k") == keys


@given(st.binary(max_size=200) | LISTS.map(render).map(lambda content: content[:-3]))
def test_any_bytes_are_keys_or_an_error_in_words(content: bytes) -> None:
    with suppress(StartError):
        parse(content, "k")
