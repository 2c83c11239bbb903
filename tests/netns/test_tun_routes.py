"""Addresses and routes of a TUN device that runs: lost and given back, replaced, refused by the kernel."""

from __future__ import annotations

import contextlib
import errno
import subprocess
from collections.abc import Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest
from pyroute2 import IPRoute, NetlinkError

from shadowmesh.errors import TunError
from shadowmesh.testing.namespace import own_namespace
from shadowmesh.testing.packets import udp_packet
from shadowmesh.tun import netlink
from shadowmesh.tun.linux import open_tun

pytestmark = pytest.mark.netns

OWN = [ip_interface("10.10.10.1/24"), ip_interface("fd00::1/64")]


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_repair_gives_back_what_was_lost() -> None:
    """While packets flow: what is there stays as it is."""
    routes = [ip_network("192.168.7.0/24"), ip_network("fd01::/48"), ip_network("10.10.10.0/24")]
    with contextlib.closing(open_tun("mesh0", OWN, 1400, routes)) as device:
        assert device.repair() == ()
        before = run("ip", "-o", "address", "show", "mesh0"), run("ip", "route"), run("ip", "-6", "route")
        run("ip", "link", "set", "mesh0", "down")
        assert device.repair() == ()  # somebody wants it down
        run("ip", "link", "set", "mesh0", "up")
        assert "fd00::1" not in run("ip", "address")
        assert device.repair() == ("fd00::1/64", "192.168.7.0/24", "fd01::/48")
        after = run("ip", "-o", "address", "show", "mesh0"), run("ip", "route"), run("ip", "-6", "route")
        assert [sorted(text.split()) for text in after] == [sorted(text.split()) for text in before]
        packet = udp_packet("fd00::2", "fd00::1", bytes(40))
        assert device.write_packet(packet)

        run("ip", "route", "delete", "192.168.7.0/24")
        run("ip", "route", "add", "192.168.7.0/24", "dev", "lo")
        with pytest.raises(TunError, match=r"cannot add the route 192\.168\.7\.0/24 to mesh0: there is one"):
            device.repair()
        Path("/proc/sys/net/ipv6/conf/mesh0/disable_ipv6").write_text("1")
        with pytest.raises(TunError, match="IPv6 is switched off on this host"):
            device.repair()
        run("ip", "link", "delete", "mesh0")
        with pytest.raises(TunError, match="mesh0 is gone"):
            device.repair()


def test_routes_are_replaced_while_packets_flow() -> None:
    old, kept, new = (ip_network(text) for text in ("192.168.7.0/24", "fd01::/48", "192.168.8.0/24"))

    def led() -> set[str]:
        shown = run("ip", "route", "show", "dev", "mesh0") + run("ip", "-6", "route", "show", "dev", "mesh0")
        return {line.split()[0] for line in shown.splitlines()} & {str(old), str(kept), str(new)}

    with contextlib.closing(open_tun("mesh0", OWN, 1400, [old, kept])) as device:
        device.set_routes([kept, new])
        assert led() == {str(kept), str(new)}
        device.set_routes([old])
        assert led() == {str(old)}
        run("ip", "route", "delete", str(old))
        device.set_routes([])
        assert (led(), device.repair()) == (set(), ())

        device.set_routes([old])
        run("ip", "route", "add", str(new), "dev", "lo")
        with pytest.raises(TunError, match=r"cannot add the route 192\.168\.8\.0/24 to mesh0: there is one"):
            device.set_routes([kept, new])
        assert (led(), device.repair()) == ({str(old)}, ())
        assert str(new) in run("ip", "route", "show", "dev", "lo")

        run("ip", "link", "set", "mesh0", "down")
        device.set_routes([kept])  # somebody wants it down: the route comes when it is up again
        run("ip", "link", "set", "mesh0", "up")
        device.repair()
        assert led() == {str(kept)}
        run("ip", "link", "delete", "mesh0")
        with pytest.raises(TunError, match="mesh0 is gone"):
            device.set_routes([new])


def test_routes_that_are_refused_leave_the_operators_own_in_place() -> None:
    own, taken, old = (ip_network(f"192.168.{n}.0/24") for n in (7, 8, 9))
    with contextlib.closing(open_tun("mesh0", OWN, 1400, [old])) as device:
        run("ip", "route", "add", str(own), "dev", "mesh0")
        run("ip", "route", "add", str(taken), "dev", "lo")
        before = run("ip", "route")
        with pytest.raises(TunError, match="there is one"):
            device.set_routes([own, ip_network("192.168.6.0/24"), taken])
        assert (run("ip", "route"), device.repair()) == (before, ())


@pytest.mark.parametrize("network", ["192.168.7.0/24", "fd01::/48"])
def test_a_route_of_another_table_is_none(network: str) -> None:
    family = "-6" if ":" in network else "-4"
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        run("ip", family, "route", "add", network, "dev", "mesh0", "table", "100")
        device.set_routes([ip_network(network)])
        assert run("ip", family, "route", "show", network).startswith(f"{network} dev mesh0")
        run("ip", family, "route", "delete", network)
        assert device.repair() == (network,)
        device.set_routes([])
        assert network not in run("ip", family, "route")
        assert network in run("ip", family, "route", "show", "table", "100")


def test_routes_of_which_one_cannot_be_removed_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    gone, stays, new = (ip_network(f"192.168.{n}.0/24") for n in (7, 8, 9))

    class Refusing(IPRoute):  # type: ignore[misc]
        def route(self, command: str, **what: Any) -> Any:
            if (command, what.get("dst")) == ("del", str(stays)):
                raise NetlinkError(errno.ENOBUFS)
            return self.__getattr__("route")(command, **what)

    with contextlib.closing(open_tun("mesh0", OWN, 1400, [gone, stays])) as device:
        before = run("ip", "route")
        monkeypatch.setattr(netlink, "IPRoute", Refusing)
        words = r"cannot remove the route 192\.168\.8\.0/24 from mesh0: No buffer space"
        with pytest.raises(TunError, match=words):
            device.set_routes([new])
        assert (run("ip", "route"), device.repair()) == (before, ())
        monkeypatch.undo()
        device.set_routes([new])
        assert str(new) in run("ip", "route")
        assert str(stays) not in run("ip", "route")
