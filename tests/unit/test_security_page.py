"""The tests that docs/security.md names exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_test_that_the_page_names_exists() -> None:
    file = ""
    named = re.findall(r"`(tests/[\w/]+\.py)?::(test_\w+)", (ROOT / "docs/security.md").read_text())
    assert len(named) > 50
    for path, test in named:
        file = path or file
        assert f"def {test}(" in (ROOT / file).read_text(), f"{file}::{test}"


def test_every_claim_names_its_test() -> None:
    rows = re.findall(
        r"^\| (?!what holds|---)(.+) \|$", (ROOT / "docs/security.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 30
    assert [row for row in rows if "::" not in row and "import rules" not in row] == []
