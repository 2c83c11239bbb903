"""Where a request comes from: through which proxy, from which address, from a page of which origin. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Mapping

from shadowmesh.config.address import IPNetwork, normal_origin


def source_of(ip: str) -> str:
    """What counts as one source: an IPv4 address, or the /64 of an IPv6 one (commonly one host)."""
    address = ipaddress.ip_address(ip)
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((int(address) >> 64 << 64, 64)))
    return str(address)


def crowd_of(source: str) -> str:
    """Who may be behind several sources: those of one /48 (commonly one customer) are one."""
    if ":" not in source:
        return source
    address = ipaddress.IPv6Address(source.partition("/")[0])
    return str(ipaddress.IPv6Network((int(address) >> 80 << 80, 48)))


def values(headers: Mapping[str, str], name: str) -> list[str]:
    """All values of an HTTP header, whose `name` is given in lower case."""
    return [value for key, value in headers.items() if key.lower() == name]


def origin_allowed(headers: Mapping[str, str], allowed: Collection[str]) -> bool:
    """Whether a request may come from where it says: browsers send an Origin, others need none.

    allowed: origins in their normal form, or "*".
    """
    return "*" in allowed or all(_normal(each) in allowed for each in values(headers, "origin"))


def _normal(origin: str) -> str | None:
    try:
        return normal_origin(origin.strip())
    except ValueError:
        return None


class Proxies:
    """The reverse proxies whose word is taken for where a client is."""

    def __init__(self, networks: Iterable[IPNetwork] = ()) -> None:
        self._networks = tuple(networks)

    def trusts(self, ip: str) -> bool:
        """Whether this address is that of a trusted proxy."""
        if not self._networks:
            return False
        address = ipaddress.ip_address(ip.partition("%")[0])
        return any(address in network for network in self._networks)

    def may_hide_many(self, ip: str) -> bool:
        """Whether this may be the address of many: this host's own, unless it is that of a trusted proxy.

        One that runs here and is not in `trusted_proxies` has all its clients come from there.
        """
        return ipaddress.ip_address(ip.partition("%")[0]).is_loopback and not self.trusts(ip)

    def client(self, remote: tuple[str, int], headers: Mapping[str, str]) -> tuple[str, int]:
        """Address and port (0: not known) of the client behind the connection from `remote`.

        That is `remote` itself unless it is a trusted proxy that names, in well-formed headers, an address
        which is not a trusted proxy's: X-Real-IP or, only where that header is missing, the last such of
        X-Forwarded-For, for everything before it may have been written by the client.
        """
        if not self.trusts(remote[0]):
            return remote
        if said := values(headers, "x-real-ip"):
            real = _address(",".join(said))
            return remote if real is None or self.trusts(real) else (real, 0)
        for each in reversed(",".join(values(headers, "x-forwarded-for")).split(",")):
            ip = _address(each)
            if ip is None:
                break
            if not self.trusts(ip):
                return ip, 0
        return remote


def _address(text: str) -> str | None:
    """The IP address written here in canonical form; some proxies write a port behind it."""
    text = text.strip()
    if text.startswith("["):
        text = text[1:].partition("]")[0]
    elif text.count(":") == 1:
        text = text.partition(":")[0]
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(address, ipaddress.IPv6Address):
        if address.scope_id:
            return None
        return str(address.ipv4_mapped or address)
    return str(address)
