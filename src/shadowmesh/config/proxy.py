"""The proxy between a device and its relay: `relay.proxy`, and the same text in an environment variable."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Literal
from urllib.parse import unquote

from shadowmesh.config.address import RelayUrl, as_ip, host_name, split_authority
from shadowmesh.config.values import text
from shadowmesh.errors import StartError

ENVIRONMENT: Literal["environment"] = "environment"

_EXAMPLE = "http://proxy.example.com:3128 or socks5://127.0.0.1:1080"
_PORTS = {"http": 80, "socks5": 1080}
_CURL_PORT = 1080  # in the environment's variables, for either
_MOST_SOCKS5_BYTES = 255  # of a user name or password (RFC 1929)
# curl takes HTTP_PROXY in lower case only, for a web server's programs get a client's header "Proxy" so.
_VARIABLES = {
    "ws": ("http_proxy", "all_proxy", "ALL_PROXY"),
    "wss": ("https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"),
}


class ProxyUrl:
    """A proxy and what it asks for. scheme: "http" (CONNECT) or "socks5"; host without brackets.

    source: where it is written, for messages. Neither `repr` nor `str` shows the user or the password.
    """

    __slots__ = ("_password", "_user", "host", "port", "scheme", "source")

    def __init__(
        self,
        scheme: str,
        host: str,
        port: int,
        user: str = "",
        password: str = "",
        source: str = "relay.proxy",
    ) -> None:
        self.scheme = scheme
        self.host = host
        self.port = port
        self.source = source
        self._user = user
        self._password = password

    @property
    def has_credentials(self) -> bool:
        """Whether there is a user or a password to show."""
        return bool(self._user or self._password)

    def reveal(self) -> tuple[str, str]:
        """User and password, without percent encoding."""
        return self._user, self._password

    def __str__(self) -> str:
        where = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{'(hidden)@' if self.has_credentials else ''}{where}:{self.port}"

    def __repr__(self) -> str:
        return f"ProxyUrl({self})"

    def _all(self) -> tuple[str, str, int, str, str]:
        return self.scheme, self.host, self.port, self._user, self._password

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ProxyUrl) and self._all() == other._all()

    def __hash__(self) -> int:
        return hash(self._all())


def proxy_url(value: object, source: str = "relay.proxy", default_port: int | None = None) -> ProxyUrl:
    """`http://[USER:PASSWORD@]HOST[:PORT]` or `socks5://...`, for which `socks5h://` is another name.

    Raises ValueError, without the password in it.
    """
    literal = text(value)
    scheme, separator, rest = literal.partition("://")
    scheme = "socks5" if scheme.lower() == "socks5h" else scheme.lower()
    if not separator or scheme not in _PORTS:
        raise ValueError(f"does not begin with http:// or socks5://; write one such as {_EXAMPLE}")
    credentials, at, authority = rest.rpartition("@")
    authority = authority.removesuffix("/")
    if set(authority) & set("/?#"):
        raise ValueError(
            f"has something behind its port; write one such as {_EXAMPLE}, "
            "and in a user name or password %2F for /, %3F for ? and %23 for #"
        )
    user, _, password = credentials.partition(":")
    if at and not user:
        raise ValueError("has an @ without a user name before it; remove it, or write USER:PASSWORD@")
    for part in (user, password):
        if re.search(r"%(?![0-9a-fA-F]{2})", part):
            raise ValueError(
                "has a % in its user name or password that is no percent encoding; write it as %25"
            )
    try:
        host, port = split_authority(authority, _EXAMPLE)
        host = host_name(host)
    except ValueError:  # its words would show what may be a password at the wrong place
        raise ValueError(
            f"has no valid host and port behind {scheme}://; write one such as {_EXAMPLE}"
        ) from None
    user, password = unquote(user), unquote(password)
    if scheme == "socks5" and max(len(user.encode()), len(password.encode())) > _MOST_SOCKS5_BYTES:
        raise ValueError(f"has a user name or password of more than {_MOST_SOCKS5_BYTES} bytes")
    return ProxyUrl(scheme, host, port or default_port or _PORTS[scheme], user, password, source)


def relay_proxy(value: object) -> ProxyUrl | Literal["environment"] | None:
    """A proxy, None for `none`, and "environment" for the empty text: ask the environment's variables."""
    if isinstance(value, ProxyUrl):
        return value
    word = text(value)
    if word in ("", ENVIRONMENT):
        return ENVIRONMENT
    return None if word.lower() == "none" else proxy_url(word)


def proxy_to(
    relay: RelayUrl,
    setting: ProxyUrl | Literal["environment"] | None,
    environment: Mapping[str, str] = os.environ,
) -> ProxyUrl | None:
    """The proxy to dial this relay through, or None; "environment" looks into its variables as curl does.

    wss: https_proxy, HTTPS_PROXY; ws: http_proxy; both: then all_proxy, ALL_PROXY; not for a host that
    no_proxy, NO_PROXY names. Raises StartError for a variable that is malformed, without a password in it.
    """
    if setting != ENVIRONMENT:
        return setting if isinstance(setting, ProxyUrl) else None
    source = next((name for name in _VARIABLES[relay.scheme] if environment.get(name)), None)
    if source is None or _is_exempt(
        relay.host, environment.get("no_proxy") or environment.get("NO_PROXY", "")
    ):
        return None
    value = environment[source]
    try:
        return proxy_url(value if "://" in value else f"http://{value}", source, _CURL_PORT)
    except ValueError as error:
        raise StartError(
            f"the environment variable {source} {error}; or write relay.proxy: none to use no proxy"
        ) from None


def _is_exempt(host: str, exempt: str) -> bool:
    """Whether a list of NO_PROXY has this host: `*` alone, names with all below them, IPs, networks."""
    if exempt.strip() == "*":
        return True
    ip = as_ip(host)
    host = host.rstrip(".")
    for entry in re.split(r"[\s,]+", exempt.lower()):
        if ip is not None:
            try:
                if ip in ip_network(entry.strip("[]"), strict=False):
                    return True
            except ValueError:
                pass  # a name, which no IP has
        elif (name := entry.strip(".")) and (host == name or host.endswith(f".{name}")):
            return True
    return False
