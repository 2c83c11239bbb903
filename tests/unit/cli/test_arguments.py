"""Both programs take their configuration file in both forms."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowmesh import __version__
from shadowmesh.cli import daemon, relay
from shadowmesh.cli.arguments import configuration_file
from shadowmesh.observe.logging import drain

PROGRAMS = [daemon.main, relay.main]


def parse(*argv: str, required: bool = True) -> str | None:
    return configuration_file("program", "Does it.", "the file", list(argv), required=required)


@pytest.mark.parametrize(
    "argv", [("f.yaml",), ("-config", "f.yaml"), ("--config", "f.yaml"), ("-config=f.yaml",)]
)
def test_every_form(argv: tuple[str, ...]) -> None:
    assert parse(*argv) == "f.yaml"


def test_a_file_may_be_called_as_a_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse("nothing") == "nothing"
    (tmp_path / "init").touch()
    assert parse("init") == "init"


def test_none_is_given() -> None:
    assert parse(required=False) is None


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ((), "no configuration file is given"),
        (("a", "-config", "b"), "two configuration files are given; one belongs here"),
        (("a", "b"), "unrecognized arguments: b"),
        (("--conf", "a"), "unrecognized arguments: --conf"),
        (("version",), "there is no file version; write --version"),
        (("init", "client"), "there is no file init; for the command write: shadowmesh init"),
        (("check-config",), "there is no file check-config; for the command write: shadowmesh check-config"),
    ],
)
def test_mistakes_end_with_2(argv: tuple[str, ...], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(*argv)
    assert caught.value.code == 2
    assert capsys.readouterr().err == (
        f"usage: program FILE, or program -config FILE\nprogram: error: {words}\n"
    )


@pytest.mark.parametrize("main", PROGRAMS)
@pytest.mark.parametrize("form", [[], ["-config"]])
def test_the_programs_read_it(
    main: Callable[[list[str]], None], form: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = str(tmp_path / "foo.yaml")
    with pytest.raises(SystemExit) as caught:
        main([*form, file])
    assert caught.value.code == 2
    drain(5)
    mistake, end = capfd.readouterr().err.splitlines()
    assert mistake.endswith(f"[error] {file}: no such file [config]")
    assert re.search(r"\[error\] (relay|daemon) cannot start \[\1\] problems=1$", end)


@pytest.mark.parametrize("main", PROGRAMS)
@pytest.mark.parametrize("option", ["-version", "--version"])
def test_version(main: Callable[[list[str]], None], option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main([option])
    assert caught.value.code == 0
    assert capsys.readouterr().out.endswith(f" {__version__}\n")


CLOSED = """
import os, sys
from shadowmesh.cli.arguments import configuration_file
configuration_file("p", "", "", [], required=False)
print("lost", file=sys.stderr)
sys.exit(0 if all(os.path.samefile(f"/proc/self/fd/{n}", "/dev/null") for n in range(3)) else 1)
"""


def test_closed_streams_are_opened_again() -> None:
    """Else the first socket would be file 2, and get what Python writes to stderr."""
    done = subprocess.run(["/bin/sh", "-c", 'exec "$0" -c "$1" 0<&- 1>&- 2>&-', sys.executable, CLOSED])
    assert done.returncode == 0
