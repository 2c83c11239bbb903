"""Every key of the client's file either applies on reload or says that it needs a restart."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from shadowmesh.config import ClientConfig, parse_client_config
from shadowmesh.config.client_reload import changed, merged, needs_restart
from shadowmesh.testing import guide

DOCS = Path(__file__).parents[3] / "docs/configuration.md"
KEY = "9f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
OTHER = "1f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
TEXT = guide.client_config(ip="10.10.10.7/24", key=KEY, peer_id="a", server="wss://203.0.113.9:9545")
API_KEY = "smk_abcdefgh_0123456789abcdefghijklmnopqrstuvwxyz-_ABCDE"

# For each key another value than TEXT's; words if it needs a restart, else None.
KEYS: dict[str, tuple[object, str | None]] = {
    "daemon.listen_address": ("[::1]:9091", " 127.0.0.1:9090 -> ::1:9091"),
    "daemon.log_level": ("debug", None),
    "daemon.state_directory": ("/srv/x", " /var/lib/shadowmesh -> /srv/x"),
    "daemon.token_file": ("/srv/token", " /run/shadowmesh/api.token -> /srv/token"),
    "network.device_name": ("mesh0", " shadowmesh0 -> mesh0"),
    "network.local_ip": ("10.10.10.8/24", ""),
    "network.mtu": ("1300", " 1400 -> 1300"),
    "network.routes": ([{"to": "192.168.7.0/24", "via": "10.10.10.9"}], None),
    "network.advertise": (["192.168.8.0/24"], None),
    "encryption.key": (OTHER, ""),
    "encryption.next_key": (OTHER, None),
    "peer.id": ("b", " a -> b"),
    "relay.server": ("wss://relay.example.com", None),
    "relay.api_key": (API_KEY, None),
    "relay.insecure_api_key": ("true", None),
    "relay.proxy": ("none", None),
    "relay.tls_ca_file": ("/srv/ca.pem", None),
    "p2p.listener_port": ("1", " 0 -> 1"),
    "peers.verify": ("strict", None),
    "peers.trusted": ({"10.10.10.9": "a" * 32}, None),
}
ONE_VALUE = {"network.mode", "peer.address", "nat.enabled", "relay.enabled", "p2p.listener_enabled"}
TESTED_BELOW = {"relay.servers", "encryption.key_file", "encryption.next_key_file"}


def config(**changes: object) -> ClientConfig:
    text = guide.merged(TEXT, {"relay": {"insecure_api_key": False}})
    return parse_client_config(guide.merged(text, changes).encode(), "c.yaml").config


OLD = config()


def test_every_key_is_classified() -> None:
    keys = {f"{section}.{key}" for section in ClientConfig.model_fields for key, _ in getattr(OLD, section)}
    assert keys == KEYS.keys() | ONE_VALUE | TESTED_BELOW


def test_the_docs_name_the_keys_that_apply() -> None:
    page = DOCS.read_text().partition("\n### Reload of a client\n")[2].partition("\n#")[0]
    live = {key for key, (_, words) in KEYS.items() if words is None}
    sections = set(re.findall(r"`(\w+)\.\*`", page))
    named = set(re.findall(r"`(\w+\.\w+)`", page.partition(". ")[0]))
    assert live == named | {key for key in KEYS if key.partition(".")[0] in sections}


@pytest.mark.parametrize("name", KEYS)
def test_each_key(name: str) -> None:
    section, _, key = name.partition(".")
    value, words = KEYS[name]
    new = config(**{section: {key: value}})
    assert new != OLD
    result = merged(OLD, new)
    if words is None:
        assert (needs_restart(OLD, new), changed(OLD, new)) == ([], (name,))
        assert result == new
    else:
        assert (needs_restart(OLD, new), changed(OLD, new)) == ([f"needs a restart: {name}{words}"], ())
        assert result == OLD


def test_both_kinds_at_once() -> None:
    new = config(daemon={"log_level": "debug", "listen_address": "127.0.0.1:1"}, peer={"id": "b"})
    result = merged(OLD, new)
    assert result.daemon.log_level == "debug"
    assert result.daemon.listen_address == OLD.daemon.listen_address
    assert result.peer == OLD.peer
    assert changed(OLD, new) == ("daemon.log_level",)
    assert len(needs_restart(OLD, new)) == 2


def test_routes_wait_with_the_address_that_they_were_checked_against() -> None:
    """A prefix that is outside of the new overlay network may be inside of the old one."""
    routes = [{"to": "10.10.10.0/25", "via": "10.20.0.2"}]
    new = config(network={"local_ip": "10.20.0.1/24", "routes": routes, "advertise": ["10.10.10.128/25"]})
    assert needs_restart(OLD, new) == [
        f"needs a restart: network.{key}" for key in ("local_ip", "routes", "advertise")
    ]
    assert merged(OLD, new) == OLD


def test_another_list_of_relays() -> None:
    text = TEXT.replace('server: "wss://203.0.113.9:9545"', "servers: [ws://a:1, ws://b:1]")
    new = parse_client_config(text.encode(), "c.yaml").config
    assert changed(OLD, new) == ("relay.servers", "relay.server")
    assert [url.host for url in merged(OLD, new).relay.urls] == ["a", "b"]


def test_the_same_key_in_a_file_of_its_own_is_no_change(tmp_path: Path) -> None:
    (tmp_path / "key").write_text(KEY)
    text = TEXT.replace(f'key: "{KEY}"', f"key_file: {tmp_path}/key")
    assert (needs_restart(OLD, new := parse_client_config(text.encode(), "c").config), changed(OLD, new)) == (
        [],
        (),
    )


def test_a_key_is_replaced_by_way_of_the_next_one() -> None:
    stages = [
        config(),
        config(encryption={"next_key": OTHER}),
        config(encryption={"key": OTHER, "next_key": KEY}),
        config(encryption={"key": OTHER}),
    ]
    for there, back in ((stages, stages[1:]), (stages[::-1], stages[-2::-1])):
        for old, new in zip(there, back, strict=False):
            assert needs_restart(old, new) == []
            assert changed(old, new)
            assert merged(old, new) == new
    assert needs_restart(stages[0], stages[2]) == [
        "needs a restart: encryption.key",
        "needs a restart: encryption.next_key",
    ]
    assert merged(stages[0], stages[2]) == stages[0]


def test_no_secret_is_told() -> None:
    told = str(needs_restart(OLD, config(encryption={"key": OTHER}, relay={"api_key": API_KEY})))
    assert KEY not in told
    assert OTHER not in told
