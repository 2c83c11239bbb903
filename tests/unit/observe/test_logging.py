from __future__ import annotations

import io
import json
import logging
import os
from collections.abc import Iterator

import pytest
import structlog

from shadowmesh.observe.logging import MAX_WAITING, Lines, configure, get_logger


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
