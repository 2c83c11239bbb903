"""`shadowmesh init`: valid configurations from options and from answers; nothing is lost."""

from __future__ import annotations

import os
import pty
import re
import secrets
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from shadowmesh.cli import ctl, drafts, newfile
from shadowmesh.cli import init as init_module
from shadowmesh.config import ClientConfig, load_client_config, load_relay_config
from shadowmesh.crypto.keys import NetworkKeys
from shadowmesh.testing.certificates import make_certificate

COMMAND = [sys.executable, "-c", "from shadowmesh.cli.ctl import main; main()", "init"]
URL = "ws://203.0.113.9:9545"


def run(*arguments: str, input: str | None = None) -> Result:
    return CliRunner().invoke(ctl.cli, ["init", *arguments], input=input)


def client(path: Path, *arguments: str, input: str | None = None) -> Result:
    return run("client", "--relay", URL, "--name", "laptop", "-o", str(path), *arguments, input=input)


def written(path: Path) -> ClientConfig:
    loaded = load_client_config(str(path))
    assert loaded.warnings == []
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    return loaded.config


@pytest.fixture
def service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the service's configuration is."""
    monkeypatch.setattr(newfile, "DIRECTORY", str(tmp_path / "etc"))
    monkeypatch.setattr(newfile, "USER", "there-is-no-such-user")
    return tmp_path / "etc/client-config.yaml"


