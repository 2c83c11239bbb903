"""What `shadowmesh status` and its like say of the real programs is what was done to them."""

from __future__ import annotations

import json
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shadowmesh.testing.netlab import RELAY_IP4, Lab, installed

pytestmark = pytest.mark.netns

KEY = secrets.token_hex(32)
A, B = "10.10.10.1", "10.10.10.2"
SLOW_WAY = """
import asyncio, sys

async def pump(reader, writer):
    loop = asyncio.get_running_loop()
    while data := await reader.read(65536):
        loop.call_later(0.03, writer.write, data)
    loop.call_later(0.03, writer.close)

async def pass_on(reader, writer):
    far_reader, far_writer = await asyncio.open_connection(sys.argv[1], 9545)
    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer))

async def main():
    server = await asyncio.start_server(pass_on, "127.0.0.1", 9545)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
"""A way to the relay that takes 30 ms longer in each direction."""


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


def shadowmesh(lab: Lab, host: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    token = ["--token-file", str(lab.token_file(host))]
    return lab[host].run(installed("shadowmesh"), *arguments, *token, check=False)


def facts(lab: Lab, host: str) -> dict[str, Any]:
    """What the person at `host` would read."""
    loaded: dict[str, Any] = json.loads(shadowmesh(lab, host, "status", "--json").stdout)
    return loaded


def wait_for(lab: Lab, host: str, what: str, found: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """The status once `found` is true of it."""

    def look() -> dict[str, Any] | None:
        status = lab.status(host)
        return status if status is not None and found(status) else None

    return lab.client_programs[host].wait_for(look, what, 30)


def codes(status: dict[str, Any]) -> set[str]:
    return {each["code"] for each in status["diagnosis"]}


def test_bytes_are_those_that_iperf3_counts(lab: Lab) -> None:
    lab["b"].start("iperf3", "-s", "-1", "--forceflush", "-B", B).wait_for_text("Server listening")
    before = facts(lab, "a")["peers"][0], facts(lab, "b")["peers"][0]
    report = json.loads(lab["a"].run("iperf3", "-c", B, "-t", "2", "-J").stdout)
    moved = report["end"]["sum_received"]["bytes"]
    after = facts(lab, "a")["peers"][0], facts(lab, "b")["peers"][0]
    sent, received = (
        after[0]["bytes_out"] - before[0]["bytes_out"],
        after[1]["bytes_in"] - before[1]["bytes_in"],
    )
    # TCP/IP headers of 1400-byte packets, or of segments of 64 KiB; and what was under way at the end.
    assert moved <= received <= moved * 1.1 + 4_000_000
    assert received <= sent <= moved * 1.1 + 8_000_000
    assert after[0]["bytes_in"] < sent / 10
    assert [peer["offload"] for peer in after] == [False, True] or after[0]["offload"]
    assert after[1]["loss_percent"] is not None
    assert facts(lab, "b")["packets_in"] > 10


def test_a_slow_path(lab: Lab) -> None:
    assert float(json.loads(shadowmesh(lab, "a", "ping", "b", "-c", "1", "--json").stdout)["rtt_ms"]) < 40
    lab.client_programs["b"].stop()
    lab["b"].start(sys.executable, "-c", SLOW_WAY, RELAY_IP4).wait_for_text("ready")
    lab.start_client("b", f"{B}/24", KEY, relay={"server": "ws://127.0.0.1:9545"})
    result = shadowmesh(lab, "a", "ping", B, "-c", "2")
    assert result.returncode == 0
    assert "2 probes, 2 answers" in result.stdout
    (peer,) = facts(lab, "a")["peers"]
    assert 60 <= peer["rtt_ms"] < 100
    assert facts(lab, "a")["relay"]["rtt_ms"] < 40
    assert 60 <= facts(lab, "b")["relay"]["rtt_ms"] < 100
    assert shadowmesh(lab, "a", "peers").stdout.splitlines()[1].split()[0] == "b"


def test_a_peer_that_is_killed(lab: Lab) -> None:
    assert facts(lab, "a")["peers"][0]["connected"]
    lab.client_programs["b"].signal(signal.SIGKILL)
    lab.client_programs["b"].wait()
    lab["a"].run("ping", "-n", "-c1", "-W1", B, check=False)
    wait_for(lab, "a", "notice of the loss", lambda status: not status["peers"][0]["connected"])
    assert "silent for" in shadowmesh(lab, "a", "peers").stdout
    result = shadowmesh(lab, "a", "ping", "b", "-c", "1")
    assert result.returncode == 1
    assert "no answer; waited for" in result.stdout


def test_a_relay_that_restarts(lab: Lab) -> None:
    assert lab.relay_program is not None
    lab.relay_program.stop()
    status = wait_for(lab, "a", "loss of the relay", lambda status: status["status"] != "connected")
    assert status["relay"]["history"]
    assert shadowmesh(lab, "a", "status").returncode == 1
    wait_for(lab, "a", "refusal", lambda status: "refused" in codes(status))
    lab.start_relay()
    status = wait_for(lab, "a", "return to the relay", lambda status: status["status"] == "connected")
    assert status["relay"]["reconnects"] == 1
    assert "restart" in [loss["kind"] for loss in status["relay"]["history"]]
    assert shadowmesh(lab, "a", "status").returncode == 0


def test_down_and_up(lab: Lab) -> None:
    result = shadowmesh(lab, "a", "down")
    assert (result.returncode, result.stderr) == (0, "")
    assert lab.relay.get_json("/status", 8080) is not None
    lab.client_programs["a"].wait_for(
        lambda: (lab.relay.get_json("/status", 8080) or {})["connections"] == 1, "goodbye to the relay"
    )
    assert facts(lab, "a")["status"] == "down"
    assert facts(lab, "b")["peers"] == []
    assert lab["a"].run("ping", "-n", "-c1", "-W1", B, check=False).returncode != 0
    assert "client left" in lab.relay_program.text() if lab.relay_program else False
    result = shadowmesh(lab, "a", "up")
    assert (result.returncode, result.stdout) == (0, "connected\n")
    lab["a"].wait_for_ping(B)


def test_a_wrong_key_and_one_ip_for_two(lab: Lab) -> None:
    lab.add_client("c")
    lab.start_client("c", "10.10.10.3/24", secrets.token_hex(32))
    assert codes(facts(lab, "c")) == set()
    lab["c"].run("ping", "-n", "-c1", "-W1", A, check=False)
    wait_for(lab, "c", "diagnosis", lambda status: codes(status) == {"wrong_key"})
    assert "encryption.key must be the same" in " ".join(shadowmesh(lab, "c", "status").stdout.split())
    lab.add_client("d")
    lab.start_client("d", f"{A}/24", KEY)
    for host in ("a", "d"):
        wait_for(lab, host, "diagnosis", lambda status: "duplicate_local_ip" in codes(status))
    assert facts(lab, "d")["relay"]["refused"] == {A: "address_in_use"}
    assert facts(lab, "a")["relay"]["refused"] == {}
    assert facts(lab, "a")["contested"][A] < 30
