"""The pages that an administrator follows, and how their commands are typed into a machine of the lab."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import pytest

from guide import standins
from shadowmesh.testing import guide
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import missing_tools

ROOT = standins.ROOT

NOT_RUN = {
    "wget https://github.com/": "there is no release to download yet",
    "sudo apt": "needs the Internet; what it would install is there",
    "sudo launchctl ": "needs macOS",
    "ifconfig utun0": "needs macOS",
    "netstat -rn | grep utun0": "needs macOS",
}
"""How those commands of the guide begin that the tests leave out, and why."""
BOOTED_ONLY = {
    "sudo systemctl ": "needs a booted systemd",
    "sudo journalctl ": "needs a booted systemd",
}
"""The same of those that only test_booted.py runs. Of our own pages each block is typed whole."""


class Types(Protocol):
    """What commands are typed into: a machine of the lab, or a Debian that has booted."""

    def shell(self, command: str, *, input: str | None = None) -> Any: ...


class Page(NamedTuple):
    """A page of Markdown with fenced blocks."""

    path: Path

    def blocks(self) -> list[guide.Block]:
        return guide.blocks(self.path.read_text())

    def text(self, section: str, number: int = 0) -> str:
        """The block `number` below this heading."""
        return [block.text for block in self.blocks() if block.section == section][number]

    def commands(self, section: str, number: int = 0) -> list[str]:
        """The commands of a block."""
        return guide.commands(self.text(section, number))

    def run(
        self,
        machine: Types,
        section: str,
        number: int = 0,
        *,
        input: str | None = None,
        booted: bool = False,
        instead: tuple[str, str] = ("", ""),
    ) -> dict[str, str]:
        """Type the commands of a block; of the guide, all but NOT_RUN and, unless `booted`, BOOTED_ONLY.

        A machine of the lab gets the stand-ins for what it lacks. `instead` is what the page says to write as
        something else. Returns what each command printed. One that fails is a LabError.
        """
        if isinstance(machine, Machine) and self != GUIDE:
            standins.install(machine)
        printed = {}
        for command in self.commands(section, number):
            if self == GUIDE and (command.startswith(tuple(NOT_RUN)) if booted else left_out(command)):
                continue
            typed = command.replace(*instead) if instead[0] else command
            if isinstance(machine, Machine) and " clone <" in typed:
                standins.clone(machine, typed)
            else:
                printed[command] = machine.shell(typed, input=input).stdout
        return printed


GUIDE = Page(Path(__file__).with_name("deployment-guide.md"))
"""The deployment guide to the letter."""
DEPLOY, MONITORING = (Page(ROOT / f"docs/{name}.md") for name in ("deploy", "monitoring"))
CLIENT, SERVICE, ROTATION = (Page(ROOT / f"docs/{name}.md") for name in ("client", "service", "rotation"))
START = Page(ROOT / "docs/start.md")
"""Ours."""


def left_out(command: str) -> bool:
    """Whether the tests on a machine of the lab leave this command out."""
    return command.startswith((*NOT_RUN, *BOOTED_ONLY))


def need(**tools: str) -> None:
    """Skip the test unless these commands are there; the values are their Debian packages."""
    if missing := missing_tools({name.replace("_", "-"): package for name, package in tools.items()}):
        pytest.skip("; ".join(missing))


WSCAT = ROOT / ".venv/wscat/node_modules/.bin/wscat"


def install_wscat(machine: Machine) -> None:
    """Put wscat where `npm install -g wscat` does; skips the test without it."""
    need(node="nodejs")
    if not WSCAT.exists():
        pytest.skip("wscat is not installed: scripts/setup test")
    machine.link("/usr/local/bin/wscat", str(WSCAT))
