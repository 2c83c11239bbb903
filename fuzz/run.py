"""Fuzz one target with atheris, or try it on files: python -m fuzz.run TARGET [SECONDS | FILE …].

New inputs go to fuzz/found/TARGET, with which the next run begins; one that breaks the invariant goes to
fuzz/found/TARGET-crash-… Files are run without atheris.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
SECONDS = 60


def main(name: str, arguments: list[str]) -> None:
    """Run a target. Ends the process, with another status than 0 if something was found."""
    if arguments and not arguments[0].isdigit():
        target = import_module(f"fuzz.{name}")
        for file in arguments:
            print(f"{file}: {target.one(Path(file).read_bytes())}")
        return
    atheris: Any = import_module("atheris")
    with atheris.instrument_imports(include=["shadowmesh"]):
        target = import_module(f"fuzz.{name}")
    found = HERE / "found" / name
    found.mkdir(parents=True, exist_ok=True)
    words = found.with_suffix(".words")
    words.write_text("".join('"' + "".join(map("\\x{:02x}".format, word)) + '"\n' for word in target.WORDS))
    options = [
        f"-max_total_time={arguments[0] if arguments else SECONDS}",
        f"-max_len={target.MAX_SIZE}",
        f"-dict={words}",
        f"-artifact_prefix={found}-",
        "-timeout=60",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(found), str(HERE / "corpus" / name)], target.one)
    atheris.Fuzz()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
