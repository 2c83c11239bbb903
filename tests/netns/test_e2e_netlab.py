"""The laboratory itself: what joins the hosts, what keeps them apart, and that it goes away."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.testing.netlab import RELAY_IP4, RELAY_IP6, Lab
from shadowmesh.testing.program import LabError, wait_for

pytestmark = pytest.mark.netns


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab() as lab:
        yield lab


@pytest.mark.parametrize("address", [RELAY_IP4, RELAY_IP6])
def test_clients_reach_the_relay_with_cubic_both_ways(lab: Lab, address: str) -> None:
    with lab.relay.listen(address) as listener, lab["a"].connect(address, listener.getsockname()[1]) as near:
        far, peer = listener.accept()
        with far:
            assert peer[0] == (lab["a"].ip6 if ":" in address else lab["a"].ip4)
            for end in (near, far):
                assert end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 5) == b"cubic"


def test_clients_do_not_reach_each_other(lab: Lab) -> None:
    lab.add_client("late")
    for address in (lab["b"].ip4, lab["b"].ip6, lab["late"].ip4):
        assert lab["a"].run("ping", "-n", "-c1", "-W0.2", address, check=False).returncode != 0
    lab["late"].wait_for_ping(RELAY_IP4)


def test_a_capture_has_every_packet_up_to_its_end(lab: Lab) -> None:
    marks = [secrets.token_bytes(100) for _ in range(50)]
    capture = lab.relay.capture()
    with lab["a"].new_socket(kind=socket.SOCK_DGRAM) as sender:
        for mark in marks:
            sender.sendto(mark, (RELAY_IP4, 9))
    recorded = capture.finish(RELAY_IP4)
    assert all(mark in recorded for mark in marks)


def test_a_failing_command_shows_its_output(lab: Lab) -> None:
    with pytest.raises(LabError, match=r"(?s)a: ip link show dev nothing: status 1.*does not exist"):
        lab["a"].run("ip", "link", "show", "dev", "nothing")


def test_an_exception_ends_programs_and_removes_namespaces_and_files() -> None:
    def failing(lab: Lab) -> None:
        with lab:
            lab["a"].start("sleep", "60")
            raise KeyboardInterrupt

    lab = Lab()
    with pytest.raises(KeyboardInterrupt):
        failing(lab)
    assert [program.status for program in lab.programs] == [-signal.SIGTERM]
    assert not lab.directory.exists()
    assert not [name for name in os.listdir("/run/netns") if name.startswith(lab.namespace(""))]


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP], ids=lambda number: number.name
)
def test_a_signal_ends_programs_and_removes_namespaces(number: int, tmp_path: Path) -> None:
    script = (
        "import time; from shadowmesh.testing.netlab import Lab\n"
        "with Lab() as lab:\n"
        "    print(lab.namespace(''), lab['a'].start('sleep', '60').pid, flush=True); time.sleep(60)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    with process:
        assert process.stdout is not None
        prefix, pid = process.stdout.readline().split()
        process.send_signal(number)
        assert process.wait(10) in (-signal.SIGINT, 128 + number)
    assert not [name for name in os.listdir("/run/netns") if name.startswith(prefix)]
    wait_for(lambda: not Path(f"/proc/{pid}").exists(), "end of the program")
