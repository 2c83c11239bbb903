"""docs/deploy.md typed into one machine in the page's order, up to TLS; and docs/monitoring.md."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import yaml

from guide import standins
from guide.pages import DEPLOY, GUIDE, MONITORING, ROOT, need
from shadowmesh.testing import guide
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import Program

pytestmark = pytest.mark.netns

UNIT = "/etc/systemd/system/shadowmesh-relay.service"
UNIT_OF_THIS_TREE = ROOT / "deploy/systemd/shadowmesh-relay.service"
OF_THE_CLONE = ("/usr/share/shadowmesh-relay/", "/opt/shadowmesh/")
"""What the page says to read elsewhere with a clone."""


class Relay(NamedTuple):
    """A machine on which the page has been followed up to the start of the relay."""

    machine: Machine
    program: Program
    checked: str


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    need(curl="curl", useradd="passwd", git="git")
    with Lab("a") as lab:
        machine = Machine(lab.relay)
        standins.publish(machine)
        DEPLOY.run(machine, "A relay / From a clone")
        (checked,) = DEPLOY.run(machine, "A relay / Configure").values()
        start = re.search(r"^ExecStart=(.*)$", machine.path(UNIT).read_text(), re.MULTILINE)
        assert start is not None
        program = machine.start(start[1], name="shadowmesh-relay")
        program.wait_for_text("relay is ready")
        yield Relay(machine, program, checked)


def test_the_relay_runs_from_the_clone_on_the_file_of_the_guide(relay: Relay) -> None:
    config = "/etc/shadowmesh/relay-config.yaml"
    assert relay.machine.path(config).read_text() == guide.RELAY_CONFIG
    assert relay.checked
    assert re.search(rf"config={re.escape(config)}\b", relay.program.text())


def test_the_unit_fits_what_has_been_prepared(relay: Relay) -> None:
    need(systemd_analyze="systemd")
    assert relay.machine.shell(f"systemd-analyze verify {UNIT} 2>&1").stdout == ""
    unit = relay.machine.path(UNIT).read_text()
    assert re.findall(r"^ReadWritePaths=(?!-)", unit, re.MULTILINE) == []  # none that must be there
    (user,) = re.findall(r"^User=(.*)$", unit, re.MULTILINE)
    assert relay.machine.shell(f"id -nu {user}").stdout == f"{user}\n"


def test_what_it_answers(relay: Relay) -> None:
    health, ready, status, metrics = DEPLOY.run(relay.machine, "A relay / Verify").values()
    shown = DEPLOY.text("A relay / Verify", 1)
    assert shown == GUIDE.text("Relay Server Deployment / 6. Verify Relay Server", 1)
    assert {**json.loads(health), "uptime": ""} == {**json.loads(shown), "uptime": ""}
    assert json.loads(ready)["status"] == "ready"
    assert json.loads(status)["version"]
    assert "shadowmesh_relay_connections{" in metrics


def test_what_helps_in_trouble(relay: Relay) -> None:
    """wscat itself runs in test_relay.py."""
    need(netstat="net-tools")
    netstat, wscat, journal = DEPLOY.commands("When it does not work")
    assert re.search(rf":9545 .* LISTEN +{relay.program.pid}/", relay.machine.shell(netstat).stdout)
    assert [netstat, journal, wscat] == GUIDE.commands("Troubleshooting / Relay Server Issues")


def test_reload_and_upgrade(relay: Relay) -> None:
    checked, _ = DEPLOY.run(relay.machine, "Reload").values()
    assert checked.endswith(": ok (relay configuration)\n")
    relay.machine.write(UNIT, "an old one")
    standins.change(relay.machine, "deploy/nginx/shadowmesh-relay.conf")
    DEPLOY.run(relay.machine, "Restart and upgrade", 1)
    assert relay.machine.path(UNIT).read_text() == UNIT_OF_THIS_TREE.read_text()
    (changed,) = DEPLOY.run(relay.machine, "Restart and upgrade", 2).values()
    assert changed.split()[0] == "deploy/nginx/shadowmesh-relay.conf"


def test_api_keys(relay: Relay) -> None:
    """The relay that runs is open; a second one asks."""
    machine, file = relay.machine, "/etc/shadowmesh/relay-keys.json"
    (key,) = DEPLOY.run(machine, "API keys").values()
    assert re.fullmatch(r"smk_\w{8}_[\w-]{43}\n", key)
    assert machine.shell(f"stat -c '%a %U %G' {file}").stdout == "640 root shadowmesh\n"
    settings = yaml.safe_load(DEPLOY.text("API keys", 1))
    ports = {"relay_port": 19545, "health_port": 18080, "metrics_port": 19090}
    machine.write("/etc/shadowmesh/second.yaml", guide.merged(guide.RELAY_CONFIG, settings | ports))
    second = machine.start("shadowmesh-relay -config /etc/shadowmesh/second.yaml", name="second-relay")
    second.wait_for_text(r"relay is ready.* auth=api_key keys=1 ")
    added, listed, rotated, _ = DEPLOY.run(machine, "API keys", 3).values()
    assert added[:4] == rotated[:4] == "smk_"
    assert re.search(r"office +\w{8} +valid +end of 2099-12-31 +any +20 +any +10000000", listed)
    second.wait_for_text("API keys reloaded.* keys=2")
    assert second.stop() == 0

    device = yaml.safe_load(DEPLOY.text("API keys", 2))
    device["relay"]["api_key"] = key.strip()
    text = guide.client_config(ip="10.10.10.1/24", key=secrets.token_hex(32), peer_id="a", server="-")
    machine.write("/etc/shadowmesh/client-config.yaml", guide.merged(text, device), mode=0o600)
    machine.shell("shadowmesh check-config --client /etc/shadowmesh/client-config.yaml")


def test_firewall_by_ufw(relay: Relay) -> None:
    need(ufw="ufw", iptables="iptables")
    DEPLOY.run(relay.machine, "A relay / Firewall", input="y\n")
    ours, theirs = (
        set(page.commands(section))
        for page, section in (
            (DEPLOY, "A relay / Firewall"),
            (GUIDE, "Relay Server Deployment / 7. Firewall Configuration"),
        )
    )
    assert ours - theirs == {"sudo apt install -y ufw", "sudo ufw allow 22/tcp comment 'SSH'"}
    assert not theirs - ours
    assert "22/tcp" in relay.machine.shell("ufw status").stdout


def test_the_names_of_the_ports_for_ufw(relay: Relay) -> None:
    need(ufw="ufw", iptables="iptables")
    *_, shown = DEPLOY.run(relay.machine, "A relay / Firewall", 4, instead=OF_THE_CLONE).values()
    assert "9545/tcp" in shown
    apps = relay.machine.shell("ufw app list").stdout.split("\n")
    assert {"  ShadowMesh", "  ShadowMesh TLS"} <= set(apps)
    relay.machine.shell("ufw allow ShadowMesh && ufw allow 'ShadowMesh TLS'")
    assert "443/tcp" in relay.machine.shell("ufw app info 'ShadowMesh TLS'").stdout.split()


def test_rules_for_nftables(relay: Relay) -> None:
    need(nft="nftables")
    DEPLOY.run(relay.machine, "A relay / Firewall", 1, instead=OF_THE_CLONE)
    unit = relay.machine.path("/etc/systemd/system/shadowmesh-firewall.service").read_text()
    (start,) = re.findall(r"^ExecStart=(.*)$", unit, re.MULTILINE)
    relay.machine.shell(start)
    (shown,) = DEPLOY.run(relay.machine, "A relay / Firewall", 2).values()
    assert "limit rate over 20/second burst 200 packets" in shown


def test_rules_for_iptables(relay: Relay) -> None:
    need(iptables="iptables")
    _, shown = DEPLOY.run(relay.machine, "A relay / Firewall", 3, instead=OF_THE_CLONE).values()
    assert "limit: above 20/sec burst 200" in shown


def test_prometheus(relay: Relay) -> None:
    """It scrapes a relay in test_monitoring.py."""
    need(promtool="prometheus")
    relay.machine.shell("rm -f /etc/prometheus/*.yml")
    MONITORING.run(relay.machine, "Prometheus", instead=OF_THE_CLONE)
    checked, _ = MONITORING.run(relay.machine, "Prometheus", 1).values()
    assert re.search(r"SUCCESS: \d+ rules found", checked)
