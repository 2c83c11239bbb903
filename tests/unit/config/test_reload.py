"""Every key of the relay's file either applies on reload or says that it needs a restart."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest

from shadowmesh.config import Auth, Limits, RelayConfig, Tls
from shadowmesh.config.reload import changed, merged, needs_restart

DOCS = Path(__file__).parents[3] / "docs/configuration.md"
OLD = RelayConfig()

# For each key another value than the default; words if it needs a restart, else None.
KEYS: dict[str, tuple[object, str | None]] = {
    "region": ("eu", None),
    "server_name": ("relay-eu", None),
    "bind_address": ("10.0.0.1", "(every address) -> 10.0.0.1"),
    "health_bind": ("::1", "(every address) -> ::1"),
    "metrics_bind": ("127.0.0.1", "(every address) -> 127.0.0.1"),
    "metrics_enabled": (False, None),
    "relay_port": (9546, "9545 -> 9546"),
    "health_port": (8081, "8080 -> 8081"),
    "metrics_port": (9091, "9090 -> 9091"),
    "tls": (Tls(cert_file="/a", key_file="/b"), None),
    "trusted_proxies": ((ip_network("127.0.0.1"),), None),
    "auth": (Auth(mode="api_key"), None),
    "limits": (Limits(queue_memory=1 << 20), None),
    "max_connections": (5, None),
    "connection_timeout": (60, None),
    "drain_window": (60, None),
    "queue_size": (5, None),
    "worker_threads": (2, "4 -> 2"),
    "read_buffer_size": (1, None),
    "write_buffer_size": (1, None),
    "zero_knowledge": (False, None),
    "frame_logging": (True, None),
    "allowed_origins": ((), None),
    "allowed_networks": ((bytes(32),), None),
    "public_names": (("relay.example.com",), None),
    "log_format": ("json", None),
    "log_level": ("debug", None),
    "log_connections": (False, None),
    "log_routing": (True, None),
}


def test_every_key_is_classified() -> None:
    assert KEYS.keys() == RelayConfig.model_fields.keys()


def test_the_docs_have_a_row_for_each_key_that_says_whether_it_needs_a_restart() -> None:
    table = DOCS.read_text().partition("\n## Relay\n")[2].partition("\n## Client\n")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \|.*\| ([^|]+) \|$", table, re.MULTILINE))
    assert rows.keys() == KEYS.keys()
    restart = {key for key, words in rows.items() if "restart" in words or words == "as `metrics_port`"}
    assert restart == {key for key, (_, words) in KEYS.items() if words}


@pytest.mark.parametrize("name", KEYS)
def test_one_key(name: str) -> None:
    value, words = KEYS[name]
    new = OLD.model_copy(update={name: value})
    assert new != OLD
    if words is None:
        assert (needs_restart(OLD, new), merged(OLD, new), changed(OLD, new)) == ([], new, (name,))
    else:
        assert needs_restart(OLD, new) == [f"needs a restart: {name} {words}"]
        assert (merged(OLD, new), changed(OLD, new)) == (OLD, ())


def test_the_allowed_part_of_a_mixed_change_applies() -> None:
    new = RelayConfig(relay_port=9546, max_connections=7, bind_address="::1", log_level="debug")
    assert needs_restart(OLD, new) == [
        "needs a restart: bind_address (every address) -> ::1",
        "needs a restart: relay_port 9545 -> 9546",
    ]
    assert merged(OLD, new) == RelayConfig(max_connections=7, log_level="debug")
    assert changed(OLD, new) == ("max_connections", "log_level")


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False), (False, False)])
def test_a_closed_metrics_port_can_be_moved(before: bool, after: bool) -> None:
    old = RelayConfig(metrics_enabled=before)
    new = RelayConfig(metrics_enabled=after, metrics_port=9091, metrics_bind="127.0.0.1")
    assert (needs_restart(old, new), merged(old, new)) == ([], new)


def test_a_refused_key_counts_as_set_in_the_file() -> None:
    old = RelayConfig(worker_threads=2)
    assert merged(old, RelayConfig()).without_effect == ("worker_threads",)
