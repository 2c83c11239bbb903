"""Networks with different keys on one relay: same overlay IPs, same peer ids, and nothing of each other."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator

import pytest

from shadowmesh.testing import guide
from shadowmesh.testing.netlab import Lab

pytestmark = pytest.mark.netns

# name: network, overlay IP, peer id. `lone` holds a key that nobody else has, as one who mistyped it.
CLIENTS = {
    "red1": ("red", "10.10.10.1", "one"),
    "red2": ("red", "10.10.10.2", "two"),
    "blue1": ("blue", "10.10.10.1", "one"),
    "blue2": ("blue", "10.10.10.2", "two"),
    "blue9": ("blue", "10.10.10.9", "nine"),
    "lone": ("wrong", "10.10.10.5", "five"),
}
MATES = {"red1": "red2", "red2": "red1", "blue1": "blue2", "blue2": "blue1"}


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    keys = {network: secrets.token_hex(32) for network in ("red", "blue", "wrong")}
    with Lab(*CLIENTS) as lab:
        lab.start_relay()
        for name, (network, ip, peer_id) in CLIENTS.items():
            lab.start_client(name, f"{ip}/24", keys[network], peer_id=peer_id, wait=False)
        for name in CLIENTS:
            lab.wait_connected(name, timeout=20)
        yield lab


def ip(name: str) -> str:
    return CLIENTS[name][1]


@pytest.mark.parametrize("name", MATES)
def test_an_address_leads_to_the_host_of_the_own_network(lab: Lab, name: str) -> None:
    """Both networks have this address; the connection must come out at the one of the client's own."""
    mate = MATES[name]
    twins = [client for client in CLIENTS if ip(client) == ip(mate)]
    listeners = {client: lab[client].listen(ip(client), 7000) for client in twins}
    try:
        with lab[name].connect(ip(mate), 7000):
            accepted, peer = listeners[mate].accept()
            accepted.close()
            assert peer[0] == ip(name)
            for twin in set(twins) - {mate}:
                listeners[twin].settimeout(0.2)
                with pytest.raises(TimeoutError):
                    listeners[twin].accept()
    finally:
        for listener in listeners.values():
            listener.close()


@pytest.mark.parametrize(
    ("name", "target"),
    [("red1", "blue9"), ("red1", "lone"), ("blue1", "lone"), ("lone", "red1"), ("lone", "blue9")],
)
def test_hosts_of_another_key_do_not_exist(lab: Lab, name: str, target: str) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="No route to host"):
        lab[name].connect(ip(target), 7000)
    assert time.monotonic() - began < 3


def test_nobody_sees_a_host_of_another_key(lab: Lab) -> None:
    for name, mate in MATES.items():
        lab[name].wait_for_ping(ip(mate))
    for name in CLIENTS:
        status = lab.status(name)
        assert status is not None
        mates = {"blue9": set[str](), "lone": set[str]()}.get(name, {ip(MATES.get(name, name))})
        assert {address for peer in status["peers"] for address in peer["ips"]} == mates


def test_the_relay_carries_them_all_and_names_none(lab: Lab) -> None:
    status = lab.relay.get_json("/status", guide.HEALTH_PORT)
    assert status is not None
    assert status["connections"] == len(CLIENTS)
    assert lab.relay_program is not None
    log = lab.relay_program.text()
    assert "10.10.10." not in log
    for _, _, peer_id in CLIENTS.values():
        assert f'"{peer_id}"' not in log
        assert f"={peer_id}\n" not in log
