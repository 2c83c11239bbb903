"""The packages and the guide's single files in a Debian that has booted: our pages and the guide, walked."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from guide.pages import DEPLOY, GUIDE, SERVICE
from shadowmesh import __version__
from shadowmesh.testing import artifacts, guide
from shadowmesh.testing.booted import Booted, base, hindrance

pytestmark = [pytest.mark.netns, pytest.mark.booted]

PACKAGES = [f"shadowmesh-{name}_{__version__}_amd64.deb" for name in ("relay", "daemon")]
SINGLE_FILES = [f"shadowmesh-{name}-linux-amd64" for name in ("relay", "daemon")]
RELAY_CONFIG, CLIENT_CONFIG = (f"/etc/shadowmesh/{name}-config.yaml" for name in ("relay", "client"))
KEY = "/etc/shadowmesh/encryption.key"
CHAPTER = "Relay Server Deployment"
LINUX = "Client Daemon Deployment / Linux Client"
ADDRESS = "10.10.10.1"
EDITOR = f"""\
#!/bin/sh
sed -i 's|10.10.10.X|{ADDRESS}|; s|client-unique-id|laptop|; s|YOUR_RELAY_IP|127.0.0.1|' "$1"
sed -i 's|127.0.0.1:9090|127.0.0.1:9091|' "$1"
"""
"""Somebody who fills in what the comment behind the command names; and the relay is on this host, too."""


@pytest.fixture(scope="module")
def dist() -> Path:
    """The directory of the packages, which are built if they are older than what they are made of."""
    if platform.machine() != "x86_64":
        pytest.skip("the guide's files are for amd64")
    if reason := hindrance():
        pytest.skip(reason)
    for program in ("relay", "daemon"):
        artifacts.deb(program)
        artifacts.binary(program)
    base()  # made here, so that no test's time has it in it
    return artifacts.DIST


class Debian(Booted):
    """With what the tests type and look at."""

    def shell(
        self, command: str, *, check: bool = True, timeout: float = 60.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """What goes on for ever is ended after a moment."""
        if re.search(r"journalctl .*-f$", command):
            command = f"timeout 1 {command} || [ $? = 124 ]"
        return super().shell(command, check=check, timeout=timeout, input=input)

    def journal(self, unit: str) -> str:
        return self.shell(f"journalctl -u {unit} --no-pager -o cat").stdout

    def health(self, port: int = guide.HEALTH_PORT) -> str:
        return self.shell(f"curl -s http://127.0.0.1:{port}/health", check=False).stdout

    def pid(self, unit: str) -> str:
        return self.show(unit, "MainPID")

    def install(self, name: str) -> str:
        self.copy(artifacts.DIST / name, f"/root/{name}")
        done = self.shell(f"apt install -y ./{name} </dev/null 2>&1", timeout=90)
        return done.stdout

    def exposure(self, unit: str) -> float:
        text = self.shell(f"systemd-analyze security --no-pager {unit}").stdout
        return float(re.findall(r"exposure level for \S+: ([\d.]+)", text)[0])

    def revive(self, unit: str) -> None:
        """kill -9 of the service, and it is there again."""
        pid = self.pid(unit)
        self.shell(f"kill -9 {pid}")
        self.wait_for(
            lambda: self.active(unit) and self.pid(unit) not in ("0", pid) and self.ready(unit), "service"
        )
        assert self.show(unit, "NRestarts") == "1"

    def ready(self, unit: str) -> bool:
        return self.show(unit, "SubState") == "running"

    def ours(self) -> list[str]:
        """All files named after us, but for those of the test in /root, of apt and of the journal."""
        places = "/etc /opt /usr /var /run /lib/systemd"
        found = self.shell(f"find {places} -xdev -name '*shadowmesh*'").stdout.split()
        return [name for name in found if "/var/lib/apt/" not in name and "/journal/" not in name]

    def user(self) -> bool:
        return not self.shell("getent passwd shadowmesh", check=False).returncode


def newer(package: str, tmp_path: Path) -> Path:
    """The same package with a higher version, and other defaults."""
    room = tmp_path / "package"
    subprocess.run(["dpkg-deb", "-R", artifacts.DIST / package, room], check=True)
    control = room / "DEBIAN/control"
    version = f"{__version__}+next"
    control.write_text(re.sub("^Version: .*", f"Version: {version}", control.read_text(), flags=re.M))
    defaults = [*room.glob("usr/share/*/*-config.yaml")]
    assert defaults
    for default in defaults:
        default.write_text(f"{default.read_text()}# newer\n")
    file = tmp_path / package.replace(__version__, version)
    subprocess.run(
        ["dpkg-deb", "--root-owner-group", "-Znone", "--build", room, file],
        check=True,
        stdout=subprocess.DEVNULL,
    )
    return file


@pytest.fixture(scope="module")
def relay(dist: Path) -> Iterator[Debian]:
    """docs/deploy.md followed until the relay runs."""
    with Debian() as debian:
        debian.copy(dist / PACKAGES[0], f"/root/{PACKAGES[0]}")
        DEPLOY.run(debian, "A relay / Install", 1, booted=True)
        DEPLOY.run(debian, "A relay / Configure", booted=True)
        yield debian


RELAY, DAEMON = "shadowmesh-relay", "shadowmesh-daemon"


def test_the_relay_of_the_package_runs(relay: Debian) -> None:
    assert relay.active(RELAY)
    assert relay.shell(f"systemctl is-enabled {RELAY}").stdout == "enabled\n"
    restart, status, journal = DEPLOY.run(relay, "A relay / Service", booted=True).values()
    assert restart == ""
    assert "Active: active (running)" in status
    assert re.search(r'Status: ".+"', status)
    assert "relay is ready" in journal
    health, ready, _, metrics = DEPLOY.run(relay, "A relay / Verify", booted=True).values()
    assert json.loads(health).keys() == json.loads(DEPLOY.text("A relay / Verify", 1)).keys()
    assert json.loads(ready)["status"] == "ready"
    assert "shadowmesh_relay_connections{" in metrics
    process = dict(re.findall(r"^process_(\w+) ([\d.e+]+)$", metrics, re.MULTILINE))
    now = float(relay.shell("date +%s").stdout)
    # What /proc shows to the hardened unit.
    assert now - 120 < float(process["start_time_seconds"]) <= now + 1
    assert float(process["open_fds"]) > 5
    assert relay.shell(f"ps -o user= -p {relay.pid(RELAY)}").stdout.strip() in ("shadowmesh", "shadowm+")
    assert relay.exposure(RELAY) <= 1.5


def test_what_helps_in_trouble(relay: Debian) -> None:
    netstat, _, journal = DEPLOY.commands("When it does not work")
    assert re.search(rf":9545 .* LISTEN +{relay.pid(RELAY)}/", relay.shell(netstat).stdout)
    assert "relay is ready" in relay.shell(journal).stdout


def test_a_reload_takes_effect_and_a_mistake_none(relay: Debian) -> None:
    pid = relay.pid(RELAY)
    relay.shell(f"sed -i 's/^region: .*/region: eu-west-2/' {RELAY_CONFIG}")
    DEPLOY.run(relay, "Reload", booted=True)
    relay.wait_for(lambda: '"region": "eu-west-2"' in relay.health(), "new region")
    relay.shell(f"sed -i 's/^log_level: .*/log_level: loud/' {RELAY_CONFIG}")
    assert relay.shell(f"systemctl reload {RELAY}", check=False)
    relay.wait_for(lambda: "log_level" in relay.journal(RELAY), "words")
    relay.shell(f"sed -i 's/^log_level: .*/log_level: info/' {RELAY_CONFIG}")
    assert relay.pid(RELAY) == pid


def test_api_keys_of_the_package(relay: Debian) -> None:
    (key,) = DEPLOY.run(relay, "API keys", booted=True).values()
    assert key.startswith("smk_")
    DEPLOY.run(relay, "API keys", 3, booted=True)
    assert relay.shell("stat -c '%a %U %G' /etc/shadowmesh/relay-keys.json").stdout == "640 root shadowmesh\n"


def test_a_relay_that_is_killed_comes_back(relay: Debian) -> None:
    relay.revive(RELAY)
    relay.wait_for(lambda: "healthy" in relay.health(), "health")


def test_a_relay_that_hangs_is_ended_and_comes_back(relay: Debian) -> None:
    relay.write(
        f"/run/systemd/system/{RELAY}.service.d/test.conf", "[Service]\nWatchdogSec=2\nRestartSec=100ms\n"
    )
    relay.shell(f"systemctl daemon-reload && systemctl restart {RELAY}")
    pid = relay.pid(RELAY)
    relay.shell(f"kill -STOP {pid}")
    relay.wait_for(lambda: relay.pid(RELAY) not in ("0", pid) and "healthy" in relay.health(), "new relay")
    assert "Watchdog timeout" in relay.journal(RELAY)


def test_firewall(relay: Debian) -> None:
    """By ufw, then nftables beside it, whose rules survive what flushes all."""
    DEPLOY.run(relay, "A relay / Firewall", booted=True, input="y\n")
    assert "Status: active" in relay.shell("ufw status").stdout
    DEPLOY.run(relay, "A relay / Firewall", 4, booted=True)
    relay.shell("ufw allow ShadowMesh")
    DEPLOY.run(relay, "A relay / Firewall", 1, booted=True)
    for command in ("true", "systemctl restart nftables", "systemctl reload nftables"):
        relay.shell(command)
        relay.wait_for(lambda: "shadowmesh_relay" in relay.shell("nft list tables").stdout, "our table")
    (shown,) = DEPLOY.run(relay, "A relay / Firewall", 2, booted=True).values()
    assert "burst 200 packets" in shown
    relay.shell("systemctl disable --now shadowmesh-firewall")
    assert "shadowmesh_relay" not in relay.shell("nft list tables").stdout
    assert "healthy" in relay.health()


def test_a_log_file_is_rotated_and_goes_on(relay: Debian) -> None:
    DEPLOY.run(relay, "A relay / Service", 1, booted=True)
    log = relay.path("/var/log/shadowmesh/relay.log")
    relay.wait_for(lambda: "relay is ready" in log.read_text(), "log file")
    relay.shell("logrotate --force /etc/logrotate.d/shadowmesh")
    assert "relay is ready" in relay.path("/var/log/shadowmesh/relay.log.1").read_text()
    relay.shell(f"systemctl reload {RELAY}")
    relay.wait_for(lambda: log.read_text(), "line after the rotation")
    assert "\0" not in log.read_text()
    relay.shell(
        f"rm -r /etc/systemd/system/{RELAY}.service.d /etc/logrotate.d/shadowmesh /var/log/shadowmesh"
    )
    relay.shell(f"systemctl daemon-reload && systemctl restart {RELAY}")


def test_upgrade_removal_and_purge_of_the_relay(relay: Debian, tmp_path: Path) -> None:
    config, pid = relay.path(RELAY_CONFIG).read_text(), relay.pid(RELAY)
    file = newer(PACKAGES[0], tmp_path)
    relay.copy(file, f"/root/{file.name}")
    relay.shell(f"apt install -y ./{file.name} </dev/null", timeout=90)
    assert relay.path(RELAY_CONFIG).read_text() == config
    assert relay.pid(RELAY) not in ("0", pid)
    relay.wait_for(lambda: "eu-west-2" in relay.health(), "health")

    remove, purge = DEPLOY.commands("Restart and upgrade")
    relay.shell(remove)
    assert not relay.active(RELAY)
    assert relay.path(RELAY_CONFIG).read_text() == config
    relay.shell(f"rm -rf /run/systemd/system/{RELAY}.service.d")
    relay.shell("rm /etc/systemd/system/shadowmesh-firewall.service /etc/shadowmesh/shadowmesh-relay.nft")
    relay.shell("rm /etc/ufw/applications.d/shadowmesh")
    relay.shell(purge)
    assert relay.ours() == []
    assert not relay.user()


@pytest.fixture(scope="module")
def client(dist: Path) -> Iterator[Debian]:
    """docs/service.md followed, beside a relay."""
    with Debian() as debian:
        debian.install(PACKAGES[0])
        debian.copy(dist / PACKAGES[1], f"/root/{PACKAGES[1]}")
        debian.write("/usr/local/bin/edit", EDITOR, mode=0o755)
        install, *steps = SERVICE.commands("By the package")
        debian.shell(install, timeout=90)
        assert not debian.active(DAEMON)  # there is no configuration yet
        for step in steps:
            debian.shell(f"export EDITOR=edit; {step}")
        yield debian


def connected(debian: Debian) -> bool:
    return '"connected"' in debian.health(9091)


def test_the_client_of_the_package_runs(client: Debian) -> None:
    client.wait_for(lambda: connected(client), "connection")
    assert f"inet {ADDRESS}/24" in client.shell("ip addr show shadowmesh0").stdout
    assert client.shell(f"stat -c '%a %U' {KEY}").stdout == "600 root\n"
    key = client.path(KEY).read_text().strip()
    assert re.fullmatch("[0-9a-f]{64}", key)
    assert key not in client.journal(DAEMON)
    assert client.shell(f"systemctl is-enabled {DAEMON}").stdout == "enabled\n"
    assert client.active("shadowmesh")  # the guide's name
    client.wait_for(lambda: client.show(DAEMON, "StatusText").startswith("Connected to ws://127"), "status")
    assert json.loads(client.shell("shadowmesh status --json").stdout)["status"] == "connected"
    client.shell("shadowmesh down && shadowmesh up")
    assert client.exposure(DAEMON) <= 2.5


def test_a_client_that_is_killed_comes_back(client: Debian) -> None:
    client.revive(DAEMON)
    client.wait_for(lambda: connected(client), "connection")


@pytest.mark.parametrize("package", [RELAY, DAEMON])
def test_init_invite_and_join_of_each_package(client: Debian, package: str) -> None:
    program, room = f"/usr/lib/{package}/shadowmesh", f"/root/{package}"
    first, second = (f"{room}/{name}/client-config.yaml" for name in ("laptop", "desktop"))
    client.shell(f"mkdir -p {room}/laptop {room}/desktop")
    client.shell(f"{program} init client --name laptop --relay ws://127.0.0.1:9545 --output {first}")
    said = client.shell(f"{program} invite desktop --qr --config {first}").stdout
    (line,) = re.findall(r"^shadowmesh://\S+$", said, re.M)
    assert "\u2588" in said  # the blocks of a QR code
    client.shell(f"{program} join --output {second}", input=line)
    for file in (first, second):
        assert client.shell(f"{program} check-config --client {file}").stderr == ""
    key = re.compile(r"\b[0-9a-f]{64}\b")
    assert key.findall(client.path(first).read_text()) == key.findall(client.path(second).read_text())


def test_upgrade_removal_and_purge_of_the_client(client: Debian, tmp_path: Path) -> None:
    def kept() -> list[str]:
        files = (CLIENT_CONFIG, KEY, "/var/lib/shadowmesh/device.key")
        return [client.shell(f"sha256sum {file}").stdout for file in files]

    before, pid = kept(), client.pid(DAEMON)
    file = newer(PACKAGES[1], tmp_path)
    client.copy(file, f"/root/{file.name}")
    client.shell(f"apt install -y ./{file.name} </dev/null", timeout=90)
    assert client.pid(DAEMON) not in ("0", pid)
    client.wait_for(lambda: connected(client), "connection")
    assert kept() == before
    client.shell("apt remove -y shadowmesh-daemon")
    assert client.shell("ip link show shadowmesh0", check=False).returncode
    assert kept() == before
    assert client.active(RELAY)
    assert client.shell("shadowmesh version").stdout  # that of the other package
    client.shell("apt purge -y shadowmesh-daemon")
    assert client.user()  # the relay's, too
    client.shell("apt purge -y shadowmesh-relay")
    assert client.ours() == []
    assert not client.user()


def test_the_guide_with_its_single_files_and_its_units(dist: Path) -> None:
    """To the letter, but for the client's port 9090, which is the relay's where both are in one system."""
    with Debian() as debian:
        for section in ("1. Server Preparation", "2. Binary Installation"):
            debian.copy(dist / SINGLE_FILES[0], f"/root/{SINGLE_FILES[0]}")
            GUIDE.run(debian, f"{CHAPTER} / {section}", booted=True)
        debian.write(RELAY_CONFIG, GUIDE.text(f"{CHAPTER} / 3. Configuration"))
        debian.write(f"/etc/systemd/system/{RELAY}.service", GUIDE.text(f"{CHAPTER} / 4. Systemd Service"))
        *_, status, _ = GUIDE.run(debian, f"{CHAPTER} / 5. Start Relay Server", booted=True).values()
        assert "Active: active (running)" in status
        debian.wait_for(lambda: "healthy" in debian.health(), "health")
        health, *_ = GUIDE.run(debian, f"{CHAPTER} / 6. Verify Relay Server", booted=True).values()
        assert json.loads(health)["region"] == "us-east-1"
        GUIDE.run(debian, f"{CHAPTER} / 7. Firewall Configuration", booted=True, input="y\n")

        debian.copy(dist / SINGLE_FILES[1], f"/root/{SINGLE_FILES[1]}")
        GUIDE.run(debian, f"{LINUX} / Installation", booted=True)
        text = GUIDE.text(f"{LINUX} / Configuration").replace("YOUR_64_CHAR_HEX_KEY", os.urandom(32).hex())
        text = text.replace("10.10.10.X", ADDRESS).replace("YOUR_RELAY_IP", "127.0.0.1")
        debian.write(CLIENT_CONFIG, text.replace("127.0.0.1:9090", "127.0.0.1:9091"), mode=0o600)
        debian.write("/etc/systemd/system/shadowmesh.service", GUIDE.text(f"{LINUX} / Systemd Service"))
        *_, status = GUIDE.run(debian, f"{LINUX} / Systemd Service", 1, booted=True).values()
        assert "Active: active (running)" in status
        debian.wait_for(lambda: connected(debian), "connection")
        for unit in (RELAY, "shadowmesh"):
            debian.revive(unit)
        debian.wait_for(lambda: "healthy" in debian.health() and connected(debian), "both again")
        debian.shell(f"systemctl stop shadowmesh {RELAY}")
        assert debian.shell("ls -d /tmp/_MEI* /tmp/*/tmp/_MEI*", check=False).stdout.count("_MEI") <= 2
        to_the_packages(debian)


def to_the_packages(debian: Debian) -> None:
    """Our pages' way on from there: key, device and configurations are the same ones, the programs others."""
    for package in PACKAGES:
        debian.copy(artifacts.DIST / package, f"/root/{package}")
    relay, client = (debian.path(file).read_text() for file in (RELAY_CONFIG, CLIENT_CONFIG))
    device = debian.path("/var/lib/shadowmesh/device.key").read_bytes()
    debian.shell("mkdir /opt/clone && ln -s /opt/clone /usr/share/shadowmesh-relay")  # as once advised
    DEPLOY.run(debian, "A relay / To the package", booted=True)
    assert debian.shell("ls /opt/clone").stdout == ""
    assert debian.path(RELAY_CONFIG).read_text() == relay
    SERVICE.run(debian, "To the package", booted=True)
    for command in SERVICE.commands("To the package"):
        if "sed -" in command:
            debian.shell(command)  # now there is no key to move, as from a clone
    assert debian.path(KEY).read_text().strip() in client
    assert debian.shell(f"stat -c '%a %U' {KEY}").stdout == "600 root\n"
    assert debian.path("/var/lib/shadowmesh/device.key").read_bytes() == device
    debian.wait_for(lambda: "healthy" in debian.health() and connected(debian), "both by the packages")
    for unit in (RELAY, DAEMON):
        assert debian.show(unit, "FragmentPath").endswith(f"/lib/systemd/system/{unit}.service")
        assert debian.shell(f"readlink -f $(which {unit})").stdout == f"/usr/lib/{unit}/{unit}\n"
        assert debian.show(unit, "NRestarts") == "0"
        assert debian.shell(f"systemctl is-enabled {unit}").stdout == "enabled\n"


