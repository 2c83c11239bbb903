"""The firewall chapters of the guide and the rules of deploy/firewall, against real connections."""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from guide.pages import GUIDE, ROOT, need
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import RELAY_IP4, RELAY_IP6, Host, Lab

pytestmark = pytest.mark.netns

UFW = "Relay Server Deployment / 7. Firewall Configuration"
RATE = "Security Hardening / 2. Rate Limiting"
PORTS = (9545, 8080, 9090, 443)
INTERNAL = "10.1.2.3"
HAS_IP6 = Path("/proc/net/if_inet6").exists()
RULES = ROOT / "deploy/firewall"
NFT = "/etc/shadowmesh/shadowmesh-relay.nft"
SCRIPT = "/etc/shadowmesh/iptables.sh"


@pytest.fixture
def machine() -> Iterator[Machine]:
    """A relay's host on which something listens at each port; host "a" has an address of the inside, too."""
    with Lab("a", "b") as lab:
        lab["a"].ip(f"addr add {INTERNAL}/32 dev eth0")
        lab.relay.ip(f"route add {INTERNAL}/32 dev to-a")
        listeners = [lab.relay.listen("::" if HAS_IP6 else "0.0.0.0", port) for port in PORTS]
        for listener in listeners:
            listener.listen(2000)
        yield Machine(lab.relay)
        for listener in listeners:
            listener.close()


def opened(host: Host, count: int, to: str = RELAY_IP4, source: str = "") -> list[bool]:
    """Which of so many connections to the relay's port, begun at once, come about without a second try."""
    return connect(host, [9545] * count, to, source)


def open_ports(host: Host, to: str = RELAY_IP4, source: str = "") -> set[int]:
    """Those of PORTS that can be connected to."""
    return {port for port, there in zip(PORTS, connect(host, PORTS, to, source), strict=True) if there}


def connect(host: Host, ports: Sequence[int], to: str, source: str) -> list[bool]:
    family = socket.AF_INET6 if ":" in to else socket.AF_INET
    sockets = host.inside(lambda: [socket.socket(family) for _ in ports])
    try:
        for each, port in zip(sockets, ports, strict=True):
            if source:
                each.bind((source, 0))
            each.setblocking(False)
            each.connect_ex((to, port))
        time.sleep(0.2)  # a second try comes after a second
        return [established(each) for each in sockets]
    finally:
        for each in sockets:
            each.close()


def established(connection: socket.socket) -> bool:
    try:
        connection.getpeername()
    except OSError:
        return False
    return True


def test_the_ufw_rules_of_the_guide_open_and_close_what_they_say(machine: Machine) -> None:
    need(ufw="ufw", iptables="iptables")
    GUIDE.run(machine, UFW, input="y\n")
    status = machine.shell("sudo ufw status").stdout
    assert "Status: active" in status
    for line in (
        "9545/tcp .*ShadowMesh Relay",
        "8080 .*10.0.0.0/8 .*Health Check",
        "9090 .*10.0.0.0/8 .*Metrics",
    ):
        assert re.search(line, status)
    assert open_ports(machine.host.lab["a"]) == {9545}
    assert open_ports(machine.host.lab["a"], source=INTERNAL) == {9545, 8080, 9090}
    assert open_ports(machine.host, to="127.0.0.1") == {*PORTS}


def test_the_rate_limit_of_the_guide_drops_the_20th_connection_of_a_minute(machine: Machine) -> None:
    need(iptables="iptables")
    GUIDE.run(machine, RATE)
    assert opened(machine.host.lab["a"], 30) == [True] * 19 + [False] * 11
    assert opened(machine.host.lab["b"], 1) == [True]
    assert opened(machine.host.lab["a"], 1) == [False]


def test_the_rate_limit_of_the_guide_counts_nginx_as_one_client(machine: Machine) -> None:
    """Why ours lets loopback pass: behind nginx all clients come from 127.0.0.1."""
    need(iptables="iptables")
    GUIDE.run(machine, RATE)
    assert opened(machine.host, 30, to="127.0.0.1").count(True) == 19


