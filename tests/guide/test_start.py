"""docs/start.md typed into three machines: a relay, a laptop that invites, a desktop that joins; a ping."""

from __future__ import annotations

import json
import re

import pytest

from guide.pages import START
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import RELAY_IP4, Lab

pytestmark = pytest.mark.netns

ETC = "/etc/shadowmesh"
CLIENT = f"{ETC}/client-config.yaml"


def start_line(printed: str) -> str:
    """The command for this terminal that was printed."""
    (command,) = re.findall(r"^    (.*) # in this terminal$", printed, re.MULTILINE)
    return str(command).strip()


def test_from_nothing_to_a_ping() -> None:
    with Lab("laptop", "desktop") as lab:
        relay, laptop, desktop = (Machine(host) for host in (lab.relay, lab["laptop"], lab["desktop"]))
        init_relay, start_relay = START.commands("The relay")
        init_client, start_client, invite = START.commands("The first device")
        join, start_other, ping = START.commands("Another device")

        said = relay.shell(init_relay).stdout
        assert start_relay in said
        relay.start(start_line(said), name="relay").wait_for_text("relay is ready")

        said = laptop.shell(init_client.replace("relay.example.org", RELAY_IP4)).stdout
        assert start_client in said
        laptop.start(start_line(said), name="laptop")

        # The package makes a key for a first configuration, and this is not the first device.
        desktop.write(f"{ETC}/encryption.key", "ab" * 31 + "cd\n", mode=0o600)
        said = desktop.shell(join, input=laptop.shell(invite).stdout).stdout
        assert start_other in said
        assert f"wrote {ETC}/encryption.key (what was there is {ETC}/encryption.key.bak now)" in said
        desktop.start(start_line(said), name="desktop")

        lab["desktop"].wait_for_ping("10.10.10.1")
        desktop.shell(ping)
        (peer,) = json.loads(desktop.shell("shadowmesh peers --json").stdout)
        assert (peer["name"], peer["connected"]) == ("laptop", True)
        for machine in (laptop, desktop):
            for name in (CLIENT, f"{ETC}/encryption.key"):
                assert machine.path(name).stat().st_mode & 0o777 == 0o600
            assert machine.shell(f"shadowmesh check-config {CLIENT}").stderr == ""
        key = laptop.path(f"{ETC}/encryption.key").read_text()
        assert desktop.path(f"{ETC}/encryption.key").read_text() == key
        assert key.strip() not in lab.logs()
