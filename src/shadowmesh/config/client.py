"""The daemon's configuration: the guide's sections and keys, and optional ones of ours."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Iterable, Sequence
from ipaddress import ip_network
from typing import Annotated, Any, Literal, cast

from pydantic import (
    BeforeValidator,
    Field,
    PlainValidator,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
    model_validator,
)
from pydantic_core import InitErrorDetails, PydanticKnownError

from shadowmesh.config.address import (
    HostPort,
    IPAddress,
    IPInterface,
    IPNetwork,
    RelayUrl,
    as_ip,
    host_port,
    overlap,
    overlay_interface,
    overlay_ip,
    prefix,
    relay_url,
)
from shadowmesh.config.proxy import ENVIRONMENT, ProxyUrl, relay_proxy
from shadowmesh.config.secret import ApiKey, SecretKey, network_key, network_key_in, relay_key
from shadowmesh.config.values import (
    Model,
    Problems,
    absolute,
    choice,
    flag,
    flag_only,
    label,
    level,
    shown,
    text,
    whole,
)
from shadowmesh.config.yaml import KEY, Path

_MOST_ADDRESSES = 8  # an info record has no room for more (protocol, section 4)
_MOST_ROUTES = 64
_MOST_RELAYS = 4
_MOST_FINGERPRINTS = 2  # of one device: in the network of encryption.key and in that of next_key
_ABSENT: Any = object()  # what a validator gets where the file has no such line
_NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?")  # protocol, section 2


def _device_name(value: object) -> str:
    """As Linux has it (dev_valid_name), and without %, which the TUN driver takes for a pattern."""
    name = text(value)
    if not re.fullmatch(r"[!-~]{1,15}", name) or set(name) & set("/:%") or name in (".", ".."):
        raise ValueError(
            f"{shown(name)} is no name for a network device; write 1 to 15 ASCII characters "
            "without space, /, : and %, such as shadowmesh0"
        )
    return name


def _mode(value: object) -> str:
    mode = text(value)
    if mode.lower() != "tun":
        raise ValueError(f'{shown(mode)} is not built yet in this version; write "tun"')
    return "tun"


def _no_peer_address(value: object) -> str:
    if text(value):
        raise ValueError('a fixed peer address is not built yet in this version; write ""')
    return ""


def _one_or_list(value: object) -> object:
    values = value if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, str) and "," in value:
        several = ", ".join(shown(one.strip()) for one in value.split(",")[:_MOST_ADDRESSES])
        raise ValueError(f"several addresses are a list: [{several}]")
    if not 1 <= len(values) <= _MOST_ADDRESSES:
        raise ValueError(f"has {len(values)} addresses; write 1 to {_MOST_ADDRESSES}")
    return values


def _trusted(value: object) -> dict[IPAddress, str]:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise ValueError("must be a section with lines such as 10.10.10.7: its fingerprint")
    trusted: dict[IPAddress, str] = {}
    problems: list[tuple[Path, str]] = []
    for name, entry in value.items():
        path = ("peers", "trusted", name)
        try:
            ip = overlay_ip(name)
            if ip in trusted:
                raise ValueError(f"{ip} is given twice; keep one of them")
            trusted[ip] = ""
        except ValueError as error:
            problems.append(((*path, KEY), str(error)))
            continue
        try:
            trusted[ip] = _fingerprint(entry)
        except ValueError as error:
            problems.append((path, str(error)))
    _refuse(problems)
    return trusted


def _fingerprint(value: object) -> str:
    """One fingerprint, or two with a space between: those of a device in two networks."""
    several = value if isinstance(value, (list, tuple)) else text(value).split(" ")
    if not 1 <= len(several) <= _MOST_FINGERPRINTS:
        raise ValueError(
            f"has {len(several)} fingerprints; write one, or two while the network key is replaced"
        )
    found = [text(one).lower() for one in several]
    for fingerprint in found:
        if not re.fullmatch("[a-z2-7]{32}", fingerprint):
            raise ValueError(
                f"{shown(fingerprint)} is no fingerprint; write its 32 letters and digits (a-z, 2-7)"
            )
    return " ".join(found)


class DaemonConfig(Model):
    """`daemon:` the process itself."""

    listen_address: Annotated[HostPort, PlainValidator(host_port)] = HostPort("127.0.0.1", 9090)
    log_level: Annotated[str, PlainValidator(level)] = "info"
    state_directory: Annotated[str, PlainValidator(absolute("/var/lib/shadowmesh"))] = "/var/lib/shadowmesh"
    token_file: Annotated[str, PlainValidator(absolute("/run/shadowmesh/api.token"))] = (
        "/run/shadowmesh/api.token"
    )


class Route(Model):
    """A prefix `to` behind the peer that has the overlay IP `via`."""

    to: Annotated[IPNetwork, PlainValidator(prefix)] = Field(examples=["192.168.7.0/24"])
    via: Annotated[IPAddress, PlainValidator(overlay_ip)] = Field(examples=["10.10.10.7"])

    @model_validator(mode="before")
    @classmethod
    def _is_section(cls, value: object) -> object:
        if isinstance(value, str):
            raise ValueError(f"lacks its peer; write {{to: {shown(value)[1:-1]}, via: IP of a peer}}")
        return value


class NetworkConfig(Model):
    """`network:` the TUN device, its addresses (at least one) and routes."""

    mode: Annotated[str, PlainValidator(_mode)] = "tun"
    device_name: Annotated[str, PlainValidator(_device_name)] = "shadowmesh0"
    local_ip: Annotated[
        tuple[Annotated[IPInterface, PlainValidator(overlay_interface)], ...], BeforeValidator(_one_or_list)
    ] = Field(examples=["10.10.10.7/24"])
    mtu: Annotated[int, PlainValidator(whole(1280, 9000))] = 1400
    routes: tuple[Route, ...] = Field(default=(), max_length=_MOST_ROUTES)
    advertise: tuple[Annotated[IPNetwork, PlainValidator(prefix)], ...] = Field(
        default=(), max_length=_MOST_ROUTES
    )

    @field_validator("local_ip", mode="after")
    @classmethod
    def _addresses_differ(cls, own: tuple[IPInterface, ...]) -> tuple[IPInterface, ...]:
        ips = [interface.ip for interface in own]
        _refuse(
            (("network", "local_ip", i), f"{ip} is given twice; keep one of them")
            for i, ip in enumerate(ips)
            if ip in ips[:i]
        )
        return own

    @field_validator("routes", mode="wrap")
    @classmethod
    def _routes_fit(
        cls, value: object, parse: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> tuple[Route, ...]:
        own: tuple[IPInterface, ...] = info.data.get("local_ip", ())
        try:
            routes: tuple[Route, ...] = parse(value)
        except ValidationError as error:
            # A mistake in one value does not hide that another does not fit.
            unfit = InitErrorDetails(
                type="value_error",
                input=None,
                ctx={"error": Problems(_unfit_vias(_readable_vias(value), own))},
            )
            known = cast(list[InitErrorDetails], error.errors(include_url=False))
            raise ValidationError.from_exception_data(error.title, [*known, unfit]) from None
        _refuse(
            _unfit([route.to for route in routes], own, "routes", "to")
            + _unfit_vias([route.via for route in routes], own)
        )
        return routes

    @field_validator("advertise", mode="after")
    @classmethod
    def _offers_fit(cls, offers: tuple[IPNetwork, ...], info: ValidationInfo) -> tuple[IPNetwork, ...]:
        found = _unfit(list(offers), info.data.get("local_ip", ()), "advertise")
        for i, offer in enumerate(offers):
            if any(offer == route.to for route in info.data.get("routes", ())):
                found.append(
                    (
                        ("network", "advertise", i),
                        f"{offer} is also in network.routes; keep it in one of them",
                    )
                )
        _refuse(found)
        return offers


def _unfit(prefixes: list[IPNetwork], own: tuple[IPInterface, ...], *key: str) -> list[tuple[Path, str]]:
    """Prefixes given twice, and those that reach into the overlay network itself."""
    found: list[tuple[Path, str]] = []
    for i, one in enumerate(prefixes):
        at: Path = ("network", key[0], i, *key[1:])
        if one in prefixes[:i]:
            found.append((at, f"{one} is given twice; keep one of them"))
        for interface in own:
            if overlap(one, interface.network):
                found.append(
                    (at, f"{one} overlaps the overlay network {interface.network}; write one outside of it")
                )
                break
    return found


def _readable_vias(value: object) -> list[IPAddress | None]:
    """The peer of each entry of `routes` as far as it can be read."""
    vias: list[IPAddress | None] = []
    for entry in value if isinstance(value, (list, tuple)) else ():
        try:
            vias.append(overlay_ip(entry["via"]))
        except (KeyError, TypeError, ValueError):
            vias.append(None)
    return vias


def _unfit_vias(vias: Sequence[IPAddress | None], own: tuple[IPInterface, ...]) -> list[tuple[Path, str]]:
    """Peers of routes that are this device itself or lie outside of the overlay network."""
    found: list[tuple[Path, str]] = []
    networks = " or ".join(str(interface.network) for interface in own)
    for i, via in enumerate(vias if own else ()):
        if via is None:
            continue
        if any(via == interface.ip for interface in own):
            words = f"{via} is this device itself; write the overlay IP of the peer before it"
        elif not any(via in interface.network for interface in own):
            words = f"{via} is outside of the overlay network; write the IP of a peer in {networks}"
        else:
            continue
        found.append((("network", "routes", i, "via"), words))
    return found


def _refuse(found: Iterable[tuple[Path, str]]) -> None:
    if problems := list(found):
        raise Problems(problems)


class EncryptionConfig(Model):
    """`encryption:` the one secret of the network, from the file itself, another file or a credential.

    next_key: the secret of the network that takes its place, while both are in use.
    """

    key_file: Annotated[str | None, PlainValidator(absolute("/etc/shadowmesh/encryption.key"))] = None
    key: SecretKey = Field(
        default=_ABSENT, validate_default=True, examples=["<what shadowmesh keygen prints>"]
    )
    next_key_file: Annotated[str | None, PlainValidator(absolute("/etc/shadowmesh/next.key"))] = None
    next_key: SecretKey | None = Field(default=_ABSENT, validate_default=True)

    @field_validator("key", mode="plain")
    @classmethod
    def _one_key(cls, value: object, info: ValidationInfo) -> SecretKey | None:
        key = _key_from("key", value, info)
        if key is None and "key_file" in info.data:
            raise PydanticKnownError("missing")
        return key

    @field_validator("next_key", mode="plain")
    @classmethod
    def _another_key(cls, value: object, info: ValidationInfo) -> SecretKey | None:
        key = _key_from("next_key", value, info)
        if key is not None and key == info.data.get("key"):
            raise ValueError("is the same as encryption.key; make another one with: shadowmesh keygen")
        return key

    def cautions(self) -> list[tuple[Path, str]]:
        """Key files that others can read."""
        found: list[tuple[Path, str]] = []
        for name, path in (("key_file", self.key_file), ("next_key_file", self.next_key_file)):
            if path is not None and (mode := others_may_read(path)):
                words = (
                    f"others may read {path} (mode {mode:04o}); mend it with: chmod 600 {shlex.quote(path)}"
                )
                found.append((("encryption", name), words))
        return found


def _key_from(name: str, value: object, info: ValidationInfo) -> SecretKey | None:
    """The key of this name: written in place, in the file that `NAME_file` says, or a systemd credential."""
    if f"{name}_file" not in info.data:
        return None  # it has a mistake of its own
    path: str | None = info.data[f"{name}_file"]
    at: Path = ("encryption", f"{name}_file")
    if value is not _ABSENT:
        key = network_key(value)
        if path is not None:
            _refuse([(at, f"stands beside encryption.{name}; keep one of them")])
        return key
    # A file of root's alone is shown to the service by systemd.
    if path is None or (os.path.exists(path) and not os.access(path, os.R_OK)):
        directory = os.environ.get("CREDENTIALS_DIRECTORY", "")
        credential = os.path.join(directory, f"encryption.{name}")
        if directory and os.path.lexists(credential):
            path, at = credential, ("encryption", name)
        elif path is None:
            return None
    try:
        return network_key_in(path)
    except ValueError as error:
        raise Problems([(at, str(error))]) from None


def others_may_read(path: str) -> int:
    """The mode of a file whose group or others may read it; 0 of one that only its owner may."""
    mode = os.stat(path).st_mode if os.name == "posix" else 0
    return stat.S_IMODE(mode) if mode & (stat.S_IRGRP | stat.S_IROTH) else 0


class PeerConfig(Model):
    """`peer:` who this device is to the others."""

    address: Annotated[str, PlainValidator(_no_peer_address)] = ""
    id: Annotated[str, PlainValidator(label)] = Field(examples=["laptop"])


class NatConfig(Model):
    """`nat:` not built yet, so off."""

    enabled: Annotated[
        bool, PlainValidator(flag_only(False, "NAT traversal is not built yet in this version"))
    ] = False


def _several_relays(value: object) -> object:
    if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= _MOST_RELAYS:
        raise ValueError(f"must be a list of 1 to {_MOST_RELAYS} URLs")
    return value


class RelayLinkConfig(Model):
    """`relay:` the relays this device connects to, and the way there."""

    enabled: Annotated[
        bool, PlainValidator(flag_only(True, "a device without a relay is not built yet in this version"))
    ] = True
    servers: Annotated[
        tuple[Annotated[RelayUrl, PlainValidator(relay_url)], ...], BeforeValidator(_several_relays)
    ] = ()
    server: RelayUrl | None = Field(
        default=_ABSENT, validate_default=True, examples=["ws://203.0.113.9:9545"]
    )
    insecure_api_key: Annotated[bool, PlainValidator(flag)] = False
    api_key: Annotated[ApiKey | None, PlainValidator(relay_key)] = None
    proxy: Annotated[ProxyUrl | Literal["environment"] | None, PlainValidator(relay_proxy)] = ENVIRONMENT
    tls_ca_file: Annotated[
        str | None, PlainValidator(absolute("/usr/local/share/ca-certificates/company.crt"))
    ] = None

    @property
    def urls(self) -> tuple[RelayUrl, ...]:
        """Every relay, at least one, whichever of the two keys they stand under."""
        return self.servers if self.server is None else (self.server,)

    @field_validator("servers", mode="after")
    @classmethod
    def _servers_differ(cls, servers: tuple[RelayUrl, ...]) -> tuple[RelayUrl, ...]:
        _refuse(
            (("relay", "servers", i), f"{one.url} is given twice; keep one of them")
            for i, one in enumerate(servers)
            if one in servers[:i]
        )
        return servers

    @field_validator("server", mode="plain")
    @classmethod
    def _server_or_servers(cls, value: object, info: ValidationInfo) -> RelayUrl | None:
        servers = info.data.get("servers", True)  # True: there, with a mistake of its own
        if value is _ABSENT:
            if not servers:
                raise PydanticKnownError("missing")
            return None
        server = relay_url(value)
        if servers:
            raise ValueError("stands beside relay.servers; keep one of them")
        return server

    @field_validator("api_key", mode="after")
    @classmethod
    def _key_stays_secret(cls, key: ApiKey | None, info: ValidationInfo) -> ApiKey | None:
        """Whoever reads the key on its way to the relay could use it."""
        if key is None or info.data.get("insecure_api_key", True):  # True also where it cannot be read
            return key
        server: RelayUrl | None = info.data.get("server")
        for one in (*info.data.get("servers", ()), *([server] if server else ())):
            if one.scheme != "wss" and not one.is_local:
                where = "relay.servers" if server is None else "relay.server"
                raise ValueError(
                    f"would cross the network in clear to {one.host}; write wss:// in {where}, or, "
                    "if whoever is in between may have the key, insecure_api_key: true"
                )
        return key

    def places(self) -> list[tuple[Path, RelayUrl]]:
        """Each relay with the path of its value in the file."""
        if self.server is not None:
            return [(("relay", "server"), self.server)]
        return [(("relay", "servers", i), one) for i, one in enumerate(self.servers)]


class P2PConfig(Model):
    """`p2p:` not built yet, so off; `listener_port` counts once the listener can be on."""

    listener_enabled: Annotated[
        bool, PlainValidator(flag_only(False, "the peer-to-peer listener is not built yet in this version"))
    ] = False
    listener_port: Annotated[int, PlainValidator(whole(0, 65535))] = 0


class PeersConfig(Model):
    """`peers:` what to do when a known overlay IP comes with another key."""

    verify: Annotated[Literal["warn", "strict"], PlainValidator(choice("warn", "strict"))] = "warn"
    trusted: Annotated[dict[IPAddress, str], PlainValidator(_trusted)] = Field(default_factory=dict)


class ClientConfig(Model):
    """What a daemon runs with."""

    daemon: DaemonConfig = Field(default_factory=DaemonConfig)
    network: NetworkConfig
    encryption: EncryptionConfig
    peer: PeerConfig
    nat: NatConfig = Field(default_factory=NatConfig)
    relay: RelayLinkConfig
    p2p: P2PConfig = Field(default_factory=P2PConfig)
    peers: PeersConfig = Field(default_factory=PeersConfig)

    @field_validator("relay", mode="after")
    @classmethod
    def _relay_stays_outside(cls, relay: RelayLinkConfig, info: ValidationInfo) -> RelayLinkConfig:
        """The connection to the relay must not be routed into the tunnel that it carries."""
        network: NetworkConfig | None = info.data.get("network")
        if network is None:
            return relay
        inside = [interface.network for interface in network.local_ip] + [
            route.to for route in network.routes
        ]
        dialled: list[tuple[Path, str]] = [(path, url.host) for path, url in relay.places()]
        if isinstance(relay.proxy, ProxyUrl):
            dialled = [(("relay", "proxy"), relay.proxy.host)]
        found: list[tuple[Path, str]] = []
        for path, host in dialled:
            ip = as_ip(host)
            one = next((one for one in inside if ip is not None and overlap(one, ip_network(ip))), None)
            if one is not None:
                words = f"{ip} lies in {one}, which goes into the tunnel; write an address outside of it"
                found.append((path, words))
        _refuse(found)
        return relay

    def cautions(self) -> list[tuple[Path, str]]:
        """An example or no name as peer id, a public overlay IP, a status others can read, no port."""
        found: list[tuple[Path, str]] = []
        listen, name = self.daemon.listen_address, self.peer.id
        listen_ip = as_ip(listen.host)
        if listen_ip is not None and not listen_ip.is_loopback:
            words = f"whoever reaches {listen_ip} can read the daemon's status; 127.0.0.1 keeps it here"
            found.append((("daemon", "listen_address"), words))
        for i, interface in enumerate(self.network.local_ip):
            if interface.ip.is_global:
                words = f"{interface} belongs to the public Internet; 10.0.0.0/8 or fd00::/8 are private"
                found.append((("network", "local_ip", i), words))
        if name == "client-unique-id":
            found.append(
                (("peer", "id"), f'"{name}" is the guide\'s example; write a name of its own on each device')
            )
        elif not _NAME.fullmatch(name.lower()):
            words = f"{shown(name)} cannot be used as a name; write letters, digits and . _ - between them"
            found.append((("peer", "id"), words))
        found += self.encryption.cautions()
        plain = [(path, url) for path, url in self.relay.places() if url.scheme == "ws"]
        if self.relay.api_key is not None and self.relay.insecure_api_key and plain:
            found.append((("relay", "insecure_api_key"), "the API key crosses the network in clear"))
        for path, url in plain:
            if f":{url.port}/" not in url.url:
                found.append((path, "has no port, so 80 is used; a relay's own port is 9545"))
        return found

    def secrets(self) -> list[str]:
        """Keys whose secret stands in the file itself."""
        proxied = self.relay.proxy
        there = {
            "encryption.key": "key" in self.encryption.model_fields_set,
            "encryption.next_key": "next_key" in self.encryption.model_fields_set,
            "relay.api_key": self.relay.api_key is not None,
            "relay.proxy": isinstance(proxied, ProxyUrl) and proxied.has_credentials,
        }
        return [name for name, is_there in there.items() if is_there]


LATER: frozenset[str] = frozenset()
"""Keys of later versions: refused as not built yet, not as unknown."""
