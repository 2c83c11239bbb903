"""Text scalars to typed values. Each parser raises ValueError in words: what is wrong; what would be right.

Quotes make no difference: `9545` and `"9545"` are the same number, a name written as yes is "yes".
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import PurePath

from pydantic import BaseModel, ConfigDict

from shadowmesh.config.yaml import Path


class Model(BaseModel):
    """Base of the configuration models: frozen, no unknown keys, no values in error texts."""

    model_config = ConfigDict(
        defer_build=True,  # a program builds only the model of its own file
        frozen=True,
        extra="forbid",
        hide_input_in_errors=True,
        arbitrary_types_allowed=True,
    )

    def cautions(self) -> list[tuple[Path, str]]:
        """What a valid configuration should still be warned about: (path, words)."""
        return []


class Problems(ValueError):
    """Mistakes that show when several values are looked at together, each at its path from the root."""

    def __init__(self, found: list[tuple[Path, str]]) -> None:
        super().__init__()
        self.found = found


NO_VALUE = "has no value; write one"
LEVELS = ("debug", "info", "warning", "error")
"""Of the log, each more quiet than the one before."""


def shown(value: str) -> str:
    """`value` in quotes for a message: ASCII, shortened, and hidden when it might be a key."""
    if re.search(r"[0-9a-fA-F]{32}", value):
        return "(a long hex text)"
    text = value.encode("ascii", "backslashreplace").decode()
    return f'"{text[:57]}..."' if len(text) > 60 else f'"{text}"'


def text(value: object) -> str:
    """One scalar as text. A value that Python code gives in another type counts by its `str()`."""
    if value is None:
        raise ValueError(NO_VALUE)
    if isinstance(value, (list, tuple, dict)):
        raise ValueError(
            'must be one value, not a section; no "key: value" belongs here'
            if isinstance(value, dict)
            else 'must be one value, not a list; write it without "[" and "-"'
        )
    found = str(value)
    for character in found:
        if not character.isprintable():
            raise ValueError(
                "goes over more than one line; write it in one"
                if character in "\r\n"
                else f"holds a character that cannot be seen (U+{ord(character):04X}); "
                "remove it, and put a text with \\ in single quotes"
            )
    return found


def whole(lowest: int, highest: int) -> Callable[[object], int]:
    """Parser of a whole number in plain decimal digits."""

    def parse(value: object) -> int:
        digits = text(value)
        if not re.fullmatch(r"-?(0|[1-9][0-9]{0,17})", digits):
            raise ValueError(f"{shown(digits)} is not a whole number; write one from {lowest} to {highest}")
        if not lowest <= int(digits) <= highest:
            raise ValueError(f"{digits} is out of range; write a number from {lowest} to {highest}")
        return int(digits)

    return parse


def flag(value: object) -> bool:
    """A yes or no in any of YAML 1.1's spellings."""
    word = text(value)
    if word.lower() in ("true", "yes", "on"):
        return True
    if word.lower() in ("false", "no", "off"):
        return False
    raise ValueError(f"{shown(word)} is neither true nor false; write one of them")


def flag_only(allowed: bool, why: str) -> Callable[[object], bool]:
    """Parser of a flag whose other setting is not built yet; `why` says so."""

    def parse(value: object) -> bool:
        if flag(value) is not allowed:
            raise ValueError(f"{why}; write {str(allowed).lower()}")
        return allowed

    return parse


def choice(*names: str) -> Callable[[object], str]:
    """Parser of one of a few words, in any case."""

    def parse(value: object) -> str:
        word = text(value)
        if word.lower() not in names:
            raise ValueError(f"{shown(word)} is not known here; write one of {', '.join(names)}")
        return word.lower()

    return parse


def absolute(example: str) -> Callable[[object], str]:
    """Parser of an absolute path, for a service has no working directory to count from."""

    def parse(value: object) -> str:
        path = text(value)
        if not PurePath(path).is_absolute():
            raise ValueError(f"{shown(path)} is not an absolute path; write one such as {example}")
        return path

    return parse


def level(value: object) -> str:
    """`debug`, `info`, `warning` or `error`; `warn` is taken as warning."""
    return choice(*LEVELS)("warning" if str(value).lower() == "warn" else value)


def label(value: object) -> str:
    """1 to 63 printable ASCII characters: what the protocol lets others show of a name."""
    name = text(value)
    if not (name.isascii() and 1 <= len(name) <= 63):
        raise ValueError(f"{shown(name)} does not do as a name; write 1 to 63 ASCII characters")
    return name


def hex32(value: object) -> bytes:
    """32 bytes as 64 hex digits."""
    digits = text(value)
    if not re.fullmatch(r"[0-9a-fA-F]{64}", digits):
        raise ValueError(f"{shown(digits)} is no network id; write its 64 hex digits")
    return bytes.fromhex(digits)
