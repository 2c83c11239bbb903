"""What `shadowmesh-relay` and `shadowmesh-daemon` share: a configuration file, and the end of a wrong one."""

from __future__ import annotations

import argparse
import os
import re
import sys
from typing import NoReturn, cast

from shadowmesh import __version__
from shadowmesh.errors import ConfigError


def configuration_file(
    program: str, description: str, file: str, argv: list[str] | None, *, required: bool
) -> str | None:
    """The file of `PROGRAM FILE` or `PROGRAM -config FILE`, None if there is none.

    Ends the program after --help and --version, and with status 2 if a required file is missing or two are
    given.
    """
    _open_standard_streams()
    parser = parser_of(program, description, file, required=required)
    words = sys.argv[1:] if argv is None else argv
    if words and not os.path.lexists(words[0]):
        _refuse_command(parser, words[0])
    arguments = parser.parse_args(words)
    given: list[str] = [one for one in (arguments.file, arguments.config) if one is not None]
    if len(given) > 1:
        parser.error("two configuration files are given; one belongs here")
    if required and not given:
        parser.error("no configuration file is given")
    return given[0] if given else None


def _refuse_command(parser: argparse.ArgumentParser, word: str) -> None:
    """Say how it is written, where a command stands in the place of the file."""
    if word in ("version", "help"):
        parser.error(f"there is no file {word}; write --{word}")
    if re.fullmatch("[a-z]+(-[a-z]+)?", word):
        import click

        from shadowmesh.cli.ctl import cli

        if cli.get_command(click.Context(cli), word) is not None:
            parser.error(f"there is no file {word}; for the command write: shadowmesh {word}")


def parser_of(program: str, description: str, file: str, *, required: bool) -> argparse.ArgumentParser:
    """What such a program takes; `file` is the help about its file."""
    parser = argparse.ArgumentParser(
        prog=program,
        usage=f"{program} {'FILE' if required else '[FILE]'}, or {program} -config FILE",
        description=description,
        allow_abbrev=False,
    )
    parser.add_argument("file", metavar="FILE", nargs="?", help=file)
    parser.add_argument("-config", "--config", metavar="FILE", help="the same")
    parser.add_argument("-version", "--version", action="version", version=f"{program} {__version__}")
    return parser


def end_with_mistakes(error: ConfigError, program: str) -> NoReturn:
    """Log the mistakes of a configuration, in the form that it asks for itself; then status 2."""
    from shadowmesh.observe.logging import Style, configure, get_logger

    configure("info", cast(Style, error.log_format))
    for problem in error.problems:
        get_logger("config").error(problem)
    get_logger(program).error(f"{program} cannot start", problems=len(error.problems))
    sys.exit(2)


def _open_standard_streams() -> None:
    """Put /dev/null in the place of those that were closed (`2>&-`), before a socket gets their number."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            file = os.open(os.devnull, os.O_RDWR)
            if file != number:
                os.dup2(file, number)
                os.close(file)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))
