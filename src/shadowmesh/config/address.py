"""Addresses in a configuration: overlay IPs, prefixes, host:port, relay URLs, by the rules of values.py."""

from __future__ import annotations

import re
from ipaddress import (
    IPv4Address,
    IPv4Interface,
    IPv4Network,
    IPv6Address,
    IPv6Interface,
    IPv6Network,
    ip_address,
    ip_interface,
    ip_network,
)
from typing import NamedTuple

from shadowmesh.config.values import shown, text

IPAddress = IPv4Address | IPv6Address
IPInterface = IPv4Interface | IPv6Interface
IPNetwork = IPv4Network | IPv6Network

_UNUSABLE: tuple[tuple[IPNetwork, str], ...] = tuple(
    (ip_network(prefix), what)
    for prefix, what in (
        ("0.0.0.0/8", 'an unspecified ("this host") address'),
        ("127.0.0.0/8", "a loopback address"),
        ("169.254.0.0/16", "a link-local address"),
        ("224.0.0.0/4", "a multicast address"),
        ("255.255.255.255/32", "the broadcast address"),
        ("240.0.0.0/4", "a reserved address"),
        ("::/128", "the unspecified address"),
        ("::1/128", "the loopback address"),
        ("::ffff:0:0/96", "an IPv4 address written as IPv6"),
        ("fe80::/10", "a link-local address"),
        ("ff00::/8", "a multicast address"),
    )
)
_SHORTEST_PREFIX = 8  # 10.0.0.0/8 and fd00::/8 are the largest private ranges
_WEB_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class HostPort(NamedTuple):
    """Where to listen: an IP literal without brackets, or localhost, and a port."""

    host: str
    port: int


class RelayUrl(NamedTuple):
    """A relay: `host` in lower case without brackets, as join claims have it; `url` is what to dial."""

    scheme: str
    host: str
    port: int
    url: str

    @property
    def is_local(self) -> bool:
        """Whether it leads each machine to itself."""
        ip = as_ip(self.host)
        return self.host == "localhost" or (ip is not None and ip.is_loopback)


def overlap(one: IPNetwork, other: IPNetwork) -> bool:
    """Whether two prefixes share an address; those of different IP versions never do."""
    return one.version == other.version and one.overlaps(other)


def unusable(address: IPAddress | IPNetwork) -> str | None:
    """What kind of address this is if no peer can have it, e.g. "a loopback address"."""
    network = ip_network(address)
    return next((what for prefix, what in _UNUSABLE if overlap(prefix, network)), None)


def _ip(literal: str, otherwise: str) -> IPAddress:
    try:
        if "%" in literal:
            raise ValueError
        return ip_address(literal)
    except ValueError:
        raise ValueError(f"{shown(literal)} is not an IP address; {otherwise}") from None


def overlay_ip(value: object) -> IPAddress:
    """The overlay IP of one device, without a prefix length."""
    ip = _ip(text(value), "write one such as 10.10.10.7")
    if what := unusable(ip):
        raise ValueError(f"{ip} is {what}; write the overlay IP of a device, such as 10.10.10.7")
    return ip


def overlay_interface(value: object) -> IPInterface:
    """An own overlay IP with the prefix length of the network: `10.10.10.7/24`, `fd00:1::7/64`."""
    literal = text(value)
    if re.fullmatch(r"[0-9.]*[xX][0-9xX.]*(/[0-9]*)?", literal):
        example = re.sub("[xX]", "7", literal)
        raise ValueError(
            f"{shown(literal)} is the guide's placeholder; write a number for X, such as {example}"
        )
    address, slash, length = literal.partition("/")
    ip = _ip(address, "write one with its prefix length, such as 10.10.10.7/24")
    if what := unusable(ip):
        raise ValueError(f"{ip} is {what}; write one of a private range, such as 10.10.10.7/24")
    longest = ip.max_prefixlen - 1
    if not slash:
        raise ValueError(f"{ip} lacks its prefix length; write {ip}/{24 if ip.version == 4 else 64}")
    if not re.fullmatch("[0-9]{1,3}", length) or not _SHORTEST_PREFIX <= int(length) <= longest:
        raise ValueError(
            f"/{shown(length)[1:-1]} is not a prefix length for a network of several devices; "
            f"write one from {_SHORTEST_PREFIX} to {longest}"
        )
    interface = ip_interface(f"{ip}/{length}")
    network = interface.network
    if int(length) < longest and ip == network.network_address:
        raise ValueError(
            f"{literal} is the address of the network itself; write one in it, such as {network[1]}/{length}"
        )
    if int(length) < longest and ip.version == 4 and ip == network.broadcast_address:
        raise ValueError(f"{literal} is the broadcast address; write one such as {network[1]}/{length}")
    return interface


