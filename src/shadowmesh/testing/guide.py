"""The deployment guide: its two configuration files, to the letter and filled in; blocks of a page."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Mapping
from typing import Any, NamedTuple

import yaml

RELAY_PORT = 9545
HEALTH_PORT = 8080
METRICS_PORT = 9090
DAEMON_PORT = 9090

RELAY_CONFIG = """\
# ShadowMesh Relay Server Configuration
region: "us-east-1"  # Your region identifier
server_name: "relay-us-east-1"  # Unique server name

relay_port: 9545      # WebSocket relay port
health_port: 8080     # Health check endpoint
metrics_port: 9090    # Prometheus metrics

max_connections: 1000      # Maximum concurrent clients
connection_timeout: 300    # Idle timeout (seconds)

read_buffer_size: 4096
write_buffer_size: 4096

# Zero-knowledge routing (relay sees routing only, not payload)
zero_knowledge: true
frame_logging: false  # Disable for privacy

# Metrics
metrics_enabled: true

# Performance tuning
worker_threads: 4      # CPU cores
queue_size: 1000

# Security
allowed_origins:
  - "*"  # Restrict in production

# Logging
log_level: "info"
log_connections: true
log_routing: false  # Disable for privacy
"""
"""`/etc/shadowmesh/relay-config.yaml`, section "Configuration" of the relay."""

CLIENT_CONFIG = """\
daemon:
  listen_address: "127.0.0.1:9090"
  log_level: "info"

network:
  mode: "tun"
  device_name: "shadowmesh0"
  local_ip: "10.10.10.X/24"  # Unique IP for each client

encryption:
  key: "YOUR_64_CHAR_HEX_KEY"  # Generate with: openssl rand -hex 32

peer:
  address: ""
  id: "client-unique-id"  # Unique identifier

nat:
  enabled: false

relay:
  enabled: true
  server: "ws://YOUR_RELAY_IP:9545"  # Your relay server

p2p:
  listener_enabled: false
  listener_port: 0
"""
"""`/etc/shadowmesh/client-config.yaml`, section "Configuration" of the client, with its placeholders."""


class Block(NamedTuple):
    """A block of code of a Markdown page."""

    section: str
    """The headings above it from the second level down, such as `Monitoring / Alerting`."""
    language: str
    text: str
    not_run: str = ""
    """Why no test runs it, from a comment `<!-- not run: … -->` in the line before."""


def blocks(page: str) -> list[Block]:
    """All fenced and all indented blocks of a Markdown page, in order."""
    found: list[Block] = []
    headings: list[str] = []
    fenced = r"(?:^<!-- not run: ([^\n]+) -->\n)?^```(\w*)\n(.*?)^```$"
    pattern = rf"^(#+) ([^\n]+?)\s*$|{fenced}|^\n((?:    [^\n]*\n|\n(?=    ))+)"
    for level, heading, reason, language, text, indented in re.findall(pattern, page, re.M | re.S):
        if heading:
            headings[max(0, len(level) - 2) :] = [heading] if len(level) > 1 else []
        else:
            text = text or textwrap.dedent(indented)
            found.append(Block(" / ".join(headings), language, text, reason))
    return found


def commands(text: str) -> list[str]:
    """The commands of a shell block: its lines without comments, those that go on with a backslash joined."""
    lines = text.replace("\\\n", " ").splitlines()
    bare = (re.sub(r"(^|\s)# .*", "", line).strip() for line in lines)
    return [line for line in bare if line]


def client_config(*, ip: str, key: str, peer_id: str, server: str) -> str:
    """CLIENT_CONFIG with address, key, id and relay URL in the places that the guide leaves open."""
    values = {
        "10.10.10.X/24": ip,
        "YOUR_64_CHAR_HEX_KEY": key,
        "client-unique-id": peer_id,
        "ws://YOUR_RELAY_IP:9545": server,
    }
    text = CLIENT_CONFIG
    for placeholder, value in values.items():
        text = text.replace(placeholder, value)
    return text


def merged(text: str, changes: Mapping[str, Any]) -> str:
    """The YAML `text` with other values: nested mappings are merged, None removes, all else is replaced."""
    if not changes:
        return text
    return yaml.safe_dump(_merge(yaml.safe_load(text), changes), sort_keys=False)


def _merge(old: dict[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    new = dict(old)
    for key, value in changes.items():
        new[key] = _merge(new.get(key) or {}, value) if isinstance(value, Mapping) else value
        if value is None:
            del new[key]
    return new
