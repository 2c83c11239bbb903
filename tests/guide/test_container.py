"""The Containerfile: no container engine is needed for tests, so only what it says is looked at."""

from __future__ import annotations

import re

from guide.pages import ROOT

STAGES = re.split(r"^FROM .*\n", (ROOT / "Containerfile").read_text().replace("\\\n", ""), flags=re.M)[1:]


def lines(stage: int, word: str) -> list[list[str]]:
    """The arguments of these instructions."""
    return [line.split()[1:] for line in STAGES[stage].splitlines() if line.startswith(f"{word} ")]


def test_the_image_runs_as_a_number_that_is_not_roots() -> None:
    assert len(STAGES) == 2
    (user,) = lines(1, "USER")
    numbers = re.fullmatch(r"(\d+):(\d+)", user[0])
    assert numbers is not None  # of a name nobody outside can see that it is not root's
    assert all(int(number) > 999 for number in numbers.groups())
    assert STAGES[1].index("USER ") > STAGES[1].rindex("RUN ")


def test_the_first_stage_has_what_the_build_reads() -> None:
    copied = [name for *names, _ in lines(0, "COPY") for name in names]
    assert all((ROOT / name).exists() for name in copied)
    assert set(copied) >= {"scripts", "requirements", "packaging", "src", "CHANGELOG.md"}
    assert lines(0, "RUN")[-1] == ["./scripts/build", "relay"]
    (packages,) = [words for words in lines(0, "RUN") if words[0] == "apt-get"]
    assert {"binutils", "libpython3.11", "python3", "python3-venv", "ca-certificates"} <= set(packages)


def test_the_image_starts_the_relay_that_was_built() -> None:
    program, config = lines(1, "COPY")
    assert program == ["--from=build", "/source/build/programs/shadowmesh-relay", "/usr/lib/shadowmesh-relay"]
    assert (ROOT / config[0]).is_file()
    assert lines(1, "ENTRYPOINT") == [['["/usr/bin/shadowmesh-relay"]']]
    assert lines(1, "CMD") == [['["-config",', f'"{config[1]}"]']]
