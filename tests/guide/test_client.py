"""The client chapters of the guide to the letter, typed into two machines, and what it says of trouble."""

from __future__ import annotations

import plistlib
import re
import secrets
import shlex
import signal
from collections.abc import Iterator
from functools import partial

import pytest
import yaml

from guide.pages import GUIDE, left_out, need
from guide.test_tls import THEIRS, TLS, Site
from shadowmesh.testing import guide
from shadowmesh.testing.machine import HOME, Machine
from shadowmesh.testing.netlab import RELAY_IP4, Lab, installed
from shadowmesh.testing.program import Program, wait_for

pytestmark = pytest.mark.netns

CHAPTER = "Client Daemon Deployment / Linux Client"
TROUBLE = "Troubleshooting / Client Issues"
CONFIG = "/etc/shadowmesh/client-config.yaml"
UNIT = "/etc/systemd/system/shadowmesh.service"
START = re.findall(r"^ExecStart=(.*)$", GUIDE.text(f"{CHAPTER} / Systemd Service"), re.MULTILINE)[0]
A, B = "10.10.10.1", "10.10.10.2"


class Clients:
    """Machines "a" and "b" on which the chapter has been followed up to the start of the service."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.machines = {name: Machine(lab[name]) for name in ("a", "b")}
        text = GUIDE.text(f"{CHAPTER} / Configuration")
        (generate,) = re.findall(r"# Generate with: (.*)", text)
        self.key = self.machines["a"].shell(generate).stdout.strip()
        for number, (name, machine) in enumerate(self.machines.items(), 1):
            machine.write(f"{HOME}/shadowmesh-daemon-linux-amd64", launcher())
            GUIDE.run(machine, f"{CHAPTER} / Installation")
            own = text.replace("10.10.10.X", f"10.10.10.{number}").replace("YOUR_64_CHAR_HEX_KEY", self.key)
            own = own.replace("client-unique-id", name).replace("YOUR_RELAY_IP", RELAY_IP4)
            machine.write(CONFIG, own)
            machine.write(UNIT, GUIDE.text(f"{CHAPTER} / Systemd Service"))
            self.start(name)

    def start(self, name: str, command: str = START) -> Program:
        """Start one's daemon as the unit does."""
        program = self.machines[name].start(command, name=f"shadowmesh-daemon-{name}")
        self.lab.client_programs[name] = program
        return program

    def connected(self) -> None:
        """Wait until both are, and reach each other."""
        for name in self.machines:
            self.lab.wait_connected(name)
        self.lab["a"].wait_for_ping(B)
        self.lab["b"].wait_for_ping(A)


def launcher() -> str:
    """The program that this tree has installed, as the one file that the guide downloads."""
    with open(installed("shadowmesh-daemon")) as file:
        return file.read()


@pytest.fixture(scope="module")
def clients() -> Iterator[Clients]:
    need(openssl="openssl")
    with Lab("a", "b") as lab:
        lab.start_relay()
        clients = Clients(lab)
        clients.connected()
        yield clients


def test_the_program_is_installed(clients: Clients) -> None:
    for machine in clients.machines.values():
        program = machine.path("/usr/local/bin/shadowmesh-daemon")
        assert not program.is_symlink()
        assert program.stat().st_mode & 0o111 == 0o111


def test_the_configuration_is_the_guides_and_valid(clients: Clients) -> None:
    """Made as the guide makes it, the others of the host can read it: a warning says how to mend that."""
    machine, program = clients.machines["a"], clients.lab.client_programs["a"]
    assert len(clients.key) == 64
    (advice,) = re.findall(r"\[warning.*(chmod 600 \S+)", program.text())
    machine.shell(advice)
    checked = machine.shell(f"shadowmesh check-config --client {CONFIG}")
    assert "warning" not in checked.stdout + checked.stderr
    assert clients.key not in program.text() + checked.stdout + checked.stderr
    text = machine.path(CONFIG).read_text()
    assert re.sub(r'"[^"]*"', "", text) == re.sub(r'"[^"]*"', "", guide.CLIENT_CONFIG)


