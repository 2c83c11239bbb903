"""`shadowmesh-relay`: from the command line to the running relay, without running one."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from shadowmesh.cli.relay import main
from shadowmesh.errors import StartError
from shadowmesh.observe import logging
from shadowmesh.relay import program


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Leave the signals and the garbage collection as they were."""
    numbers = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield
    gc.enable()
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


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


@pytest.mark.parametrize(
    ("log_format", "used"), [("xml", "auto"), ("[json]", "auto"), ("JSON", "json"), ("console", "console")]
)
def test_a_wrong_file_is_told_with_status_2(
    calls: list[tuple[Any, ...]], tmp_path: Path, log_format: str, used: str
) -> None:
    """In the log, in the form that the file asks for, if that can be known."""
    file = tmp_path / "relay-config.yaml"
    file.write_text(f"relay_port: x\nqueue_size: 0\nlog_format: {log_format}\n")
    with pytest.raises(SystemExit) as end, capture_logs() as logs:
        main([str(file)])
    assert end.value.code == 2
    assert calls == [("log", "info", used)]
    *mistakes, last = logs
    assert [line["event"].split(" ")[1] for line in mistakes][:2] == ["relay_port:", "queue_size:"]
    assert (last["event"], last["problems"]) == ("relay cannot start", len(mistakes))
    assert {line["log_level"] for line in logs} == {"error"}


def test_what_stops_the_start_is_told_with_status_1(
    calls: list[tuple[Any, ...]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In the log, so that what reads it need not know another form."""

    def fail(*_: object) -> None:
        raise StartError("relay_port 9545: another program has this port")

    monkeypatch.setattr(program, "run", fail)
    file = tmp_path / "relay-config.yaml"
    file.write_text("region: here\n")
    with pytest.raises(SystemExit) as end, capture_logs() as logs:
        main([str(file)])
    assert end.value.code == 1
    assert logs[-1:] == [
        {
            "event": "relay cannot start",
            "why": "relay_port 9545: another program has this port",
            "log_level": "error",
            "logger_name": "relay",
        }
    ]


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGHUP, None), (signal.SIGTERM, 0), (signal.SIGINT, 130)]
)
def test_a_signal_before_the_start_leaves_no_traceback(
    tmp_path: Path, number: signal.Signals, status: int | None
) -> None:
    """It comes while the configuration is read, from a pipe that does not end."""
    file = tmp_path / "relay-config.yaml"
    os.mkfifo(file)
    program = subprocess.Popen(
        [sys.executable, "-c", f"from shadowmesh.cli.relay import main; main([{str(file)!r}])"],
        stderr=subprocess.PIPE,
        text=True,
    )
    with program, file.open("w") as pipe:  # open as soon as it reads
        program.send_signal(number)
        if status is None:
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.2)
            pipe.write("nonsense")
        pipe.flush()
        if status is None:
            pipe.close()
        _, said = program.communicate(timeout=10)
    assert program.returncode == (2 if status is None else status)
    assert "Traceback" not in said
