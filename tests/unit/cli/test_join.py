"""`shadowmesh join`: an invitation becomes this machine's configuration, and is never an argument."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from hashlib import sha256
from ipaddress import ip_interface
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shadowmesh.cli import ctl
from shadowmesh.config import ClientConfig, load_client_config
from shadowmesh.invitation import Invitation, encode

KEY = sha256(b"a key of nobody").digest()
API_KEY = "smk_abcdefgh_" + "A" * 43
MADE = Invitation(KEY, (ip_interface("10.10.10.2/24"),), "desktop", ("ws://203.0.113.9:9545/relay",))
LINE = encode(MADE)
COMMAND = [sys.executable, "-c", "from shadowmesh.cli.ctl import main; main()", "join"]


def run(path: Path, *arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(ctl.cli, ["join", "-o", str(path), *arguments], input=input)


def written(path: Path) -> ClientConfig:
    loaded = load_client_config(str(path))
    assert loaded.warnings == []
    return loaded.config


def test_from_standard_input_or_a_file(tmp_path: Path) -> None:
    (tmp_path / "line").write_text(LINE.upper())
    for number, given in enumerate(((), ("-",), (str(tmp_path / "line"),))):
        path = tmp_path / f"{number}.yaml"
        result = run(path, *given, input=f" {LINE}\n")
        assert (result.exit_code, result.stderr) == (0, "")
        assert KEY.hex() not in result.output
        assert "This device is desktop, 10.10.10.2/24, in network " in result.stdout
        config = written(path)
        assert config.encryption.key.reveal() == KEY
        assert [str(one) for one in config.network.local_ip] == ["10.10.10.2/24"]
        assert config.relay.server is not None
        assert (config.peer.id, config.relay.server.url) == ("desktop", "ws://203.0.113.9:9545/relay")
        assert not (tmp_path / f"{number}.hosts").exists(), "the list is kept in one place"


def test_beside_a_relay_it_says_where_the_daemon_answers(tmp_path: Path) -> None:
    assert run(tmp_path / "a.yaml", input=LINE).stdout.endswith("shadowmesh status\n")
    (tmp_path / "relay-config.yaml").touch()
    result = run(tmp_path / "b.yaml", input=LINE)
    assert written(tmp_path / "b.yaml").daemon.listen_address == ("127.0.0.1", 9091)
    assert result.stdout.endswith("shadowmesh status --api http://127.0.0.1:9091\n")


def test_all_that_can_be_in_it(tmp_path: Path) -> None:
    made = Invitation(
        KEY,
        (*MADE.addresses, ip_interface("fd00::2/64")),
        "desktop",
        ("ws://a.example:1/relay", "wss://b.example/relay"),
        1300,
        API_KEY,
        True,
        "/ca.pem",
    )
    result = run(tmp_path / "c.yaml", "--name", "tower", "--listen-address", "[::1]:9", input=encode(made))
    assert result.exit_code == 0
    config = load_client_config(str(tmp_path / "c.yaml")).config
    assert tuple(config.network.local_ip) == made.addresses
    assert tuple(one.url for one in config.relay.servers) == made.relays
    assert (config.network.mtu, config.relay.tls_ca_file, config.peer.id) == (1300, "/ca.pem", "tower")
    assert config.relay.api_key is not None
    assert config.relay.api_key.reveal() == API_KEY
    assert config.daemon.listen_address == ("::1", 9)


def test_it_is_no_argument(tmp_path: Path) -> None:
    for line in (LINE, LINE.upper()):
        result = run(tmp_path / "c.yaml", line)
        assert result.exit_code == 2
        assert "call `shadowmesh join` alone, and paste the invitation when it asks" in result.stderr
        assert line[20:60] not in result.output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("", "standard input is empty; an invitation belongs there"),
        ("x" * 9000, "shadowmesh: standard input: too large; an invitation belongs there and nothing else"),
        (LINE[:-1], "the invitation cannot be read: it has a mistake in it, or a part is missing"),
        (
            encode(Invitation(KEY, (ip_interface("127.0.0.1/24"),), "a", MADE.relays)),
            "network.local_ip: 127.0.0.1 is a loopback address",
        ),
        (
            encode(Invitation(KEY, MADE.addresses, 'a"\n', MADE.relays)),
            "its name holds characters that cannot",
        ),
        (
            encode(Invitation(KEY, MADE.addresses, "a", ("http://x",))),
            "relay.server: a relay is not reached by http",
        ),
        (
            encode(Invitation(bytes(32), MADE.addresses, "a", MADE.relays)),
            "is a key that public examples use",
        ),
    ],
)
def test_each_mistake_is_one_error(tmp_path: Path, given: str, words: str) -> None:
    result = run(tmp_path / "c.yaml", input=given)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_name_that_nobody_could_find(tmp_path: Path) -> None:
    result = run(tmp_path / "c.yaml", "--name", "a b", input=LINE)
    assert (result.exit_code, list(tmp_path.iterdir())) == (2, [])
    assert "'--name': nobody could find a device by the name \"a b\"; write letters" in result.stderr


def test_no_value_is_more_than_a_value(tmp_path: Path) -> None:
    name = '"}, x: [#\\ '
    run(tmp_path / "c.yaml", input=encode(Invitation(KEY, MADE.addresses, name, MADE.relays)))
    assert load_client_config(str(tmp_path / "c.yaml")).config.peer.id == name


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("mine")
    assert "is there already; --force replaces it" in run(path, input=LINE).stderr
    assert path.read_text() == "mine"
    assert run(path, "--force", input=LINE).exit_code == 0
    assert Path(f"{path}.bak").read_text() == "mine"


def test_the_list_of_a_device_that_was_another_one_is_put_away(tmp_path: Path) -> None:
    """Or it would invite others to the IPs that this one does not know of."""
    (tmp_path / "c.yaml").write_text("old")
    (tmp_path / "c.hosts").write_text("10.10.10.2 desktop\n")
    result = run(tmp_path / "c.yaml", "--force", input=LINE)
    assert result.exit_code == 0
    assert f"{tmp_path}/c.hosts.bak" in result.stdout
    assert not (tmp_path / "c.hosts").exists()
    assert (tmp_path / "c.hosts.bak").read_text() == "10.10.10.2 desktop\n"


def test_on_a_real_terminal_it_stays_hidden(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "-o", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        shown = b""
        while b"hidden): " not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, LINE.encode() + b"\n")
        assert process.stdout is not None
        assert "Start it with:" in process.stdout.read()
        shown += os.read(ours, 10000)
    os.close(theirs)
    os.close(ours)
    assert LINE[20:60].encode() not in shown
    assert written(tmp_path / "c.yaml").peer.id == "desktop"
