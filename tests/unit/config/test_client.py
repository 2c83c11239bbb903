"""The client's file: the guide's loads once its placeholders are replaced, each mistake has its line."""

from __future__ import annotations

from ipaddress import ip_address, ip_interface, ip_network

import pytest

from shadowmesh.config import HostPort, ProxyUrl, RelayUrl, Route, parse_client_config
from shadowmesh.testing.client_file import API_KEY, FILLED, KEY, NAMED, NEXT, changed, load, problems
from shadowmesh.testing.guide import CLIENT_CONFIG


def test_the_guides_file_with_its_three_placeholders_replaced() -> None:
    loaded = parse_client_config(FILLED.encode(), "c.yaml")
    assert loaded.warnings == [
        'c.yaml:15:7: peer.id: "client-unique-id" is the guide\'s example; write a name of its own '
        "on each device"
    ]
    config = loaded.config
    assert config.daemon.listen_address == HostPort("127.0.0.1", 9090)
    assert (config.daemon.log_level, config.daemon.state_directory) == ("info", "/var/lib/shadowmesh")
    assert (config.network.mode, config.network.device_name, config.network.mtu) == (
        "tun",
        "shadowmesh0",
        1400,
    )
    assert config.network.local_ip == (ip_interface("10.10.10.7/24"),)
    assert (config.network.routes, config.network.advertise) == ((), ())
    assert config.encryption.key.reveal().hex() == KEY
    assert (config.peer.address, config.peer.id) == ("", "client-unique-id")
    assert config.relay.server == RelayUrl("ws", "203.0.113.9", 9545, "ws://203.0.113.9:9545/relay")
    assert (config.relay.enabled, config.nat.enabled, config.p2p.listener_enabled) == (True, False, False)
    assert (config.peers.verify, config.peers.trusted) == ("warn", {})
    assert KEY not in repr(config)
    assert KEY not in str(config.model_dump())


def test_the_guides_file_as_it_stands_names_its_placeholders() -> None:
    make = "make one with: shadowmesh keygen (the same key on every device of the network)"
    assert problems(CLIENT_CONFIG) == [
        'c.yaml:8:13: network.local_ip: "10.10.10.X/24" is the guide\'s placeholder; '
        "write a number for X, such as 10.10.10.7/24",
        f"c.yaml:11:8: encryption.key: is the guide's placeholder; {make}",
        "c.yaml:22:11: relay.server: holds the guide's placeholder; write the address of your relay, "
        "such as ws://203.0.113.9:9545 or wss://relay.example.com/relay",
    ]


def test_the_guides_tls_server() -> None:
    config = load(changed("ws://203.0.113.9:9545", "wss://relay.shadowmesh.io/relay"))
    assert config.relay.server == RelayUrl(
        "wss", "relay.shadowmesh.io", 443, "wss://relay.shadowmesh.io/relay"
    )


def test_several_relays_and_the_way_there() -> None:
    config = load(
        changed(
            'server: "ws://203.0.113.9:9545"',
            "servers: [wss://a, ws://b:1]\n  proxy: 'http://u:p%40ss@h:3128'\n  tls_ca_file: /ca.pem",
        )
    )
    assert [one.url for one in config.relay.urls] == ["wss://a/relay", "ws://b:1/relay"]
    assert config.relay.server is None
    assert isinstance(config.relay.proxy, ProxyUrl)
    assert config.relay.proxy.reveal() == ("u", "p@ss")
    assert config.relay.tls_ca_file == "/ca.pem"
    assert config.secrets() == ["encryption.key", "relay.proxy"]
    assert "p@ss" not in repr(config) + str(config.model_dump())


def test_the_way_to_the_relay_unless_said_otherwise() -> None:
    config = load(NAMED)
    assert config.relay.urls == (config.relay.server,)
    assert (config.relay.proxy, config.relay.tls_ca_file) == ("environment", None)
    assert config.daemon.token_file == "/run/shadowmesh/api.token"
    assert load(changed("  server:", "  proxy: none\n  server:")).relay.proxy is None
    assert load(changed("  server:", "  proxy: ''\n  server:")).relay.proxy == "environment"