def test_the_rate_limit_of_the_guide_does_nothing_behind_the_ufw_rules_of_the_guide(machine: Machine) -> None:
    """Why ours comes first."""
    need(ufw="ufw", iptables="iptables")
    GUIDE.run(machine, UFW, input="y\n")
    GUIDE.run(machine, RATE)
    assert all(opened(machine.host.lab["a"], 30))


def load_nft(machine: Machine) -> None:
    need(nft="nftables")
    machine.write(NFT, (RULES / "shadowmesh-relay.nft").read_text())
    machine.shell(f"nft -c -f {NFT} && nft -f {NFT}")


def load_iptables(machine: Machine) -> None:
    need(iptables="iptables")
    machine.write(SCRIPT, (RULES / "iptables.sh").read_text(), mode=0o755)
    machine.shell(SCRIPT)


OURS = pytest.mark.parametrize("load", [load_nft, load_iptables])


@OURS
@pytest.mark.parametrize("beside_ufw", [False, True], ids=["alone", "beside-ufw"])
def test_ours_limit_the_rate_of_each_source(
    machine: Machine, load: Callable[[Machine], None], beside_ufw: bool
) -> None:
    if beside_ufw:
        need(ufw="ufw", iptables="iptables")
        GUIDE.run(machine, UFW, input="y\n")
    load(machine)
    load(machine)  # again is harmless
    a, b = machine.host.lab["a"], machine.host.lab["b"]
    assert 200 <= opened(a, 260).count(True) < 250
    assert all(opened(b, 50))
    assert all(opened(machine.host, 260, to="127.0.0.1"))
    if HAS_IP6:
        assert 200 <= opened(a, 260, to=RELAY_IP6).count(True) < 250


@OURS
def test_ours_keep_health_and_metrics_inside(machine: Machine, load: Callable[[Machine], None]) -> None:
    load(machine)
    a = machine.host.lab["a"]
    assert open_ports(a) == {9545, 443}
    assert open_ports(a, source=INTERNAL) == {*PORTS}
    assert open_ports(machine.host, to="127.0.0.1") == {*PORTS}
    if HAS_IP6:
        assert open_ports(a, to=RELAY_IP6) == {9545, 443}


def test_one_source_of_ipv6_is_a_64(machine: Machine) -> None:
    a = machine.host.lab["a"]
    if not HAS_IP6:
        pytest.skip("no IPv6 here")
    load_nft(machine)
    prefix = a.ip6.rpartition("::")[0]
    a.ip(f"addr add {prefix}::77/64 dev eth0 nodad")
    opened(a, 210, to=RELAY_IP6)
    assert not all(opened(a, 30, to=RELAY_IP6, source=f"{prefix}::77"))


@OURS
def test_ours_go_without_a_trace(machine: Machine, load: Callable[[Machine], None]) -> None:
    off = "nft delete table inet shadowmesh_relay" if load is load_nft else f"{SCRIPT} off"
    load(machine)
    assert "shadowmesh" in machine.shell("nft list ruleset").stdout.lower()
    machine.shell(off)
    assert "shadowmesh" not in machine.shell("nft list ruleset").stdout.lower()
    assert open_ports(machine.host.lab["a"]) == {*PORTS}


def test_the_unit_that_loads_them_at_boot_is_valid(machine: Machine) -> None:
    need(systemd_analyze="systemd", nft="nftables")
    load_nft(machine)
    unit = "/etc/systemd/system/shadowmesh-firewall.service"
    text = (RULES / "shadowmesh-firewall.service").read_text()
    machine.write(unit, text)
    assert machine.shell(f"systemd-analyze verify {unit} 2>&1").stdout == ""
    # What flushes all rules brings ours back.
    assert {"PartOf=nftables.service", "ReloadPropagatedFrom=nftables.service"} <= set(text.splitlines())
    assert re.search(r"^WantedBy=.*\bnftables\.service\b", text, re.MULTILINE)
    for key in ("ExecStart", "ExecReload", "ExecStop"):
        (command,) = re.findall(rf"^{key}=-?(.*)$", text, re.MULTILINE)
        machine.shell(command)
    assert "shadowmesh" not in machine.shell("nft list ruleset").stdout
