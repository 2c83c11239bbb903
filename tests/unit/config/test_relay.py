"""The relay's file: the guide's loads as it stands, and every mistake has its exact line."""

from __future__ import annotations

from pathlib import Path

import pytest

from shadowmesh.config import RelayConfig, parse_relay_config
from shadowmesh.errors import ConfigError

GUIDE = (Path(__file__).parents[2] / "guide/config/relay-config.yaml").read_text()


def problems(content: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_relay_config(content.encode(), "r.yaml")
    return caught.value.problems


def test_the_guides_file() -> None:
    loaded = parse_relay_config(GUIDE.encode(), "r.yaml")
    assert loaded.warnings == []
    assert loaded.source == "r.yaml"
    assert loaded.config == RelayConfig()  # its values are the defaults
    assert (loaded.config.region, loaded.config.server_name) == ("us-east-1", "relay-us-east-1")
    assert (loaded.config.relay_port, loaded.config.health_port, loaded.config.metrics_port) == (
        9545,
        8080,
        9090,
    )
    assert loaded.config.bind_address is None
    assert loaded.config.allowed_networks == ()
    assert loaded.config.without_effect == (
        *("worker_threads", "read_buffer_size", "write_buffer_size", "allowed_origins"),
    )


def test_every_optional_key() -> None:
    loaded = parse_relay_config(
        b"""region: eu
server_name: 007
bind_address: 10.0.0.1
health_bind: '[::1]'
metrics_bind: 127.0.0.1
relay_port: "9090"
metrics_enabled: no
allowed_networks: [%s]
public_names: [Relay.Example.com, 'fd00::1']
log_level: WARN
allowed_origins: [https://app.example.com:8443]
"""
        % (b"aB" * 32),
        "r.yaml",
    )
    config = loaded.config
    assert config.server_name == "007"
    assert (config.bind_address, config.health_bind, config.metrics_bind) == ("10.0.0.1", "::1", "127.0.0.1")
    assert config.relay_port == 9090
    assert config.metrics_enabled is False
    assert config.allowed_networks == (b"\xab" * 32,)
    assert config.public_names == ("relay.example.com", "fd00::1")
    assert config.log_level == "warning"
    assert config.without_effect == ("allowed_origins",)
    assert loaded.warnings == []


def test_a_file_without_names_is_warned_of() -> None:
    assert parse_relay_config(b"relay_port: 1234\n", "r.yaml").warnings == [
        'r.yaml:1:1: region: is not in the file, so the guide\'s "us-east-1" is shown; add a line for it',
        'r.yaml:1:1: server_name: is not in the file, so the guide\'s "relay-us-east-1" is shown; '
        "add a line for it",
    ]


NOT_A_PORT = "is out of range; write a number from 1 to 65535"
OFF = "is not built yet in this version; write false"
LIST = 'must be a list, with lines that begin with "- "'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("relay_prot: 9545", "1:1: relay_prot: unknown key; did you mean relay_port?"),
        ("Relay-Port: 9545", "1:1: Relay-Port: unknown key; did you mean relay_port?"),
        (
            "{network: {}, region: a, server_name: b}",
            "1:2: network: unknown key; it belongs to the configuration of shadowmesh-daemon",
        ),
        ("tls: {}", "1:1: tls: is not built yet in this version; remove it"),
        ("auth: {mode: open}", "1:1: auth: is not built yet in this version; remove it"),
        ("trusted_proxies: []", "1:1: trusted_proxies: is not built yet in this version; remove it"),
        ("relay_port: 0", f"1:13: relay_port: 0 {NOT_A_PORT}"),
        ("relay_port: 65536", f"1:13: relay_port: 65536 {NOT_A_PORT}"),
        ("health_port: -1", f"1:14: health_port: -1 {NOT_A_PORT}"),
        ("metrics_port: x", '1:15: metrics_port: "x" is not a whole number; write one from 1 to 65535'),
        ("relay_port: [1]", "1:13: relay_port: must be one value, not a list"),
        ("relay_port: {a: 1}", "1:13: relay_port: must be one value, not a section"),
        ("relay_port:", "1:12: relay_port: has no value; write one, or remove the line"),
        (
            "relay_port: 8080",
            "1:13: relay_port: 8080 is used twice, by relay_port and health_port; give each a port "
            "of its own",
        ),
        (
            "health_port: 9545",
            "1:14: health_port: 9545 is used twice, by relay_port and health_port; give each a port "
            "of its own",
        ),
        (
            "metrics_port: 8080",
            "1:15: metrics_port: 8080 is used twice, by health_port and metrics_port; give each a "
            "port of its own",
        ),
        (
            "{metrics_port: 7, relay_port: 7, metrics_bind: 0.0.0.0, bind_address: 10.0.0.1}",
            "1:16: metrics_port: 7 is used twice, by relay_port and metrics_port; give each a port "
            "of its own",
        ),
        ("max_connections: 0", "1:18: max_connections: 0 is out of range; write a number from 1 to 100000"),
        (
            "connection_timeout: 4",
            "1:21: connection_timeout: 4 is out of range; write a number from 5 to 86400",
        ),
        (
            "connection_timeout: 5m",
            '1:21: connection_timeout: "5m" is not a whole number; write one from 5 to 86400',
        ),
        (
            "queue_size: 1000001",
            "1:13: queue_size: 1000001 is out of range; write a number from 1 to 1000000",
        ),
        ("worker_threads: 1025", "1:17: worker_threads: 1025 is out of range; write a number from 1 to 1024"),
        (
            "read_buffer_size: 0",
            "1:19: read_buffer_size: 0 is out of range; write a number from 1 to 16777216",
        ),
        (
            "write_buffer_size: 0",
            "1:20: write_buffer_size: 0 is out of range; write a number from 1 to 16777216",
        ),
        (
            "zero_knowledge: false",
            "1:17: zero_knowledge: a relay that logs client addresses is not built yet in this "
            "version; write true",
        ),
        ("frame_logging: true", f"1:16: frame_logging: frame logging {OFF}"),
        ("log_routing: on", f"1:14: log_routing: logging of routes {OFF}"),
        ("log_connections: 1", '1:18: log_connections: "1" is neither true nor false; write one of them'),
        (
            "metrics_enabled: 'maybe'",
            '1:18: metrics_enabled: "maybe" is neither true nor false; write one of them',
        ),
        (
            "log_level: trace",
            '1:12: log_level: "trace" is not known here; write one of debug, info, warning, error',
        ),
        ("region: ''", '1:9: region: "" does not do as a name; write 1 to 63 ASCII characters'),
        (
            "bind_address: eth0",
            '1:15: bind_address: "eth0" is not an IP address; write one of this machine, such as 127.0.0.1',
        ),
        ("allowed_origins: '*'", f"1:18: allowed_origins: {LIST}"),
        ("allowed_origins:", f"1:17: allowed_origins: {LIST}"),
        (
            "allowed_origins: ['*', 'https://a/b']",
            '1:24: allowed_origins[1]: "https://a/b" is not an origin; write "*" or one such as '
            '"https://app.example.com"',
        ),
        (
            "allowed_networks: [ab]",
            '1:20: allowed_networks[0]: "ab" is no network id; write its 64 hex digits',
        ),
        (
            "public_names: [a b]",
            '1:16: public_names[0]: "a b" is not a host name; write one such as relay.example.com',
        ),
    ],
)
def test_each_mistake(line: str, expected: str) -> None:
    assert problems(line) == [f"r.yaml:{expected}"]


