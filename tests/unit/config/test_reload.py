"""Every key of the relay's file either applies on reload or says that it needs a restart."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from pydantic import BaseModel

from shadowmesh.config import Auth, Limits, RelayConfig, Tls
from shadowmesh.config.reload import changed, merged, needs_restart

TESTS = Path(__file__).parents[2]
DOCS = TESTS.parent / "docs/configuration.md"
OLD = RelayConfig()

# For each key another value than the default; words if it needs a restart, else None.
KEYS: dict[str, tuple[object, str | None]] = {
    "region": ("eu", None),
    "server_name": ("relay-eu", None),
    "bind_address": ("10.0.0.1", "(every address) -> 10.0.0.1"),
    "health_bind": ("::1", None),
    "metrics_bind": ("127.0.0.1", None),
    "metrics_enabled": (False, None),
    "relay_port": (9546, "9545 -> 9546"),
    "health_port": (8081, None),
    "metrics_port": (9091, None),
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


# For each key, those of sections too, the test (of tests/net/test_*) that shows what it does; several keys
# may share one. `worker_threads` does nothing yet but to be refused.
EFFECT = {
    "read_buffer_size": "relay_settings::test_the_listener_gets_its_settings",
    "write_buffer_size": "relay_settings::test_write_buffer_size_is_what_waits_before_the_outbox_is_used",
    "queue_size": "relay_settings::test_queue_size_of_connections_that_exist",
    "connection_timeout": "relay_start::test_connection_timeout",
    "bind_address health_bind metrics_bind": "relay_start::test_each_port_listens_on_its_own_address_only",
    "limits.connects_per_second": "relay_limits::test_new_connections_of_one_source",
    "limits.connections_per_source": "relay_limits::test_connections_of_one_source",
    "limits.connections_per_network": "relay_limits::test_connections_of_one_network",
    "limits.addresses_per_network": "relay_limits::test_addresses_of_one_network",
    "limits.queue_memory": "relay_memory::test_fragments_beyond_the_budget_end_their_connection",
    "limits.device_bytes_per_second": "relay_pacing::test_a_device_beyond_its_rate",
    "limits.network_bytes_per_second": "relay_pacing::test_devices_of_a_network_share_its_rate",
    "zero_knowledge": "relay_logs::test_zero_knowledge",
    "frame_logging": "relay_logs::test_frame_logging",
    "log_routing": "relay_logs::test_log_routing",
    "log_connections": "relay_logs::test_log_connections",
    "allowed_origins": "relay_source::test_origins",
    "trusted_proxies": "relay_source::test_a_trusted_proxy_says_who_its_client_is",
    "drain_window": "relay_drain::test_the_window_is_that_of_the_configuration",
    "region server_name": "relay_admin::test_all_begin_with_the_keys_of_the_guide",
    "metrics_enabled": "relay_admin::test_metrics_can_be_off",
    "max_connections": "relay_admin::test_a_full_relay_is_healthy_but_not_ready",
    "public_names": "relay_join::test_public_names",
    "allowed_networks": "relay_join::test_allowed_networks",
    "relay_port": "relay_reload::test_what_needs_a_restart_is_refused_key_by_key_and_the_rest_applies",
    "health_port metrics_port": "relay_reload::test_health_and_metrics_ports_are_moved_under_traffic",
    "tls.cert_file tls.key_file": "relay_renewal::test_a_renewal_under_traffic",
    "log_level log_format": "relay_reload::test_level_and_format_of_the_log",
    "worker_threads": "relay_reload::test_what_needs_a_restart_is_refused_key_by_key_and_the_rest_applies",
    "auth.mode": "api_key_program::test_reload_by_signal",
    "auth.keys_file": "api_key_program::test_without_a_file_it_does_not_start_and_says_how_to_make_one",
}


def test_every_key_is_classified() -> None:
    assert KEYS.keys() == RelayConfig.model_fields.keys()


def test_every_key_has_a_test_that_shows_its_effect() -> None:
    sections: dict[str, type[BaseModel]] = {"tls": Tls, "auth": Auth, "limits": Limits}
    schema = [
        key
        for name in RelayConfig.model_fields
        for key in (
            [f"{name}.{each}" for each in sections[name].model_fields] if name in sections else [name]
        )
    ]
    assert sorted(" ".join(EFFECT).split()) == sorted(schema)


@pytest.mark.parametrize("named", sorted(set(EFFECT.values())))
def test_a_test_of_an_effect_exists(named: str) -> None:
    file, _, test = named.partition("::")
    assert f"def {test}(" in (TESTS / f"net/test_{file}.py").read_text()


def test_the_docs_have_a_row_for_each_key_that_says_whether_it_needs_a_restart() -> None:
    table = DOCS.read_text().partition("\n## Relay\n")[2].partition("\n## Client\n")[0]
    rows = dict(re.findall(r"^\| `([a-z_]+)` \|.*\| ([^|]+) \|$", table, re.MULTILINE))
    assert rows.keys() == KEYS.keys()
    restart = {key for key, words in rows.items() if "restart" in words}
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


def test_a_refused_key_counts_as_set_in_the_file() -> None:
    old = RelayConfig(worker_threads=2)
    assert merged(old, RelayConfig()).without_effect == ("worker_threads",)
