"""Every field of `status` and `peers`, held against something else that knows: what was written into the
configuration, the kernel, ping, a capture, a proxy that drops, the clock, the other side.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import re
import secrets
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowmesh import __version__
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys, fingerprint
from shadowmesh.daemon.openapi import DESCRIPTION
from shadowmesh.testing import guide
from shadowmesh.testing.netlab import RELAY_IP4, Lab, installed
from shadowmesh.testing.program import wait_for
from shadowmesh.wire import frame, message

pytestmark = pytest.mark.netns

KEY, NEXT = secrets.token_hex(32), secrets.token_hex(32)
A, B = "10.10.10.1", "10.10.10.2"
LAN = "192.168.77.0/24"
ETHTOOL, GET_TSO = 0x8946, 0x1E

TRUTHS = {
    "Status": {
        "test_who_is_who": "version name device ips mtu offload fingerprint network relay relays peers",
        "test_since_when": "reason",
        "test_counts": "packets_in packets_out drops uptime",
        "test_new_keys": "handshakes",
        "test_who_is_refused": "identities_refused events",
        "test_two_devices_with_one_ip": "conflicts",
        "test_the_next_network": "next",
        "test_a_wrong_key_and_one_ip_for_two": "contested diagnosis",
        "test_down_and_up": "status",
    },
    "Relay": {
        "test_who_is_who": "server address name region state connects remote",
        "test_since_when": "seconds reconnects history reason",
        "test_a_slow_path": "rtt_ms",
        "test_a_relay_that_speaks_but_does_not_read": "dropped",
        "test_a_wrong_key_and_one_ip_for_two": "refused",
    },
    "Peer": {
        "test_who_is_who": "name ips fingerprint path agent mtu routes",
        "test_counts": "messages_in messages_out bytes_in bytes_out heard",
        "test_new_keys": "last_handshake handshakes rekeys",
        "test_loss": "loss_percent",
        "test_a_peer_that_is_killed": "connected",
        "test_a_slow_path": "rtt_ms",
        "test_bytes_are_those_that_iperf3_counts": "offload",
        "test_who_is_refused": "identity",
    },
}
"""Which test knows the truth of which field; those that are not here are in ELSEWHERE."""
ELSEWHERE = ("netns/test_e2e_status.py", "net/test_link_silence.py")

LOSSY_WAY = """
import asyncio, sys

async def messages(reader):
    '''Each WebSocket message of a client as it is (RFC 6455 section 5.2).'''
    yield await reader.readuntil(b"\\r\\n\\r\\n")
    while True:
        head = await reader.readexactly(2)
        size = head[1] & 127
        more = await reader.readexactly({126: 2, 127: 8}.get(size, 0))
        size = int.from_bytes(more) if more else size
        yield head + more + await reader.readexactly(4 + size)

async def up(reader, writer):
    seen = 0
    try:
        async for message in messages(reader):
            if 500 < len(message) < 700:
                seen += 1
                if seen % 5 == 0:
                    continue
            writer.write(message)
    except asyncio.IncompleteReadError:
        writer.close()