def test_two_fingerprints_of_one_device() -> None:
    one, other = "a" * 32, "b" * 32
    for written in (f"[{one}, {other.upper()}]", f"{one} {other}"):
        config = load(changed("nat:", f"peers: {{trusted: {{10.10.10.1: {written}}}}}\nnat:"))
        assert config.peers.trusted == {ip_address("10.10.10.1"): f"{one} {other}"}


def test_every_optional_key_and_sections_left_out_or_empty() -> None:
    loaded = parse_client_config(
        f"""
daemon: {{listen_address: '[::1]:1', log_level: WARN, state_directory: /srv/x}}
network:
  local_ip: [10.10.10.7/24, 'fd00::7/64']
  mtu: 9000
  routes:
  - {{to: 192.168.7.0/24, via: 10.10.10.9}}
  - {{to: '2001:db8::/32', via: fd00::9}}
  advertise: [172.16.0.0/16]
encryption: {{key: {KEY}}}
peer: {{id: Laptop}}
nat:
relay: {{server: 'ws://[2001:db9::1]:9545'}}
peers:
  verify: strict
  trusted: {{10.10.10.9: ABCDEFGHIJKLMNOPQRSTUVWXYZ234567}}
""".encode(),
        "c.yaml",
    )
    config = loaded.config
    assert loaded.warnings == []
    assert config.daemon.listen_address == HostPort("::1", 1)
    assert config.daemon.log_level == "warning"
    assert config.network.local_ip == (ip_interface("10.10.10.7/24"), ip_interface("fd00::7/64"))
    assert config.network.routes == (
        Route.model_construct(to=ip_network("192.168.7.0/24"), via=ip_address("10.10.10.9")),
        Route.model_construct(to=ip_network("2001:db8::/32"), via=ip_address("fd00::9")),
    )
    assert config.network.advertise == (ip_network("172.16.0.0/16"),)
    assert config.peers.trusted == {ip_address("10.10.10.9"): "abcdefghijklmnopqrstuvwxyz234567"}
    assert config.peers.verify == "strict"


def test_missing_keys_are_named_one_by_one_where_they_belong() -> None:
    assert problems("daemon: {}\npeer:\n  address: ''\n") == [
        'c.yaml:1:1: network.local_ip: is missing; write it under "network:", such as local_ip: '
        '"10.10.10.7/24"',
        'c.yaml:1:1: encryption.key: is missing; write it under "encryption:", '
        'such as key: "<what shadowmesh keygen prints>"',
        'c.yaml:1:1: relay.server: is missing; write it under "relay:", such as server: '
        '"ws://203.0.113.9:9545"',
        'c.yaml:2:1: peer.id: is missing; write it under "peer:", such as id: "laptop"',
    ]


