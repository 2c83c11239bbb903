"""What a daemon keeps: made once, kept whole, refused in words when it cannot be used."""

from __future__ import annotations

import json
import os
import pwd
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.daemon import state as state_module
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.errors import StartError

NETWORK, OTHER = b"n" * 32, b"o" * 32
PEERS = {bytes([10, 10, 10, 2]): b"k" * 32, bytes(15) + b"\x07": b"l" * 32}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "var" / "shadowmesh"


@pytest.fixture
def state(path: Path) -> Iterator[StateDirectory]:
    state = StateDirectory(path)
    yield state
    state.close()


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_the_seed_is_made_once(state: StateDirectory, path: Path) -> None:
    seed = state.seed()
    assert len(seed) == 32
    assert state.seed() == seed
    assert (path / "device.key").read_text() == seed.hex() + "\n"


def test_every_device_has_its_own(state: StateDirectory, tmp_path: Path) -> None:
    other = StateDirectory(tmp_path / "other")
    assert other.seed() != state.seed()
    other.close()


def test_nobody_else_may_read(state: StateDirectory, path: Path) -> None:
    before = os.umask(0)
    try:
        state.seed()
        state.remember_peers({NETWORK: PEERS})
    finally:
        os.umask(before)
    assert mode(path) == 0o700
    assert {mode(file) for file in path.iterdir()} == {0o600}


@pytest.mark.parametrize("content", [b"", b"xyz", b"00" * 31, b"00" * 33, b"\xff" * 64, b"{}"])
def test_a_damaged_seed_is_not_replaced(state: StateDirectory, path: Path, content: bytes) -> None:
    (path / "device.key").write_bytes(content)
    with pytest.raises(StartError, match=r"device\.key is damaged: .*64 hex digits") as failure:
        state.seed()
    assert (path / "device.key").read_bytes() == content
    assert content.decode("latin-1") not in str(failure.value) or not content


def test_known_peers_of_each_network(state: StateDirectory, path: Path) -> None:
    assert state.known_peers(NETWORK) == {}
    state.remember_peers({NETWORK: PEERS})
    state.remember_peers({OTHER: {}})
    assert state.known_peers(NETWORK) == PEERS
    assert state.known_peers(OTHER) == {}
    assert state.known_peers(b"x" * 32) == {}
    state.remember_peers({NETWORK: dict(list(PEERS.items())[:1])})
    assert json.loads((path / "known_peers.json").read_text()) == {
        NETWORK.hex(): {"10.10.10.2": "6b" * 32},
        OTHER.hex(): {},
    }


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"[" * 100_000,
        b"\xff",
        b'{"%s": []}' % NETWORK.hex().encode(),
        b'{"%s": {"10.10.10.2": 5}}' % NETWORK.hex().encode(),
        b'{"%s": {"10.10.10.2": "6b"}}' % NETWORK.hex().encode(),
        b'{"%s": {"laptop": "%s"}}' % (NETWORK.hex().encode(), b"6b" * 32),
    ],
)
def test_damaged_known_peers(state: StateDirectory, path: Path, content: bytes) -> None:
    (path / "known_peers.json").write_bytes(content)
    with pytest.raises(StartError, match=r"known_peers\.json is damaged"):
        state.known_peers(NETWORK)


@pytest.mark.parametrize("content", [b"", b"[]", b"5"])
def test_a_file_damaged_while_running_is_left_alone(
    state: StateDirectory, path: Path, content: bytes
) -> None:
    (path / "known_peers.json").write_bytes(content)
    with pytest.raises(StartError, match="damaged"):
        state.remember_peers({NETWORK: PEERS})
    assert (path / "known_peers.json").read_bytes() == content


def test_a_write_that_fails_leaves_the_old_file(
    state: StateDirectory, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state.remember_peers({NETWORK: PEERS})

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StartError, match=r"cannot write .*No space left"):
        state.remember_peers({NETWORK: {}})
    assert state.known_peers(NETWORK) == PEERS


def test_a_crash_before_the_rename_leaves_the_old_file(state: StateDirectory, path: Path) -> None:
    state.remember_peers({NETWORK: PEERS})
    (path / "known_peers.new").write_text("{")
    assert state.known_peers(NETWORK) == PEERS
    state.remember_peers({NETWORK: {}})
    assert state.known_peers(NETWORK) == {}


def test_a_file_where_the_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(StartError, match=r"cannot make or open .*file.*daemon\.state_directory"):
            StateDirectory(path)


@pytest.mark.parametrize("name", ["device.key", "known_peers.json"])
def test_a_directory_where_a_file_should_be(state: StateDirectory, path: Path, name: str) -> None:
    (path / name).mkdir()
    with pytest.raises(StartError, match=f"cannot read .*{name}.*Is a directory"):
        state.seed() if name == "device.key" else state.known_peers(NETWORK)


def test_one_daemon_at_a_time(path: Path) -> None:
    first = StateDirectory(path)
    with pytest.raises(StartError, match="another daemon uses it"):
        StateDirectory(path)
    seed = first.seed()
    first.close()
    second = StateDirectory(path)
    assert second.seed() == seed
    second.close()


def test_a_file_system_without_locks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StartError, match=r"cannot lock .*Operation not supported"):
        StateDirectory(path)


def test_a_seed_that_others_could_read_is_mended_and_told(state: StateDirectory, path: Path) -> None:
    seed = state.seed()
    (path / "device.key").chmod(0o644)
    assert state.seed() == seed
    assert (path / "device.key").stat().st_mode & 0o777 == 0o600
    assert "could be read by others" in state.warnings[0]


def test_the_lock_is_no_link_that_somebody_laid(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state/lock").symlink_to(tmp_path / "theirs")
    with pytest.raises(StartError, match="lock: Too many levels of symbolic links"):
        StateDirectory(tmp_path / "state")
    assert not (tmp_path / "theirs").exists()


def test_a_link_that_somebody_laid_is_not_followed(state: StateDirectory, path: Path, tmp_path: Path) -> None:
    theirs = tmp_path / "theirs"
    theirs.write_text("keep")
    (path / "known_peers.new").symlink_to(theirs)
    state.remember_peers({NETWORK: PEERS})
    assert theirs.read_text() == "keep"
    assert state.known_peers(NETWORK) == PEERS


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_root_uses_that_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a word, and nothing stays there that the service could not read."""
    monkeypatch.setattr(state_module, "_SERVICE_USER", "nobody")
    directory = tmp_path / "of-the-service"
    directory.mkdir(mode=0o700)
    os.chown(directory, pwd.getpwnam("nobody").pw_uid, -1)
    state = StateDirectory(directory)
    state.seed()
    assert state.warnings == []
    assert (directory / "device.key").owner() == "nobody"
    state.close()

    os.chown(directory, pwd.getpwnam("daemon").pw_uid, -1)
    state = StateDirectory(directory)
    assert "can be written by others" in state.warnings[0]
    state.close()


def test_a_directory_that_others_can_write_is_told(tmp_path: Path) -> None:
    directory = tmp_path / "shared"
    directory.mkdir()
    directory.chmod(0o777)
    state = StateDirectory(directory)
    (warning,) = state.warnings
    assert f"{directory} can be written by others" in warning
    state.close()
