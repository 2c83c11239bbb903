"""The operator's command, as a person or a script uses it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from shadowmesh import __version__
from shadowmesh.cli import ctl
from shadowmesh.errors import StartError
from shadowmesh.testing.certificates import make_certificate

GUIDE = Path(__file__).parents[2] / "guide/config"
COMMAND = [sys.executable, "-c", "from shadowmesh.cli.ctl import main; main()"]


def run(*arguments: str) -> Result:
    return CliRunner().invoke(ctl.cli, arguments)


def test_keygen_prints_a_fresh_key_and_nothing_else() -> None:
    first, second = run("keygen"), run("keygen")
    assert re.fullmatch(r"[0-9a-f]{64}\n", first.stdout)
    assert first.stderr == ""
    assert first.stdout != second.stdout


def test_version() -> None:
    assert run("version").stdout == run("--version").stdout == f"shadowmesh {__version__}\n"


def test_check_config_of_the_guides_relay() -> None:
    path = str(GUIDE / "relay-config.yaml")
    for arguments in ((path,), ("--relay", path)):
        result = run("check-config", *arguments)
        assert result.exit_code == 0
        assert result.stdout == f"{path}: ok (relay configuration)\n"
        auth, warning, note = result.stderr.splitlines()
        assert auth.startswith(f'warning: {path}:1:1: auth.mode: is not in the file; its default "open" lets')
        assert warning.startswith(f'warning: {path}:28:3: allowed_origins: "*" lets any web page connect')
        assert note == "note: no effect yet in this version: worker_threads"


def test_check_config_loads_the_certificate(tmp_path: Path) -> None:
    path, pem = tmp_path / "relay-config.yaml", make_certificate(tmp_path, ["127.0.0.1"])
    path.write_text(
        "{region: eu, server_name: r, allowed_origins: [], bind_address: 127.0.0.1, "
        f"tls: {{cert_file: '{pem.cert}', key_file: '{pem.key}'}}}}"
    )
    result = run("check-config", str(path))
    assert (result.exit_code, result.stderr) == (0, "")

    make_certificate(tmp_path, ["127.0.0.1"], days=-1)
    result = run("check-config", str(path))
    assert result.exit_code == 0
    assert result.stderr.startswith(f"warning: {path}: tls.cert_file {pem.cert}: expired on ")

    pem.key.unlink()
    result = run("check-config", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr == f"{path}: tls.key_file {pem.key}: no such file\n"

    (tmp_path / "other").mkdir()
    make_certificate(tmp_path / "other", ["127.0.0.1"]).key.rename(pem.key)
    result = run("check-config", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert "the key does not belong to the first certificate" in result.stderr


def test_check_config_shows_all_that_is_wrong_with_other_files_at_once(tmp_path: Path) -> None:
    path, key, keys = tmp_path / "relay-config.yaml", tmp_path / "key.pem", tmp_path / "keys.json"
    key.write_text("hello")
    keys.write_text("hello")
    path.write_text(
        "{region: eu, server_name: r, allowed_origins: [], bind_address: 127.0.0.1, "
        f"tls: {{cert_file: /nonexistent.pem, key_file: '{key}'}}, "
        f"auth: {{mode: api_key, keys_file: '{keys}'}}}}"
    )
    result = run("check-config", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    cert_line, key_line, keys_line = result.stderr.splitlines()
    assert cert_line == f"{path}: tls.cert_file /nonexistent.pem: no such file"
    assert key_line == f"{path}: tls.key_file {key}: no PEM private key in this file"
    assert keys_line.startswith(f"{path}: auth.keys_file {keys}: ")


def test_check_config_loads_the_api_keys(tmp_path: Path) -> None:
    path, keys = tmp_path / "relay-config.yaml", tmp_path / "keys.json"
    path.write_text(
        "{region: eu, server_name: r, allowed_origins: [], bind_address: 127.0.0.1, "
        f"auth: {{mode: api_key, keys_file: '{keys}'}}}}"
    )
    result = run("check-config", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{path}: auth.keys_file {keys}: no such file; make it and its first key")
    assert run("relay-keys", "add", "laptop", "--file", str(keys)).exit_code == 0
    result = run("check-config", str(path))
    assert (result.exit_code, result.stderr) == (0, "")


def test_check_config_of_a_client_made_with_keygen(tmp_path: Path) -> None:
    content = (GUIDE / "client-config.yaml").read_text().replace("10.10.10.X", "10.10.10.7")
    content = content.replace("YOUR_64_CHAR_HEX_KEY", run("keygen").stdout.strip()).replace(
        "YOUR_RELAY_IP", "192.0.2.1"
    )
    path = tmp_path / "client-config.yaml"
    path.write_text(content)
    path.chmod(0o600)
    for arguments in ((str(path),), ("--client", str(path))):
        result = run("check-config", *arguments)
        assert (result.exit_code, result.stdout) == (0, f"{path}: ok (client configuration)\n")
        assert result.stderr.startswith(
            f'warning: {path}:15:7: peer.id: "client-unique-id" is the guide\'s example'
        )


def test_check_config_shows_every_problem_and_ends_with_2() -> None:
    path = str(GUIDE / "client-config.yaml")
    result = run("check-config", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert [line.split(": ")[1] for line in result.stderr.splitlines()] == [
        *("network.local_ip", "encryption.key", "relay.server"),
    ]
    result = run("check-config", "--relay", path)
    assert (result.exit_code, result.stdout) == (2, "")
    assert (
        result.stderr
        == f"{path}: a client configuration, for shadowmesh-daemon; shadowmesh-relay needs its own\n"
    )


def test_what_cannot_be_read_is_said_in_the_loaders_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "client-config.yaml"
    path.touch()

    def refuse(path: str, mode: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("os.access", lambda *_, **__: False)
    result = run("check-config", str(path))
    assert (result.exit_code, result.stdout) == (2, "")
    assert result.stderr.startswith(f"{path}: the user ")


def test_help_shows_whole_sentences() -> None:
    commands = run("--help").stdout.partition("Commands:")[2].split("\n")
    assert all(line.endswith(".") for line in commands if line)


def test_bad_arguments_end_with_2() -> None:
    for arguments in (("bogus",), ("check-config",), ("check-config", "/does/not/exist"), ("keygen", "x")):
        assert run(*arguments).exit_code == 2


def test_a_command_that_is_spelt_wrong() -> None:
    for command, near in (("stauts", "status"), ("kegen", "keygen")):
        assert f"Error: No such command '{command}'. Did you mean {near}?\n" in run(command).stderr
    assert "Did you mean 'client'?" in run("init", "cleint").stderr
    assert "Did you mean" not in run("bogus").stderr


def test_a_command_elsewhere_is_loaded_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def demo() -> None:
        raise StartError("no network namespaces here")

    class Module:
        pass

    module = Module()
    module.demo = demo  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "shadowmesh.cli.demo", module)
    assert "demo" in run("--help").stdout
    result = run("demo")
    assert (result.exit_code, result.stderr) == (1, "shadowmesh: no network namespaces here\n")


def test_starts_without_the_heavy_modules() -> None:
    code = (
        "import sys, shadowmesh.cli.ctl as c; c.cli(['version'], standalone_mode=False); print(*sys.modules)"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not {"pydantic", "yaml", "rich", "shadowmesh.cli.demo", "shadowmesh.config"} & set(output.split())


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize(
    "arguments", [["keygen"], ["--help"], ["check-config", str(GUIDE / "relay-config.yaml")]]
)
def test_output_that_cannot_be_written_is_one_line(arguments: list[str]) -> None:
    with open("/dev/full", "w") as full:
        result = subprocess.run([*COMMAND, *arguments], stdout=full, stderr=subprocess.PIPE, text=True)
    last = "shadowmesh: the output cannot be written: No space left on device"
    assert (result.returncode, result.stderr.splitlines()[-1]) == (1, last)
    assert "Traceback" not in result.stderr


def test_a_broken_pipe_is_quiet() -> None:
    read, write = os.pipe()
    os.close(read)
    result = subprocess.run([*COMMAND, "keygen"], stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (result.returncode, result.stderr) == (1, "")


def test_ctrl_c_leaves_no_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(_: int) -> str:
        raise KeyboardInterrupt

    monkeypatch.setattr("secrets.token_hex", interrupt)
    result = run("keygen")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "Aborted!" in result.stderr