def test_the_unit_is_valid_and_starts_what_is_there(clients: Clients) -> None:
    need(systemd_analyze="systemd")
    done = clients.machines["a"].shell(f"systemd-analyze verify {UNIT}")
    assert done.stdout + done.stderr == ""
    assert shlex.split(START) == ["/usr/local/bin/shadowmesh-daemon", CONFIG]
    assert all(left_out(command) for command in GUIDE.commands(f"{CHAPTER} / Systemd Service", 1))


def test_the_launch_daemon_starts_the_same() -> None:
    """The file only: launchctl is macOS'."""
    text = GUIDE.text("Client Daemon Deployment / macOS Client / Launch Daemon (as service)")
    assert plistlib.loads(text.encode())["ProgramArguments"] == shlex.split(START)


def test_what_helps_in_trouble(clients: Clients) -> None:
    link, route, ping = (command for command in GUIDE.commands(TROUBLE) if not left_out(command))
    machine = clients.machines["b"]
    assert re.search(r"shadowmesh0: <\S*\bUP\b\S*> mtu 1400 ", machine.shell(link).stdout)
    assert re.search(rf"^10\.10\.10\.0/24 .*src {B}\b", machine.shell(route).stdout)
    program = machine.start(ping, name="ping")
    program.wait_for_text(f"bytes from {A}: icmp_seq=1 ")
    program.signal(signal.SIGINT)
    assert program.wait() == 0
    assert " 0% packet loss" in program.text()


def reason(lab: Lab, name: str) -> str:
    """Why a client has no relay."""
    status = lab.status(name) or {}
    return "" if status.get("status") == "connected" else str(status.get("reason", ""))


def refused(lab: Lab, name: str) -> bool:
    return "refuses connections: is the relay running" in reason(lab, name)


def test_connection_refused(clients: Clients) -> None:
    """By a firewall, whose rule the guide has, or as the relay does not run."""
    need(ufw="ufw", iptables="iptables")
    lab, machine = clients.lab, Machine(clients.lab.relay)
    _, problem = common_issue(1)
    assert re.findall("`(.+?)`", problem) == ["sudo ufw status", "systemctl status shadowmesh-relay"]
    (allow,) = (line for line in commands("7. Firewall Configuration") if " 9545/" in line)
    machine.shell("sudo ufw default reject incoming")
    machine.shell("sudo ufw enable", input="y\n")
    try:
        clients.lab.client_programs["b"].stop()
        program = clients.start("b")
        program.wait_for(partial(refused, lab, "b"), "refusal")
        assert "9545" not in machine.shell("sudo ufw status").stdout
        machine.shell(allow)
        clients.connected()
        assert re.search(r"^9545/tcp +ALLOW ", machine.shell("sudo ufw status").stdout, re.MULTILINE)
    finally:
        machine.shell("sudo ufw disable")

    assert lab.relay_program is not None
    lab.relay_program.stop()
    for name in clients.machines:
        lab.client_programs[name].wait_for_text("lost the relay")
        wait_for(partial(refused, lab, name), "refusal")
    lab.start_relay()
    clients.connected()


def test_permission_denied(clients: Clients) -> None:
    quoted, problem = common_issue(2)
    assert quoted == '"Permission denied" creating TUN'
    assert "Run daemon with sudo" in problem
    clients.lab.client_programs["b"].stop()
    program = clients.start("b", f"setpriv --inh-caps=-net_admin --bounding-set=-net_admin -- {START}")
    assert program.wait() == 1
    assert "Permission denied creating TUN device shadowmesh0: run the daemon with sudo" in program.text()
    clients.start("b", f"sudo {START}")
    clients.connected()
    need(lsmod="kmod")
    (module,) = re.findall("`(.+?)`", problem)
    clients.machines["b"].shell(module, check=False)  # a kernel may have it built in, and then says nothing


