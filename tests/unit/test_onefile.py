from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from shadowmesh import onefile
from shadowmesh.observe.systemd import Notifier


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> int:
    """This process, as if a bootloader had started it."""
    monkeypatch.setattr(onefile, "bootloader", os.getppid())
    monkeypatch.setattr(onefile, "_asked", -onefile.ECHO_SECONDS)
    return os.getppid()


def test_installed_programs_are_not_unpacked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert onefile.unpacked() is None
    for name, found in (("_internal", False), ("_MEI1a2B3c", True)):
        monkeypatch.setattr(sys, "_MEIPASS", str(tmp_path / name), raising=False)
        assert (onefile.unpacked() == tmp_path / name) == found


def test_a_second_signal_counts_when_it_is_no_echo(child: int, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("shadowmesh.onefile.time.monotonic", lambda: now)
    assert [onefile.echo(), onefile.echo()] == [False, True]
    now += onefile.ECHO_SECONDS
    assert [onefile.echo(), onefile.echo()] == [False, True]


def test_without_a_bootloader_each_signal_counts() -> None:
    assert [onefile.echo(), onefile.echo()] == [False, False]


def test_ctrl_c_is_one_interrupt(child: int) -> None:
    before = signal.getsignal(signal.SIGINT)
    try:
        onefile.interrupt_once()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    finally:
        signal.signal(signal.SIGINT, before)


def test_the_watchdog_may_name_the_bootloader(child: int) -> None:
    environment = {"NOTIFY_SOCKET": "/nowhere", "WATCHDOG_USEC": "1000000"}
    assert Notifier({**environment, "WATCHDOG_PID": str(child)}).watchdog == 1.0
    assert Notifier({**environment, "WATCHDOG_PID": "1"}).watchdog is None or child == 1


def test_only_old_and_unlocked_files_of_ours_are_swept(tmp_path: Path) -> None:
    for name, old, ours in (("_MEIold", True, True), ("_MEInew", False, True), ("_MEIother", True, False)):
        (tmp_path / name).mkdir()
        if ours:
            (tmp_path / name / onefile.MARK).touch()
        if old:
            os.utime(tmp_path / name, (0, 0))
    (tmp_path / "_MEIlink").symlink_to(tmp_path / "_MEInew")
    onefile.sweep(tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["_MEIlink", "_MEInew", "_MEIother"]


def test_files_of_another_user_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "_MEIold").mkdir()
    (tmp_path / "_MEIold" / onefile.MARK).touch()
    os.utime(tmp_path / "_MEIold", (0, 0))
    user = os.geteuid()
    monkeypatch.setattr("os.geteuid", lambda: user + 1)
    onefile.sweep(tmp_path)
    assert os.listdir(tmp_path) == ["_MEIold"]