def test_a_taken_port_and_single_files_without_python_by_our_units(dist: Path) -> None:
    with Debian() as debian:
        debian.shell("rm -rf /usr/bin/python3* /usr/lib/python3*")
        for program, file in zip((RELAY, DAEMON), SINGLE_FILES, strict=True):
            debian.copy(dist / file, f"/opt/shadowmesh/{program}")
            debian.shell(f"chmod 755 /opt/shadowmesh/{program}")
        taken_port(debian)

        debian.shell(
            "useradd -r -s /bin/false shadowmesh && ln -s shadowmesh-daemon /opt/shadowmesh/shadowmesh"
        )
        debian.shell(f"mkdir -p /etc/shadowmesh; (umask 077; /opt/shadowmesh/shadowmesh keygen > {KEY})")
        text = guide.client_config(ip=f"{ADDRESS}/24", key="", peer_id="laptop", server="ws://127.0.0.1:9545")
        changes = {"encryption": None, "daemon": {"listen_address": "127.0.0.1:9091"}}
        debian.write(CLIENT_CONFIG, guide.merged(text, changes))
        debian.write(RELAY_CONFIG, guide.RELAY_CONFIG)
        for program in (RELAY, DAEMON):
            unit = (artifacts.ROOT / f"deploy/systemd/{program}.service").read_text()
            debian.write(
                f"/etc/systemd/system/{program}.service",
                unit.replace("/opt/shadowmesh/.venv/bin", "/opt/shadowmesh"),
            )
        debian.shell(f"systemctl daemon-reload && systemctl start {RELAY} {DAEMON}")
        debian.wait_for(lambda: "healthy" in debian.health() and connected(debian), "both")
        for unit in (RELAY, DAEMON):
            for signal in ("KILL", "STOP"):
                one_that_works(debian, unit, signal)
        debian.wait_for(lambda: "healthy" in debian.health() and connected(debian), "both again")


