"""Three clients and a relay, the real programs on the guide's files: all that an application may send."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from shadowmesh.testing import guide
from shadowmesh.testing.netlab import RELAY_IP4, Lab

pytestmark = pytest.mark.netns

IPS = {"a": "10.10.10.1", "b": "10.10.10.2", "c": "10.10.10.3"}
ABSENT = "10.10.10.77"
PAIRS = list(itertools.permutations(IPS, 2))
IP_RECVERR = 11  # linux/in.h


@dataclass
class SmokeTest:
    """The guide's `wscat -c ws://…:9545/relay?peer_id=test`, by a WebSocket library that is not ours."""

    lab: Lab
    challenge: str | bytes = ""
    close: tuple[int, str] = (0, "")
    thread: threading.Thread = field(init=False)

    def __post_init__(self) -> None:
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        url = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}/relay?peer_id=test"
        sock = self.lab["a"].connect(RELAY_IP4, guide.RELAY_PORT)
        with connect(url, sock=sock, proxy=None) as connection:
            self.challenge = connection.recv(5)
            try:
                connection.recv(15)
            except ConnectionClosed as closed:
                if closed.rcvd:
                    self.close = (closed.rcvd.code, closed.rcvd.reason)


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    key = secrets.token_hex(32)
    with Lab(*IPS) as lab:
        lab.start_relay()
        for name, ip in IPS.items():
            lab.start_client(name, f"{ip}/24", key, wait=False)
        for name in IPS:
            lab.wait_connected(name)
        yield lab


@pytest.fixture(scope="module", autouse=True)
def smoke_test(lab: Lab) -> Iterator[SmokeTest]:
    """Runs beside the other tests: the relay takes ten seconds to give up on a client that does not join."""
    test = SmokeTest(lab)
    yield test
    test.thread.join()


@pytest.mark.parametrize(("source", "target"), PAIRS)
def test_every_client_reaches_every_other(lab: Lab, source: str, target: str) -> None:
    output = lab[source].run("ping", "-n", "-c3", "-i0.02", "-W2", IPS[target]).stdout
    assert "3 received" in output


def test_the_clients_see_each_other_and_have_no_other_way(lab: Lab) -> None:
    for source, target in PAIRS:
        lab[source].wait_for_ping(IPS[target])
    for name in IPS:
        status = lab.status(name)
        assert status is not None
        assert {ip for peer in status["peers"] for ip in peer["ips"]} == set(IPS.values()) - {IPS[name]}
    past_the_relay = lab["a"].run("ping", "-n", "-c1", "-W0.3", lab["b"].ip4, check=False)
    assert past_the_relay.returncode != 0


def test_the_device_is_as_configured(lab: Lab) -> None:
    link = json.loads(lab["a"].run("ip", "-j", "addr", "show", "dev", "shadowmesh0").stdout)[0]
    assert link["mtu"] == 1400
    assert "UP" in link["flags"]
    assert (IPS["a"], 24) in {(info["local"], info["prefixlen"]) for info in link["addr_info"]}
    routes = json.loads(lab["a"].run("ip", "-j", "route", "show", "dev", "shadowmesh0").stdout)
    assert [route["dst"] for route in routes] == ["10.10.10.0/24"]


def test_a_gibibyte_by_tcp_arrives_whole_in_both_directions(lab: Lab) -> None:
    for source, target, size in (("a", "b", 1 << 30), ("b", "a", 128 << 20)):
        sent, received = transfer(lab, source, target, size)
        assert received == sent


