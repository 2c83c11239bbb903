"""A network behind a peer: reached by those who route it there, offered by its owner, closed to all else."""

from __future__ import annotations

import secrets
from collections.abc import Iterator

import pytest

from shadowmesh.testing.netlab import Lab

pytestmark = pytest.mark.netns

LAN, LAN_HOST = "192.168.77.0/24", "192.168.77.1"
HIDDEN_HOST = "192.168.78.1"
ROUTES = [{"to": "192.168.76.0/22", "via": "10.10.10.2"}]


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    key = secrets.token_hex(32)
    with Lab("a", "b", "c") as lab:
        lab["b"].ip(f"addr add {LAN_HOST}/24 dev lo", f"addr add {HIDDEN_HOST}/24 dev lo")
        lab.start_relay()
        lab.start_client("a", "10.10.10.1/24", key, wait=False, network={"routes": ROUTES})
        lab.start_client("b", "10.10.10.2/24", key, wait=False, network={"advertise": [LAN]})
        lab.start_client("c", "10.10.10.3/24", key, wait=False)
        for name in ("a", "b", "c"):
            lab.wait_connected(name)
        yield lab


def test_a_routed_network_is_reached_through_its_peer(lab: Lab) -> None:
    lab["a"].wait_for_ping(LAN_HOST)
    with lab["b"].listen(LAN_HOST) as listener, lab["a"].connect(*listener.getsockname()) as near:
        far, peer = listener.accept()
        with far:
            assert peer[0] == "10.10.10.1"
            near.sendall(b"through")
            assert far.recv(10) == b"through"


def test_a_network_that_its_host_does_not_offer_stays_closed(lab: Lab) -> None:
    """a routes it to b, and b has the address, but b's own configuration does not offer it."""
    lab["a"].wait_for_ping("10.10.10.2")
    done = lab["a"].run("ping", "-n", "-c2", "-i0.1", "-W0.5", HIDDEN_HOST, check=False)
    assert "0 received" in done.stdout


def test_an_offer_is_shown_but_never_installed_unasked(lab: Lab) -> None:
    lab["c"].wait_for_ping("10.10.10.2")
    status = lab.status("c")
    assert status is not None
    assert [peer["routes"] for peer in status["peers"] if "10.10.10.2" in peer["ips"]] == [[LAN]]
    assert LAN_HOST.rsplit(".", 1)[0] not in lab["c"].run("ip", "route").stdout
