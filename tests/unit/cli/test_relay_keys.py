"""`shadowmesh relay-keys`, as an operator uses it; what the relay makes of the file is in tests/net."""

from __future__ import annotations

import grp
import json
import os
import re
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shadowmesh.apikey import API_KEY
from shadowmesh.cli import ctl, relay_keys
from shadowmesh.relay.keyfile import load
from shadowmesh.relay.keys import Grant, Key, Keys, Refusal

NETWORK = "ab" * 32
COMMAND = [sys.executable, "-c", "from shadowmesh.cli.ctl import main; main()", "relay-keys"]
NOTE = "It is shown this once. On the devices: relay.api_key in client-config.yaml\n"


class Operator:
    """Runs the command on one file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def run(self, *arguments: str) -> Result:
        return CliRunner().invoke(ctl.cli, ["relay-keys", *arguments, "--file", str(self.path)])

    def key(self, *arguments: str) -> str:
        """What a command prints, which is one API key and nothing else."""
        result = self.run(*arguments)
        assert result.exit_code == 0, result.stderr
        assert result.stderr.startswith(NOTE)
        assert API_KEY.fullmatch(result.stdout.rstrip("\n"))
        return result.stdout.strip()

    def refused(self, *arguments: str) -> str:
        before = self.path.read_bytes() if self.path.exists() else None
        result = self.run(*arguments)
        assert result.exit_code != 0
        assert result.stdout == ""
        assert (self.path.read_bytes() if self.path.exists() else None) == before
        return result.stderr

    def stored(self) -> list[Key]:
        return load(str(self.path))

    def admits(self, key: str, after: float = 0.0) -> bool:
        return isinstance(Keys(self.stored()).admit([f"Bearer {key}"], time.time() + after), Grant)


@pytest.fixture
def operator(tmp_path: Path) -> Operator:
    return Operator(tmp_path / "keys.json")


def test_a_key_is_shown_once_and_kept_as_a_hash(operator: Operator) -> None:
    text = operator.key("add", "laptop")
    (key,) = operator.stored()
    assert (key.name, key.digest) == ("laptop", sha256(text.encode()).digest())
    assert (key.expires, key.network, key.max_connections, key.bytes_per_second) == (None, None, 0, 0)
    assert text[13:] not in operator.path.read_text()
    for listing in (operator.run("list").stdout, operator.run("list", "--json").stdout):
        assert text[13:] not in listing
        assert key.digest.hex() not in listing
    assert operator.admits(text)


def test_every_bound(operator: Operator) -> None:
    bounds = ("--expires", "90d", "--network", NETWORK.upper(), "--max-connections", "5", "--rate", "10M")
    text = operator.key("add", "laptop", *bounds, "--max-addresses", "7")
    (key,) = operator.stored()
    assert key.network == bytes.fromhex(NETWORK)
    assert (key.max_connections, key.max_addresses, key.bytes_per_second) == (5, 7, 10_000_000)
    assert operator.admits(text, 89.9 * 86_400)
    assert not operator.admits(text, 90.1 * 86_400)


def test_a_date_counts_until_its_end(operator: Operator) -> None:
    operator.key("add", "a", "--expires", "2999-12-31")
    operator.key("add", "b", "--expires", "9999-12-31")
    assert [key.expires for key in operator.stored()] == [
        int(datetime(3000, 1, 1, tzinfo=UTC).timestamp()),
        int(datetime(9999, 12, 31, tzinfo=UTC).timestamp()),
    ]
    today = datetime.now(UTC).strftime("%Y-%m-%d")
    assert operator.admits(operator.key("add", "c", "--expires", today))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--expires", "0d"), "write a duration such as 90d or 12h, or a date such as 2027-01-31"),
        (("--expires", "2027-02-30"), "write a duration such as 90d"),
        (("--expires", "soon"), "write a duration such as 90d"),
        (("--expires", "2020-01-31"), "2020-01-31 is over"),
        (("--network", "ab"), "write the 64 hex digits of `network` in a client's /status"),
        (("--max-connections", "-1"), "-1 is not in the range"),
        (("--max-addresses", "-1"), "-1 is not in the range"),
        (("--rate", "9k"), "write bytes per second such as 10M"),
        (("--rate", "fast"), "write bytes per second such as 10M"),
    ],
)
def test_each_mistake(operator: Operator, arguments: tuple[str, ...], words: str) -> None:
    assert words in operator.refused("add", "laptop", *arguments)


@pytest.mark.parametrize("name", ["", "a b", "x" * 64, "a/b", ".a", "é"])
def test_names(operator: Operator, name: str) -> None:
    assert "1 to 63 letters, digits and . _ -" in operator.refused("add", name)


def test_names_are_unique_among_keys_that_are_not_revoked(operator: Operator) -> None:
    operator.key("add", "laptop")
    assert "there is a key of this name" in operator.refused("add", "laptop")
    operator.run("revoke", "laptop")
    operator.key("add", "laptop")
    assert [key.name for key in operator.stored()] == ["laptop", "laptop"]


def test_revoke_by_name_and_by_id(operator: Operator) -> None:
    texts = [operator.key("add", name) for name in ("a", "b", "c")]
    second = operator.stored()[1].id
    assert operator.run("revoke", "a").stderr == f"revoked a ({operator.stored()[0].id})\n"
    assert operator.run("revoke", second).exit_code == 0
    assert [operator.admits(text) for text in texts] == [False, False, True]
    assert operator.refused("revoke", "a").startswith("shadowmesh: a was revoked on 20")
    assert operator.refused("revoke", second).startswith(f"shadowmesh: {second} was revoked on 20")
    assert "has no key d; `relay-keys list` shows all" in operator.refused("revoke", "d")


def test_rotate_with_grace(operator: Operator) -> None:
    old = operator.key("add", "laptop", "--network", NETWORK, "--expires", "90d")
    new = operator.key("rotate", "laptop", "--grace", "2h")
    assert (operator.admits(old), operator.admits(new)) == (True, True)
    assert (operator.admits(old, 7300), operator.admits(new, 7300)) == (False, True)
    (key,) = operator.stored()
    assert (key.network, key.name) == (bytes.fromhex(NETWORK), "laptop")
    assert old[:12] == new[:12], "the id stays"
    # An earlier one ends at once.
    newest = operator.key("rotate", key.id, "--grace", "24h")
    assert [operator.admits(each) for each in (old, new, newest)] == [False, True, True]
    # Without grace, the one before does, too; and a revocation ends both.
    last = operator.key("rotate", "laptop", "--grace", "0")
    assert [operator.admits(each) for each in (newest, last)] == [False, True]
    refusal = Keys(operator.stored()).admit([f"Bearer {newest}"], time.time())
    assert refusal == Refusal("this API key was replaced by a new one", is_ours=True)
    assert json.loads(operator.run("list", "--json").stdout)[0]["state"] == "valid"
    other = operator.key("rotate", "laptop")
    operator.run("revoke", "laptop")
    assert "revoked until" not in operator.run("list").stdout
    assert [operator.admits(each) for each in (last, other)] == [False, False]
    assert "was revoked on" in operator.refused("rotate", "laptop")
    assert "write a number and m, h, d or w" in operator.refused("rotate", "laptop", "--grace", "long")


def test_an_expired_key_is_not_rotated(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    operator.key("add", "laptop", "--expires", "1h")
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    assert "; revoke it and add a new one" in operator.refused("rotate", "laptop")


def test_list(operator: Operator, monkeypatch: pytest.MonkeyPatch) -> None:
    assert operator.refused("list") == (
        f"shadowmesh: {operator.path}: no such file; `relay-keys add NAME` makes it\n"
    )
    bounds = ("--rate", "250k", "--max-connections", "3", "--max-addresses", "9")
    operator.key("add", "a", "--network", NETWORK, *bounds)
    operator.key("add", "b", "--expires", "1h")
    operator.key("add", "c")
    operator.key("add", "long-name")
    operator.run("rotate", "c")
    operator.run("revoke", "long-name")
    later = time.time() + 3601
    monkeypatch.setattr(time, "time", lambda: later)
    lines = operator.run("list").stdout.splitlines()
    titles = ["NAME", "ID", "STATE", "EXPIRES", "NETWORK", "CONNECTIONS", "ADDRESSES", "BYTES/S"]
    assert lines[0].split() == titles
    cells = [line.split() for line in lines[1:]]
    assert [(row[0], row[2]) for row in cells] == [
        ("a", "valid"),
        ("b", "expired"),
        ("c", "rotating"),
        ("long-name", "revoked"),
    ]
    assert cells[0][3:] == ["never", f"{NETWORK[:16]}...", "3", "9", "250000"]
    assert cells[2][5:] == ["never", "any", "any", "any", "any"]
    (until,) = re.findall(r"rotating until (\S+)  never", lines[3])
    facts = json.loads(operator.run("list", "--json").stdout)
    assert facts[2]["previous_expires"] == until
    assert [each["state"] for each in facts] == ["valid", "expired", "rotating", "revoked"]
    assert (facts[0]["network"], facts[0]["max_addresses"]) == (NETWORK, 9)
    assert facts[2]["previous_expires"].endswith("Z")
    assert facts[3]["revoked"].endswith("Z")


def test_a_day_is_listed_as_it_was_given(operator: Operator) -> None:
    operator.key("add", "a", "--expires", "2999-12-31")
    assert re.search(r"valid +end of 2999-12-31 +any", operator.run("list").stdout)
    assert json.loads(operator.run("list", "--json").stdout)[0]["expires"] == "3000-01-01T00:00:00Z"


def test_owner_and_mode_stay_and_a_new_file_is_not_for_everybody(operator: Operator) -> None:
    operator.key("add", "a")
    assert operator.path.stat().st_mode & 0o777 == 0o640
    operator.path.chmod(0o604)
    if os.geteuid() == 0:
        os.chown(operator.path, 1234, 5678)
    before = operator.path.stat()
    operator.key("add", "b")
    after = operator.path.stat()
    assert (after.st_mode, after.st_uid, after.st_gid) == (before.st_mode, before.st_uid, before.st_gid)
    assert after.st_ino != before.st_ino, "it is replaced as a whole"
    assert os.listdir(operator.path.parent) == ["keys.json"]


def test_a_new_file_of_root_is_for_the_group_of_the_service(
    operator: Operator, monkeypatch: pytest.MonkeyPatch
) -> None:
    if os.geteuid():
        pytest.skip("only root may give a file away")
    monkeypatch.setattr(relay_keys, "GROUP", "daemon")
    operator.key("add", "a")
    assert operator.path.stat().st_gid == grp.getgrnam("daemon").gr_gid


def test_a_link_stays_a_link(operator: Operator) -> None:
    operator.key("add", "a")
    link = operator.path.with_name("link.json")
    link.symlink_to("keys.json")
    Operator(link).key("add", "b")
    assert link.is_symlink()
    assert [key.name for key in operator.stored()] == ["a", "b"]


def test_what_cannot_be_written_leaves_the_old_file(
    operator: Operator, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    operator.key("add", "a")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        words = operator.refused("add", "b")
    assert words == (
        f"shadowmesh: cannot write {operator.path}: No space left on device; nothing is changed\n"
    )
    assert os.listdir(tmp_path) == ["keys.json"]
    assert "make it with: mkdir -p" in Operator(tmp_path / "nowhere/keys.json").refused("add", "a")
    words = Operator(tmp_path / "keys.json/x.json").refused("add", "a")
    assert words == f"shadowmesh: {tmp_path}/keys.json: Not a directory\n"
    with monkeypatch.context() as patched:
        patched.setattr(relay_keys, "MAX_FILE", 100)
        assert "full; take revoked keys out of it" in operator.refused("add", "b")
    operator.path.write_text("{")
    assert "not JSON" in operator.refused("add", "b")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_key_that_cannot_be_shown_is_not_made(operator: Operator) -> None:
    operator.run("add", "laptop")
    before = operator.path.read_bytes()
    for arguments in (["add", "other"], ["rotate", "laptop"]):
        with open("/dev/full", "w") as full:
            result = subprocess.run(
                [*COMMAND, *arguments, "--file", str(operator.path)],
                stdout=full,
                stderr=subprocess.PIPE,
                text=True,
            )
        words = "the key cannot be shown, standard output: No space left on device; nothing is changed"
        assert (result.returncode, result.stderr) == (1, f"shadowmesh: {words}\n")
    assert operator.path.read_bytes() == before
    assert os.listdir(operator.path.parent) == [operator.path.name]


def test_several_at_once_lose_nothing(operator: Operator) -> None:
    names = [f"key-{n}" for n in range(6)]
    done = [
        subprocess.Popen(
            [*COMMAND, "add", name, "--file", str(operator.path)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for name in names
    ]
    assert [process.wait(30) for process in done] == [0] * 6
    assert sorted(key.name for key in operator.stored()) == names


def test_a_reader_finds_a_whole_file_at_any_moment(operator: Operator) -> None:
    operator.key("add", "a")
    stop, read = threading.Event(), [0]

    def reader() -> None:
        while not stop.is_set():
            assert len(operator.stored()) == 1
            read[0] += 1

    thread = threading.Thread(target=reader)
    thread.start()
    for _ in range(20):
        operator.key("rotate", "a")
    stop.set()
    thread.join()
    assert read[0] > 0