def prefix(value: object) -> IPNetwork:
    """A network in CIDR notation without host bits: `192.168.7.0/24`."""
    literal = text(value)
    address, slash, length = literal.partition("/")
    ip = _ip(address, "write a network such as 192.168.7.0/24")
    if not slash:
        raise ValueError(f"{shown(literal)} lacks a prefix length; write a network such as 192.168.7.0/24")
    if not re.fullmatch("[0-9]{1,3}", length) or int(length) > ip.max_prefixlen:
        raise ValueError(
            f"/{shown(length)[1:-1]} is not a prefix length; write one from 1 to {ip.max_prefixlen}"
        )
    network = ip_network(literal, strict=False)
    if network.prefixlen == 0:
        raise ValueError(
            "a default route is not built yet in this version; write a network such as 192.168.7.0/24"
        )
    if network.network_address != ip:
        raise ValueError(f"{literal} has bits set behind its prefix; write {network}")
    if what := unusable(network):
        raise ValueError(f"{literal} holds {what}; write a network such as 192.168.7.0/24")
    return network


def bind_ip(value: object) -> str:
    """An IP address of this machine to listen on; without brackets."""
    literal, otherwise = text(value), "write one of this machine, such as 127.0.0.1"
    ip = _ip(literal.removeprefix("[").removesuffix("]"), otherwise)
    if ip.is_multicast or (ip.version == 6 and ip.is_link_local):
        raise ValueError(f"{ip} is a {'multicast' if ip.is_multicast else 'link-local'} address; {otherwise}")
    return str(ip)


def host_name(value: object) -> str:
    """A DNS name or an IP literal without brackets, in lower case."""
    name = text(value).lower()
    if ":" in name:
        return str(
            _ip(name.removeprefix("[").removesuffix("]"), "write a host name, or an address such as fd00::1")
        )
    if not name.isascii():
        raise ValueError(f"{shown(name)} is not ASCII; write the xn-- form of the name")
    labels = name.split(".")
    if labels[-1].isdigit():
        return str(_ip(name, "write all four numbers, such as 203.0.113.9"))
    if len(name) > 253 or not all(re.fullmatch(r"[a-z0-9_]([a-z0-9_-]{0,61}[a-z0-9_])?", x) for x in labels):
        raise ValueError(f"{shown(name)} is not a host name; write one such as relay.example.com")
    return name


def split_authority(authority: str, example: str) -> tuple[str, int | None]:
    """`host`, `host:port` or `[IPv6]:port` taken apart."""
    host, colon, port = authority.rpartition(":")
    if not colon or authority.endswith("]"):
        host, colon, port = authority, "", ""
    if host.startswith("[") != host.endswith("]") or (":" in host and not host.startswith("[")):
        raise ValueError(
            f"{shown(authority)} is no host and port; an IPv6 address needs brackets: [fd00::1]:9545"
        )
    if not host or host == "[]":
        raise ValueError(f"has no host; write one, such as {example}")
    if colon and not (re.fullmatch("[0-9]{1,5}", port) and 1 <= int(port) <= 65535):
        raise ValueError(f"{shown(port)} is not a port; write a number from 1 to 65535")
    if host.startswith("["):
        host = str(_ip(host[1:-1], "only an IPv6 address stands in brackets"))
    return host, int(port) if colon else None


def normal_origin(origin: str) -> str:
    """An origin (RFC 6454) in the one form to compare: lower case, IPv6 shortest, no default port.

    Raises ValueError for everything else, `null` among it.
    """
    scheme, separator, authority = origin.lower().partition("://")
    if not separator or not re.fullmatch("[a-z][a-z0-9+.-]*", scheme):
        raise ValueError(f"{shown(origin)} is not an origin; write one such as https://app.example.com")
    host, port = split_authority(authority, "https://app.example.com")
    if scheme in _WEB_PORTS:
        host = host_name(host)
    elif not re.fullmatch("[a-z0-9._-]+", host):  # an extension's or a program's own: any opaque name
        raise ValueError(f"{shown(host)} is not the host of an origin")
    where = f"[{host}]" if ":" in host else host
    return f"{scheme}://{where}" + ("" if port in (None, _WEB_PORTS.get(scheme)) else f":{port}")


