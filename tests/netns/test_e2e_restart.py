"""Programs that end, are killed and come back; what they leave; what they say when they cannot start."""

from __future__ import annotations

import json
import secrets
import signal
import socket
import time
from collections.abc import Iterator

import pytest

from shadowmesh.testing import guide
from shadowmesh.testing.netlab import RELAY_IP4, RELAY_IP6, Host, Lab, installed, obstacle
from shadowmesh.testing.program import Program

pytestmark = pytest.mark.netns

KEY = secrets.token_hex(32)
A, B = "10.10.10.1", "10.10.10.2"
ENDS = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name)


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("a", "b") as lab:
        lab.start_relay()
        for name, ip in (("a", A), ("b", B)):
            lab.start_client(name, f"{ip}/24", KEY, wait=False)
        lab.wait_connected("a")
        lab.wait_connected("b")
        lab["a"].wait_for_ping(B)
        yield lab


@pytest.fixture
def bare_lab() -> Iterator[Lab]:
    """Hosts on which nothing runs yet."""
    with Lab("a", "b") as lab:
        yield lab


def devices(host: Host) -> set[str]:
    return {link["ifname"] for link in json.loads(host.run("ip", "-j", "link").stdout)}


def end(program: Program, number: int) -> None:
    """End a program; by SIGTERM it says so with status 0."""
    program.signal(number)
    assert program.wait() == (0 if number == signal.SIGTERM else -number)


def echo(near: socket.socket, far: socket.socket) -> None:
    """A few bytes there and back over an established connection."""
    data = secrets.token_bytes(1000)
    near.sendall(data)
    assert far.recv(1000, socket.MSG_WAITALL) == data
    far.sendall(data[::-1])
    assert near.recv(1000, socket.MSG_WAITALL) == data[::-1]


@ENDS
def test_connections_outlive_a_restart_of_the_relay(lab: Lab, number: int) -> None:
    with lab["b"].listen(B) as listener, lab["a"].connect(*listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            echo(near, far)
            assert lab.relay_program is not None
            end(lab.relay_program, number)
            lab.client_programs["a"].wait_for(
                lambda: (lab.status("a") or {}).get("status") not in (None, "connected"), "notice of the loss"
            )
            lab.start_relay()
            lab.wait_connected("a", timeout=30)
            lab.wait_connected("b", timeout=30)
            echo(near, far)


@ENDS
@pytest.mark.parametrize("first", ["a", "b"])
def test_a_restarted_daemon_is_found_by_the_next_packets(lab: Lab, number: int, first: str) -> None:
    """`first` sends the first packet after b's restart; a rekey would be 120 s away, an expiry 180 s."""
    end(lab.client_programs["b"], number)
    assert "shadowmesh0" not in devices(lab["b"])
    lab.start_client("b", f"{B}/24", KEY)
    began = time.monotonic()
    lab[first].wait_for_ping(B if first == "a" else A)
    assert time.monotonic() - began < 3


def test_a_daemon_that_is_away_is_told_at_once_and_back_when_back(lab: Lab) -> None:
    lab.client_programs["b"].kill()
    assert "Unreachable" in lab["a"].run("ping", "-n", "-c3", "-i0.3", "-W1", B, check=False).stdout
    lab.start_client("b", f"{B}/24", KEY)
    began = time.monotonic()
    lab["a"].wait_for_ping(B)
    assert time.monotonic() - began < 5


def test_sigterm_leaves_nothing_behind(lab: Lab) -> None:
    before = lab["a"].run("ip", "route", "show", "table", "all").stdout
    assert "shadowmesh0" in before
    end(lab.client_programs["a"], signal.SIGTERM)
    assert devices(lab["a"]) == {"lo", "eth0"}
    assert "shadowmesh0" not in lab["a"].run("ip", "route", "show", "table", "all").stdout
    assert lab.relay_program is not None
    end(lab.relay_program, signal.SIGTERM)
    end(lab.client_programs["b"], signal.SIGTERM)


def test_a_daemon_started_before_its_relay_finds_it(bare_lab: Lab) -> None:
    lab = bare_lab
    lab.start_client("a", f"{A}/24", KEY, wait=False)
    lab.start_client("b", f"{B}/24", KEY, wait=False)
    lab.client_programs["a"].wait_for(lambda: lab.status("a"), "answer from /status")
    lab.start_relay()
    lab.wait_connected("a", timeout=20)
    lab.wait_connected("b", timeout=20)
    lab["a"].wait_for_ping(B)


def test_ipv6_outside_and_inside(bare_lab: Lab) -> None:
    """One client dials the relay by IPv6, the other by IPv4; both have both families in the overlay."""
    lab = bare_lab
    lab.start_relay()
    for name, server in (("a", f"[{RELAY_IP6}]"), ("b", RELAY_IP4)):
        number = 1 + (name == "b")
        addresses = [f"10.10.10.{number}/24", f"fd00:a:b::{number}/64"]
        lab.start_client(
            name,
            addresses[0],
            KEY,
            wait=False,
            network={"local_ip": addresses},
            relay={"server": f"ws://{server}:{guide.RELAY_PORT}"},
        )
    lab.wait_connected("a")
    lab.wait_connected("b")
    lab["a"].wait_for_ping("fd00:a:b::2")
    with (
        lab["b"].listen("fd00:a:b::2") as listener,
        lab["a"].connect("fd00:a:b::2", listener.getsockname()[1]) as near,
    ):
        far, _ = listener.accept()
        with far:
            echo(near, far)
    lab["b"].wait_for_ping(A)
    with pytest.raises(OSError, match=r"unreachable|No route"):
        lab["a"].connect("fd00:a:b::77", 80)


def test_without_root_the_daemon_says_what_to_do(bare_lab: Lab) -> None:
    if reason := obstacle(as_user=True):
        pytest.skip(reason)
    text = guide.client_config(ip=f"{A}/24", key=KEY, peer_id="a", server=f"ws://{RELAY_IP4}:9545")
    state = {"daemon": {"state_directory": str(bare_lab.directory / "state")}}
    config = bare_lab.write("client-config.yaml", guide.merged(text, state))
    # A user namespace without a mapping: the same files, but a user without any right to the network.
    done = bare_lab["a"].run("unshare", "-U", installed("shadowmesh-daemon"), str(config), check=False)
    assert done.returncode == 1
    assert "Permission denied" in done.stderr
    assert "sudo" in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_a_second_daemon_on_the_same_device_says_so(lab: Lab) -> None:
    config = lab.directory / "client-config-a.yaml"
    done = lab["a"].run(installed("shadowmesh-daemon"), str(config), check=False)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr + done.stdout
    lab["a"].wait_for_ping(B)


def test_a_relay_port_that_is_taken_is_named(lab: Lab) -> None:
    done = lab.relay.run(
        installed("shadowmesh-relay"), "-config", str(lab.directory / "relay-config.yaml"), check=False
    )
    assert done.returncode == 1
    assert str(guide.RELAY_PORT) in done.stderr or str(guide.HEALTH_PORT) in done.stderr
    assert "Traceback" not in done.stderr + done.stdout
