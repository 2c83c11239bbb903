"""The file of API keys: what is broken is refused in words, and leaves the keys in use as they are."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.errors import StartError
from shadowmesh.relay.keyfile import MAX_FILE, KeysFile, parse, render
from shadowmesh.relay.keys import Key

KEY = Key("abcdefgh", "laptop", b"d" * 32, created=1_800_000_000)


def changed(**changes: Any) -> bytes:
    """A file with one key that has other members; those that are `...` are left out."""
    document = json.loads(render([KEY]))
    entry = document["keys"][0] | changes
    document["keys"] = [{name: value for name, value in entry.items() if value is not ...}]
    return json.dumps(document).encode()


MEMBERS = (
    "must have id, name, sha256, created, expires, network, max_connections, max_addresses, "
    "bytes_per_second, revoked, previous, and nothing else"
)
TIME = "not a time such as 2027-01-31T12:00:00Z"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON; `shadowmesh relay-keys` writes this file"),
        (b"\xff", "not UTF-8; `shadowmesh relay-keys` writes this file"),
        (b'{"version": 1, "version": 1, "keys": []}', "duplicate key; `shadowmesh relay-keys` writes"),
        (b'{"version": 2, "keys": []}', "version: this program knows 1 only"),
        (b'{"version": true, "keys": []}', "version: this program knows 1 only"),
        (b'{"keys": []}', "version: this program knows 1 only"),
        (b'{"version": 1, "keys": {}}', "holds something else than version and keys, a list"),
        (b'{"version": 1, "keys": [], "x": 1}', "holds something else than version and keys, a list"),
        (b'{"version": 1, "keys": [7]}', f"keys[0]: {MEMBERS}"),
        (changed(network=...), f"keys[0]: {MEMBERS}"),
        (changed(max_addresses=...), f"keys[0]: {MEMBERS}"),
        (changed(max_addresses=-1), "keys[0]: max_addresses: neither 0 nor a whole number from 1 on"),
        (changed(netwrok=None), f"keys[0]: {MEMBERS}"),
        (changed(id="ABCDEFGH"), "keys[0]: id: not of the form [a-z2-7]{8}"),
        (changed(name="-x"), "keys[0]: name: not of the form "),
        (changed(name=7), "keys[0]: name: not of the form "),
        (changed(sha256="d" * 63), "keys[0]: sha256: not of the form [0-9a-f]{64}"),
        (changed(network="x"), "keys[0]: network: not of the form [0-9a-f]{64}"),
        (changed(created=None), f"keys[0]: created: {TIME}"),
        (changed(expires=5), f"keys[0]: expires: {TIME}"),
        (changed(expires="2027-02-30T00:00:00Z"), f"keys[0]: expires: {TIME}"),
        (changed(revoked="yesterday"), f"keys[0]: revoked: {TIME}"),
        (changed(max_connections=-1), "keys[0]: max_connections: neither 0 nor a whole number from 1 on"),
        (changed(max_connections=True), "keys[0]: max_connections: neither 0 nor a whole number from 1 on"),
        (
            changed(bytes_per_second=9999),
            "keys[0]: bytes_per_second: neither 0 nor a whole number from 10000 on",
        ),
        (changed(previous={"sha256": "d" * 64}), "keys[0]: must have sha256, expires, and nothing else"),
        (render([KEY, KEY]), "2 keys are called abcdefgh"),
        (render([KEY, Key("hgfedcba", "laptop", b"e" * 32, 0)]), "2 keys are called laptop"),
        (b" " * (MAX_FILE + 1), "larger than 4 MiB"),
    ],
)
def test_each_mistake(content: bytes, words: str) -> None:
    with pytest.raises(StartError) as caught:
        parse(content, "k")
    assert str(caught.value).startswith(f"k: {words}")


def test_a_name_is_free_again_when_its_key_is_revoked() -> None:
    keys = [Key("hgfedcba", "laptop", b"e" * 32, 0, revoked=1), KEY]
    assert parse(render(keys), "k") == keys


def words(path: Path) -> str:
    with pytest.raises(StartError) as caught:
        KeysFile(str(path))
    return str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    assert words(path) == (
        f"auth.keys_file {path}: no such file; make it and its first key with: "
        f"shadowmesh relay-keys add NAME --file {path}"
    )
    assert words(tmp_path) == f"auth.keys_file {tmp_path}: Is a directory"
    path.write_bytes(render([KEY]))
    path.chmod(0o646)
    assert words(path) == (
        f"auth.keys_file {path}: everybody on this host may write it; mend it with: chmod o-w {path}"
    )
    path.unlink()
    os.mkfifo(path)
    assert words(path) == f"auth.keys_file {path}: not a regular file"
    path.unlink()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        assert words(path) == f"auth.keys_file {path}: No such device or address"


def test_a_file_that_may_not_be_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str, flags: int) -> int:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "open", refuse)
    path = tmp_path / "keys.json"
    assert words(path) == (
        f"auth.keys_file {path}: no permission to read it, which the relay's user needs: "
        f"chgrp shadowmesh {path}"
    )


def test_a_change_is_seen_once_and_a_broken_file_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "keys.json"
    path.write_bytes(render([KEY]))
    file = KeysFile(str(path))
    assert not file.changed()
    before = file.keys
    path.write_text("{")
    assert file.changed()
    with pytest.raises(StartError, match="not JSON"):
        file.reload()
    assert (file.keys, file.changed()) == (before, False)
    path.unlink()
    assert file.changed()
    with pytest.raises(StartError, match="no such file"):
        file.reload()
    assert (file.keys, file.changed()) == (before, False)
    path.write_bytes(render([]))
    assert file.changed()
    file.reload()
    assert (len(file.keys), file.changed()) == (0, False)