def trusted_proxy(value: object) -> IPNetwork:
    """One proxy or a network of them: `127.0.0.1`, `10.0.0.0/24`, `fd00::/64`."""
    literal = text(value)
    address, slash, length = literal.partition("/")
    ip = _ip(address, "write that of a proxy, such as 127.0.0.1 or 10.0.0.0/24")
    if slash and not (re.fullmatch("[0-9]{1,3}", length) and int(length) <= ip.max_prefixlen):
        raise ValueError(f"/{shown(length)[1:-1]} is not a prefix length; write one up to {ip.max_prefixlen}")
    network = ip_network(literal, strict=False)
    if network.prefixlen < _SHORTEST_PREFIX:
        raise ValueError(
            f"{literal} trusts so many addresses that others could choose the one they are counted by; "
            "write those of your proxies"
        )
    if network.network_address != ip:
        raise ValueError(f"{literal} has bits set behind its prefix; write {network}, or {ip} alone")
    if isinstance(ip, IPv6Address) and (ipv4 := ip.ipv4_mapped):
        raise ValueError(f"{literal} is an IPv4 address written as IPv6; write {ipv4}")
    if ip.is_unspecified or ip.is_multicast:
        raise ValueError(f"{literal} is no address that a proxy can have; write one such as 127.0.0.1")
    return network


def host_port(value: object) -> HostPort:
    """`127.0.0.1:9090`, `[::1]:9090` or `localhost:9090`."""
    example = "127.0.0.1:9090"
    host, port = split_authority(text(value), example)
    if port is None:
        raise ValueError(f"{shown(host)} has no port; write one behind it, such as {example}")
    if host.lower() == "localhost":
        return HostPort("localhost", port)
    return HostPort(str(_ip(host, f"write one of this machine with a port, such as {example}")), port)


def relay_url(value: object) -> RelayUrl:
    """A relay's ws:// or wss:// URL; `/relay` is appended unless it ends so (protocol, section 3)."""
    literal = text(value)
    example = "ws://203.0.113.9:9545 or wss://relay.example.com/relay"
    if "YOUR_" in literal:
        raise ValueError(f"holds the guide's placeholder; write the address of your relay, such as {example}")
    scheme, separator, rest = literal.partition("://")
    scheme = scheme.lower()
    if separator and scheme in ("http", "https"):
        raise ValueError(
            f"a relay is not reached by {scheme}://; write {scheme.replace('http', 'ws')}:// instead"
        )
    if not separator or scheme not in ("ws", "wss"):
        raise ValueError(f"does not begin with ws:// or wss://; write a URL such as {example}")
    authority, _, path = rest.partition("/")
    if "@" in authority:
        raise ValueError("holds a user name or password, which a relay does not take; remove all up to the @")
    if "?" in rest or "#" in rest:
        raise ValueError("holds a ? or #, which a relay URL has not; remove it and what follows")
    if not re.fullmatch(r"[A-Za-z0-9._~!$&'()*+,;=:@%/-]*", path):
        raise ValueError(f"{shown('/' + path)} is not the path of a URL; write one such as /relay")
    host, port = split_authority(authority, example)
    host = host_name(host)
    if (ip := as_ip(host)) is not None and (ip.is_multicast or ip.is_unspecified):
        raise ValueError(f"{host} is not the address of one host; write a URL such as {example}")
    default = 443 if scheme == "wss" else 80
    path = "/" + path.rstrip("/")
    if not path.endswith("/relay"):
        path = path.rstrip("/") + "/relay"
    where = f"[{host}]" if ":" in host else host
    if port is not None:
        where += f":{port}"
    return RelayUrl(scheme, host, port or default, f"{scheme}://{where}{path}")


def as_ip(host: str) -> IPAddress | None:
    """The address when `host` is an IP literal."""
    try:
        return ip_address(host)
    except ValueError:
        return None
