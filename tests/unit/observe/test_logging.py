from __future__ import annotations

import io
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import structlog

from shadowmesh.errors import ConfigError, ShadowMeshError, StartError, TunError
from shadowmesh.observe.logging import (
    LIBRARY_BURST,
    MAX_WAITING,
    Lines,
    Style,
    configure,
    get_logger,
    log_not_reloaded,
)


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield
    root.handlers[:], _ = before
    root.setLevel(before[1])
    structlog.reset_defaults()


def test_auto_writes_one_plain_line_per_event_when_it_is_no_terminal() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    get_logger("relay").info("client joined", device="abcd1234", addresses=3)
    get_logger("relay").debug("not shown")
    (line,) = out.getvalue().splitlines()
    assert "\x1b" not in line
    assert line.endswith("[info] client joined [relay] device=abcd1234 addresses=3")


def test_json_is_one_object_per_line() -> None:
    out = io.StringIO()
    configure("debug", "json", out)
    get_logger("relay").debug("started", port=9545)
    record = json.loads(out.getvalue())
    assert (record["event"], record["level"], record["port"]) == ("started", "debug", 9545)


def test_standard_logging_comes_out_in_the_same_form_and_libraries_are_quiet() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    logging.getLogger("uvicorn.error").info("started server process")
    logging.getLogger("asyncio").warning("slow callback: %s", "x")
    (line,) = out.getvalue().splitlines()
    assert line.endswith("[warning] slow callback: x [asyncio]")


@pytest.mark.parametrize("style", ["auto", "json"])
def test_exceptions_come_without_the_values_of_variables(style: str) -> None:
    out = io.StringIO()
    configure("info", "json" if style == "json" else "auto", out)
    key = "c2VjcmV0"
    try:
        raise ValueError(len(key) * 2)
    except ValueError:
        get_logger("relay").exception("failed")
    assert "ValueError: 16" in out.getvalue()
    assert "c2VjcmV0'" not in out.getvalue().replace('key = "c2VjcmV0"', "")


class Broken(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "lines"),
    [
        (ConfigError(["one", "two"]), ["one [x]", "two [x]", "configuration not reloaded [x] problems=2"]),
        (StartError("port taken"), ["configuration not reloaded [x] why='port taken'"]),
        (TunError("no route"), ["configuration not reloaded [x] why='no route'"]),
    ],
)
def test_why_there_was_no_reload(error: ShadowMeshError, lines: list[str]) -> None:
    out = io.StringIO()
    configure("info", stream=out)
    log_not_reloaded(get_logger("x"), error)
    assert [line.partition("[error] ")[2] for line in out.getvalue().splitlines()] == lines


def test_a_bug_in_a_reload_shows_its_traceback() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    try:
        raise RuntimeError("a bug")
    except RuntimeError as error:
        log_not_reloaded(get_logger("x"), error)
    first, *_, last = out.getvalue().splitlines()
    assert first.endswith("[error] configuration not reloaded [x]")
    assert last.endswith("RuntimeError: a bug")


def test_a_log_that_cannot_be_written_costs_its_lines_only() -> None:
    lines = Lines(Broken())
    for _ in range(3):
        lines.write("x\n")
    lines.drain()
    assert lines.lost == 3


def test_a_log_that_nobody_reads_does_not_block() -> None:
    read, write = os.pipe()
    lines = Lines(open(write, "w"))  # noqa: SIM115  # the thread's own from here on
    for _ in range(MAX_WAITING + 2000):
        lines.write("x" * 99 + "\n")  # far more than a pipe and the queue hold
    assert lines.lost
    with open(read) as reader:  # lets the thread go on
        for _ in range(MAX_WAITING):
            assert reader.readline() == "x" * 99 + "\n"


def test_lines_come_in_order() -> None:
    stream = io.StringIO()
    lines = Lines(stream)
    for i in range(100):
        lines.write(f"{i}\n")
    lines.drain()
    assert stream.getvalue() == "".join(f"{i}\n" for i in range(100))


