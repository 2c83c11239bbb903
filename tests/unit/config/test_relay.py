"""The relay's file: the guide's loads as it stands, and every mistake has its exact line."""

from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path

import pytest

from shadowmesh.config import Auth, Limits, RelayConfig, Tls, parse_relay_config
from shadowmesh.errors import ConfigError

GUIDE = (Path(__file__).parents[2] / "guide/config/relay-config.yaml").read_text()

OPEN = '"open" lets whoever reaches this relay use it; "api_key" asks each client for a key'
ANY_ORIGIN = '"*" lets any web page connect from a visitor\'s browser; [] lets none (daemons always may)'


def problems(content: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_relay_config(content.encode(), "r.yaml")
    return caught.value.problems


def test_the_guides_file() -> None:
    loaded = parse_relay_config(GUIDE.encode(), "r.yaml")
    assert loaded.warnings == [
        f"r.yaml:1:1: auth.mode: is not in the file; its default {OPEN}",
        f"r.yaml:28:3: allowed_origins: {ANY_ORIGIN}",
    ]
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
    assert loaded.config.without_effect == ("worker_threads",)


def test_every_optional_key() -> None:
    loaded = parse_relay_config(
        b"""region: eu
server_name: 007
bind_address: 10.0.0.1
health_bind: '[::1]'
metrics_bind: 127.0.0.1
relay_port: "9090"
metrics_enabled: no
tls: {cert_file: /etc/letsencrypt/live/r/fullchain.pem, key_file: '/srv/my key.pem'}
trusted_proxies: [127.0.0.1, "::1", 10.0.0.0/24]
auth: {mode: API_KEY, keys_file: /srv/keys.json}
limits:
  connects_per_second: 0
  connections_per_source: 5
  connections_per_network: 6
  addresses_per_network: 7
  device_bytes_per_second: 10000
  network_bytes_per_second: 20000
  queue_memory: 131072
drain_window: 0
log_format: JSON
allowed_networks: [%s]
public_names: [Relay.Example.com, 'fd00::1']
log_level: WARN
allowed_origins: [https://app.example.com:8443, 'HTTPS://App.Example.com:443']
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
    assert config.tls == Tls(cert_file="/etc/letsencrypt/live/r/fullchain.pem", key_file="/srv/my key.pem")
    assert config.trusted_proxies == tuple(map(ip_network, ("127.0.0.1", "::1", "10.0.0.0/24")))
    assert config.auth == Auth(mode="api_key", keys_file="/srv/keys.json")
    assert config.limits == Limits(
        connects_per_second=0,
        connections_per_source=5,
        connections_per_network=6,
        addresses_per_network=7,
        device_bytes_per_second=10_000,
        network_bytes_per_second=20_000,
        queue_memory=131_072,
    )
    assert (config.drain_window, config.log_format) == (0, "json")
    assert config.allowed_origins == ("https://app.example.com:8443", "https://app.example.com")
    assert config.without_effect == ()
    assert loaded.warnings == []


def test_a_file_without_names_is_warned_of() -> None:
    assert parse_relay_config(b"relay_port: 1234\n", "r.yaml").warnings == [
        f"r.yaml:1:1: allowed_origins: is not in the file; its default {ANY_ORIGIN}",
        f"r.yaml:1:1: auth.mode: is not in the file; its default {OPEN}",
        'r.yaml:1:1: region: is not in the file, so the guide\'s "us-east-1" is shown; add a line for it',
        'r.yaml:1:1: server_name: is not in the file, so the guide\'s "relay-us-east-1" is shown; '
        "add a line for it",
    ]


NAMED = "{region: eu, server_name: r, bind_address: 127.1.2.3, "


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("allowed_origins: ['https://a', '*']", [f"72: allowed_origins: {ANY_ORIGIN}"]),
        (
            "allowed_origins: [], zero_knowledge: false",
            ["92: zero_knowledge: the log shows clients' IP addresses and whole device and network ids"],
        ),
        (
            "allowed_origins: [], frame_logging: true",
            [
                "91: frame_logging: the log shows which devices exchange frames, when and how large; "
                "no content"
            ],
        ),
        (
            "allowed_origins: [], log_routing: on",
            ["89: log_routing: the log shows which device holds which address, and what was not delivered"],
        ),
        ("allowed_origins: [], zero_knowledge: yes, frame_logging: no, log_routing: off", []),
    ],
)
def test_what_a_setting_means_for_users(line: str, expected: list[str]) -> None:
    warnings = parse_relay_config(f"{NAMED}{line}}}".encode(), "r.yaml").warnings
    assert warnings == [f"r.yaml:1:{rest}" for rest in expected]


KEYS = "without tls, API keys can be read on their way; set tls, or trusted_proxies to those that have it"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("bind_address: '::1'", []),
        ("bind_address: '::1', auth: {mode: api_key}", []),
        ("auth: {mode: open}", [f"70: auth.mode: {OPEN}"]),
        ("auth: {keys_file: /k}", [f"1: auth.mode: is not in the file; its default {OPEN}"]),
        (f"allowed_networks: [{'ab' * 32}]", []),
        ("auth: {mode: api_key}", [f"70: auth.mode: {KEYS}"]),
        ("bind_address: 10.0.0.1, auth: {mode: api_key}", [f"94: auth.mode: {KEYS}"]),
        ("auth: {mode: api_key}, tls: {cert_file: /a, key_file: /b}", []),
        ("auth: {mode: api_key}, trusted_proxies: [10.0.0.1]", []),
    ],
)
def test_who_may_use_the_relay(line: str, expected: list[str]) -> None:
    content = "{region: eu, server_name: relay-1, allowed_origins: [], max_queue}".replace("max_queue", line)
    warnings = parse_relay_config(content.encode(), "r.yaml").warnings
    assert warnings == [f"r.yaml:1:{rest}" for rest in expected]


CERT = 'is missing; write it under "tls:", such as cert_file: "/etc/shadowmesh/fullchain.pem"'
KEY = 'is missing; write it under "tls:", such as key_file: "/etc/shadowmesh/privkey.pem"'


@pytest.mark.parametrize("section", ["tls:", "tls: {}", "tls: ~", "tls:\n  # cert_file: /a"])
def test_an_empty_tls_section_is_not_taken_for_none(section: str) -> None:
    assert problems(section) == [f"r.yaml:1:1: tls.cert_file: {CERT}", f"r.yaml:1:1: tls.key_file: {KEY}"]


NOT_A_PORT = "is out of range; write a number from 1 to 65535"
LIST = 'must be a list; write [ ] around its values, or each into a line that begins with "- "'


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("relay_prot: 9545", "1:1: relay_prot: unknown key; did you mean relay_port?"),
        ("Relay-Port: 9545", "1:1: Relay-Port: unknown key; did you mean relay_port?"),
        (
            "{network: {}, region: a, server_name: b}",
            "1:2: network: unknown key; it belongs to the configuration of shadowmesh-daemon",
        ),
        ("tls: {cert_file: /a}", f"1:1: tls.key_file: {KEY}"),
        (
            "tls: {cert_file: /a, key_file: key.pem}",
            '1:32: tls.key_file: "key.pem" is not an absolute path; write one such as '
            "/etc/shadowmesh/privkey.pem",
        ),
        (
            "tls: {cert_file: /a, key_file: }",
            "1:31: tls.key_file: has no value; write one",
        ),
        ("tls: /a", '1:6: tls: must be a section, with lines such as "key: value" below it'),
        (
            "tls: {cert_file: /a, key_file: /b, min_version: 1.2}",
            "1:36: tls.min_version: unknown key; known here are cert_file, key_file",
        ),
        ("cert_file: /a", "1:1: cert_file: unknown key here; it is known as tls.cert_file"),
        ("auth: {mode: keys}", '1:14: auth.mode: "keys" is not known here; write one of open, api_key'),
        ("auth: api_key", '1:7: auth: must be a section, with lines such as "key: value" below it'),
        (
            "auth: {keys_file: keys.json}",
            '1:19: auth.keys_file: "keys.json" is not an absolute path; write one such as '
            "/etc/shadowmesh/relay-keys.json",
        ),
        ("keys_file: /a", "1:1: keys_file: unknown key here; it is known as auth.keys_file"),
        (
            "limits: {connections_per_source: }",
            "1:33: limits.connections_per_source: has no value; write one, or remove the line",
        ),
        (
            "limits: {connects_per_second: -1}",
            "1:31: limits.connects_per_second: -1 is out of range; write a number from 0 to 100000",
        ),
        (
            "limits: {device_bytes_per_second: 9999}",
            "1:35: limits.device_bytes_per_second: 9999 bytes per second are too few to work with; write "
            "at least 10000, or 0 for no limit",
        ),
        (
            "limits: {queue_memory: 0}",
            "1:24: limits.queue_memory: 0 is out of range; write a number from 131072 to 1099511627776",
        ),
        ("trusted_proxies: 127.0.0.1", f"1:18: trusted_proxies: {LIST}"),
        (
            f"trusted_proxies: [{'127.0.0.1,' * 65}]",
            "1:18: trusted_proxies: has too many entries; at most 64 are allowed",
        ),
        (
            "trusted_proxies: [127.0.0.1, 10.0.0.7/24]",
            "1:30: trusted_proxies[1]: 10.0.0.7/24 has bits set behind its prefix; write 10.0.0.0/24, or "
            "10.0.0.7 alone",
        ),
        ("drain_window: 601", "1:15: drain_window: 601 is out of range; write a number from 0 to 600"),
        (
            "log_format: xml",
            '1:13: log_format: "xml" is not known here; write one of auto, console, json',
        ),
        ("relay_port: 0", f"1:13: relay_port: 0 {NOT_A_PORT}"),
        ("relay_port: 65536", f"1:13: relay_port: 65536 {NOT_A_PORT}"),
        ("health_port: -1", f"1:14: health_port: -1 {NOT_A_PORT}"),
        ("metrics_port: x", '1:15: metrics_port: "x" is not a whole number; write one from 1 to 65535'),
        ("relay_port: [1]", '1:13: relay_port: must be one value, not a list; write it without "[" and "-"'),
        (
            "relay_port: {a: 1}",
            '1:13: relay_port: must be one value, not a section; no "key: value" belongs here',
        ),
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
            "zero_knowledge: maybe",
            '1:17: zero_knowledge: "maybe" is neither true nor false; write one of them',
        ),
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
        ("allowed_origins:", "1:17: allowed_origins: has no value; write a list, or remove the line"),
        (
            "allowed_origins: ['*', 'https://a/b']",
            '1:24: allowed_origins[1]: "https://a/b" is not an origin, which ends before the path; write '
            '"https://a"',
        ),
        (
            "allowed_origins: ['https://*.example.com']",
            '1:19: allowed_origins[0]: "https://*.example.com" has a "*", which stands only alone; write '
            "each origin by itself",
        ),
        (
            "allowed_origins: [wss://a]",
            "1:19: allowed_origins[0]: an origin is where the page is from; write https:// instead of wss://",
        ),
        (
            "allowed_origins: ['null']",
            '1:19: allowed_origins[0]: "null" is not an origin; write one such as https://app.example.com',
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


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("log", "log_format, log_level, log_connections or log_routing"),
        ("ssl", "tls"),
        ("port", "relay_port, health_port or metrics_port"),
        ("listen", "bind_address, health_bind or metrics_bind"),
        ("host", "bind_address, health_bind or metrics_bind"),
        ("cert", "tls.cert_file"),
        ("ssl_certificate", "tls.cert_file"),
        ("private_key", "tls.key_file"),
        ("keys", "auth.keys_file"),
        ("timeout", "connection_timeout"),
        ("name", "server_name"),
        ("websocket_port", "relay_port"),
        ("Buffer-Size", "read_buffer_size or write_buffer_size"),
        ("device_bytes", "limits.device_bytes_per_second"),
    ],
)
def test_words_of_other_programs_are_understood(key: str, meant: str) -> None:
    assert problems(f"region: eu\n{key}: 1\n") == [f"r.yaml:2:1: {key}: unknown key; did you mean {meant}?"]


def test_a_section_knows_its_own_keys_first() -> None:
    lines = problems("tls: {certificate: /a, key: /b}")
    assert [line for line in lines if "unknown" in line] == [
        "r.yaml:1:7: tls.certificate: unknown key; did you mean cert_file?",
        "r.yaml:1:24: tls.key: unknown key; did you mean key_file?",
    ]


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
    assert lines[0].startswith(
        "r.yaml:1:1: a0: unknown key; remove it, or see docs/configuration.md (man shadowmesh.yaml)"
    )
    assert lines[-1] == "r.yaml: and 10 more"


def test_a_client_file_is_told_from_one_with_many_mistakes() -> None:
    assert problems("network: {}\nrelay: {}\n") == [
        "r.yaml: a client configuration, for shadowmesh-daemon; shadowmesh-relay needs its own"
    ]


@pytest.mark.parametrize("key", ["allowed_networks", "public_names"])
def test_an_empty_list_lets_nobody_in_by_mistake(key: str) -> None:
    with pytest.raises(
        ConfigError, match=rf"^f:1:\d+: {key}: is empty, and would let everybody in; write an"
    ):
        parse_relay_config(f"{key}: []\n".encode(), "f")
