"""What can break in a lab, each as a context manager: broken within, mended at its end.

with no_carrier(lab, "a"), black_hole(lab, relay_port):
    time.sleep(5.0)
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

from shadowmesh.testing.netlab import Host, Lab
from shadowmesh.testing.program import Program


@contextmanager
def no_carrier(lab: Lab, name: str) -> Iterator[None]:
    """The cable of a client is out."""
    port = f"to-{name}"
    routes = lab.relay.run("ip", "-4", "route", "show", "dev", port).stdout.splitlines()
    lab.relay.ip(f"link set {port} down")
    try:
        yield
    finally:
        lab.relay.ip(
            f"link set {port} up", *(f"route replace {route.strip()} dev {port}" for route in routes)
        )


@contextmanager
def stopped(program: Program) -> Iterator[None]:
    """A program does not run, as when its host sleeps."""
    program.signal(signal.SIGSTOP)
    try:
        yield
    finally:
        program.signal(signal.SIGCONT)


@contextmanager
def ended(program: Program, again: Callable[[], object], *, kill: bool) -> Iterator[None]:
    """A program is gone, by SIGKILL or in order, and another one is started in the end."""
    if kill:
        program.kill()
    else:
        program.stop(15.0)
    try:
        yield
    finally:
        again()


@contextmanager
def dropped(host: Host, *rules: tuple[str, ...]) -> Iterator[None]:
    """A host's kernel drops what these rules of iptables say, each with its chain in front."""
    for chain, *rule in rules:
        host.run("iptables", "-w", "-I", chain, *rule, "-j", "DROP")
    try:
        yield
    finally:
        for chain, *rule in rules:
            host.run("iptables", "-w", "-D", chain, *rule, "-j", "DROP")


def black_hole(lab: Lab, port: int) -> AbstractContextManager[None]:
    """Nothing gets to or from the relay at this port, and nothing says so."""
    tcp = ("-p", "tcp")
    return dropped(lab.relay, ("INPUT", *tcp, "--dport", str(port)), ("OUTPUT", *tcp, "--sport", str(port)))


def renumber(lab: Lab, name: str, net: str) -> None:
    """A client gets the address 2 of `net`, three numbers of a /30, and loses the one that it had."""
    host = lab[name]
    (old,) = re.findall(r"inet (\S+)", host.run("ip", "-4", "-o", "addr", "show", "dev", "eth0").stdout)
    lab.relay.ip(f"addr replace {net}.1/30 dev to-{name}")
    host.ip(
        f"addr add {net}.2/30 dev eth0",
        f"addr del {old} dev eth0",
        f"route replace 203.0.113.0/24 via {net}.1",
    )