@pytest.fixture
def journal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[TextIO]:
    """A stream that $JOURNAL_STREAM names as the journal's."""
    with (tmp_path / "journal").open("w+") as stream:
        status = os.fstat(stream.fileno())
        monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
        yield stream


def written(stream: TextIO) -> str:
    stream.flush()
    stream.seek(0)
    return stream.read()


def test_the_journal_gets_priorities_and_no_second_time(journal: TextIO) -> None:
    configure("debug", stream=journal)
    log = get_logger("relay")
    for say in (log.debug, log.info, log.warning, log.error, log.critical):
        say("said", n=1)
    logging.getLogger("asyncio").error("loop trouble")
    assert written(journal).splitlines() == [
        "<7>[debug] said [relay] n=1",
        "<6>[info] said [relay] n=1",
        "<4>[warning] said [relay] n=1",
        "<3>[error] said [relay] n=1",
        "<2>[critical] said [relay] n=1",
        "<3>[error] loop trouble [asyncio]",
    ]


def test_console_in_the_journal_keeps_the_time_and_json_is_an_object_behind_the_priority(
    journal: TextIO,
) -> None:
    configure("info", "console", journal)
    get_logger("relay").warning("said")
    configure("info", "json", journal)
    get_logger("relay").error("said")
    console, json_line = written(journal).splitlines()
    assert re.fullmatch(r"<4>\d{4}-\d\d-\d\dT[\d:.]+Z \[warning\] said \[relay\]", console)
    assert json_line.startswith("<3>{")
    assert json.loads(json_line[3:])["event"] == "said"


@pytest.mark.parametrize("style", ["auto", "json"])
def test_each_line_of_a_traceback_has_its_priority(journal: TextIO, style: Style) -> None:
    configure("info", style, journal)
    try:
        raise ValueError("first\nsecond")
    except ValueError:
        get_logger("relay").exception("failed")
    lines = written(journal).splitlines()
    assert len(lines) == 1 if style == "json" else len(lines) >= 5
    assert all(line.startswith("<3>") for line in lines)


def test_another_stream_than_the_journal_gets_no_priorities(journal: TextIO, tmp_path: Path) -> None:
    with (tmp_path / "file").open("w+") as stream:
        configure("info", stream=stream)
        get_logger("relay").info("said")
        assert written(stream).endswith("Z [info] said [relay]\n")


def test_nothing_in_a_value_makes_a_line_or_reaches_the_terminal(journal: TextIO) -> None:
    configure("info", stream=journal)
    get_logger("relay").info("said\n<0>forged", agent="x\n<0>forged", other="\x1b[31m\u2028", good="ü", n=1)
    logging.getLogger("asyncio").warning("one\n<0>two")
    said, library = written(journal).removesuffix("\n").split("\n")
    assert said == "<6>[info] said\\n<0>forged [relay] agent=x\\n<0>forged other=\\x1b[31m\\u2028 good=ü n=1"
    assert library == "<4>[warning] one; <0>two [asyncio]"


def test_a_second_call_changes_level_and_style_of_loggers_that_exist() -> None:
    out = io.StringIO()
    configure("warning", stream=out)
    log = get_logger("relay")
    log.info("not shown")
    configure("debug", "json", out)
    log.debug("shown")
    configure("error", "json", out)
    log.warning("not shown")
    (line,) = out.getvalue().splitlines()
    assert json.loads(line)["event"] == "shown"


def test_a_second_call_starts_no_second_writer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    configure("info")
    threads = threading.active_count()
    for style in ("json", "console", "auto"):
        configure("info", style)
    assert threading.active_count() == threads


def test_a_library_cannot_fill_the_disk() -> None:
    out = io.StringIO()
    configure("info", stream=out)
    for _ in range(1000):
        logging.getLogger("uvicorn.error").warning("Invalid HTTP request received.")
    logging.getLogger("asyncio").error("another one is heard")
    lines = out.getvalue().splitlines()
    assert LIBRARY_BURST <= len(lines) - 1 <= LIBRARY_BURST + 2
    assert "another one is heard [asyncio] unlogged_before=9" in lines[-1]
