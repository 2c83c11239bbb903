"""The command line; what it runs is seen in tests/netns/test_bench.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench import e2e


def test_lists_keep_the_order_of_the_programs_own() -> None:
    arguments = e2e._arguments(["--only", "shadowmesh,bare", "--congestion", "bbr,cubic"])
    assert arguments.only == ["bare", "shadowmesh"]
    assert arguments.congestion == ["cubic", "bbr"]
    assert arguments.measures[-1] == e2e.MEMORY


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--only", "bare,wiregaurd", "unknown: wiregaurd; known: bare, proxy, wireguard"),
        ("--measures", "", "unknown: ; known: ping, tcp1"),
        ("--rounds", "0", "at least 1"),
        ("--seconds", "x", "invalid"),
    ],
)
def test_a_wrong_argument_is_named(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        e2e.main([option, value])
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_a_quick_run_does_not_go_into_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        e2e.main(["--quick", "--write-docs"])
    assert "mean nothing" in capsys.readouterr().err


def test_missing_programs_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert e2e.main(["--only", "nebula", "--measures", "tcp1"]) == 2
    assert "apt-get install --no-install-recommends iperf3 iproute2" in capsys.readouterr().err
