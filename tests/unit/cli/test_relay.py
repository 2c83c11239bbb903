"""`shadowmesh-relay`: from the command line to the running relay, without running one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.cli.relay import main
from shadowmesh.errors import StartError
from shadowmesh.observe import logging
from shadowmesh.relay import program


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What is configured and run."""
    made: list[tuple[Any, ...]] = []

    def note(name: str) -> Callable[..., None]:
        return lambda *arguments: made.append((name, *arguments))

    monkeypatch.setattr(logging, "configure", note("log"))
    monkeypatch.setattr(program, "run", note("run"))
    return made


@pytest.mark.parametrize("option", [(), ("-config",), ("--config",)])
def test_the_file_is_read_and_its_log_used_before_the_relay_starts(
    calls: list[tuple[Any, ...]], tmp_path: Path, option: tuple[str, ...]
) -> None:
    file = tmp_path / "relay-config.yaml"
    file.write_text("region: here\nserver_name: relay-here\nlog_level: warning\nlog_format: json\n")
    main([*option, str(file)])
    (log, (name, loaded, path)) = calls
    assert log == ("log", "warning", "json")
    assert (name, loaded.config.region, loaded.source, path) == ("run", "here", str(file), str(file))


def test_a_wrong_file_is_told_with_status_2(
    calls: list[tuple[Any, ...]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "relay-config.yaml"
    file.write_text("relay_port: x\nlog_format: xml\n")
    with pytest.raises(SystemExit) as end:
        main([str(file)])
    assert end.value.code == 2
    assert [line.split(" ")[1] for line in capsys.readouterr().err.splitlines()] == [
        "relay_port:",
        "log_format:",
    ]
    assert calls == []


def test_what_stops_the_start_is_told_with_status_1(
    calls: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fail(*_: object) -> None:
        raise StartError("relay_port 9545: another program has this port")

    monkeypatch.setattr(program, "run", fail)
    file = tmp_path / "relay-config.yaml"
    file.write_text("region: here\n")
    with pytest.raises(SystemExit) as end:
        main([str(file)])
    assert end.value.code == 1
    assert capsys.readouterr().err == "shadowmesh-relay: relay_port 9545: another program has this port\n"
