"""Invariant: an invitation gives back what it was made of; one wrong character is refused; any other text
gives an invitation or one InvitationError."""

from __future__ import annotations

from contextlib import suppress
from ipaddress import IPv4Interface, IPv6Interface

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shadowmesh.apikey import API_KEY
from shadowmesh.errors import InvitationError
from shadowmesh.invitation import MAX_TEXT, SCHEME, Invitation, decode, encode

ADDRESSES = st.builds(
    lambda ip, length: IPv4Interface((ip, length)), st.integers(0, 2**32 - 1), st.integers(0, 32)
) | st.builds(lambda ip, length: IPv6Interface((ip, length)), st.integers(0, 2**128 - 1), st.integers(0, 128))
ASCII = st.characters(min_codepoint=32, max_codepoint=126)
INVITATIONS = st.builds(
    Invitation,
    key=st.binary(min_size=32, max_size=32),
    addresses=st.lists(ADDRESSES, min_size=1, max_size=8).map(tuple),
    name=st.text(ASCII, min_size=1, max_size=63),
    relays=st.lists(st.text(ASCII, min_size=1, max_size=255), min_size=1, max_size=4).map(tuple),
    mtu=st.none() | st.integers(0, 65535),
    api_key=st.none() | st.from_regex(API_KEY, fullmatch=True),
    insecure_api_key=st.booleans(),
    ca_file=st.none() | st.sampled_from(["/etc/shadowmesh/ca.pem", "/etc/Zertifikate/gültig.pem"]),
)


@given(INVITATIONS)
def test_what_is_made_is_read(invitation: Invitation) -> None:
    line = encode(invitation)
    assert len(line) <= MAX_TEXT
    assert decode(line) == decode(line.upper()) == decode(f" {line[:30]}\n {line[30:]}\n") == invitation


@given(INVITATIONS, st.data())
def test_a_wrong_character_is_refused(invitation: Invitation, data: st.DataObject) -> None:
    line = encode(invitation)
    at = data.draw(st.integers(0, len(line) - 1))
    near = st.sampled_from("abcdefghijklmnopqrstuvwxyz234567ABCDEFGHIJKLMNOPQRSTUVWXYZ0189=-/: ")
    other = data.draw((near | st.characters()).filter(lambda each: each != line[at]))
    with pytest.raises(InvitationError):
        decode(line[:at] + other + line[at + 1 :])


@given(INVITATIONS, st.data())
def test_a_part_is_refused(invitation: Invitation, data: st.DataObject) -> None:
    line = encode(invitation)
    with pytest.raises(InvitationError):
        decode(line[: data.draw(st.integers(0, len(line) - 1))])


@given(st.text() | st.text("abcdefghijklmnopqrstuvwxyz234567").map(SCHEME.__add__))
def test_any_text_is_an_invitation_or_an_error_in_words(text: str) -> None:
    with suppress(InvitationError):
        decode(text)
