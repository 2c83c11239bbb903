"""Rewrite fuzz/corpus from the `seeds` of each target: PYTHONPATH=tests python -m fuzz.seeds.

Files of other names, such as what once broke a target, stay.
"""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

CORPUS = Path(__file__).parent / "corpus"
TARGETS = ("upgrade", "websocket", "control", "frame", "message", "offload")
PREFIX = "seed-"


def files(target: str) -> dict[str, bytes]:
    """The seeds of a target by the names of their files, none twice."""
    found: dict[str, bytes] = {}
    for name, data in import_module(f"fuzz.{target}").seeds().items():
        if data not in found.values():
            slug = PREFIX + re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
            found[slug if slug not in found else f"{slug}-{len(found)}"] = data
    return found


if __name__ == "__main__":
    for target in TARGETS:
        directory = CORPUS / target
        directory.mkdir(parents=True, exist_ok=True)
        for old in directory.glob(f"{PREFIX}*"):
            old.unlink()
        for name, data in files(target).items():
            (directory / name).write_bytes(data)
