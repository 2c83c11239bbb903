"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence


def at_least_one(text: str) -> int:
    """A whole number from 1 on."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError("at least 1")
    return value


def some_of(known: Sequence[str]) -> Callable[[str], list[str]]:
    """A list with commas of known names, each once and in the order of `known`."""

    def parse(text: str) -> list[str]:
        names = text.split(",")
        if unknown := [name for name in names if name not in known]:
            raise argparse.ArgumentTypeError(f"unknown: {', '.join(unknown)}; known: {', '.join(known)}")
        return [name for name in known if name in names]

    return parse
