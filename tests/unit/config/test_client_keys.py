"""The keys of the client's file: in it, in a file of their own, handed over by systemd; never shown."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from shadowmesh.config import parse_client_config
from shadowmesh.testing.client_file import API_KEY, KEY, NAMED, NEXT, changed, load, problems


@pytest.mark.parametrize(
    ("server", "more", "warned"),
    [
        ("wss://relay.example.com", "", False),
        ("wss://relay.example.com", "insecure_api_key: true", False),
        ("ws://localhost:9545", "", False),
        ("ws://127.9.9.9:9545", "", False),
        ("ws://[::1]:9545", "", False),
        ("ws://203.0.113.9:9545", "insecure_api_key: true", True),
    ],
)
def test_an_api_key(server: str, more: str, warned: bool) -> None:
    content = changed("ws://203.0.113.9:9545", server).replace(
        "  server:", f"  api_key: {API_KEY}\n  server:"
    )
    loaded = parse_client_config(f"{content}\n".replace("\np2p:", f"\n  {more}\np2p:").encode(), "c.yaml")
    key = loaded.config.relay.api_key
    assert key is not None
    assert key.reveal() == API_KEY
    assert API_KEY[13:] not in repr(loaded) + str(loaded.config.model_dump())
    words = ["relay.insecure_api_key: the API key crosses the network in clear"] if warned else []
    assert [line.partition(" ")[2] for line in loaded.warnings] == words


def test_a_key_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "encryption.key"
    path.write_text(f" {KEY[:32]} {KEY[32:].upper()}\n\n")
    path.chmod(0o600)
    by_file = parse_client_config(changed(f'key: "{KEY}"', f"key_file: {path}").encode(), "c.yaml")
    assert by_file.config.encryption.key.reveal().hex() == KEY
    assert (by_file.warnings, by_file.config.secrets()) == ([], [])
    path.chmod(0o640)
    assert parse_client_config(changed(f'key: "{KEY}"', f"key_file: {path}").encode(), "c.yaml").warnings == [
        f"c.yaml:11:13: encryption.key_file: others may read {path} (mode 0640); "
        f"mend it with: chmod 600 {path}"
    ]

    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    by_credential = load(changed(f'  key: "{KEY}"', ""))
    assert by_credential.encryption == by_file.config.encryption.model_copy(update={"key_file": None})
    assert by_credential.secrets() == []
    assert load(NAMED).secrets() == ["encryption.key"], "a key in the file goes before the credential"
    path.write_text(KEY[:-1])
    assert problems(changed(f'  key: "{KEY}"', "")) == [
        f"c.yaml:1:1: encryption.key: the content of {path} has 63 hex digits where 64 belong; "
        "make one with: shadowmesh keygen (the same key on every device of the network)"
    ]
    path.unlink()
    assert "is missing" in problems(changed(f'  key: "{KEY}"', ""))[0]


def test_the_credential_stands_in_for_a_file_that_the_service_may_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, credential = tmp_path / "encryption.key", tmp_path / "credentials" / "encryption.key"
    path.write_text(NEXT)
    path.chmod(0o600)
    credential.parent.mkdir()
    credential.write_text(KEY)
    text = changed(f'key: "{KEY}"', f"key_file: {path}")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(credential.parent))
    assert load(text).encryption.key.reveal().hex() == NEXT, "one that can be read is read"
    monkeypatch.setattr(os, "access", lambda file, mode: file != str(path))
    assert load(text).encryption.key.reveal().hex() == KEY
    credential.unlink()
    assert load(text).encryption.key.reveal().hex() == NEXT, "tried, for the error of the system"


def test_the_next_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert load(NAMED).encryption.next_key is None
    inline = load(changed("  key:", f"  next_key: {NEXT}\n  key:"))
    assert inline.encryption.next_key is not None
    assert inline.encryption.next_key.reveal().hex() == NEXT
    assert inline.secrets() == ["encryption.key", "encryption.next_key"]
    path = tmp_path / "encryption.next_key"
    path.write_text(NEXT)
    path.chmod(0o600)
    by_file = load(changed("  key:", f"  next_key_file: {path}\n  key:"))
    assert by_file.encryption.next_key == inline.encryption.next_key
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    assert load(NAMED).encryption.next_key == inline.encryption.next_key


def test_a_key_of_digits_only_without_quotes() -> None:
    digits = "4820957136640218937456102938475665748392011837465092736450918273"
    assert load(changed(f'"{KEY}"', digits)).encryption.key.reveal().hex() == digits
