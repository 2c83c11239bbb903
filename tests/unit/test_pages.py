"""What the pages for people name exists, and what people may meet is on a page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shadowmesh.daemon import events
from shadowmesh.fairqueue import QUEUE_DELAY, QUEUE_FULL
from shadowmesh.net.tls import FAILURES
from shadowmesh.relay.counters import DROP_REASONS, REFUSALS
from shadowmesh.testing.markdown import links

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src/shadowmesh"
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_within_the_repository_lead_somewhere(page: Path) -> None:
    for link, _, found in links(page):
        assert found, link


def first_column(heading: str) -> set[str]:
    """The words in the first column of the tables below a heading of the troubleshooting page."""
    page = (ROOT / "docs/troubleshooting.md").read_text()
    section = page.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\| (`[^|]*) \|", section, re.MULTILINE)
    return {word for cell in cells for word in re.findall(r"`([^`]+)`", cell)}


def test_the_page_has_every_drop_of_a_client() -> None:
    counted: set[str] = set()
    for room in ("daemon", "mesh"):
        for file in (SOURCE / room).glob("*.py"):
            counted.update(re.findall(r'(?:drops\[|_give_up\w*\(\w+, )"(\w+)"', file.read_text()))
    counted |= {QUEUE_DELAY, QUEUE_FULL}
    assert len(counted) > 25
    assert first_column("`drops` in the client's `/status`") == counted


def test_the_page_has_every_event_of_a_client() -> None:
    assert first_column("`events` in the client's `/status`") == events._EVENTS.keys()


def test_the_page_has_every_log_line_and_counter_of_the_relay() -> None:
    said: set[str] = set()
    elsewhere = (SOURCE / name for name in ("cli/relay.py", "net/server.py", "observe/logging.py"))
    for file in (*(SOURCE / "relay").glob("*.py"), *elsewhere):
        said.update(re.findall(r'log\.\w+\(\s*"([^"]+)"', file.read_text()))
    assert len(said) > 7
    words = first_column("The relay's log")
    assert {word for word in words if " " in word} == {line.partition(";")[0] for line in said}
    assert {word for word in words if " " not in word} == {*DROP_REASONS, *REFUSALS, *FAILURES}


def test_the_readme_shows_the_report_of_the_demo() -> None:
    sample = (ROOT / "README.md").read_text().partition("## See it")[2].partition("## Use it")[0]
    code = (SOURCE / "cli/demo.py").read_text()
    claims = re.findall(r'claim\(\s*"([^"]+)"', code)
    assert set(re.findall(r"✓ (.+?)  ", sample)) == set(claims)
    assert "(twice: both links)" in sample
    assert "What the relay logged about its clients (all of these are pseudonyms)" in sample