def test_many_tcp_connections_at_once_stay_apart(lab: Lab) -> None:
    results: list[tuple[str, str]] = []

    def run(source: str, target: str) -> None:
        results.append(transfer(lab, source, target, 8 << 20))

    threads = [threading.Thread(target=run, args=pair) for pair in PAIRS * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == len(threads)
    assert all(sent == received for sent, received in results)


@pytest.mark.parametrize("size", [0, 1, 1372, 1373, 9000, 60000])
def test_udp_datagrams_of_any_size_come_back_as_they_were(lab: Lab, size: int) -> None:
    with udp_pair(lab, "a", "b") as (near, far):
        for data in (os.urandom(size) for _ in range(3)):
            near.send(data)
            received, sender = far.recvfrom(65536)
            assert received == data
            far.sendto(received[::-1], sender)
            assert near.recv(65536) == data[::-1]


def test_bursts_of_udp_lose_nothing_double_nothing_and_keep_their_borders(lab: Lab) -> None:
    with udp_pair(lab, "c", "b") as (near, far):
        for _ in range(20):
            burst = [os.urandom(size) for size in (*range(1150, 1200), *range(1, 1300, 50))]
            for data in burst:
                near.send(data)
            assert sorted(far.recv(65536) for _ in burst) == sorted(burst)


def test_a_ping_larger_than_the_mtu(lab: Lab) -> None:
    assert "2 received" in lab["a"].run("ping", "-n", "-c2", "-i0.02", "-s8000", IPS["c"]).stdout


def test_path_mtu_is_told(lab: Lab) -> None:
    output = lab["a"].run("ping", "-n", "-c1", "-W1", "-Mdo", "-s1373", IPS["b"], check=False).stdout
    assert "0 received" in output
    assert "1 received" in lab["a"].run("ping", "-n", "-c1", "-Mdo", "-s1372", IPS["b"]).stdout


def test_a_peer_that_is_not_there_is_told_at_once(lab: Lab) -> None:
    began = time.monotonic()
    with pytest.raises(OSError, match="No route to host"):
        lab["a"].connect(ABSENT, 80)
    assert "Destination Host Unreachable" in lab["a"].run("ping", "-n", "-c1", ABSENT, check=False).stdout
    with lab["a"].new_socket(kind=socket.SOCK_DGRAM) as sender:
        sender.setsockopt(socket.IPPROTO_IP, IP_RECVERR, 1)
        sender.connect((ABSENT, 9))
        sender.send(b"anybody?")
        with pytest.raises(OSError, match="No route to host"):
            sender.recv(1)
    assert time.monotonic() - began < 3


def test_a_closed_port_is_refused_by_the_peer_itself(lab: Lab) -> None:
    with pytest.raises(ConnectionRefusedError):
        lab["a"].connect(IPS["b"], 1)


def test_health_status_and_metrics_as_the_guide_has_them(lab: Lab) -> None:
    health = lab.relay.get_json("/health", guide.HEALTH_PORT)
    status = lab.relay.get_json("/status", guide.HEALTH_PORT)
    keys = ["status", "uptime", "connections", "max_connections", "utilization_pct", "region", "server_name"]
    for answer in (health, status):
        assert answer is not None
        assert list(answer)[:7] == keys
        assert answer["connections"] == 3
        assert answer["status"] == "healthy"
    code, metrics = lab.relay.get("/metrics", guide.METRICS_PORT)
    assert code == 200
    values = {
        name
        for name, labels in re.findall(r"^(\w+)\{([^}]*)\} ", metrics, re.M)
        if 'region="us-east-1"' in labels
    }
    names = ["connections", "max_connections", "utilization_percent", "frames_total", "frames_dropped"]
    assert {f"shadowmesh_relay_{name}" for name in (*names, "bytes_relayed", "latency_ms")} <= values
    assert lab["a"].get_json("/health", guide.DAEMON_PORT) is not None


def test_the_smoke_test_of_the_guide(smoke_test: SmokeTest) -> None:
    smoke_test.thread.join(20)
    challenge = json.loads(smoke_test.challenge)
    assert challenge["type"] == "challenge"
    assert challenge["server_name"] == "relay-us-east-1"
    code, reason = smoke_test.close
    assert code == 4002
    assert reason


def transfer(lab: Lab, source: str, target: str, size: int) -> tuple[str, str]:
    """Send `size` bytes (whole MiB) by TCP; SHA-256 of what was sent and of what was received."""
    piece = 1 << 20
    twice = memoryview(os.urandom(piece) * 2)
    sent, received = hashlib.sha256(), hashlib.sha256()
    with lab[target].listen(IPS[target]) as listener, lab[source].connect(*listener.getsockname()) as near:
        far, _ = listener.accept()

        def receive() -> None:
            buffer = memoryview(bytearray(piece))
            while count := far.recv_into(buffer):
                received.update(buffer[:count])

        thread = threading.Thread(target=receive)
        thread.start()
        for number in range(size // piece):
            start = number * 4099 % piece  # no two pieces alike: an exchanged or doubled one shows
            near.sendall(twice[start : start + piece])
            sent.update(twice[start : start + piece])
        near.shutdown(socket.SHUT_WR)
        thread.join()
        far.close()
    return sent.hexdigest(), received.hexdigest()


@contextmanager
def udp_pair(lab: Lab, source: str, target: str) -> Iterator[tuple[socket.socket, socket.socket]]:
    """A connected UDP socket at `source` and the bound one at `target` that it sends to."""
    dgram = socket.SOCK_DGRAM
    with lab[source].new_socket(kind=dgram) as near, lab[target].new_socket(kind=dgram) as far:
        far.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 22)
        far.bind((IPS[target], 0))
        near.connect(far.getsockname())
        yield near, far
