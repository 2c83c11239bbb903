"""Addresses, MTU and routes of a TUN device, by rtnetlink (RFC 3549)."""

from __future__ import annotations

import errno
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from ipaddress import IPv4Interface, IPv4Network, IPv6Interface, IPv6Network, ip_interface
from pathlib import Path
from typing import Any

from shadowmesh import lean
from shadowmesh.errors import TunError

with lean.bare("pyroute2"):  # without its database and the protocols of nftables, WireGuard, WLAN, ...
    from pyroute2.iproute.linux import IPRoute
    from pyroute2.netlink.exceptions import NetlinkError

Interface = IPv4Interface | IPv6Interface
Network = IPv4Network | IPv6Network

# The kernel hands a TUN device its packets without any back pressure: this queue is where a burst waits while
# we are busy, and where the newest packets are lost when it is full. 500, the kernel's own default, lasts
# 8 ms at 600 Mbit/s of 1200-byte UDP; a longer one would hold seconds of 64 KiB packets on a slow path.
QUEUE_PACKETS = 500

IPV4_MIN_MTU = 68  # RFC 791
MAX_MTU = 65535
IPV6_MIN_MTU = 1280  # RFC 8200 section 5: below it Linux takes IPv6 off the device

_ADDR_GEN_NONE = 1
_NODAD = 0x02
_SCOPE_LINK = 253
_RTN_LOCAL = 2
_MAIN_TABLE = 254
_IFF_UP = 1


def configure(
    name: str, addresses: Sequence[Interface], mtu: int, routes: Sequence[Network]
) -> tuple[str, ...]:
    """Give the device its MTU and addresses, bring it up, add the routes. What it had before is removed.

    Returns warnings in words; raises TunError. Not inside a running event loop: pyroute2 runs its own.
    """
    if not IPV4_MIN_MTU <= mtu <= MAX_MTU:
        raise TunError(f"network.mtu is {mtu}, Linux takes {IPV4_MIN_MTU} to {MAX_MTU}")
    index = socket.if_nametoindex(name)
    if ipv6 := [wanted for wanted in (*addresses, *routes) if wanted.version == 6]:
        _check_ipv6(name, str(ipv6[0]), mtu)
    with IPRoute() as netlink:
        warnings = _overlaps(netlink, index, addresses)
        with _while(f"set up the device {name}"):
            # A persistent device may have leftovers of an earlier owner; the routes go when it goes down.
            netlink.link("set", index=index, state="down")
            netlink.flush_addr(index=index)
            if _ipv6_setting(name) is not None:
                # No link-local address: the kernel has nothing to announce to neighbours that do not exist.
                mode = {"attrs": [("IFLA_INET6_ADDR_GEN_MODE", _ADDR_GEN_NONE)]}
                netlink.link("set", index=index, IFLA_AF_SPEC={"attrs": [("AF_INET6", mode)]})
            netlink.link("set", index=index, mtu=mtu, txqlen=QUEUE_PACKETS)
            netlink.link("set", index=index, state="up")
        for address in addresses:
            _add_address(netlink, name, index, address)
        connected = {address.network for address in addresses}
        for route in routes:
            if route not in connected:
                _add_route(netlink, name, index, route)
    return warnings


def restore(
    name: str,
    addresses: Sequence[Interface],
    routes: Sequence[Network],
    added: list[Interface | Network],
) -> None:
    """Give the device back what of its addresses and routes it has lost; all else stays as it is.

    Somebody who sets it down and up takes its IPv6 addresses and all its routes along. added: gets what was
    added, also before an error; nothing is while the device is down, for that is somebody's will. Raises
    TunError. Blocks for some milliseconds, and is not for inside a running event loop: call it in a thread.
    """
    index = _index(name)
    with IPRoute() as netlink:
        with _while(f"look at the device {name}"):
            link = netlink.get_links(index)[0]
            if not link["flags"] & _IFF_UP:
                return
            there = {
                ip_interface((each.get_attr("IFA_LOCAL") or each.get_attr("IFA_ADDRESS"), each["prefixlen"]))
                for each in netlink.get_addr(index=index)
            }
        for address in addresses:
            if address not in there:
                if address.version == 6:
                    _check_ipv6(name, str(address), link.get_attr("IFLA_MTU"))
                _add_address(netlink, name, index, address)
                added.append(address)
        with _while(f"look at the routes of {name}"):
            led = {
                f"{each.get_attr('RTA_DST')}/{each['dst_len']}"
                for family in (socket.AF_INET, socket.AF_INET6)
                for each in netlink.get_routes(family=family, oif=index, table=_MAIN_TABLE)
            }
        for route in dict.fromkeys((*(address.network for address in addresses), *routes)):
            if str(route) not in led:
                _add_route(netlink, name, index, route)
                added.append(route)


