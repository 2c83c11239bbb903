"""Links of Markdown pages, and where they lead."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

_LINK = re.compile(r"\]\((?!https?:)([^)\s]+)\)")


def links(page: Path) -> Iterator[tuple[str, Path, bool]]:
    """Each link within the tree, the file that it leads to, and whether that and its heading are there."""
    for link in _LINK.findall(re.sub(r"`[^`]*`", "", page.read_text())):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        yield link, target, target.exists() and (not anchor or anchor in _anchors(target))


def _anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
