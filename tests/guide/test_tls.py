"""The TLS chapters of the guide and of docs/deploy.md: nginx, the relay itself, real clients behind them."""

from __future__ import annotations

import re
import secrets
import signal
import time
from collections.abc import Iterator, Mapping
from typing import Any

import pytest
import yaml

from guide.pages import DEPLOY, GUIDE, ROOT, need
from shadowmesh.testing import guide
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import RELAY_IP4, Host, Lab
from shadowmesh.testing.program import Program, wait_for

pytestmark = pytest.mark.netns

THEIRS = "relay.shadowmesh.io"
OURS = "relay.example.org"
TLS = "Security Hardening / 1. TLS/HTTPS Support"
KEY = secrets.token_hex(32)
RELAY_CONFIG = "/etc/shadowmesh/relay-config.yaml"
SITE = "/etc/nginx/conf.d/shadowmesh-relay.conf"


class Site:
    """A relay's machine, its certificate where certbot puts it, and clients "a" and "b" that trust its CA."""

    def __init__(self, lab: Lab) -> None:
        self.lab = lab
        self.machine = Machine(lab.relay)
        self.clients = {name: Machine(lab[name]) for name in ("a", "b")}

    def certify(self, name: str) -> None:
        """A certificate for this name, or a renewed one."""
        directory = self.lab.directory / "ca"
        directory.mkdir(exist_ok=True)
        ca, certificate, key = make_certificate(directory, [name])
        live = f"/etc/letsencrypt/live/{name}"
        self.machine.write(f"{live}/fullchain.pem", certificate.read_text())
        self.machine.write(f"{live}/privkey.pem", key.read_text(), mode=0o600)
        for client in self.clients.values():
            client.write("/etc/shadowmesh/ca.pem", ca.read_text())
            client.write("/etc/hosts", f"127.0.0.1 localhost\n{RELAY_IP4} {name}\n")

    def start_relay(self, changes: Mapping[str, Any]) -> Program:
        self.machine.write(RELAY_CONFIG, guide.merged(guide.RELAY_CONFIG, changes))
        program = self.machine.start(f"shadowmesh-relay -config {RELAY_CONFIG}", name="shadowmesh-relay")
        program.wait_for_text("relay is ready")
        return program

    def start_nginx(self) -> Program:
        """Debian's nginx on its own files."""
        program = self.machine.start("nginx -g 'daemon off;'", name="nginx")
        program.wait_for(lambda: reachable(self.lab["a"], 443), "port 443 of nginx")
        return program

    def start_clients(self, relay: str) -> None:
        """Both, on the guide's file with this section `relay`; returns once each pings the other."""
        config = "/etc/shadowmesh/client-config.yaml"
        for number, (name, machine) in enumerate(self.clients.items(), 1):
            text = guide.client_config(ip=f"10.10.10.{number}/24", key=KEY, peer_id=name, server="-")
            machine.write(config, guide.merged(text, yaml.safe_load(relay)), mode=0o600)
            command = f"env SSL_CERT_FILE=/etc/shadowmesh/ca.pem shadowmesh-daemon {config}"
            self.lab.client_programs[name] = machine.start(command, name=f"shadowmesh-daemon-{name}")
        for name in self.clients:
            self.lab.wait_connected(name)
        self.lab["a"].wait_for_ping("10.10.10.2")
        self.lab["b"].wait_for_ping("10.10.10.1")

    def curl(self, options: str) -> str:
        command = f"curl -sS --cacert /etc/shadowmesh/ca.pem {options}"
        return self.clients["a"].shell(command, check=False).stdout


@pytest.fixture
def site() -> Iterator[Site]:
    need(nginx="nginx", curl="curl", openssl="openssl")
    with Lab("a", "b") as lab:
        yield Site(lab)


def reachable(host: Host, port: int) -> bool:
    try:
        host.connect(RELAY_IP4, port).close()
    except OSError:
        return False
    return True


def sources(relay: Program) -> set[str]:
    """The pseudonyms of the sources of all clients that have joined."""
    return set(re.findall(r"client joined .* source=(\w+)", relay.text()))


def test_the_server_block_and_the_client_of_the_guide(site: Site) -> None:
    """Without trusted_proxies all clients come from nginx."""
    site.certify(THEIRS)
    site.machine.write(SITE, GUIDE.text(TLS))
    site.machine.shell("nginx -t")
    relay = site.start_relay({})
    site.start_nginx()
    site.start_clients(GUIDE.text(TLS, 1))
    assert len(sources(relay)) == 1


@pytest.fixture
def ours(site: Site) -> Site:
    """docs/deploy.md followed up to the start of nginx and relay."""
    site.certify(OURS)
    site.machine.link("/usr/share/shadowmesh-relay", str(ROOT))
    DEPLOY.run(site.machine, "TLS / With nginx")
    return site


