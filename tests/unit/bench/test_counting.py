from __future__ import annotations

import subprocess
import sys

import pytest

from bench.counting import TOOLS, parse_calls, system_calls
from bench.environment import missing_packages
from shadowmesh.testing.program import LabError

TABLE = """    calls syscall
--------- ----------------
     1000 epoll_pwait
       12 recvfrom
--------- ----------------
     1012 total
"""


def test_the_table_of_strace_is_read_without_its_sum() -> None:
    assert parse_calls(TABLE) == {"epoll_pwait": 1000, "recvfrom": 12}
    assert parse_calls("") == {}


@pytest.mark.skipif(bool(missing_packages(TOOLS)), reason="strace and valgrind are not installed")
def test_a_process_that_is_not_there_is_told() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        pass
    with pytest.raises(LabError, match=r"strace does not run: .*No such process"):
        system_calls(ended.pid, lambda: None)
