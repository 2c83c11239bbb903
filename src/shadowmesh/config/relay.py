"""The relay's configuration: the guide's keys, its values as defaults, and optional keys of ours."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from shadowmesh.apikey import KEYS_FILE
from shadowmesh.config.address import IPNetwork, as_ip, bind_ip, host_name, normal_origin, trusted_proxy
from shadowmesh.config.values import (
    Model,
    Problems,
    absolute,
    choice,
    flag,
    hex32,
    label,
    level,
    shown,
    text,
    whole,
)
from shadowmesh.config.yaml import Path
from shadowmesh.ratelimit import LEAST_RATE

# For each port: the key that says on which address it listens.
_BIND = {"relay_port": "bind_address", "health_port": "health_bind", "metrics_port": "metrics_bind"}
_EVERY_ADDRESS = (None, "0.0.0.0", "::")  # noqa: S104 - compared, not bound
_WITHOUT_EFFECT = ("worker_threads",)
_MOST_PROXIES = 64
MOST_CONNECTIONS = 100_000

# What a relay set so means for the people who use it.
_CAUTIONS = {
    ("zero_knowledge", False): "the log shows clients' IP addresses and whole device and network ids",
    ("frame_logging", True): "the log shows which devices exchange frames, when and how large; no content",
    ("log_routing", True): "the log shows which device holds which address, and what was not delivered",
}
_OPEN = '"open" lets whoever reaches this relay use it; "api_key" asks each client for a key'
_KEYS_IN_CLEAR = (
    "without tls, API keys can be read on their way; set tls, or trusted_proxies to those that have it"
)
BY_DEFAULT = "is not in the file; its default "
_ANY_ORIGIN = '"*" lets any web page connect from a visitor\'s browser; [] lets none (daemons always may)'


def _origin(value: object) -> str:
    origin = text(value)
    if origin == "*":
        return origin
    if "*" in origin:
        raise ValueError(f'{shown(origin)} has a "*", which stands only alone; write each origin by itself')
    scheme, separator, rest = origin.partition("://")
    if scheme.lower() in ("ws", "wss"):
        page = scheme.lower().replace("ws", "http")
        raise ValueError(f"an origin is where the page is from; write {page}:// instead of {scheme}://")
    if separator and "/" in rest:
        page = f"{scheme}://{rest.partition('/')[0]}"
        raise ValueError(f"{shown(origin)} is not an origin, which ends before the path; write {shown(page)}")
    return normal_origin(origin)


def _rate(value: object) -> int:
    """Bytes per second; 0: no limit."""
    rate = whole(0, 10**12)(value)
    if 0 < rate < LEAST_RATE:
        raise ValueError(
            f"{rate} bytes per second are too few to work with; "
            f"write at least {LEAST_RATE}, or 0 for no limit"
        )
    return rate


as_log_format = choice("auto", "console", "json")

Bind = Annotated[str | None, PlainValidator(bind_ip)]
Port = Annotated[int, PlainValidator(whole(1, 65535))]
Count = Annotated[int, PlainValidator(whole(0, MOST_CONNECTIONS))]
Rate = Annotated[int, PlainValidator(_rate)]
BufferSize = Annotated[int, PlainValidator(whole(1, 16 * 1024 * 1024))]


class Tls(Model):
    """`tls:` the relay port's certificate (with its chain) and key, PEM files by absolute path."""

    cert_file: Annotated[str, PlainValidator(absolute("/etc/shadowmesh/fullchain.pem"))] = Field(
        examples=["/etc/shadowmesh/fullchain.pem"]
    )
    key_file: Annotated[str, PlainValidator(absolute("/etc/shadowmesh/privkey.pem"))] = Field(
        examples=["/etc/shadowmesh/privkey.pem"]
    )


class Auth(Model):
    """`auth:` whom the relay lets in: everybody, or who has an API key of the file."""

    mode: Annotated[Literal["open", "api_key"], PlainValidator(choice("open", "api_key"))] = "open"
    keys_file: Annotated[str, PlainValidator(absolute(KEYS_FILE))] = KEYS_FILE


class Limits(Model):
    """`limits:` what one source, device or network may take; 0 is no limit."""

    connects_per_second: Count = 20
    connections_per_source: Annotated[int | None, PlainValidator(whole(0, MOST_CONNECTIONS))] = None
    """None: max(64, a quarter of `max_connections`)."""
    connections_per_network: Count = 0
    addresses_per_network: Annotated[int, PlainValidator(whole(0, 64 * MOST_CONNECTIONS))] = 0
    device_bytes_per_second: Rate = 0
    network_bytes_per_second: Rate = 0
    queue_memory: Annotated[int, PlainValidator(whole(128 * 1024, 1 << 40))] = 256 << 20