def test_a_client_from_options(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    result = client(path)
    assert (result.exit_code, result.stderr) == (0, "")
    config = written(path)
    assert [str(one) for one in config.network.local_ip] == ["10.10.10.1/24"]
    assert config.relay.server is not None
    assert (config.peer.id, config.relay.server.url, config.network.mtu) == ("laptop", f"{URL}/relay", 1400)
    assert (tmp_path / "c.hosts").read_text().endswith("\n10.10.10.1 laptop\n")
    key = config.encryption.key.reveal()
    assert (
        f"This device is laptop, 10.10.10.1/24, in network {NetworkKeys(key).network_id.hex()}."
        in result.stdout
    )
    assert f"    sudo shadowmesh-daemon {path}" in result.stdout.replace(
        f"{os.path.dirname(sys.executable)}/", ""
    )
    assert f"invite NAME --config {path}\n" in result.stdout
    assert key.hex() not in result.output


def test_a_client_with_everything(tmp_path: Path) -> None:
    path, taken, api_key = tmp_path / "c.yaml", tmp_path / "taken", "smk_abcdefgh_" + "A" * 43
    taken.write_text("10.100.0.1/32\n10.100.0.2 desktop\n")
    ca = make_certificate(tmp_path, ["relay.example.com"]).cert
    result = run(
        *("client", "--relay", "wss://a.example.com", "--relay", "wss://b.example.com", "--name", "o.neill"),
        *("--network", "10.100.0.0/24", "--taken", str(taken), "--mtu", "1300", "--api-key-file", "-"),
        *("--tls-ca-file", str(ca), "--listen-address", "127.0.0.1:9999", "-o", str(path)),
        input=f"{api_key}\n",
    )
    assert result.exit_code == 0, result.output
    config = load_client_config(str(path)).config
    assert [str(one) for one in config.network.local_ip] == ["10.100.0.3/24"]
    assert [one.host for one in config.relay.servers] == ["a.example.com", "b.example.com"]
    assert config.relay.api_key is not None
    assert config.relay.api_key.reveal() == api_key
    assert (config.relay.tls_ca_file, config.network.mtu) == (str(ca), 1300)
    assert (config.daemon.listen_address.port, config.peer.id) == (9999, "o.neill")
    assert (tmp_path / "c.hosts").read_text().splitlines()[1:] == [
        "10.100.0.1",
        "10.100.0.2 desktop",
        "10.100.0.3 o.neill",
    ]
    assert api_key not in result.output


@pytest.mark.parametrize("by", ["file", "stdin"])
def test_the_key_of_a_network_that_is_there(tmp_path: Path, by: str) -> None:
    path, key = tmp_path / "c.yaml", secrets.token_hex(32)
    (tmp_path / "key").write_text(key + "\n")
    source = ("--key-file", str(tmp_path / "key") if by == "file" else "-")
    result = client(path, *source, input=f" {key[:32]} {key[32:]}\n")
    assert result.exit_code == 2
    assert "--ip IP/PREFIX or --taken FILE" in result.stderr
    assert client(path, *source, "--ip", "10.0.0.7/24", input=f"{key}\n").exit_code == 0
    assert written(path).encryption.key.reveal().hex() == key


def test_the_service_has_its_key_apart(service: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drafts, "UNITS", [str(service.parent)])
    service.parent.mkdir()
    (service.parent / "shadowmesh-daemon.service").touch()
    result = client(service)
    assert (result.exit_code, result.stderr) == (0, "")
    config, key_file = written(service), service.parent / "encryption.key"
    assert config.encryption.key_file == str(key_file)
    assert config.encryption.key.reveal().hex() + "\n" == key_file.read_text()
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600
    assert "or as a service:\n    sudo systemctl enable --now shadowmesh-daemon\n" in result.stdout
    assert re.search("    sudo [^ ]*shadowmesh invite NAME\n", result.stdout)

    again = client(service, "--force")
    assert (again.exit_code, again.stderr) == (0, "")
    assert f"the network key is the one in {key_file}" in again.stdout
    assert "    sudo systemctl restart shadowmesh-daemon\n" in again.stdout
    assert written(service) == config
    assert not Path(f"{key_file}.bak").exists()
    (service.parent / "shadowmesh-daemon.service").unlink()
    assert (
        "or as a service, when shadowmesh-daemon.service is installed:\n" in client(service, "--force").stdout
    )
    assert Path(f"{service}.bak").exists()


def test_a_key_that_waits_is_taken_or_kept(service: Path, tmp_path: Path) -> None:
    key_file = service.parent / "encryption.key"
    service.parent.mkdir()
    key_file.write_text("nonsense")
    result = client(service)
    assert result.exit_code == 1
    assert "encryption.key character 1 of 8 is no hex digit" in result.stderr
    assert not service.exists()
    (tmp_path / "key").write_text(other := secrets.token_hex(32))
    result = client(service, "--key-file", str(tmp_path / "key"), "--ip", "10.0.0.7/24")
    assert f"wrote {key_file} (what was there is {key_file}.bak now)" in result.stdout
    assert written(service).encryption.key.reveal().hex() == other
    assert Path(f"{key_file}.bak").read_text() == "nonsense"


def test_the_key_goes_when_the_configuration_cannot_be_written(
    service: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = os.link

    def failing(source: str, target: str) -> None:
        if target.endswith(".yaml"):
            raise OSError(28, "No space left on device")
        link(source, target)

    monkeypatch.setattr(os, "link", failing)
    result = client(service)
    assert result.exit_code == 1
    assert (
        result.stderr == f"shadowmesh: cannot write {service}: No space left on device; nothing is changed\n"
    )
    assert list(service.parent.iterdir()) == []


def test_a_relay_on_this_host_has_the_port(tmp_path: Path) -> None:
    assert run("relay", "--region", "eu", "-o", str(tmp_path / "relay-config.yaml")).exit_code == 0
    result = client(tmp_path / "c.yaml")
    assert written(tmp_path / "c.yaml").daemon.listen_address == ("127.0.0.1", 9091)
    assert "shadowmesh status --api http://127.0.0.1:9091\n" in result.stdout


@pytest.mark.parametrize(
    ("address", "option"),
    [
        ("127.0.0.1:9090", ""),
        ("0.0.0.0:9090", ""),
        ("[::]:9092", " --api http://[::1]:9092"),
        ("localhost:9091", " --api http://localhost:9091"),
    ],
)
def test_how_the_daemon_is_asked(tmp_path: Path, address: str, option: str) -> None:
    result = client(tmp_path / "c.yaml", "--listen-address", address)
    assert f"shadowmesh status{option}\n" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "not given, and there is no terminal to ask on: --relay URL"),
        (("--relay", "http://x"), "'--relay': a relay is not reached by http://; write ws:// instead"),
        (("--relay", URL, "--name", "ä"), "'--name': \"\\xe4\" does not do as a name; write 1 to 63 ASCII"),
        (("--relay", URL, "--ip", "10.0.0.0/24"), "'--ip': 10.0.0.0/24 is the address of the network itself"),
        (
            ("--relay", URL, "--network", "10.0.0.1/24"),
            "'--network': 10.0.0.1/24 has bits set behind its prefix",
        ),
        (("--relay", URL, "--ip", "10.0.0.1/24", "--network", "10.0.0.0/24"), "--ip and --network exclude"),
        (("--relay", URL, "--mtu", "100"), "'--mtu': 100 is out of range; write a number from 1280 to 9000"),
        (("--relay", URL, "--listen-address", "x"), "'--listen-address': \"x\" has no port"),
        (("--relay", URL, "--taken", "nowhere"), "shadowmesh: nowhere: No such file or directory"),
        (
            ("--relay", URL, "--key-file", "nowhere", "--ip", "10.0.0.1/24"),
            "nowhere cannot be read: No such file",
        ),
        (
            ("--relay", URL, "--key-file", "-", "--ip", "10.0.0.1/24"),
            "shadowmesh: standard input is empty; the net",
        ),
        (("--relay", URL, "--api-key-file", "-"), "standard input is empty; the API key belongs there"),
        (("--relay", URL, "--key-file", "-", "--api-key-file", "-"), "cannot both be standard input"),
        (
            ("--relay", "ws://10.10.10.9:1"),
            "relay.server: 10.10.10.9 lies in 10.10.10.0/24, which goes into the tunnel",
        ),
        (("--relay", URL) * 5, "Error: --relay is there 5 times; a device has at most 4"),
        (
            ("--relay", URL, "--name", "lap top"),
            "'--name': nobody could find a device by the name \"lap top\"",
        ),
        (("--relay", URL, "--network", "10.0.0.0/33"), "'--network': /33 is not a prefix length; write one"),
    ],
)
def test_each_mistake_is_one_error(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    path = tmp_path / "c.yaml"
    result = run("client", "--name", "laptop", "-o", str(path), *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_api_key_is_not_shown(tmp_path: Path) -> None:
    result = client(tmp_path / "c.yaml", "--api-key-file", "-", input="smk_secret\n")
    assert result.stderr.startswith("shadowmesh: the API key is no API key: one has the form smk_ID_SECRET")
    assert "smk_secret" not in result.output


def test_a_file_that_is_there_stays(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("mine")
    for kind in ("client", "relay"):
        result = run(kind, "-o", str(path))
        assert (result.exit_code, path.read_text()) == (1, "mine")
        assert (
            result.stderr
            == f"shadowmesh: {path} is there already; --force replaces it, and keeps it as {path}.bak\n"
        )
    assert client(path, "--force").exit_code == 0
    assert Path(f"{path}.bak").read_text() == "mine"


def test_the_same_device_anew_keeps_its_ip(service: Path) -> None:
    hosts = service.parent / "client-config.hosts"
    client(service, "--ip", "10.10.10.5/24")
    hosts.write_text(hosts.read_text() + "10.10.10.2 desktop\n")
    renamed = run("client", "--relay", URL, "--name", "notebook", "-o", str(service), "--force")
    assert "This device is notebook, 10.10.10.5/24, in network " in renamed.stdout
    assert hosts.read_text().splitlines()[1:] == ["10.10.10.2 desktop", "10.10.10.5 notebook"]
    assert (
        "is notebook, 10.10.10.9/24,"
        in client(service, "--force", "--name", "notebook", "--ip", "10.10.10.9/24").stdout
    )
    assert hosts.read_text().splitlines()[1:] == ["10.10.10.2 desktop", "10.10.10.9 notebook"]

    service.write_text("nonsense")  # then by the list, as for a first device
    assert "is notebook, 10.10.10.1/24," in client(service, "--force", "--name", "notebook").stdout


def test_where_the_program_is_not_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(sys, "argv", [str(tmp_path / "shadowmesh")])
    words = "shadowmesh-daemon is not on this machine: install it first.\nStart it with:\n"
    assert words in client(tmp_path / "a.yaml").stdout
    (tmp_path / "shadowmesh-daemon").touch(mode=0o755)
    assert "install it first" not in client(tmp_path / "b.yaml").stdout


def test_without_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before anything is asked; and click, which has other words for it, does not look at all."""
    path = tmp_path / "deep/down/c.yaml"
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    monkeypatch.setattr(os, "access", lambda *_, **__: False)
    words = (
        f"shadowmesh: cannot write {path}: Permission denied; use sudo, or write it elsewhere with --output"
    )
    assert client(path, "--key-file", __file__).stderr.startswith(words)
    for command in ("client", "relay"):
        assert "is there already; --force" in run(command, "-o", __file__).stderr
    result = CliRunner().invoke(ctl.cli, ["join", "-o", str(path), __file__])
    assert result.stderr.startswith(words)


def test_an_ip_that_is_taken(tmp_path: Path) -> None:
    (tmp_path / "c.hosts").write_text("10.0.0.1 desktop\n")
    result = client(tmp_path / "c.yaml", "--ip", "10.0.0.1/24")
    assert result.stderr == "shadowmesh: 10.0.0.1 is taken by desktop; choose another one\n"


def test_questions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(init_module, "interactive", lambda: True)
    path = tmp_path / "c.yaml"
    result = run(
        "client", "-o", str(path), input=f"nonsense\n{URL}\nmy laptop\nlaptop\n10.10.10.0/24\n10.10.10.5/24\n"
    )
    assert result.exit_code == 0, result.output
    assert "Error: does not begin with ws:// or wss://" in result.stderr
    assert 'Error: nobody could find a device by the name "my laptop"; write letters' in result.stderr
    assert "Error: 10.10.10.0/24 is the address of the network itself" in result.stderr
    assert "Its overlay IP [10.10.10.1/24]: " in result.stderr
    assert [str(one) for one in written(path).network.local_ip] == ["10.10.10.5/24"]

    path = tmp_path / "r.yaml"
    assert run("relay", "-o", str(path), input="relay-1\n\n").exit_code == 0
    config = load_relay_config(str(path)).config
    assert (config.server_name, config.region) == ("relay-1", "default")


def test_on_a_real_terminal(tmp_path: Path) -> None:
    ours, theirs = pty.openpty()
    command = [*COMMAND, "client", "-o", str(tmp_path / "c.yaml")]
    with subprocess.Popen(command, stdin=theirs, stdout=subprocess.PIPE, stderr=theirs, text=True) as process:
        os.write(ours, f"{URL}\nlaptop\n\n".encode())
        assert process.stdout is not None
        assert "Start it with:" in process.stdout.read()
    os.close(ours)
    os.close(theirs)
    assert written(tmp_path / "c.yaml").peer.id == "laptop"


def test_a_relay(tmp_path: Path) -> None:
    path, pem = tmp_path / "r.yaml", make_certificate(tmp_path, ["relay.example.com"])
    network = "ab" * 32
    result = run(
        *("relay", "--name", "relay-1", "--region", "eu", "--port", "443", "--api-keys", "-o", str(path)),
        *("--tls-cert", str(pem.cert), "--tls-key", str(pem.key), "--allowed-network", network),
    )
    assert (result.exit_code, result.stderr) == (0, "")
    loaded = load_relay_config(str(path))
    assert loaded.warnings == []
    config = loaded.config
    assert (config.server_name, config.region, config.relay_port) == ("relay-1", "eu", 443)
    assert (config.health_bind, config.metrics_bind, config.auth.mode) == (
        "127.0.0.1",
        "127.0.0.1",
        "api_key",
    )
    assert config.allowed_networks == (bytes.fromhex(network),)
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert "relay-keys add NAME" in result.stdout
    assert "shadowmesh init client --relay wss://HOST:443" in result.stdout


def test_a_relay_without_a_terminal_has_the_answers_that_are_offered(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    assert run("relay", "-o", str(path)).exit_code == 0
    config = load_relay_config(str(path)).config
    assert (config.region, config.server_name) == ("default", drafts.host_label() or "relay")
    assert 'such as eu-west-1. Default: "default".' in " ".join(run("relay", "--help").stdout.split())


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--region", "eu", "--tls-cert", "/x"), "--tls-cert and --tls-key belong together"),
        (("--region", ""), "'--region': \"\" does not do as a name"),
        (("--region", "eu", "--tls-cert", "/x", "--tls-key", "/y"), "/x: no such file"),
        (("--region", "eu", "--port", "0"), "'--port': 0 is out of range; write a number from 1 to 65535"),
        (("--region", "eu", "--monitoring-bind", "x"), "'--monitoring-bind': \"x\" is not an IP address"),
        (("--region", "eu", "--allowed-network", "x"), "'--allowed-network': \"x\" is no network id"),
        (("--region", "eu", "--port", "8080"), "r.yaml:"),
    ],
)
def test_each_mistake_of_a_relay(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    result = run("relay", "-o", str(tmp_path / "r.yaml"), *arguments)
    assert result.exit_code in (1, 2)
    assert words in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_an_authority_that_cannot_be_read_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    result = client(tmp_path / "c.yaml", "--tls-ca-file", "/not/there")
    assert result.exit_code == 1
    assert "relay.tls_ca_file /not/there: No such file or directory" in result.stderr
    assert list(tmp_path.iterdir()) == []
