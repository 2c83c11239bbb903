"""`shadowmesh invite`: the next free IP, a line that makes a valid configuration, and no secret elsewhere."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import secrets
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shadowmesh.cli import ctl
from shadowmesh.cli import invite as invite_module
from shadowmesh.invitation import Invitation, decode

KEY = secrets.token_hex(32)
COMMAND = [sys.executable, "-c", "from shadowmesh.cli.ctl import main; main()", "invite"]
API_KEY = "smk_abcdefgh_" + "A" * 43
CONFIG = f"""\
network: {{local_ip: 10.10.10.1/24}}
encryption: {{key: {KEY}}}
peer: {{id: laptop}}
relay: {{server: ws://203.0.113.9:9545}}
"""


class Owner:
    """Of a first device."""

    def __init__(self, directory: Path) -> None:
        self.config, self.hosts = directory / "c.yaml", directory / "c.hosts"
        self.write(CONFIG)
        self.hosts.write_text("10.10.10.1 laptop\n")

    def write(self, text: str) -> None:
        self.config.touch(mode=0o600)
        self.config.write_text(text)

    def run(self, *arguments: str, input: str | None = None) -> Result:
        return CliRunner().invoke(ctl.cli, ["invite", "--config", str(self.config), *arguments], input=input)

    def invites(self, *arguments: str, input: str | None = None) -> Invitation:
        result = self.run(*arguments, input=input)
        assert result.exit_code == 0, result.stderr
        assert result.stdout.count("\n") == 1
        assert KEY not in result.output
        return decode(result.stdout)

    def refused(self, *arguments: str, input: str | None = None) -> str:
        before = self.hosts.read_text() if self.hosts.exists() else None
        result = self.run(*arguments, input=input)
        assert result.exit_code != 0
        assert result.stdout == ""
        assert (self.hosts.read_text() if self.hosts.exists() else None) == before
        return result.stderr


@pytest.fixture
def owner(tmp_path: Path) -> Owner:
    return Owner(tmp_path)


def ips(invitation: Invitation) -> list[str]:
    return [str(one) for one in invitation.addresses]


def test_one_after_the_other(owner: Owner) -> None:
    first = owner.invites("desktop")
    assert (first.key.hex(), first.name, first.mtu, first.api_key) == (KEY, "desktop", None, None)
    assert (ips(first), first.relays) == (["10.10.10.2/24"], ("ws://203.0.113.9:9545/relay",))
    assert ips(owner.invites("tablet")) == ["10.10.10.3/24"]
    assert owner.hosts.read_text().splitlines()[1:] == [
        "10.10.10.1 laptop",
        "10.10.10.2 desktop",
        "10.10.10.3 tablet",
    ]
    assert owner.invites("Desktop", "--again") == Invitation(
        first.key, first.addresses, "Desktop", first.relays
    )
    assert ips(owner.invites("phone", "--ip", "10.10.10.77/24")) == ["10.10.10.77/24"]


def test_two_networks_and_what_else_there_is(owner: Owner) -> None:
    changed = CONFIG.replace("10.10.10.1/24", '["10.10.10.1/24", "fd00::1/64"], mtu: 1300')
    owner.write(
        changed.replace(
            "server: ws://203.0.113.9:9545",
            "servers: ['wss://a.example', 'wss://b.example'], tls_ca_file: /ca",
        )
    )
    made = owner.invites("desktop")
    assert ips(made) == ["10.10.10.2/24", "fd00::2/64"]
    assert made.relays == ("wss://a.example/relay", "wss://b.example/relay")
    assert (made.mtu, made.ca_file, made.insecure_api_key) == (1300, "/ca", False)
    assert ips(owner.invites("desktop", "--again")) == ["10.10.10.2/24", "fd00::2/64"]
    assert "note: /ca is not in it; copy it to the same place there" in owner.run("tablet").stderr


def test_api_keys(owner: Owner) -> None:
    owner.write(CONFIG.replace("ws://203.0.113.9:9545", f"'wss://a.example', api_key: {API_KEY}"))
    assert "the relay wants an API key of each device: make one there" in owner.refused("desktop")
    other = API_KEY.replace("A", "B")
    assert owner.invites("desktop", "--api-key-file", "-", input=other).api_key == other
    wrong = owner.refused("tablet", "--api-key-file", "-", input="smk_wrong")
    assert "the configuration of tablet:" in wrong
    assert "relay.api_key: is no API key" in wrong
    assert "smk_wrong" not in wrong


def test_the_key_of_a_service(owner: Owner) -> None:
    owner.write(CONFIG.replace(f"encryption: {{key: {KEY}}}", ""))
    (owner.config.parent / "encryption.key").write_text(KEY)
    assert owner.invites("desktop").key.hex() == KEY


def test_while_the_key_is_replaced(owner: Owner) -> None:
    owner.write(CONFIG.replace(KEY, f"{KEY}, next_key: {secrets.token_hex(32)}"))
    assert "warning: encryption.next_key is not in it" in owner.run("desktop").stderr


def test_a_name_that_nobody_could_find_costs_no_ip(owner: Owner) -> None:
    assert "nobody could find a device by the name" in owner.refused("a/b")
    owner.hosts.write_text("10.10.10.1 laptop\n10.10.10.2 a/b\n")  # by an older version
    assert ips(owner.invites("a/b", "--again")) == ["10.10.10.2/24"]


def test_what_is_refused(owner: Owner) -> None:
    assert "'NAME': \"\" does not do as a name" in owner.refused("")
    assert "Laptop is 10.10.10.1 already; --again makes" in owner.refused("Laptop")
    assert "c.hosts has no desktop; without --again it gets the next free IP" in owner.refused(
        "desktop", "--again"
    )
    assert "10.10.10.1 is taken by laptop" in owner.refused("desktop", "--ip", "10.10.10.1/24")
    assert "10.10.11.2/24 is in none of this device's networks; write an IP and the prefix length" in (
        owner.refused("desktop", "--ip", "10.10.11.2/24")
    )
    assert "prefix length of 10.10.10.0/24\n" in owner.refused("desktop", "--ip", "10.10.10.2/16")
    assert "--again and --ip exclude" in owner.refused("desktop", "--again", "--ip", "10.10.10.4/24")
    owner.hosts.write_text("nonsense")
    assert "c.hosts:1: does not begin with an IP" in owner.refused("desktop")
    owner.config.unlink()
    assert "c.yaml: no such file" in owner.refused("desktop")


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "[::1]"])
def test_a_relay_that_only_this_machine_finds(owner: Owner, host: str) -> None:
    assert "warning" not in owner.run("phone").stderr
    owner.write(CONFIG.replace("ws://203.0.113.9:9545", f'"ws://{host}:9545"'))
    assert f"warning: ws://{host}:9545/relay leads other machines to themselves" in owner.run("tablet").stderr
    owner.write(
        CONFIG.replace("{server: ws://203.0.113.9:9545}", f"{{servers: [ws://{host}, ws://203.0.113.9]}}")
    )
    assert "warning" not in owner.run("watch").stderr


def test_without_the_list(owner: Owner) -> None:
    owner.hosts.unlink()
    assert "c.hosts: no such file. It is the list of all devices, kept where the first" in owner.refused(
        "desktop"
    )
    assert ips(owner.invites("desktop", "--ip", "10.10.10.9/24")) == ["10.10.10.9/24"]
    assert not owner.hosts.exists()


def test_a_qr_code(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[str] = []
    monkeypatch.setattr(invite_module, "_show_qr", made.append)
    line = owner.run("desktop", "--qr").stdout
    assert made == [line.rstrip("\n")]
    monkeypatch.undo()
    first, *code = owner.run("desktop", "--again", "--qr").stdout.rstrip("\n").splitlines()
    assert first == line.rstrip("\n")
    assert {len(row) for row in code if row} == {len(code[0])}
    assert 2 * len([row for row in code if row]) - len(code[0]) in (0, 1)
    assert set("".join(code)) == set(" ▀▄█")
    assert len(code[0]) <= 80


def test_a_qr_code_that_cannot_be_drawn_is_a_note(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "segno", None)
    result = owner.run("desktop", "--qr")
    assert (result.exit_code, result.stdout.count("\n")) == (0, 1)
    assert decode(result.stdout).name == "desktop"
    assert result.stderr.startswith("note: the QR code cannot be drawn: import of segno halted")
    assert "The network key is in this line: show it to nobody else." in result.stderr


def test_without_sudo(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's words, not click's."""

    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    assert owner.run("desktop").stderr.startswith(f"{owner.config}: the user ")


def test_a_qr_code_needs_its_characters_and_its_room(owner: Owner, monkeypatch: pytest.MonkeyPatch) -> None:
    result = CliRunner(charset="latin-1").invoke(
        ctl.cli, ["invite", "--config", str(owner.config), "desktop", "--qr"]
    )
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    assert "The QR code needs a terminal with UTF-8.\n" in result.stderr

    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, 40, 0, 0))
    command = [*COMMAND, "--config", str(owner.config), "tablet"]
    environment = {name: each for name, each in os.environ.items() if name not in ("COLUMNS", "LINES")}
    subprocess.run(command, stdout=theirs, stderr=subprocess.PIPE, check=True, env=environment)
    done = subprocess.run(
        [*command, "--again"], stdout=theirs, stderr=subprocess.PIPE, check=True, text=True, env=environment
    )
    os.close(theirs)
    os.close(ours)
    assert re.search("^The QR code needs a terminal of [0-9]+ columns.$", done.stderr, re.MULTILINE)


def test_several_at_once(owner: Owner) -> None:
    """Each waits until the one before has written the list."""
    command = [*COMMAND, "--config", str(owner.config)]
    programs = [subprocess.Popen([*command, name], stdout=subprocess.PIPE, text=True) for name in "abcd"]
    given = [ips(decode(program.communicate()[0])) for program in programs]
    assert sorted(given) == [[f"10.10.10.{number}/24"] for number in range(2, 6)]
