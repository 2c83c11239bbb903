from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from shadowmesh.testing.program import LabError, Program, wait_for


def start(script: str, directory: Path) -> Program:
    log = directory / "log"
    with open(log, "wb") as output:
        process = subprocess.Popen(["sh", "-c", script], stdout=output, stderr=output)
    return Program("thing", process, log)


def test_wait_for_gives_what_the_condition_gave() -> None:
    answers = iter([None, "", "there"])
    assert wait_for(lambda: next(answers), "answer") == "there"


def test_wait_for_names_what_did_not_come() -> None:
    with pytest.raises(LabError, match=r"no answer within 0\.01 s"):
        wait_for(lambda: None, "answer", timeout=0.01)


def test_a_log_line_is_waited_for_and_sigterm_ends_the_program(tmp_path: Path) -> None:
    program = start("echo port 4711; exec sleep 60", tmp_path)
    assert program.wait_for_text(r"port (\d+)")[1] == "4711"
    assert program.status is None
    assert program.stop() == -15


def test_a_program_that_ends_too_soon_shows_its_log_at_once(tmp_path: Path) -> None:
    program = start("echo no such file; exit 3", tmp_path)
    with pytest.raises(
        LabError, match=r"(?s)thing ended with status 3 before: log line /ready/.*no such file"
    ):
        program.wait_for_text("ready")


def test_a_program_that_does_not_end_is_named(tmp_path: Path) -> None:
    program = start("exec sleep 60", tmp_path)
    with pytest.raises(LabError, match="did not end"):
        program.wait(0.01)
    assert program.kill() == -9
