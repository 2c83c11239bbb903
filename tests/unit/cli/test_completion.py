"""`shadowmesh completion`: scripts that the shells take, and what bash completes with its."""

from __future__ import annotations

import shutil
import subprocess
import sysconfig

import pytest
from click.testing import CliRunner

from shadowmesh.cli import ctl
from shadowmesh.cli.completion import PLACES

TRY = """
compopt() { :; } # which bash knows while it completes only
eval "$1"; shift
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); _shadowmesh_completion shadowmesh
printf '%s\\n' "${COMPREPLY[@]}"
"""


def script(shell: str) -> str:
    result = CliRunner().invoke(ctl.cli, ["completion", shell])
    assert (result.exit_code, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize(
    ("typed", "completed"),
    [
        ("in", ["init", "invite"]),
        ("init ", ["client", "relay"]),
        ("init client --ta", ["--taken"]),
        ("relay-keys ro", ["rotate"]),
        ("completion ", ["bash", "zsh", "fish"]),
    ],
)
def test_bash(typed: str, completed: list[str]) -> None:
    argv = ["bash", "--norc", "-c", TRY, "bash", script("bash"), "shadowmesh", *typed.split(" ")]
    environment = {"PATH": f"{sysconfig.get_path('scripts')}:/usr/bin:/bin", "LANG": "C.UTF-8"}
    done = subprocess.run(argv, capture_output=True, text=True, check=True, env=environment)
    assert done.stdout.split() == completed
    assert done.stderr == ""


@pytest.mark.parametrize("shell", PLACES)
def test_a_shell_can_read_its_script(shell: str) -> None:
    assert "_SHADOWMESH_COMPLETE" in script(shell)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    subprocess.run([shell, "-n"], input=script(shell), text=True, check=True)


def test_no_other_shell() -> None:
    result = CliRunner().invoke(ctl.cli, ["completion", "cmd"])
    assert result.exit_code == 2
    assert "'cmd' is not one of 'bash', 'zsh', 'fish'" in result.stderr