def common_issue(number: int) -> tuple[str, str]:
    """Title and text of one of the guide's."""
    page = GUIDE.path.read_text()
    title, text = re.findall(rf"^\*\*{number}\. (.*?)\*\*\n((?:- .*\n)+)", page, re.MULTILINE)[0]
    return re.sub(" on relay$", "", title), text


def commands(section: str) -> list[str]:
    return GUIDE.commands(f"Relay Server Deployment / {section}")


def test_an_api_key_over_tls() -> None:
    """Through the guide's nginx; without the key the relay asks for it."""
    need(nginx="nginx", curl="curl", openssl="openssl")
    text = GUIDE.text("Security Hardening / 3. Authentication (Future)")
    with Lab("a", "b") as lab:
        site = Site(lab)
        site.certify(THEIRS)
        site.machine.write("/etc/nginx/conf.d/shadowmesh-relay.conf", GUIDE.text(TLS))
        site.machine.path("/etc/shadowmesh").mkdir(exist_ok=True)
        file = "/etc/shadowmesh/relay-keys.json"
        key = site.machine.shell(f"shadowmesh relay-keys add office --file {file}").stdout.strip()
        relay = site.start_relay({"auth": {"mode": "api_key", "keys_file": file}})
        site.start_nginx()
        site.start_clients(text.replace("YOUR_API_KEY", key))
        assert len(re.findall("client joined", relay.text())) == 2
        assert key not in lab.logs()

        lab.client_programs["b"].stop()
        machine = site.clients["b"]
        config = yaml.safe_load(machine.path(CONFIG).read_text())
        config["relay"] = yaml.safe_load(GUIDE.text(TLS, 1))["relay"]
        machine.write(CONFIG, yaml.safe_dump(config), mode=0o600)
        program = machine.start(
            f"env SSL_CERT_FILE=/etc/shadowmesh/ca.pem shadowmesh-daemon {CONFIG}", name="b"
        )
        program.wait_for_text("the relay asks for an API key: write it as relay.api_key")


def test_one_name_for_several_relays() -> None:
    """Clients connect to each of its addresses, so they meet as long as one of the relays is there."""
    section = "Scaling / Horizontal Scaling"
    records = re.findall(r"^(\S+) +A +(\S+)", GUIDE.text(section), re.MULTILINE)
    key = secrets.token_hex(32)
    with Lab("a", "b") as lab:
        relays = {}
        for number, (_, address) in enumerate(records):
            lab.relay.ip(f"addr add {address}/32 dev lo")
            own = {"bind_address": address, "health_port": 8081 + number, "metrics_port": 9191 + number}
            config = lab.write(f"relay-{number}.yaml", guide.merged(guide.RELAY_CONFIG, own))
            relays[address] = lab.relay.start(installed("shadowmesh-relay"), "-config", str(config))
        for relay in relays.values():
            relay.wait_for_text("relay is ready")
        (name,) = {name for name, _ in records}
        for number, client in enumerate("ab", 1):
            gate = lab[client].run("ip", "route", "show", "203.0.113.0/24").stdout.split()[2]
            lab[client].ip(*(f"route replace {address}/32 via {gate}" for address in relays))
            machine = Machine(lab[client])
            machine.write("/etc/hosts", "".join(f"{address} {name}\n" for name, address in records))
            server = f"ws://{name}:9545"
            text = guide.client_config(ip=f"10.10.10.{number}/24", key=key, peer_id=client, server=server)
            machine.write(CONFIG, text, mode=0o600)
            lab.client_programs[client] = machine.start(f"shadowmesh-daemon {CONFIG}", name=client)
        lab["a"].wait_for_ping(B)
        for relay in relays.values():
            relay.wait_for_text("(client joined[^$]*){2}")
        for relay in list(relays.values())[:-1]:
            relay.kill()
            lab["a"].wait_for_ping(B)
            lab["b"].wait_for_ping(A)
