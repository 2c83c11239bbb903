"""When a program said what it is waited for."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from bench.start import said
from shadowmesh.testing.program import LabError, Program


def test_the_time_is_that_of_the_first_line_with_the_words(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text(
        "1970-01-01T00:00:01.000000Z [warning] a caution [config]\n"
        "1970-01-01T00:00:02.500000Z [info] relay is ready [relay] port=1\n"
        "1970-01-01T00:00:03.000000Z [info] relay is ready [relay] port=1\n"
    )
    with subprocess.Popen(["true"]) as process:
        program = Program("relay", process, log)
        assert said(program, "relay is ready") == 2.5
        with pytest.raises(LabError, match="relay did not say 'nothing'"):
            said(program, "nothing")