def taken_port(debian: Debian) -> None:
    """The package is installed and says in one line what keeps its relay from running; later it runs."""
    debian.shell("systemd-run --unit=taken /opt/shadowmesh/shadowmesh-relay")
    debian.wait_for(lambda: "healthy" in debian.health(), "the other relay")
    said = debian.install(PACKAGES[0])
    (line,) = [line for line in said.splitlines() if "did not start" in line]
    assert "health_port 8080" in line
    assert "Could not execute" not in said
    debian.shell("systemctl stop taken")
    debian.wait_for(lambda: debian.active(RELAY) and "healthy" in debian.health(), "relay at the free port")
    debian.shell("apt purge -y shadowmesh-relay")


def one_that_works(debian: Debian, unit: str, signal: str) -> None:
    """Of a single file's two processes the one that works is killed, or hangs: there is another one soon."""
    debian.write(
        f"/run/systemd/system/{unit}.service.d/test.conf", "[Service]\nWatchdogSec=2\nRestartSec=100ms\n"
    )
    debian.shell(f"systemctl daemon-reload && systemctl restart {unit}")
    first = debian.pid(unit)
    debian.shell(f"pkill -{signal} --parent {first}")
    debian.wait_for(lambda: debian.pid(unit) not in ("0", first) and debian.ready(unit), "another one")
