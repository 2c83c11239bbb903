"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs" / "performance.md"


def parsed(
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    quick: str = "see that it works; the numbers mean nothing",
) -> argparse.Namespace:
    """The command line, with what every benchmark takes besides: `--quick`, `--output`, `--write-docs`."""
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument(
        "--output",
        type=Path,
        default=ROOT / "bench" / "results",
        metavar="DIRECTORY",
        help="default: bench/results",
    )
    parser.add_argument("--write-docs", action="store_true", help="put the tables into docs/performance.md")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.write_docs:
        parser.error("the numbers of --quick mean nothing and do not go into the docs")
    return arguments


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
