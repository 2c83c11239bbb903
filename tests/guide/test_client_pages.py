"""docs/service.md, client.md and rotation.md typed into two machines: a laptop by our service, a desktop."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Iterator
from typing import Any, NamedTuple

import pytest
import yaml

from guide import standins
from guide.pages import CLIENT, ROTATION, SERVICE, need
from shadowmesh.testing import guide
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.program import Program, wait_for

pytestmark = pytest.mark.netns

CONFIG = "/etc/shadowmesh/client-config.yaml"
UNIT = "/etc/systemd/system/shadowmesh-daemon.service"
LAPTOP, DESKTOP = "10.10.10.1", "10.10.10.2"
SERVER = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}"
EDITOR = f"""\
#!/bin/sh
sed -i 's|10.10.10.X|{LAPTOP}|; s|client-unique-id|laptop|; s|ws://YOUR_RELAY_IP:9545|{SERVER}|' "$1"
"""
"""Somebody who fills in what the comment behind the command names."""


class Devices(NamedTuple):
    lab: Lab
    laptop: Machine
    desktop: Machine
    key: str
    checked: str

    def program(self, name: str) -> Program:
        return self.lab.client_programs[name]


@pytest.fixture(scope="module")
def devices() -> Iterator[Devices]:
    need(useradd="passwd", curl="curl", git="git")
    with Lab("laptop", "desktop") as lab:
        lab.start_relay()
        laptop, desktop = Machine(lab["laptop"]), Machine(lab["desktop"])
        standins.install(laptop)
        standins.publish(laptop)
        laptop.write("/usr/local/bin/edit", EDITOR, mode=0o755)
        clone, *steps = SERVICE.commands("From a clone")
        standins.clone(laptop, clone)
        script = "\n".join(["set -eu; export EDITOR=edit", *steps])
        checked = laptop.shell(script).stdout
        key = laptop.path("/etc/shadowmesh/encryption.key").read_text().strip()

        text = guide.client_config(ip=f"{DESKTOP}/24", key=key, peer_id="desktop", server=SERVER)
        desktop.write(CONFIG, text, mode=0o600)
        (start,) = re.findall(r"^ExecStart=(.*)$", laptop.path(UNIT).read_text(), re.MULTILINE)
        starts = {"laptop": f"env CREDENTIALS_DIRECTORY=/etc/shadowmesh {start}", "desktop": None}
        for machine, command in zip((laptop, desktop), starts.values(), strict=True):
            name = machine.host.name
            machine.shell("getent group shadowmesh || groupadd -r shadowmesh")
            program = machine.start(
                command or f"shadowmesh-daemon {CONFIG}", name=f"shadowmesh-daemon-{name}"
            )
            lab.client_programs[name] = program
            lab.wait_connected(name)
        lab["laptop"].wait_for_ping(DESKTOP)
        lab["desktop"].wait_for_ping(LAPTOP)
        yield Devices(lab, laptop, desktop, key, checked)


def test_the_service_needs_no_key_in_its_configuration(devices: Devices) -> None:
    config = yaml.safe_load(devices.laptop.path(CONFIG).read_text())
    wanted = yaml.safe_load(guide.client_config(ip=f"{LAPTOP}/24", key="", peer_id="laptop", server=SERVER))
    del wanted["encryption"]
    assert config == wanted
    modes = devices.laptop.shell("stat -c '%a %U' /etc/shadowmesh /etc/shadowmesh/encryption.key").stdout
    assert modes.splitlines() == ["755 root", "600 root"]
    assert "warning" not in devices.checked
    assert "warning" not in devices.program("laptop").text()


def test_the_unit_of_the_service_is_valid_there(devices: Devices) -> None:
    need(systemd_analyze="systemd")
    assert devices.laptop.shell(f"systemd-analyze verify {UNIT} 2>&1").stdout == ""
    (user,) = re.findall(r"^User=(.*)$", devices.laptop.path(UNIT).read_text(), re.MULTILINE)
    assert devices.laptop.shell(f"id -nu {user}").stdout == f"{user}\n"


def test_the_token_is_for_root_and_the_group(devices: Devices) -> None:
    shown = devices.laptop.shell("stat -c '%a %U %G' /run/shadowmesh/api.token").stdout
    assert shown == "640 root shadowmesh\n"


def typed(devices: Devices, section: str) -> tuple[str, str]:
    """What the command in a block of client.md prints on the laptop, and what the page shows."""
    command, _, shown = CLIENT.text(section).partition("\n")
    return devices.laptop.shell(command.removeprefix("$ ")).stdout, shown


def words(text: str) -> list[list[str]]:
    """First word of each line, or all of them if it is a table's heading."""
    lines = [line.split() for line in text.splitlines() if line.strip()]
    return [line if line[0].isupper() else line[:1] for line in lines]


