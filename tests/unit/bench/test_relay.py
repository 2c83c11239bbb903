"""The command line of `bench relay`; what it runs is seen in tests/netns/test_bench.py."""

from __future__ import annotations

import resource
from pathlib import Path

import pytest

from bench import environment, relay
from bench.relay_report import LOADS


def test_every_load_has_its_numbers_of_peers() -> None:
    assert set(LOADS) | {"mixed"} == set(relay.FULL.peers) == set(relay.QUICK.peers)
    # The numbers that the tables and marks name.
    assert relay.FULL.peers["pairs"] == (50, 100)
    assert relay.FULL.peers["mixed"] == relay.FULL.peers["peers"] == (125, 500)
    assert [count - relay.FULL.idle[0] for count in relay.FULL.idle[1:]] == [1000, 5000]


@pytest.mark.parametrize(
    ("option", "value", "words"),
    [
        ("--only", "nebula", "unknown: nebula; known: shadowmesh, proxy"),
        ("--measures", "udp", "unknown: udp; known: pair, pairs, peers, mixed, memory"),
        ("--seconds", "9", "at most 8"),
        ("--rounds", "0", "at least 1"),
    ],
)
def test_a_wrong_argument_is_named(
    option: str, value: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        relay.main([option, value])
    assert error.value.code == 2
    assert words in capsys.readouterr().err


def test_a_quick_run_does_not_go_into_the_docs(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        relay.main(["--quick", "--write-docs"])
    assert "mean nothing" in capsys.readouterr().err


def test_missing_programs_are_named_with_the_command_that_installs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert relay.main(["--only", "shadowmesh"]) == 2
    assert "apt-get install --no-install-recommends iproute2" in capsys.readouterr().err


def test_too_few_open_files_are_told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(environment, "missing_packages", lambda _: [])
    assert relay.main([]) == 2
    assert "5350 open files are needed and 4096 allowed" in capsys.readouterr().err