class RelayConfig(Model):
    """What a relay runs with. Without arguments: the deployment guide's values."""

    region: Annotated[str, PlainValidator(label)] = "us-east-1"
    server_name: Annotated[str, PlainValidator(label)] = "relay-us-east-1"

    bind_address: Bind = None
    health_bind: Bind = None
    metrics_bind: Bind = None
    metrics_enabled: Annotated[bool, PlainValidator(flag)] = True
    relay_port: Port = 9545
    health_port: Port = Field(default=8080, validate_default=True)
    metrics_port: Port = Field(default=9090, validate_default=True)

    tls: Tls | None = None
    trusted_proxies: tuple[Annotated[IPNetwork, PlainValidator(trusted_proxy)], ...] = Field(
        default=(), max_length=_MOST_PROXIES
    )

    auth: Auth = Field(default_factory=Auth)
    limits: Limits = Field(default_factory=Limits)

    max_connections: Annotated[int, PlainValidator(whole(1, MOST_CONNECTIONS))] = 1000
    connection_timeout: Annotated[int, PlainValidator(whole(5, 86_400))] = 300
    drain_window: Annotated[int, PlainValidator(whole(0, 600))] = 3
    queue_size: Annotated[int, PlainValidator(whole(1, 1_000_000))] = 1000
    worker_threads: Annotated[int, PlainValidator(whole(1, 1024))] = 4
    read_buffer_size: BufferSize = 4096
    write_buffer_size: BufferSize = 4096

    zero_knowledge: Annotated[bool, PlainValidator(flag)] = True
    frame_logging: Annotated[bool, PlainValidator(flag)] = False
    allowed_origins: tuple[Annotated[str, PlainValidator(_origin)], ...] = ("*",)
    allowed_networks: tuple[Annotated[bytes, PlainValidator(hex32)], ...] = ()
    public_names: tuple[Annotated[str, PlainValidator(host_name)], ...] = ()

    log_format: Annotated[str, PlainValidator(as_log_format)] = "auto"
    log_level: Annotated[str, PlainValidator(level)] = "info"
    log_connections: Annotated[bool, PlainValidator(flag)] = True
    log_routing: Annotated[bool, PlainValidator(flag)] = False

    @field_validator("allowed_networks", "public_names", mode="after")
    @classmethod
    def _not_empty(cls, entries: tuple[object, ...]) -> tuple[object, ...]:
        if not entries:
            raise ValueError("is empty, and would let everybody in; write an entry, or remove the line")
        return entries

    @field_validator("health_port", "metrics_port", mode="after")
    @classmethod
    def _ports_differ(cls, port: int, info: ValidationInfo) -> int:
        name = str(info.field_name)
        if name == "metrics_port" and info.data.get("metrics_enabled") is False:
            return port
        bind = info.data.get(_BIND[name])
        for other in ("relay_port", "health_port"):
            other_bind = info.data.get(_BIND[other])
            same_bind = bind == other_bind or bind in _EVERY_ADDRESS or other_bind in _EVERY_ADDRESS
            if other != name and info.data.get(other) == port and same_bind:
                # The defaults differ, so one of the two stands in the file.
                where = name if port != cls.model_fields[name].default else other
                raise Problems(
                    [((where,), f"{port} is used twice, by {other} and {name}; give each a port of its own")]
                )
        return port

    @property
    def without_effect(self) -> tuple[str, ...]:
        """Keys that the file sets and this version does not use yet; named when the relay starts."""
        return tuple(name for name in _WITHOUT_EFFECT if name in self.model_fields_set)

    def cautions(self) -> list[tuple[Path, str]]:
        """What the operator should know: whose names are shown, what the log tells, who may connect."""
        found: list[tuple[Path, str]] = [
            (
                (name,),
                f'is not in the file, so the guide\'s "{getattr(self, name)}" is shown; add a line for it',
            )
            for name in ("region", "server_name")
            if name not in self.model_fields_set
        ]
        found += [
            ((name,), words) for (name, set_so), words in _CAUTIONS.items() if getattr(self, name) is set_so
        ]
        if "*" in self.allowed_origins:
            by_default = "" if "allowed_origins" in self.model_fields_set else BY_DEFAULT
            found.append((("allowed_origins",), by_default + _ANY_ORIGIN))
        if not self._is_local:
            found += self._auth_cautions()
        return found

    def _auth_cautions(self) -> list[tuple[Path, str]]:
        if self.auth.mode == "api_key":
            in_clear = self.tls is None and not self.trusted_proxies
            return [(("auth", "mode"), _KEYS_IN_CLEAR)] if in_clear else []
        if self.allowed_networks:
            return []
        by_default = "" if "mode" in self.auth.model_fields_set else BY_DEFAULT
        return [(("auth", "mode"), by_default + _OPEN)]

    @property
    def _is_local(self) -> bool:
        """Whether the relay's port is reached from this host only."""
        ip = as_ip(self.bind_address) if self.bind_address else None
        return ip is not None and ip.is_loopback


LATER: frozenset[str] = frozenset()
"""Keys of later versions: refused as not built yet, not as unknown."""
