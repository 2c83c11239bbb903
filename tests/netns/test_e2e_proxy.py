"""Clients that reach the relay through a proxy only, and a device that others lay hands on."""

from __future__ import annotations

import secrets
import shutil
import signal
from collections.abc import Iterator

import pytest

from shadowmesh.testing import guide
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.program import Program

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(
        not (shutil.which("tinyproxy") and shutil.which("microsocks")),
        reason="tinyproxy and microsocks are not installed: scripts/setup test",
    ),
]

KEY = secrets.token_hex(32)
A, B, A6, B6 = "10.10.10.1", "10.10.10.2", "fd00::1", "fd00::2"
HTTP_PORT, SOCKS_PORT = 3128, 1080


def start_proxies(lab: Lab) -> list[Program]:
    """Beside the relay, which listens on loopback: so nothing but these leads to it."""
    file = lab.write("tinyproxy.conf", f"Port {HTTP_PORT}\nMaxClients 20\nBasicAuth user sesame\n")
    return [
        lab.relay.start("tinyproxy", "-d", "-c", str(file)),
        lab.relay.start("microsocks", "-p", str(SOCKS_PORT), "-u", "user", "-P", "sesame"),
    ]


@pytest.fixture
def lab() -> Iterator[Lab]:
    with Lab("a", "b") as lab:
        lab.start_relay(bind_address="127.0.0.1")
        yield lab


def start_client(lab: Lab, name: str, proxy: str, *, wait: bool = True) -> Program:
    number = 1 if name == "a" else 2
    return lab.start_client(
        name,
        f"10.10.10.{number}/24",
        KEY,
        wait=wait,
        network={"local_ip": [f"10.10.10.{number}/24", f"fd00::{number}/64"]},
        relay={"server": f"ws://127.0.0.1:{guide.RELAY_PORT}", "proxy": proxy},
    )


def test_through_both_kinds_and_their_restart(lab: Lab) -> None:
    proxies = start_proxies(lab)
    start_client(lab, "a", f"http://user:sesame@{RELAY_IP4}:{HTTP_PORT}")
    start_client(lab, "b", f"socks5://user:sesame@{RELAY_IP4}:{SOCKS_PORT}")
    lab["a"].wait_for_ping(B)
    lab["b"].wait_for_ping(A6)
    for proxy in proxies:
        proxy.signal(signal.SIGKILL)
        proxy.wait()
    lab.client_programs["a"].wait_for(
        lambda: "refuses connections: is it running" in str(lab.status("a")), "words about the proxy"
    )
    start_proxies(lab)
    lab.wait_connected("a")
    lab.wait_connected("b")
    lab["a"].wait_for_ping(B)


def test_a_proxy_that_refuses_is_named_without_the_password(lab: Lab) -> None:
    start_proxies(lab)
    program = start_client(lab, "a", f"http://user:wrong-word@{RELAY_IP4}:{HTTP_PORT}", wait=False)
    program.wait_for(
        lambda: "does not accept the user name and password in relay.proxy" in str(lab.status("a")),
        "words about the password",
    )
    assert f"the proxy http://{RELAY_IP4}:{HTTP_PORT} refuses" in program.text()
    assert "wrong-word" not in program.text() + str(lab.status("a"))


def test_a_device_set_down_and_up_works_again(lab: Lab) -> None:
    start_proxies(lab)
    for name in "ab":
        start_client(lab, name, f"socks5://user:sesame@{RELAY_IP4}:{SOCKS_PORT}")
    lab["a"].wait_for_ping(B6)
    lab["a"].ip("link set shadowmesh0 down", "link set shadowmesh0 up")
    lab["a"].wait_for_ping(B6)
    lab["b"].wait_for_ping(A6)
    lab["a"].ip("address flush dev shadowmesh0")
    lab["a"].wait_for_ping(B)
    lab["a"].wait_for_ping(B6)
