"""The bounds of the guard; tests/netns/test_cost.py counts."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest

from bench import cost, environment


def test_instructions_are_bound_less_closely_where_another_interpreter_executes_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    instructions, calls = "relay, 64 KiB: instructions", "relay, 64 KiB: system calls"
    for version, machine, margin in (
        ("3.11.2", "x86_64", 1.2),
        ("3.12.3", "x86_64", 1.5),
        ("3.11.2", "aarch64", 1.5),
    ):
        monkeypatch.setattr(platform, "python_version", lambda version=version: version)
        monkeypatch.setattr(platform, "machine", lambda machine=machine: machine)
        assert cost.bound(instructions) == pytest.approx(cost.MEASURED[instructions] * margin)
        assert cost.bound(calls) == pytest.approx(cost.MEASURED[calls] * 1.2)


def test_the_command_prints_bounds_and_the_table_to_put_in(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(environment, "obstacle", lambda _: None)
    found = dict(cost.MEASURED)
    monkeypatch.setattr(cost, "measure", lambda: found)
    assert cost.main([]) == 0
    name = "relay, 64 KiB: system calls"
    found[name] *= 2
    assert cost.main([]) == 1
    assert f'    "{name}": {found[name]:.3f},\n' in capsys.readouterr().out


def test_missing_programs_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert cost.main([]) == 2
    assert "strace" in capsys.readouterr().err