async def down(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
    writer.close()

async def pass_on(reader, writer):
    far_reader, far_writer = await asyncio.open_connection(sys.argv[1], 9545)
    await asyncio.gather(up(reader, far_writer), down(far_reader, writer))

async def main():
    server = await asyncio.start_server(pass_on, "127.0.0.1", 9545)
    print("ready", flush=True)
    await server.serve_forever()

asyncio.run(main())
"""
"""A way to the relay that loses every fifth message of 500 to 700 bytes."""

HASTY = """
import sys
from shadowmesh.cli import daemon
from shadowmesh.mesh import mesh
mesh.REKEY_AFTER = 1.5
daemon.main()
"""
"""The daemon, whose keys are old after 1.5 s instead of two minutes."""


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("a", "b") as lab:
        lab.start_relay(region="north-7", server_name="seven")
        yield lab


def start(lab: Lab, *names: str, **changes: Any) -> None:
    for name in names:
        number = "abcd".index(name) + 1
        lab.start_client(name, f"10.10.10.{number}/24", KEY, **changes)


def status(lab: Lab, host: str) -> dict[str, Any]:
    found = lab.status(host)
    assert found is not None
    return found


def peer(lab: Lab, host: str, name: str) -> dict[str, Any]:
    (found,) = [each for each in status(lab, host)["peers"] if each["name"] == name]
    return dict(found)


def ping(lab: Lab, host: str, address: str, count: int, size: int = 56) -> str:
    """Echo requests of `size` + 28 bytes each, and answers, if they come."""
    return (
        lab[host].run("ping", "-n", f"-c{count}", "-i0.02", "-W1", f"-s{size}", address, check=False).stdout
    )


def configure(lab: Lab, host: str, changes: dict[str, Any]) -> list[str]:
    """Change the configuration of a running daemon; the keys that apply."""
    file = lab.directory / f"client-config-{host}.yaml"
    file.write_text(guide.merged(file.read_text(), changes))
    argv = ("reload", "--json", "--token-file", str(lab.token_file(host)))
    applied: list[str] = json.loads(lab[host].run(installed("shadowmesh"), *argv).stdout)["applied"]
    return applied


def test_every_field_has_its_truth() -> None:
    tests = Path(__file__).parents[1]
    shown = "".join((tests / name).read_text() for name in ELSEWHERE)
    for schema, truths in TRUTHS.items():
        fields = " ".join(truths.values()).split()
        assert sorted(fields) == sorted(DESCRIPTION["components"]["schemas"][schema]["properties"])
        assert all(test in globals() or f"def {test}(" in shown for test in truths)


def test_who_is_who(lab: Lab) -> None:
    start(lab, "a")
    start(lab, "b", peer_id="the-other", network={"mtu": 1300, "advertise": [LAN]})
    lab["a"].wait_for_ping(B)
    a, b = status(lab, "a"), status(lab, "b")

    (link,) = json.loads(lab["a"].run("ip", "-j", "address", "show", "shadowmesh0").stdout)
    assert (a["device"], a["mtu"]) == (link["ifname"], link["mtu"]) == ("shadowmesh0", 1400)
    assert a["ips"] == [f"{each['local']}/{each['prefixlen']}" for each in link["addr_info"]]
    assert ("tso4" in a["offload"]) is lab["a"].inside(lambda: tso("shadowmesh0"))
    assert (a["name"], b["name"], b["mtu"]) == ("a", "the-other", 1300)
    said = lab["a"].run(installed("shadowmesh"), "version").stdout.split()[-1]
    assert a["version"] == said == __version__

    network = NetworkKeys(bytes.fromhex(KEY)).network_id
    seed = bytes.fromhex((lab.directory / "state-b/device.key").read_text())
    assert a["network"] == b["network"] == network.hex()
    assert b["fingerprint"] == fingerprint(DeviceKeys(seed, network).static_public)

    assert a["relays"] == [a["relay"]]
    relay, there = a["relay"], lab.relay.get_json("/status", guide.HEALTH_PORT) or {}
    assert (relay["name"], relay["region"]) == ("seven", "north-7")
    assert (there["server_name"], there["region"]) == ("seven", "north-7")
    assert (relay["server"], relay["address"]) == (f"ws://{RELAY_IP4}:9545/relay", RELAY_IP4)
    (connection,) = lab["a"].run("ss", "-Htn", "state", "established", "dst", RELAY_IP4).stdout.splitlines()
    assert relay["remote"] == connection.split()[2]
    assert (relay["state"], relay["connects"], relay["reason"], a["reason"]) == ("connected", 1, "", "")

    other = peer(lab, "a", "the-other")
    assert (other["ips"], other["mtu"], other["routes"]) == ([B], 1300, [LAN])
    assert (other["agent"], other["path"]) == (f"shadowmesh/{said}", "seven")
    assert other["fingerprint"] == b["fingerprint"]


def tso(device: str) -> bool:
    """What the kernel says of TCP segmentation offload (linux/ethtool.h)."""
    value = ctypes.create_string_buffer(struct.pack("=II", GET_TSO, 0))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        fcntl.ioctl(control, ETHTOOL, struct.pack("16sP16x", device.encode(), ctypes.addressof(value)))
    return bool(struct.unpack("=II", value.raw[:8])[1])


def test_counts(lab: Lab) -> None:
    """Of packets one by one; the first goes with the handshake's last message, and counts as well."""
    start(lab, "a", "b")
    assert ping(lab, "a", B, 1).count(" bytes from ") == 1
    first = wait_for(lambda: peer(lab, "b", "a"), "the peer")
    there = peer(lab, "a", "b")
    # 84 bytes of IP and 4 in front; sealed, that is padded to 96.
    assert (there["bytes_out"], there["bytes_in"]) == (first["bytes_in"], first["bytes_out"]) == (88, 96)
    assert (there["messages_out"], there["messages_in"]) == (1, 1)
    assert (first["messages_in"], first["messages_out"]) == (1, 1)
    before = status(lab, "a"), time.monotonic()

    assert ", 0% packet loss" in ping(lab, "a", B, 50, 500)
    after = peer(lab, "a", "b"), peer(lab, "b", "a")
    assert [each["bytes_out"] for each in after] == [88 + 50 * 544, 96 + 50 * 544]
    assert [each["bytes_in"] for each in after] == [96 + 50 * 544, 88 + 50 * 544]
    assert {each[name] for each in after for name in ("messages_in", "messages_out")} == {51}
    assert [each["loss_percent"] for each in after] == [0.0, 0.0]
    answered = time.monotonic()
    assert (before[0]["packets_in"], before[0]["packets_out"]) == (1, 1)

    lab["a"].ip("route add 192.168.99.0/24 dev shadowmesh0")
    ping(lab, "a", "192.168.99.1", 3)
    now = status(lab, "a"), time.monotonic()
    assert (now[0]["packets_in"], now[0]["packets_out"]) == (51, 51)
    assert now[0]["drops"]["no_route"] == 3
    assert now[0]["uptime"] - before[0]["uptime"] == pytest.approx(now[1] - before[1], abs=0.3)
    assert now[0]["peers"][0]["heard"] == pytest.approx(time.monotonic() - answered, abs=0.5)


def test_since_when(lab: Lab) -> None:
    start(lab, "a")
    joined = time.monotonic()
    time.sleep(1.2)
    assert status(lab, "a")["relay"]["seconds"] == pytest.approx(time.monotonic() - joined, abs=0.4)
    assert lab.relay_program is not None
    lab.relay_program.kill()
    lost, lost_at = time.monotonic(), time.time()
    wait_for(lambda: status(lab, "a")["relay"]["state"] != "connected", "the loss")
    time.sleep(1.2)
    relay = status(lab, "a")["relay"]
    assert relay["history"][-1]["event"] == "lost"
    assert relay["history"][-1]["seconds_ago"] == pytest.approx(time.monotonic() - lost, abs=0.4)
    said = time.strftime("%Y-%m-%dT%H:%M:", time.gmtime(lost_at))
    assert relay["history"][-1]["time"].startswith((said, time.strftime("%Y-%m-%dT%H:%M:", time.gmtime())))
    assert "refuses connections" in relay["history"][0]["reason"]
    assert relay["reason"] == relay["history"][0]["reason"] == status(lab, "a")["reason"]
    lab.start_relay()
    lab.wait_connected("a")
    back = time.monotonic()
    time.sleep(1.2)
    relay = status(lab, "a")["relay"]
    assert relay["seconds"] == pytest.approx(time.monotonic() - back, abs=0.4)
    assert (relay["connects"], relay["reconnects"]) == (2, 1)


def test_loss(lab: Lab) -> None:
    """ping counts 20 % on the way to b, and what comes back is whole: each side tells of what it gets."""
    lab["a"].start(sys.executable, "-c", LOSSY_WAY, RELAY_IP4).wait_for_text("ready")
    start(lab, "a", relay={"server": "ws://127.0.0.1:9545"})
    start(lab, "b")
    lab["a"].wait_for_ping(B)
    told = re.search(r"(\d+) packets transmitted, (\d+) received", ping(lab, "a", B, 100, 500))
    assert told is not None
    lost = int(told[1]) - int(told[2])
    assert 15 <= lost <= 20  # two packets in one message are too large to be lost
    ping(lab, "a", B, 1)  # the last of the large ones was lost
    sealed, seen = peer(lab, "a", "b")["messages_out"], peer(lab, "b", "a")
    assert seen["messages_in"] == sealed - lost
    # Messages of other kinds are numbered, too.
    assert 100 * lost / (sealed + 4) <= seen["loss_percent"] <= 100 * lost / (sealed - 1)
    assert peer(lab, "a", "b")["loss_percent"] == 0.0


def test_new_keys(lab: Lab) -> None:
    """As many handshakes as a capture has last messages of them, and the last one when it has the last."""
    for name in ("a", "b"):
        start(lab, name)
        lab.client_programs[name].stop()
    capture = lab.relay.capture("any")
    for name in ("a", "b"):
        file = str(lab.directory / f"client-config-{name}.yaml")
        lab.client_programs[name] = lab[name].start(sys.executable, "-c", HASTY, file)
        lab.wait_connected(name)
    for _ in range(30):
        ping(lab, "a", B, 20)
        if status(lab, "a")["handshakes"] >= 4:
            break
    seen = peer(lab, "a", "b"), peer(lab, "b", "a")
    at = time.time()
    pcap = capture.finish(lab["a"].ip4)
    # A frame that the relay sends is not masked: its header, 0x10, two addresses, and the message in clear.
    finish = re.compile(
        rb"\x82\x7e.." + re.escape(bytes((frame.DATA,))) + b".{32}" + re.escape(message.FINISH) + b".{8}",
        re.DOTALL,
    )
    found = {match[0]: when for when, data in packets(pcap) for match in finish.finditer(data)}
    assert len(found) >= 4
    for each in seen:
        assert (each["handshakes"], each["rekeys"]) == (len(found), len(found) - 1)
        assert each["last_handshake"] == pytest.approx(at - max(found.values()), abs=0.3)
    assert status(lab, "a")["handshakes"] == len(found)


def packets(pcap: bytes) -> Iterator[tuple[float, bytes]]:
    """When each was seen, and its bytes (pcap-savefile(5), little-endian, microseconds)."""
    position = 24
    while position < len(pcap):
        seconds, micros, size, _ = struct.unpack_from("<IIII", pcap, position)
        yield seconds + micros / 1e6, pcap[position + 16 : position + 16 + size]
        position += 16 + size


@pytest.mark.parametrize("verify", ["warn", "strict"])
def test_who_is_refused(lab: Lab, verify: str) -> None:
    start(lab, "a", peers={"verify": verify})
    start(lab, "b")
    lab["a"].wait_for_ping(B)
    assert status(lab, "a")["events"] == {"relay_joined": 1, "session": 1, "identity_new": 1}
    assert peer(lab, "a", "b")["identity"] == "known"
    lab.client_programs["b"].stop()
    (lab.directory / "state-b/device.key").unlink()
    assert lab.relay_program is not None
    lab.relay_program.stop()  # it would keep the address for the device that had it
    lab.start_relay()
    lab.wait_connected("a")
    start(lab, "b")
    new = status(lab, "b")["fingerprint"]
    ping(lab, "b", A, 2)
    if verify == "strict":
        wait_for(lambda: status(lab, "a")["identities_refused"], "the refusal")
        (refused,) = status(lab, "a")["identities_refused"].items()
        assert (refused[0], refused[1]["fingerprint"], refused[1]["seconds_ago"] < 5) == (B, new, True)
        assert "identity_refused" in status(lab, "a")["events"]
        assert status(lab, "a")["peers"] == []
    else:
        lab["a"].wait_for_ping(B)
        seen = peer(lab, "a", "b")
        assert (seen["identity"], seen["fingerprint"]) == ("changed", new)
        assert status(lab, "a")["events"]["identity_changed"] == 1


def test_two_devices_with_one_ip(lab: Lab) -> None:
    """On different relays, so that no relay can tell; a hears both."""
    lab.add_client("c")
    lab.start_relay(relay_port=9546, health_port=8081, metrics_port=9091)
    urls = [f"ws://{RELAY_IP4}:{port}" for port in (9545, 9546)]
    start(lab, "a", relay={"server": None, "servers": urls})
    start(lab, "b", relay={"server": urls[0]})
    lab.start_client("c", f"{B}/24", KEY, relay={"server": urls[1]})
    for name in ("b", "c"):
        ping(lab, name, A, 2)
    wait_for(lambda: status(lab, "a")["conflicts"], "the conflict")
    ((ip, ago),) = status(lab, "a")["conflicts"].items()
    assert (ip, ago < 5) == (B, True)
    assert "peer_conflict" in {each["code"] for each in status(lab, "a")["diagnosis"]}


def test_the_next_network(lab: Lab) -> None:
    """The connection and the sessions of the first stay as they are."""
    start(lab, "a", "b")
    lab["a"].wait_for_ping(B)
    before = status(lab, "a")
    assert "next" not in before
    assert configure(lab, "a", {"encryption": {"next_key": NEXT}}) == ["encryption.next_key"]
    network = NetworkKeys(bytes.fromhex(NEXT)).network_id
    seed = bytes.fromhex((lab.directory / "state-a/device.key").read_text())
    own = fingerprint(DeviceKeys(seed, network).static_public)
    lab.wait_connected("a")
    after = wait_for(
        lambda: {each["state"] for each in status(lab, "a")["relays"]} == {"connected"} and status(lab, "a"),
        "both connections",
    )
    assert isinstance(after, dict)
    assert after["next"] == {"network": network.hex(), "fingerprint": own}
    assert [each["connects"] for each in after["relays"]] == [1, 1]
    assert after["relay"]["remote"] == before["relay"]["remote"]
    assert ", 0% packet loss" in ping(lab, "a", B, 5)
    assert peer(lab, "a", "b")["handshakes"] == 1


def test_routes_and_offers_change_under_a_connection(lab: Lab) -> None:
    """Added and taken away again by a reload on each side, while one TCP connection lives through it all."""
    lab["b"].ip("addr add 192.168.77.1/24 dev lo")
    start(lab, "a", "b")
    lab["a"].wait_for_ping(B)
    route = {"network": {"routes": [{"to": LAN, "via": B}]}}
    with lab["b"].listen(B) as listener, lab["a"].connect(*listener.getsockname()) as near:
        far, _ = listener.accept()
        with far:
            assert configure(lab, "b", {"network": {"advertise": [LAN]}}) == ["network.advertise"]
            assert configure(lab, "a", route) == ["network.routes"]
            assert LAN in lab["a"].run("ip", "route", "show", "dev", "shadowmesh0").stdout
            assert ", 0% packet loss" in ping(lab, "a", "192.168.77.1", 3)
            assert peer(lab, "a", "b")["routes"] == [LAN]
            assert configure(lab, "b", {"network": {"advertise": []}}) == ["network.advertise"]
            assert " 100% packet loss" in ping(lab, "a", "192.168.77.1", 2)
            wait_for(lambda: peer(lab, "a", "b")["routes"] == [], "the offer taken back")
            assert configure(lab, "a", {"network": {"routes": []}}) == ["network.routes"]
            assert LAN not in lab["a"].run("ip", "route").stdout
            near.sendall(b"still there")
            assert far.recv(20) == b"still there"
    assert peer(lab, "a", "b")["handshakes"] == 1
    assert status(lab, "a")["relay"]["connects"] == status(lab, "b")["relay"]["connects"] == 1
    lab["a"].ip(f"route add {LAN} dev lo")  # somebody else's
    file = lab.directory / "client-config-a.yaml"
    file.write_text(
        yaml.safe_dump(
            yaml.safe_load(file.read_text())
            | {"network": {**yaml.safe_load(file.read_text())["network"], **route["network"]}}
        )
    )
    token = ("--token-file", str(lab.token_file("a")))
    refused = lab["a"].run(installed("shadowmesh"), "reload", *token, check=False)
    assert refused.returncode == 1
    assert f"cannot add the route {LAN} to shadowmesh0: there is one already" in " ".join(
        refused.stderr.split()
    )
