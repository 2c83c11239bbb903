"""Invariant: whatever bytes come, a control decoder returns a message or None, or raises ControlError.

And what one side encodes, the other decodes to the same.
"""

from __future__ import annotations

import json

from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.errors import ControlError
from shadowmesh.wire.control import (
    Addresses,
    AddressesResult,
    Challenge,
    Claims,
    Drain,
    Gone,
    Join,
    Joined,
    Limits,
    Pause,
    Problem,
    Refused,
    Resume,
    decode_claims,
    decode_from_client,
    decode_from_relay,
    encode,
    encode_claims,
    strict_json,
)

address = st.binary(min_size=16, max_size=16)
key = st.binary(min_size=32, max_size=32)
signature = st.binary(min_size=64, max_size=64)
word = st.text(st.characters(min_codepoint=32, max_codepoint=126), max_size=63)
max_frame = st.integers(66048, 2**31 - 1)
addresses = st.lists(address, max_size=64).map(tuple)
refused = st.lists(st.builds(Refused, address, word), max_size=30).map(tuple)
limits = st.builds(Limits, st.integers(1, 2**31 - 1), max_frame)

from_client = st.one_of(
    st.builds(Join, st.binary(min_size=1, max_size=5000), signature, signature),
    st.builds(Addresses, addresses, addresses),
)
from_relay = st.one_of(
    st.builds(Challenge, st.integers(0, 9), key, word, word, max_frame, st.floats(0.001, 3600)),
    st.builds(Joined, word, addresses, refused, limits),
    st.builds(AddressesResult, addresses, refused),
    st.builds(Gone, address, word),
    st.builds(Pause, address),
    st.builds(Resume, address),
    st.builds(Problem, word, word),
    st.builds(Drain, st.integers(0, 600_000)),
)
hosts = word.map(str.lower).filter(bool)
claims = st.builds(
    Claims,
    st.integers(0, 9),
    key,
    key,
    address,
    hosts,
    st.lists(address, min_size=1, max_size=48).map(tuple),
    word,
)

# fmt: off
KEYS = [
    "type", "claims", "network_signature", "device_signature", "add", "remove", "version", "nonce", "region",
    "server_name", "max_frame", "keepalive_s", "remote", "held", "refused", "limits", "address", "reason",
    "code", "detail", "reconnect_after_ms", "network", "device", "instance", "relay", "addresses", "agent",
]
# fmt: on
TYPES = ["challenge", "join", "joined", "addresses", "gone", "pause", "resume", "problem", "drain"]
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(),
    address.map(bytes.hex),
    key.map(bytes.hex),
)
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
)
near_misses = st.builds(
    lambda kind, fields: json.dumps(fields | {"type": kind}).encode(),
    st.sampled_from(TYPES),
    st.dictionaries(st.sampled_from(KEYS), values),
)


@given(st.one_of(st.binary(), near_misses, st.text().map(lambda text: text.encode("utf-8", "surrogatepass"))))
def test_decoders_raise_nothing_else(data: bytes) -> None:
    for decode in (decode_from_client, decode_from_relay, decode_claims, strict_json):
        try:
            decode(data)
        except ControlError:
            pass


@given(st.text())
def test_decoders_of_text_raise_nothing_else(text: str) -> None:
    for decode in (decode_from_client, decode_from_relay, strict_json):
        try:
            decode(text)
        except ControlError:
            pass


@given(from_client)
def test_client_messages_survive(message: Join | Addresses) -> None:
    assert decode_from_client(encode(message)) == message


@given(from_relay)
def test_relay_messages_survive(
    message: Challenge | Joined | AddressesResult | Gone | Pause | Resume | Problem | Drain,
) -> None:
    assert decode_from_relay(encode(message)) == message


@given(claims)
def test_claims_survive(message: Claims) -> None:
    assert decode_claims(encode_claims(message)) == message


@given(values)
def test_strict_json_agrees_with_json_on_what_it_accepts(value: object) -> None:
    text = json.dumps({"x": value}, allow_nan=True)
    try:
        assert strict_json(text) == json.loads(text)
    except ControlError:
        pass