def remove_routes(name: str, routes: Sequence[Network]) -> None:
    """Take routes from the device; one that it does not have is none the less gone. Raises TunError.

    Blocks like `restore`.
    """
    if not routes:
        return
    index = _index(name)
    with IPRoute() as netlink:
        for route in routes:
            with _while(f"remove the route {route} from {name}"):
                try:
                    netlink.route("del", dst=str(route), oif=index, **_scope(route))
                except NetlinkError as error:
                    if error.code != errno.ESRCH:
                        raise


def _index(name: str) -> int:
    try:
        return socket.if_nametoindex(name)
    except OSError:
        raise TunError(f"TUN device {name} is gone; was it deleted by another program?") from None


def _add_address(netlink: IPRoute, name: str, index: int, address: Interface) -> None:
    with _while(f"give the address {address} to {name}"):
        flags = _NODAD if address.version == 6 else 0
        prefix = address.network.prefixlen
        netlink.addr("add", index=index, address=str(address.ip), prefixlen=prefix, IFA_FLAGS=flags)
        if address.version == 6:
            _wait_until_local(netlink, address)


def _add_route(netlink: IPRoute, name: str, index: int, route: Network) -> None:
    with _while(f"add the route {route} to {name}"):
        netlink.route("add", dst=str(route), oif=index, **_scope(route))


def _scope(route: Network) -> dict[str, int]:
    return {"scope": _SCOPE_LINK} if route.version == 4 else {}


def _wait_until_local(netlink: IPRoute, address: Interface) -> None:
    """Linux takes packets to a new IPv6 address only some milliseconds later, when a work queue has run."""
    deadline = time.monotonic() + 1
    while netlink.route("get", dst=str(address.ip))[0]["type"] != _RTN_LOCAL and time.monotonic() < deadline:
        time.sleep(0.001)


def _check_ipv6(name: str, wanted: str, mtu: int) -> None:
    if mtu < IPV6_MIN_MTU:
        raise TunError(f"{wanted} is IPv6, which needs network.mtu {IPV6_MIN_MTU} or more, it is {mtu}")
    setting = _ipv6_setting(name)
    if setting != "0":
        how = (
            "the kernel runs without it (boot option ipv6.disable=1)"
            if setting is None
            else "set it on with: sysctl -w net.ipv6.conf.all.disable_ipv6=0 "
            "net.ipv6.conf.default.disable_ipv6=0"
        )
        raise TunError(
            f"IPv6 is switched off on this host, so {name} cannot have {wanted}: {how}; "
            "or remove it from the configuration"
        )


def _ipv6_setting(name: str) -> str | None:
    """The sysctl disable_ipv6 of the device; None without any IPv6."""
    try:
        return Path(f"/proc/sys/net/ipv6/conf/{name}/disable_ipv6").read_text().strip()
    except FileNotFoundError:
        return None


def _overlaps(netlink: IPRoute, index: int, addresses: Sequence[Interface]) -> tuple[str, ...]:
    """Refuse an address that another interface has; a warning for each network that overlaps with one's."""
    warnings = []
    for message in netlink.get_addr():
        if message["index"] == index:
            continue
        text = message.get_attr("IFA_LOCAL") or message.get_attr("IFA_ADDRESS")
        other = ip_interface((text, message["prefixlen"]))
        for address in addresses:
            if address.version != other.version or not address.network.overlaps(other.network):
                continue
            interface = _interface_name(message["index"])
            if address.ip == other.ip:
                raise TunError(
                    f"address {address.ip} is in use on interface {interface} already: "
                    "choose another one as network.local_ip"
                )
            warnings.append(
                f"network {address.network} overlaps with {other.network} on interface {interface}: "
                "hosts in both can be reached over one of them only; choose another range for the overlay"
            )
    return tuple(warnings)


def _interface_name(index: int) -> str:
    try:
        return socket.if_indextoname(index)
    except OSError:
        return f"number {index}"


@contextmanager
def _while(doing: str) -> Iterator[None]:
    try:
        yield
    except NetlinkError as error:
        raise TunError(f"cannot {doing}: {_reason(error)}") from error


def _reason(error: Any) -> str:
    if error.code == errno.EPERM:
        return "Permission denied: run with sudo, or give the program the capability CAP_NET_ADMIN"
    if error.code == errno.EEXIST:
        return "there is one already (see: ip route; ip address)"
    return os.strerror(error.code)
