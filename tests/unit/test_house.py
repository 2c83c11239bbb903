"""Rules of the house that no other tool checks."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import shadowmesh
from shadowmesh.testing import guide

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("room", "limit"), [("src", 600), ("bench", 600), ("fuzz", 600), ("tests", 700)])
def test_files_stay_short(room: str, limit: int) -> None:
    long = {
        str(path): n for path in (ROOT / room).rglob("*.py") if (n := path.read_text().count("\n")) > limit
    }
    assert not long


def test_no_test_leaves_the_connections_of_its_servers_behind() -> None:
    """A server of `asyncio.start_server` does; `testing.websocket.accepting` does not."""
    leaving = {
        f"{path}:{node.lineno}"
        for room in ("tests", "src/shadowmesh/testing")
        for path in (ROOT / room).rglob("*.py")
        if "start_server" in (text := path.read_text())
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.Attribute) and node.attr == "start_server"
    }
    assert not leaving


@pytest.mark.parametrize("name", ["demo", "test", "check", "bench", "setup", "pin", "build"])
def test_scripts_are_executable_and_plain_sh(name: str) -> None:
    script = ROOT / "scripts" / name
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")


def test_the_changelog_has_the_version_of_the_package() -> None:
    assert f"## [{shadowmesh.__version__}]" in (ROOT / "CHANGELOG.md").read_text()


def test_the_test_kit_holds_the_files_of_the_guide() -> None:
    """The two files stand in the test kit, which is installed, and in the tests of the guide."""
    config = ROOT / "tests/guide/config"
    assert (config / "relay-config.yaml").read_text() == guide.RELAY_CONFIG
    assert (config / "client-config.yaml").read_text() == guide.CLIENT_CONFIG