def test_a_port_may_be_shared_on_different_addresses() -> None:
    parse_relay_config(
        b"{metrics_port: 7, relay_port: 7, metrics_bind: 127.0.0.1, bind_address: 10.0.0.1}", "r.yaml"
    )
    parse_relay_config(b"{metrics_port: 9545, metrics_enabled: false}", "r.yaml")


def test_all_mistakes_at_once_by_position() -> None:
    content = (
        GUIDE.replace("9545", "abc")
        .replace("region:", "regoin:")
        .replace("queue_size: 1000", "queue_size: 0")
    )
    content += "log_level: info\n"
    assert problems(content) == [
        "r.yaml:2:1: regoin: unknown key; did you mean region?",
        'r.yaml:5:13: relay_port: "abc" is not a whole number; write one from 1 to 65535',
        "r.yaml:24:13: queue_size: 0 is out of range; write a number from 1 to 1000000",
        f"r.yaml:{content.count(chr(10))}:1: log_level: given twice, the first time on line 31; keep "
        f"one of them",
    ]


def test_many_mistakes_are_counted() -> None:
    lines = problems("".join(f"a{i}: 1\n" for i in range(60)))
    assert len(lines) == 51
    assert lines[0].startswith("r.yaml:1:1: a0: unknown key; known here are region, server_name, ")
    assert lines[-1] == "r.yaml: and 10 more"


def test_a_client_file_is_told_from_one_with_many_mistakes() -> None:
    assert problems("network: {}\nrelay: {}\n") == [
        "r.yaml: a client configuration, for shadowmesh-daemon; shadowmesh-relay needs its own"
    ]
