"""The secrets of a configuration, and how they are kept out of every text."""

from __future__ import annotations

import hmac
import os
import re
import stat

from shadowmesh.apikey import API_KEY
from shadowmesh.config.values import text
from shadowmesh.crypto.examples import public_example

_MAKE_ONE = "make one with: shadowmesh keygen (the same key on every device of the network)"
_MOST_IN_FILE = 4096  # bytes; a key file is one line of 64 digits
_ASK_FOR_ONE = "write what `shadowmesh relay-keys add` printed on the relay"


class SecretKey:
    """32 bytes that neither `repr` nor `str` shows."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = key

    def reveal(self) -> bytes:
        """The key itself, 32 bytes."""
        return self._key

    def __repr__(self) -> str:
        return "SecretKey(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SecretKey) and hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self._key)


def network_key(value: object) -> SecretKey:
    """64 hex digits that no public example uses. Raises ValueError, without the key in it."""
    if isinstance(value, SecretKey):
        return value
    digits = text(value)
    if "YOUR_" in digits:
        raise ValueError(f"is the guide's placeholder; {_MAKE_ONE}")
    foreign = re.search("[^0-9a-fA-F]", digits)
    if foreign:
        raise ValueError(
            f"character {foreign.start() + 1} of {len(digits)} is no hex digit (0-9, a-f); {_MAKE_ONE}"
        )
    if len(digits) != 64:
        raise ValueError(f"has {len(digits)} hex digits where 64 belong; {_MAKE_ONE}")
    key = bytes.fromhex(digits)
    if example := public_example(key):
        raise ValueError(f"is a key that public examples use ({example}); {_MAKE_ONE}")
    return SecretKey(key)


def network_key_in(path: str) -> SecretKey:
    """The key in a file: 64 hex digits, white space around and between them counts for nothing.

    Raises ValueError, without the key in it.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # a FIFO would let the reader wait for ever
            raise ValueError(f"{path} is no regular file; write the path of one with 64 hex digits")
        with open(path, "rb") as file:
            content = file.read(_MOST_IN_FILE + 1)
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error.strerror}") from None
    if len(content) > _MOST_IN_FILE:
        raise ValueError(f"{path} is too large to be a key file; {_MAKE_ONE}")
    try:
        return network_key("".join(content.decode("latin-1").split()))
    except ValueError as error:
        raise ValueError(f"the content of {path} {error}") from None


class ApiKey:
    """A relay's API key as text, which neither `repr` nor `str` shows."""

    __slots__ = ("_key",)

    def __init__(self, key: str) -> None:
        self._key = key

    def reveal(self) -> str:
        """The key itself, `smk_...`."""
        return self._key

    def __repr__(self) -> str:
        return "ApiKey(hidden)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ApiKey) and hmac.compare_digest(self._key, other._key)

    def __hash__(self) -> int:
        return hash(self._key)


def relay_key(value: object) -> ApiKey:
    """An API key in its one form. Raises ValueError, without the key in it."""
    if isinstance(value, ApiKey):
        return value
    key = text(value)
    if "YOUR_" in key:
        raise ValueError(f"is a placeholder; {_ASK_FOR_ONE}, or remove the line if that relay asks for none")
    if not API_KEY.fullmatch(key):
        raise ValueError(
            f"is no API key: one has the form smk_ID_SECRET and 56 characters, this has {len(key)}; "
            f"{_ASK_FOR_ONE}"
        )
    return ApiKey(key)