FALSE = "is not built yet in this version; write false"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            "listen_address",
            "listen_adress",
            "2:3: daemon.listen_adress: unknown key; did you mean listen_address?",
        ),
        (
            "daemon:",
            "log_level: info\ndaemon:",
            "1:1: log_level: unknown key here; it is known as daemon.log_level",
        ),
        (
            "mode:",
            "enabled: no\n  mode:",
            "6:3: network.enabled: unknown key here; it is known as nat.enabled and relay.enabled",
        ),
        (
            "nat:",
            "relay_port: 1\nnat:",
            "17:1: relay_port: unknown key; it belongs to the configuration of shadowmesh-relay",
        ),
        ("mode:", "servr: x\n  mode:", "6:3: network.servr: unknown key; did you mean relay.server?"),
        ("  id:", "  zzz: 1\n  id:", "15:3: peer.zzz: unknown key; known here are address, id"),
        (
            "  id:",
            f"  {KEY}: 1\n  id:",
            "15:3: peer.a long hex text: unknown key; known here are address, id",
        ),
        (
            "  key:",
            "  key_file: x\n  key:",
            '11:13: encryption.key_file: "x" is not an absolute path; write one such as '
            "/etc/shadowmesh/encryption.key",
        ),
        (
            "  key:",
            "  key_file: /x\n  key:",
            "11:13: encryption.key_file: stands beside encryption.key; keep one of them",
        ),
        (
            f'key: "{KEY}"',
            "key_file: /dev/null",
            "11:13: encryption.key_file: /dev/null is no regular file; write the path of one with "
            "64 hex digits",
        ),
        (
            f'key: "{KEY}"',
            "key_file: /nowhere/x",
            "11:13: encryption.key_file: /nowhere/x cannot be read: No such file or directory",
        ),
        (
            "  key:",
            f"  next_key: {KEY}\n  key:",
            "11:13: encryption.next_key: is the same as encryption.key; make another one with: "
            "shadowmesh keygen",
        ),
        (
            "  key:",
            "  next_key: abc\n  key:",
            "11:13: encryption.next_key: has 3 hex digits where 64 belong; make one with: shadowmesh keygen "
            "(the same key on every device of the network)",
        ),
        (
            "  key:",
            f"  next_key: {NEXT}\n  next_key_file: /x\n  key:",
            "12:18: encryption.next_key_file: stands beside encryption.next_key; keep one of them",
        ),
        (
            "nat:",
            f"peers: {{trusted: {{10.10.10.1: [{'a' * 32}, {'b' * 32}, {'c' * 32}]}}}}\nnat:",
            "17:31: peers.trusted.10.10.10.1: has 3 fingerprints; write one, or two while the network key "
            "is replaced",
        ),
        (
            "  server:",
            "  api_key: YOUR_API_KEY\n  server:",
            "22:12: relay.api_key: is a placeholder; write what `shadowmesh relay-keys add` printed on the "
            "relay, or remove the line if that relay asks for none",
        ),
        (
            "  server:",
            "  api_key:\n  server:",
            "22:11: relay.api_key: has no value; write one, or remove the line",
        ),
        (
            "  server:",
            "  api_key: smk_abc\n  server:",
            "22:12: relay.api_key: is no API key: one has the form smk_ID_SECRET and 56 characters, this has "
            "7; write what `shadowmesh relay-keys add` printed on the relay",
        ),
        (
            "  server:",
            f"  api_key: {API_KEY}\n  server:",
            "22:12: relay.api_key: would cross the network in clear to 203.0.113.9; write wss:// in "
            "relay.server, or, if whoever is in between may have the key, insecure_api_key: true",
        ),
        (
            "  server:",
            f"  api_key: {API_KEY}\n  insecure_api_key: perhaps\n  server:",
            '23:21: relay.insecure_api_key: "perhaps" is neither true nor false; write one of them',
        ),
        (
            '  server: "ws://203.0.113.9:9545"',
            f"  servers: [wss://a, ws://b]\n  api_key: {API_KEY}",
            "23:12: relay.api_key: would cross the network in clear to b; write wss:// in relay.servers, or, "
            "if whoever is in between may have the key, insecure_api_key: true",
        ),
        (
            '  server: "ws://203.0.113.9:9545"',
            "  servers: []",
            "22:12: relay.servers: must be a list of 1 to 4 URLs",
        ),
        (
            "  server:",
            "  servers: [ws://a:1]\n  server:",
            "23:11: relay.server: stands beside relay.servers; keep one of them",
        ),
        (
            '  server: "ws://203.0.113.9:9545"',
            "  servers: [ws://a:1, ws://10.10.10.3:1]",
            "22:23: relay.servers[1]: 10.10.10.3 lies in 10.10.10.0/24, which goes into the tunnel; "
            "write an address outside of it",
        ),
        (
            '  server: "ws://203.0.113.9:9545"',
            "  servers: [ws://a:1, ws://A:1/relay]",
            "22:23: relay.servers[1]: ws://a:1/relay is given twice; keep one of them",
        ),
        (
            '  server: "ws://203.0.113.9:9545"',
            "  proxy: none",
            '20:1: relay.server: is missing; write it under "relay:", such as server: '
            '"ws://203.0.113.9:9545"',
        ),
        (
            ' "ws://203.0.113.9:9545"',
            "",
            "22:10: relay.server: has no value; write one, or remove the line",
        ),
        (
            "  server:",
            "  proxy: x\n  server:",
            "22:10: relay.proxy: does not begin with http:// or socks5://; write one such as "
            "http://proxy.example.com:3128 or socks5://127.0.0.1:1080",
        ),
        (
            "  server:",
            "  proxy: http://10.10.10.9:1\n  server:",
            "22:10: relay.proxy: 10.10.10.9 lies in 10.10.10.0/24, which goes into the tunnel; "
            "write an address outside of it",
        ),
        (
            "  server:",
            "  tls_ca_file: x\n  server:",
            '22:16: relay.tls_ca_file: "x" is not an absolute path; write one such as '
            "/usr/local/share/ca-certificates/company.crt",
        ),
        ("nat:\n  enabled: false", "nat:\n  enabled: true", f"18:12: nat.enabled: NAT traversal {FALSE}"),
        (
            "listener_enabled: false",
            "listener_enabled: yes",
            f"25:21: p2p.listener_enabled: the peer-to-peer listener {FALSE}",
        ),
        (
            "listener_port: 0",
            "listener_port: 65536",
            "26:18: p2p.listener_port: 65536 is out of range; write a number from 0 to 65535",
        ),
        (
            "relay:\n  enabled: true",
            "relay:\n  enabled: false",
            "21:12: relay.enabled: a device without a relay is not built yet in this version; write true",
        ),
        (
            'address: ""',
            'address: "203.0.113.1:9000"',
            '14:12: peer.address: a fixed peer address is not built yet in this version; write ""',
        ),
        ('"tun"', "tap", '6:9: network.mode: "tap" is not built yet in this version; write "tun"'),
        (
            "shadowmesh0",
            "a-name-too-long0",
            '7:16: network.device_name: "a-name-too-long0" is no name for a network device; '
            "write 1 to 15 ASCII characters without space, /, : and %, such as shadowmesh0",
        ),
        ("/24", "", "8:13: network.local_ip: 10.10.10.7 lacks its prefix length; write 10.10.10.7/24"),
        ('"10.10.10.7/24"', "[]", "8:13: network.local_ip: has 0 addresses; write 1 to 8"),
        (
            '"10.10.10.7/24"',
            f"[{'10.10.10.7/24,' * 9}]",
            "8:13: network.local_ip: has 9 addresses; write 1 to 8",
        ),
        ('"10.10.10.7/24"', "", "8:12: network.local_ip: has no value; write one"),
        (
            '"10.10.10.7/24"',
            '"10.10.10.2/24, fd00:1::2/64"',
            '8:13: network.local_ip: several addresses are a list: ["10.10.10.2/24", "fd00:1::2/64"]',
        ),
        (
            '"10.10.10.7/24"',
            "[10.10.10.7/24, 10.10.10.7/16]",
            "8:29: network.local_ip[1]: 10.10.10.7 is given twice; keep one of them",
        ),
        (
            '"10.10.10.7/24"',
            "[10.10.10.7/24, 10.10.10.0/24]",
            "8:29: network.local_ip[1]: 10.10.10.0/24 is the address of the network itself; "
            "write one in it, such as 10.10.10.1/24",
        ),
        ('"tun"', "tun\n  mtu:", "7:7: network.mtu: has no value; write one, or remove the line"),
        (
            '"tun"',
            "tun\n  mtu: 1279",
            "7:8: network.mtu: 1279 is out of range; write a number from 1280 to 9000",
        ),
        (
            "info",
            "loud",
            '3:14: daemon.log_level: "loud" is not known here; write one of debug, info, warning, error',
        ),
        (
            '"info"',
            "info\n  state_directory: state",
            '4:20: daemon.state_directory: "state" is not an absolute path; write one such as '
            "/var/lib/shadowmesh",
        ),
        (
            "127.0.0.1:9090",
            "9090",
            '2:19: daemon.listen_address: "9090" has no port; write one behind it, such as 127.0.0.1:9090',
        ),
        ('"laptop"', "''", '15:7: peer.id: "" does not do as a name; write 1 to 63 ASCII characters'),
        (f'"{KEY}"', "", "11:7: encryption.key: has no value; write one, or remove the line"),
        (
            f'"{KEY}"',
            f"[{KEY}]",
            '11:8: encryption.key: must be one value, not a list; write it without "[" and "-"',
        ),
        (
            "encryption:\n  key",
            "encryption",
            '10:13: encryption: must be a section, with lines such as "key: value" below it',
        ),
        (
            f"{KEY}",
            "0123456789abcdef" * 4,
            '11:8: encryption.key: is a key that public examples use ("0123456789abcdef" repeated); '
            "make one with: shadowmesh keygen (the same key on every device of the network)",
        ),
        (
            "ws://203",
            "http://203",
            "22:11: relay.server: a relay is not reached by http://; write ws:// instead",
        ),
        (
            "203.0.113.9",
            "10.10.10.1",
            "22:11: relay.server: 10.10.10.1 lies in 10.10.10.0/24, which goes into the tunnel; "
            "write an address outside of it",
        ),
        (
            "nat:",
            "peers: {verify: no}\nnat:",
            '17:17: peers.verify: "no" is not known here; write one of warn, strict',
        ),
        (
            "nat:",
            "peers: {trusted: [a]}\nnat:",
            "17:18: peers.trusted: must be a section with lines such as 10.10.10.7: its fingerprint",
        ),
        (
            "nat:",
            "peers: {trusted: {laptop: x}}\nnat:",
            '17:19: peers.trusted.laptop: "laptop" is not an IP address; write one such as 10.10.10.7',
        ),
        (
            "nat:",
            "peers: {trusted: {10.10.10.1: abc}}\nnat:",
            '17:31: peers.trusted.10.10.10.1: "abc" is no fingerprint; write its 32 letters and '
            "digits (a-z, 2-7)",
        ),
        (
            "nat:",
            f"peers: {{trusted: {{fd00::1: {'a' * 32}, FD00:0::1: {'b' * 32}}}}}\nnat:",
            "17:62: peers.trusted.FD00:0::1: fd00::1 is given twice; keep one of them",
        ),
    ],
)
def test_each_mistake(old: str, new: str, expected: str) -> None:
    assert problems(changed(old, new)) == [f"c.yaml:{expected}"]


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        (
            '"laptop"',
            "my laptop",
            '15:7: peer.id: "my laptop" cannot be used as a name; write letters, digits and . _ - '
            "between them",
        ),
        (
            "127.0.0.1:9090",
            "0.0.0.0:9090",
            "2:19: daemon.listen_address: whoever reaches 0.0.0.0 can read the daemon's status; "
            "127.0.0.1 keeps it here",
        ),
        (
            "10.10.10.7",
            "8.8.8.7",
            "8:13: network.local_ip: 8.8.8.7/24 belongs to the public Internet; 10.0.0.0/8 or "
            "fd00::/8 are private",
        ),
        (
            '  server: "ws://203.0.113.9:9545"',
            "  servers: [ws://a:1, ws://b]",
            "22:23: relay.servers[1]: has no port, so 80 is used; a relay's own port is 9545",
        ),
        (":9545", "", "22:11: relay.server: has no port, so 80 is used; a relay's own port is 9545"),
    ],
)
def test_each_warning(old: str, new: str, expected: str) -> None:
    assert parse_client_config(changed(old, new).encode(), "c.yaml").warnings == [f"c.yaml:{expected}"]


def test_a_relay_file_is_told_from_one_with_many_mistakes() -> None:
    assert problems("region: a\nrelay_port: 1\n") == [
        "c.yaml: a relay configuration, for shadowmesh-relay; shadowmesh-daemon needs its own"
    ]
