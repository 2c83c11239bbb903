"""Every block of the guide and of our pages is known to a test, or has a reason why none runs it.

Such a reason stands before the block, in a comment: `<!-- not run: needs a public name -->`. The guide, which
is to the letter, has its reasons here. What an administrator follows, TYPED, is typed whole: each block
without such a comment is given to `Page.run`, or a test uses each of its commands.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from guide.pages import (
    BOOTED_ONLY,
    CLIENT,
    DEPLOY,
    GUIDE,
    MONITORING,
    NOT_RUN,
    ROTATION,
    SERVICE,
    START,
    Page,
    left_out,
)
from shadowmesh.config import load_client_config
from shadowmesh.errors import ConfigError
from shadowmesh.testing import guide

LEFT_OUT = "each of its commands is one of NOT_RUN"
MARKED = "the page says why"
MACOS, WINDOWS = "needs macOS, for which no client is built yet", "needs Windows, likewise"

# For each section, in the order of its blocks: the file that tests it, or why there is none.
KNOWN = {
    GUIDE: {
        "Architecture Overview": ["a picture"],
        "Relay Server Deployment / 1. Server Preparation": ["test_relay.py"],
        "Relay Server Deployment / 2. Binary Installation": ["test_relay.py"],
        "Relay Server Deployment / 3. Configuration": ["test_relay.py"],
        "Relay Server Deployment / 4. Systemd Service": ["test_relay.py"],
        "Relay Server Deployment / 5. Start Relay Server": ["test_booted.py"],
        "Relay Server Deployment / 6. Verify Relay Server": ["test_relay.py", "test_relay.py"],
        "Relay Server Deployment / 7. Firewall Configuration": ["test_firewall.py"],
        "Client Daemon Deployment / Linux Client / Installation": ["test_client.py"],
        "Client Daemon Deployment / Linux Client / Configuration": ["test_client.py"],
        "Client Daemon Deployment / Linux Client / Systemd Service": ["test_client.py", "test_booted.py"],
        "Client Daemon Deployment / macOS Client / Installation": [MACOS],
        "Client Daemon Deployment / macOS Client / Launch Daemon (as service)": ["test_client.py", LEFT_OUT],
        "Client Daemon Deployment / Windows Client / Windows Service Installation": [WINDOWS],
        "Multi-Region Relay Deployment / Configuration": ["test_relay.py"],
        "Monitoring / Prometheus Metrics": ["test_relay.py"],
        "Monitoring / Alerting": ["test_monitoring.py"],
        "Security Hardening / 1. TLS/HTTPS Support": ["test_tls.py", "test_tls.py"],
        "Security Hardening / 2. Rate Limiting": ["test_firewall.py"],
        "Security Hardening / 3. Authentication (Future)": ["test_client.py"],
        "Scaling / Horizontal Scaling": ["test_client.py"],
        "Troubleshooting / Relay Server Issues": ["test_relay.py"],
        "Troubleshooting / Client Issues": ["test_client.py"],
    },
    DEPLOY: {
        "A relay / Install": [MARKED, "test_booted.py"],
        "A relay / From a clone": ["test_deploy.py"],
        "A relay / To the package": ["test_booted.py"],
        "A relay / Configure": ["test_deploy.py"],
        "A relay / Service": ["test_booted.py", "test_booted.py"],
        "A relay / Verify": ["test_deploy.py", "test_deploy.py"],
        "A relay / Firewall": ["test_deploy.py"] * 5,
        "TLS": ["test_tls.py"],
        "TLS / With nginx": ["test_tls.py", "test_tls.py"],
        "TLS / With Caddy": ["test_tls.py"],
        "TLS / In the relay": ["test_tls.py", "test_tls.py"],
        "API keys": ["test_deploy.py", "test_deploy.py", "test_deploy.py", "test_deploy.py"],
        "Reload": ["test_deploy.py"],
        "Restart and upgrade": ["test_booted.py", "test_deploy.py", "test_deploy.py"],
        "Several relays": ["test_relay.py"],
        "When it does not work": ["test_deploy.py"],
    },
    MONITORING: {"Prometheus": ["test_deploy.py", "test_deploy.py"]},
    SERVICE: {
        "By the package": ["test_booted.py"],
        "From a clone": ["test_client_pages.py"],
        "To the package": ["test_booted.py"],
    },
    CLIENT: {
        "Status": ["test_client_pages.py"],
        "Peers": ["test_client_pages.py"],
        "Ping": ["test_client_pages.py"],
        "The API": ["test_client_pages.py", "test_client_pages.py"],
    },
    ROTATION: {"": ["test_client_pages.py"]},
    START: {
        "The relay": ["test_start.py"],
        "The first device": ["test_start.py"],
        "Another device": ["test_start.py"],
        "The invitation": ["tests/unit/test_invitation.py has the format"],
    },
}
PAGES = pytest.mark.parametrize("page", KNOWN, ids=lambda page: page.path.stem)


@PAGES
def test_every_block_is_known(page: Page) -> None:
    there: dict[str, int] = {}
    for block in page.blocks():
        there[block.section] = there.get(block.section, 0) + 1
    assert there == {section: len(blocks) for section, blocks in KNOWN[page].items()}


@PAGES
def test_the_files_named_use_these_blocks(page: Page) -> None:
    for section, blocks in KNOWN[page].items():
        parts = section.rpartition(" / ")
        for file in {name for name in blocks if name.endswith(".py")} - {"test_monitoring.py"}:
            text = Path(__file__).with_name(file).read_text()
            assert f'"{section}"' in text or f' / {parts[2]}"' in text, (section, file)


@PAGES
def test_what_the_page_marks_is_what_no_test_runs(page: Page) -> None:
    marked: dict[str, list[bool]] = {}
    for block in page.blocks():
        marked.setdefault(block.section, []).append(bool(block.not_run))
    assert marked == {section: [name == MARKED for name in blocks] for section, blocks in KNOWN[page].items()}


Uses = set[tuple[str, str, int]]
"""Page, section and number of blocks."""


def uses(file: Path) -> Iterator[tuple[str, str, int]]:
    """The blocks that a test types whole, or of whose commands it uses each."""
    for function in ast.walk(ast.parse(file.read_text())):
        if not isinstance(function, ast.FunctionDef):
            continue
        nodes = [*ast.walk(function)]
        names = [each.id for each in nodes if isinstance(each, ast.Name) and isinstance(each.ctx, ast.Load)]
        whole = [
            each.value for each in nodes if isinstance(each, ast.Assign) and used(each.targets[0], names)
        ]
        for call in nodes:
            match call:
                case ast.Call(func=ast.Attribute(value=ast.Name(id=page), attr=how), args=arguments):
                    given = [each.value for each in arguments if isinstance(each, ast.Constant)]
                    if given and (how == "run" or (how == "commands" and call in whole)):
                        section, number = (*given, 0)[:2]
                        yield page, str(section), int(str(number))


def used(target: ast.expr, names: list[str]) -> bool:
    """Whether all that is assigned is used."""
    there = [each.id for each in ast.walk(target) if isinstance(each, ast.Name)]
    return isinstance(target, ast.Tuple) and all(name in names for name in there)


TYPED = {"DEPLOY": DEPLOY, "MONITORING": MONITORING, "SERVICE": SERVICE, "START": START}
SHELLS = ("sh", "bash")


@pytest.mark.parametrize("name", TYPED)
def test_what_an_administrator_follows_is_typed_whole(name: str) -> None:
    wanted: Uses = set()
    for section in KNOWN[TYPED[name]]:
        here = [block for block in TYPED[name].blocks() if block.section == section]
        wanted |= {
            (name, section, number)
            for number, block in enumerate(here)
            if block.language in SHELLS and not block.not_run
        }
    typed = {use for file in Path(__file__).parent.glob("test_*.py") for use in uses(file)}
    assert wanted
    assert wanted <= typed


def test_a_command_that_a_test_does_not_use_is_found(tmp_path: Path) -> None:
    file = tmp_path / "test_it.py"
    file.write_text(
        "def test() -> None:\n    one, _ = DEPLOY.commands('One')\n    x, y = DEPLOY.commands('Two', 1)\n"
        "    DEPLOY.run(machine, 'Three')\n    *z, = DEPLOY.text('Four')\n    typed(one, x, y, z)\n"
    )
    assert {*uses(file)} == {("DEPLOY", "Two", 1), ("DEPLOY", "Three", 0)}


def test_what_is_left_out_of_the_guide_is_left_out_for_a_reason() -> None:
    for section, blocks in KNOWN[GUIDE].items():
        for number, name in enumerate(blocks):
            if name == LEFT_OUT:
                assert all(left_out(command) for command in GUIDE.commands(section, number))


def test_every_reason_is_needed() -> None:
    commands = [command for block in GUIDE.blocks() for command in guide.commands(block.text)]
    reasons = (*NOT_RUN, *BOOTED_ONLY)
    assert not [start for start in reasons if not any(command.startswith(start) for command in commands)]


def test_the_configuration_files_of_the_guide_are_those_of_the_test_kit() -> None:
    assert GUIDE.text("Relay Server Deployment / 3. Configuration") == guide.RELAY_CONFIG
    assert GUIDE.text("Client Daemon Deployment / Linux Client / Configuration") == guide.CLIENT_CONFIG


def test_an_api_key_is_refused_in_words(tmp_path: Path) -> None:
    relay = yaml.safe_load(GUIDE.text("Security Hardening / 3. Authentication (Future)"))
    text = guide.client_config(ip="10.10.10.1/24", key="ab" * 31 + "cd", peer_id="a", server="-")
    file = tmp_path / "client-config.yaml"
    file.write_text(guide.merged(text, relay))
    with pytest.raises(ConfigError, match=r"relay\.api_key: is a placeholder; write what"):
        load_client_config(str(file))
