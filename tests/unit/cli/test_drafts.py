"""What the commands that write configurations share."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import pytest
import yaml

from shadowmesh.cli import newfile
from shadowmesh.cli.drafts import host_label, program, say_start, secret_in, service_key_file, yaml_text
from shadowmesh.errors import StartError

NASTY = "a: b #c \"d\" 'e' \\ {f} [g] *h &i !j %k, - ? | > ü 😀"


def test_each_value_is_one_value() -> None:
    sections = {"a": NASTY, "b": {"c": NASTY, "d": [NASTY, "x"], "e": 5, "f": True}, "g": []}
    assert yaml.safe_load(yaml_text("# head\n", sections)) == sections


def test_a_program_is_called_as_it_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside = tmp_path / "my tools"
    beside.mkdir()
    (beside / "shadowmesh-daemon").touch(mode=0o755)
    monkeypatch.setattr(sys, "argv", [str(beside / "shadowmesh")])
    monkeypatch.setenv("PATH", "/nowhere")
    assert program("shadowmesh-daemon") == f"'{beside}/shadowmesh-daemon'"
    assert program("shadowmesh-relay") == "shadowmesh-relay"
    monkeypatch.setenv("PATH", str(beside))
    assert program("shadowmesh-daemon") == "shadowmesh-daemon"


@pytest.mark.parametrize("file", ["shadowmesh-daemon", "shadowmesh-daemon-linux-amd64"])
def test_a_link_elsewhere_is_the_program_that_it_leads_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    for name in ("opt", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "opt" / file).touch(mode=0o755)
    (tmp_path / "bin/shadowmesh").symlink_to(f"../opt/{file}")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin")
    # As a script is called, and as a single file is that the shell has found.
    for called in (f"{tmp_path}/bin/shadowmesh", "shadowmesh"):
        monkeypatch.setattr(sys, "argv", [called])
        assert program("shadowmesh-daemon") == f"{tmp_path}/opt/{file}"
        assert program("shadowmesh-relay") == "shadowmesh-relay"
        say_start("shadowmesh-daemon", "run", is_service=False, replaced=False)
        assert capsys.readouterr().out == "Start it with:\n    run    # in this terminal\n"
        say_start("shadowmesh-relay", "run", is_service=False, replaced=False)
        assert capsys.readouterr().out.startswith(
            "shadowmesh-relay is not on this machine: install it first."
        )


def test_secrets_of_files(tmp_path: Path) -> None:
    path = tmp_path / "secret"
    for content, words in (
        (" \n", "is empty; the key belongs there"),
        ("x" * 9000, "too large; the key belongs"),
    ):
        path.write_text(content)
        with pytest.raises(StartError, match=words):
            secret_in(str(path), "the key")
    path.write_text(" abc\n")
    assert secret_in(str(path), "the key") == "abc"
    with pytest.raises(StartError, match="Is a directory"):
        secret_in(str(tmp_path), "the key")


def test_the_name_of_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, found in (("Laptop.example.com", "laptop"), ("ä", None), ("", None)):
        monkeypatch.setattr(socket, "gethostname", lambda name=name: name)
        assert host_label() == found


def test_which_configuration_is_the_services(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(newfile, "DIRECTORY", str(tmp_path))
    (tmp_path / "there").symlink_to(tmp_path)
    key = os.path.join(tmp_path, "encryption.key")
    assert service_key_file(str(tmp_path / "client-config.yaml")) == key
    assert service_key_file(str(tmp_path / "there/client-config.yaml")) == key
    assert service_key_file(str(tmp_path / "other.yaml")) is None
