"""The relay chapters of the guide to the letter, typed into one machine in the guide's order."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

import pytest
import yaml

from guide.pages import DEPLOY, GUIDE, install_wscat, need
from shadowmesh.testing import guide
from shadowmesh.testing.machine import HOME, Machine
from shadowmesh.testing.netlab import Lab, installed
from shadowmesh.testing.program import Program

pytestmark = pytest.mark.netns

CHAPTER = "Relay Server Deployment"
UNIT = "/etc/systemd/system/shadowmesh-relay.service"


class Relay(NamedTuple):
    """A machine on which the guide has been followed up to the start of the relay."""

    machine: Machine
    program: Program
    wscat: Program


@pytest.fixture(scope="module")
def relay() -> Iterator[Relay]:
    need(curl="curl", useradd="passwd", script="bsdutils")
    with Lab("a") as lab:
        machine = Machine(lab.relay)
        install_wscat(machine)
        GUIDE.run(machine, f"{CHAPTER} / 1. Server Preparation")
        machine.write(f"{HOME}/shadowmesh-relay-linux-amd64", launcher())
        GUIDE.run(machine, f"{CHAPTER} / 2. Binary Installation")
        config = GUIDE.text(f"{CHAPTER} / 3. Configuration")
        machine.write("/etc/shadowmesh/relay-config.yaml", config)
        unit = GUIDE.text(f"{CHAPTER} / 4. Systemd Service")
        machine.write(UNIT, unit)
        start = re.search(r"^ExecStart=(.*)$", unit, re.MULTILINE)
        assert start is not None
        program = machine.start(start[1], name="shadowmesh-relay")
        program.wait_for_text("relay is ready")
        # Ten seconds later it is sent away; the other tests are done by then.
        wscat = GUIDE.commands("Troubleshooting / Relay Server Issues")[2]
        os.mkfifo(machine.path("/run/keyboard"))
        terminal = f"script --quiet --command '{wscat}' /dev/null <>/run/keyboard"
        yield Relay(machine, program, machine.start(terminal, name="wscat"))


def launcher() -> str:
    """The program that this tree has installed, as the one file that the guide downloads."""
    with open(installed("shadowmesh-relay")) as file:
        return file.read()


def test_the_machine_is_prepared(relay: Relay) -> None:
    who = relay.machine.shell(
        "id -nu shadowmesh; getent passwd shadowmesh | cut -d: -f7; stat -c %U:%a /opt/shadowmesh/*"
    )
    assert who.stdout.split() == ["shadowmesh", "/bin/false", "shadowmesh:755"]
    for directory in ("/opt/shadowmesh", "/etc/shadowmesh", "/var/log/shadowmesh"):
        assert relay.machine.path(directory).is_dir()


def test_the_configuration_is_ours_too_and_valid(relay: Relay) -> None:
    config = "/etc/shadowmesh/relay-config.yaml"
    assert relay.machine.path(config).read_text() == guide.RELAY_CONFIG
    checked = relay.machine.shell(f"shadowmesh check-config {config}")
    # "*" and everybody who comes give a warning, nothing else does.
    for key in ("allowed_origins", "auth.mode"):
        assert key in checked.stdout + checked.stderr
    assert re.search(rf"config={re.escape(config)}\b", relay.program.text())
    assert len(re.findall(r"\[warning", relay.program.text())) == 2


def test_the_unit_is_valid(relay: Relay) -> None:
    need(systemd_analyze="systemd")
    done = relay.machine.shell(f"systemd-analyze verify {UNIT}")
    assert done.stdout + done.stderr == ""


def test_health_is_the_expected_output(relay: Relay) -> None:
    section = f"{CHAPTER} / 6. Verify Relay Server"
    health, status, _ = GUIDE.run(relay.machine, section).values()
    expected = json.loads(GUIDE.text(section, 1))
    got = json.loads(health)
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", expected["uptime"])
    assert re.fullmatch(r"(\d+h)?(\d+m)?\d+s", got["uptime"])
    assert list(got) == list(expected)
    assert {**got, "uptime": ""} == {**expected, "uptime": ""}
    assert [type(value) for value in got.values()] == [type(value) for value in expected.values()]
    assert [line.partition(":")[0] for line in health.splitlines()] == [
        line.partition(":")[0] for line in GUIDE.text(section, 1).splitlines()
    ]
    assert list(json.loads(status))[: len(expected)] == list(expected)
    assert json.loads(status)["status"] == "healthy"


def series(text: str) -> set[tuple[str, frozenset[str]]]:
    """Name and labels, whose order means nothing, of every line of the exposition format."""
    lines = re.findall(r"^(shadowmesh_\w+)\{(.*)\} (?:[\d.e+-]+|NaN)$", text, re.MULTILINE)
    return {(name, frozenset(labels.split(","))) for name, labels in lines}


def test_metrics_have_the_names_and_labels_of_the_guide(relay: Relay) -> None:
    metrics = [*GUIDE.run(relay.machine, f"{CHAPTER} / 6. Verify Relay Server").values()][2]
    promised = series(GUIDE.text("Monitoring / Prometheus Metrics"))
    assert len(promised) == 8
    assert promised <= series(metrics)
    # At the address that the page names, from another host, too.
    assert relay.machine.host.lab["a"].get("/metrics", 9090, relay.machine.host.ip4)[0] == 200


def test_netstat_shows_the_relay(relay: Relay) -> None:
    need(netstat="net-tools")
    listening = relay.machine.shell(GUIDE.commands("Troubleshooting / Relay Server Issues")[0]).stdout
    assert re.search(rf"^tcp\S* .*:9545 .* LISTEN +{relay.program.pid}/", listening, re.MULTILINE)


REGIONS = [
    *GUIDE.text("Multi-Region Relay Deployment / Configuration").split("\n\n"),
    DEPLOY.text("Several relays"),
]


@pytest.mark.parametrize("text", REGIONS, ids=["us", "eu", "ours"])
def test_each_region_has_its_names(text: str) -> None:
    names = yaml.safe_load(text)
    with Lab("a") as lab:
        lab.start_relay(**names)
        health = lab.relay.get_json("/health", guide.HEALTH_PORT)
        assert health is not None
        assert {key: health[key] for key in names} == names
        assert f'{{region="{names["region"]}"}}' in lab.relay.get("/metrics", guide.METRICS_PORT)[1]


def test_wscat_sees_the_challenge_and_is_sent_away_after_ten_seconds(relay: Relay) -> None:
    shown = relay.wscat.wait_for_text(r"< (\{.*\})")
    challenge = json.loads(shown[1])
    assert challenge["type"] == "challenge"
    assert challenge["server_name"] == "relay-us-east-1"
    relay.wscat.wait(12.0)
    assert re.search(r'Disconnected \(code: 4002, reason: "\w.*"\)', relay.wscat.text())