def test_our_server_block(ours: Site) -> None:
    relay = ours.start_relay(yaml.safe_load(DEPLOY.text("TLS / With nginx", 1)))
    ours.start_nginx()
    ours.start_clients(DEPLOY.text("TLS"))
    assert len(sources(relay)) == 2
    assert not reachable(ours.lab["a"], guide.RELAY_PORT)
    log = ours.machine.path("/var/log/nginx/shadowmesh-relay.log")

    head = ours.curl(f"-i https://{OURS}/health")
    assert head.startswith("HTTP/1.1 404")
    assert "strict-transport-security: max-age=" in head.lower()
    assert not re.search(r"nginx/\d", head)
    assert ours.curl(f"-o /dev/null -w '%{{http_code}}' https://{OURS}/relay?peer_id=secret") == "426"
    assert ours.curl(f"--tls-max 1.1 -o /dev/null -w '%{{http_code}}' https://{OURS}/") == "000"
    tls12 = ours.curl(f"--tls-max 1.2 -o /dev/null -w '%{{http_code}}' https://{OURS}/")
    assert tls12 == "404"

    answers = ours.curl(f"-o /dev/null -w '%{{http_code}}\\n' 'https://{OURS}/relay?n=[1-300]'")
    codes = answers.split()
    assert codes.count("426") >= 200
    assert codes.count("429") > 0
    assert {*codes} == {"426", "429"}

    before = shown(ours, 443)
    ours.certify(OURS)
    ours.machine.shell("nginx -s reload")
    wait_for(lambda: shown(ours, 443) != before, "new certificate")
    assert "client left" not in relay.text()

    ours.lab.client_programs["b"].stop()  # now its connection has a line
    line = wait_for(
        lambda: re.search(r'^198\.18\S+ \[\S+\] "GET /relay" 101 \d+ [\d.]+$', log.read_text(), re.M), "line"
    )
    assert line
    assert "peer_id" not in log.read_text()


def test_nginx_carries_two_connections_for_each_of_1000_clients(ours: Site) -> None:
    config = ours.machine.shell("nginx -T").stdout
    (connections,) = re.findall(r"^\s*worker_connections (\d+);", config, re.MULTILINE)
    (files,) = re.findall(r"^worker_rlimit_nofile (\d+);", config, re.MULTILINE)
    assert int(connections) > 2 * 1000
    assert int(files) > int(connections)


@pytest.mark.parametrize(("seconds", "survives"), [("2500ms", True), ("1s", False)])
def test_pings_keep_an_idle_connection_alive(ours: Site, seconds: str, survives: bool) -> None:
    """With connection_timeout 5 pings come each 5/3 s, else each 20 s: 2.5 s here is less than 60 s there."""
    file = ours.machine.path("/etc/nginx/conf.d/shadowmesh-relay.conf")
    text, changed = re.subn(r"(proxy_(?:read|send)_timeout) 90s", rf"\1 {seconds}", file.read_text())
    assert changed == 2
    file.write_text(text)
    changes = {"connection_timeout": 5} | yaml.safe_load(DEPLOY.text("TLS / With nginx", 1))
    relay = ours.start_relay(changes)
    ours.start_nginx()
    ours.start_clients(DEPLOY.text("TLS"))
    if survives:
        time.sleep(4.0)  # idle means that nothing happens
        assert "client left" not in relay.text()
    else:
        relay.wait_for_text("client left")


def test_caddy_takes_our_file(site: Site) -> None:
    """With a public name it would get a certificate; test_caddy.py runs it with one of its own."""
    need(caddy="caddy")
    site.machine.link("/usr/share/shadowmesh-relay", str(ROOT))
    DEPLOY.run(site.machine, "TLS / With Caddy")


def test_tls_in_the_relay_and_its_renewal(site: Site) -> None:
    site.machine.shell("sudo useradd --system shadowmesh; mkdir -p /etc/shadowmesh")
    site.machine.link("/usr/share/shadowmesh-relay", str(ROOT))
    site.certify(OURS)
    DEPLOY.run(site.machine, "TLS / In the relay", 1)
    owners = site.machine.shell("stat -c %U:%G:%a /etc/shadowmesh/tls /etc/shadowmesh/tls/*").stdout
    assert owners.split() == ["root:shadowmesh:750", "root:shadowmesh:640", "root:shadowmesh:640"]
    relay = site.start_relay(yaml.safe_load(DEPLOY.text("TLS / In the relay")))
    site.start_clients(f'relay: {{server: "wss://{OURS}:9545"}}')
    assert site.lab.relay.get_json("/status", guide.HEALTH_PORT)["tls"] is True  # type: ignore[index]
    assert len(sources(relay)) == 2

    before = shown(site, guide.RELAY_PORT)
    site.certify(OURS)
    DEPLOY.run(site.machine, "TLS / In the relay", 1)
    relay.signal(signal.SIGHUP)  # sooner than after ten seconds
    relay.wait_for(lambda: shown(site, guide.RELAY_PORT) != before, "new certificate")
    assert "client left" not in relay.text()
    site.lab["a"].wait_for_ping("10.10.10.2")


def shown(site: Site, port: int) -> str:
    """The certificate that this port shows."""
    command = f"openssl s_client -connect {RELAY_IP4}:{port} -servername {OURS} </dev/null 2>/dev/null"
    output = site.clients["a"].shell(command, check=False).stdout
    return output.partition("-----BEGIN")[2].partition("-----END")[0]