def test_status_and_peers_look_as_they_are_shown(devices: Devices) -> None:
    got, shown = typed(devices, "Status")
    labels = [line for line in words(shown) if line not in (["drops"], ["3"], words(shown)[-1])]
    assert [line for line in labels if line[0] != "WHEN"][:9] == words(got)[:9]
    assert ["RELAY", "REGION", "STATE", "FOR", "RTT", "RECONNECTS", "REFUSED", "SERVER"] in words(got)
    assert all(line in words(shown) for line in words(got) if line[0].isupper())

    got, shown = typed(devices, "Peers")
    assert got.split("\n")[0].split() == shown.split("\n")[0].split()
    assert got.split("\n")[1].split()[:3] == ["desktop", DESKTOP, "connected"]


def test_ping_looks_as_it_is_shown(devices: Devices) -> None:
    got, shown = (re.sub(r"\d+\.\d+(?= ms|,)", "N", text) for text in typed(devices, "Ping"))
    assert got == shown


def curl(devices: Devices, script: str) -> str:
    devices.laptop.write("/run/script", script)
    return devices.laptop.shell("bash -eu /run/script").stdout


def test_the_api_answers_as_shown(devices: Devices) -> None:
    health, status, peers, metrics = CLIENT.commands("The API")
    assert json.loads(curl(devices, f"{health} -sf"))["status"] == "connected"
    assert json.loads(curl(devices, status))["name"] == "laptop"
    assert json.loads(curl(devices, peers))["peers"][0]["name"] == "desktop"
    assert "\nshadowmesh_daemon_connected" in curl(devices, metrics)


def test_the_api_does_as_told(devices: Devices) -> None:
    define, _, calls = CLIENT.text("The API", 1).partition('}"; }\n')
    fingerprint = (devices.lab.status("desktop") or {})["fingerprint"]

    def call(line: str) -> Any:
        return json.loads(curl(devices, f'{define}}}"; }}\n{line}'))

    disconnect, connect, reload, ping, trust = calls.splitlines()
    assert call(disconnect)["status"] == "down"
    assert devices.lab["laptop"].get("/health", guide.DAEMON_PORT)[0] == 503
    call(connect)
    devices.lab.wait_connected("laptop")
    assert call(reload) == {"applied": [], "refused": [], "warnings": []}
    (first, *_) = call(ping)["rtt_ms"]
    assert 0 < first < 2000
    assert "error" in call(trust)  # the fingerprint shown is another device's
    own = re.sub('"fingerprint": "[^"]*"', f'"fingerprint": "{fingerprint}"', trust)
    assert call(own)["fingerprint"] == fingerprint


def test_another_network_key_in_three_steps(devices: Devices) -> None:
    """Each step on both devices, one after the other; a ping goes on all the time."""
    new = secrets.token_hex(32)
    text = ROTATION.text("").replace("…the old one…", devices.key).replace("…the new one…", new)
    steps = [yaml.safe_load(step) for step in text.split("\n\n")]
    assert [sorted(step["encryption"]) for step in steps] == [
        ["key", "next_key"],
        ["key", "next_key"],
        ["key"],
    ]
    ping = devices.lab["laptop"].start("ping", "-n", "-i", "0.1", DESKTOP)
    for step in steps:
        for name, machine in (("laptop", devices.laptop), ("desktop", devices.desktop)):
            config = yaml.safe_load(machine.path(CONFIG).read_text())
            machine.write(CONFIG, yaml.safe_dump(config | step), mode=0o600)
            machine.shell("shadowmesh reload")
            devices.lab.wait_connected(name)
    networks = {(devices.lab.status(name) or {})["network"] for name in ("laptop", "desktop")}
    assert len(networks) == 1
    before = len(ping.text().splitlines())
    wait_for(lambda: len(ping.text().splitlines()) > before + 3, "answers to the ping")
    ping.signal(2)
    ping.wait()
    (counts,) = re.findall(r"(\d+) packets transmitted, (\d+) received", ping.text())
    assert int(counts[0]) - int(counts[1]) <= 5, ping.text()  # each change takes a moment's connection
    status = devices.lab.status("laptop") or {}
    assert "next" not in status
    assert devices.key not in devices.lab.logs()
    assert new not in devices.lab.logs()
