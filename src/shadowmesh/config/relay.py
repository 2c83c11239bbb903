"""The relay's configuration: the guide's keys, its values as defaults, and four optional keys of ours."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import Field, PlainValidator, ValidationInfo, field_validator

from shadowmesh.config.address import bind_ip, host_name
from shadowmesh.config.values import (
    Model,
    Problems,
    flag,
    flag_only,
    hex32,
    label,
    level,
    shown,
    text,
    whole,
)
from shadowmesh.config.yaml import Path

# For each port: the key that says on which address it listens.
_BIND = {"relay_port": "bind_address", "health_port": "health_bind", "metrics_port": "metrics_bind"}
_EVERY_ADDRESS = (None, "0.0.0.0", "::")  # noqa: S104 - compared, not bound
_WITHOUT_EFFECT = ("worker_threads", "read_buffer_size", "write_buffer_size", "allowed_origins")


def _origin(value: object) -> str:
    origin = text(value)
    if not re.fullmatch(r"\*|[A-Za-z][A-Za-z0-9+.-]*://[^/\s?#@]+", origin):
        raise ValueError(
            f'{shown(origin)} is not an origin; write "*" or one such as "https://app.example.com"'
        )
    return origin


Bind = Annotated[str | None, PlainValidator(bind_ip)]
Port = Annotated[int, PlainValidator(whole(1, 65535))]
BufferSize = Annotated[int, PlainValidator(whole(1, 16 * 1024 * 1024))]


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

    max_connections: Annotated[int, PlainValidator(whole(1, 100_000))] = 1000
    connection_timeout: Annotated[int, PlainValidator(whole(5, 86_400))] = 300
    queue_size: Annotated[int, PlainValidator(whole(1, 1_000_000))] = 1000
    worker_threads: Annotated[int, PlainValidator(whole(1, 1024))] = 4
    read_buffer_size: BufferSize = 4096
    write_buffer_size: BufferSize = 4096

    zero_knowledge: Annotated[
        bool,
        PlainValidator(
            flag_only(True, "a relay that logs client addresses is not built yet in this version")
        ),
    ] = True
    frame_logging: Annotated[
        bool, PlainValidator(flag_only(False, "frame logging is not built yet in this version"))
    ] = False
    allowed_origins: tuple[Annotated[str, PlainValidator(_origin)], ...] = ("*",)
    allowed_networks: tuple[Annotated[bytes, PlainValidator(hex32)], ...] = ()
    public_names: tuple[Annotated[str, PlainValidator(host_name)], ...] = ()

    log_level: Annotated[str, PlainValidator(level)] = "info"
    log_connections: Annotated[bool, PlainValidator(flag)] = True
    log_routing: Annotated[
        bool, PlainValidator(flag_only(False, "logging of routes is not built yet in this version"))
    ] = False

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
        """A file without the two names would show up as the guide's relay in every metric."""
        return [
            (
                (name,),
                f'is not in the file, so the guide\'s "{getattr(self, name)}" is shown; add a line for it',
            )
            for name in ("region", "server_name")
            if name not in self.model_fields_set
        ]


LATER = frozenset({"auth", "tls", "trusted_proxies"})
"""Keys of later versions: refused as not built yet, not as unknown."""
