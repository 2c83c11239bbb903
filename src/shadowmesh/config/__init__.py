"""Configuration: YAML files to validated frozen models; mistakes told as `file:line:column: key: what`."""

from shadowmesh.config.address import HostPort, IPAddress, IPInterface, IPNetwork, RelayUrl, normal_origin
from shadowmesh.config.client import ClientConfig, Route
from shadowmesh.config.loader import (
    Loaded,
    load_client_config,
    load_config,
    load_daemon_section,
    load_relay_config,
    parse_client_config,
    parse_relay_config,
)
from shadowmesh.config.proxy import ProxyUrl
from shadowmesh.config.relay import Auth, Limits, RelayConfig, Tls
from shadowmesh.config.secret import ApiKey, SecretKey

__all__ = [
    "ApiKey",
    "Auth",
    "ClientConfig",
    "HostPort",
    "IPAddress",
    "IPInterface",
    "IPNetwork",
    "Limits",
    "Loaded",
    "ProxyUrl",
    "RelayConfig",
    "RelayUrl",
    "Route",
    "SecretKey",
    "Tls",
    "load_client_config",
    "load_config",
    "load_daemon_section",
    "load_relay_config",
    "normal_origin",
    "parse_client_config",
    "parse_relay_config",
]
