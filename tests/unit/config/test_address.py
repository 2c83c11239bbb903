"""Overlay addresses, prefixes, host:port and relay URLs."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import ip_address, ip_interface, ip_network

import pytest

from shadowmesh.config.address import (
    HostPort,
    RelayUrl,
    bind_ip,
    host_name,
    host_port,
    normal_origin,
    overlay_interface,
    overlay_ip,
    prefix,
    relay_url,
    trusted_proxy,
)


def words(parse: Callable[[object], object], value: str) -> str:
    with pytest.raises(ValueError) as caught:
        parse(value)
    return str(caught.value)


@pytest.mark.parametrize(
    "value", ["10.10.10.7/24", "10.0.0.0/31", "10.0.0.1/8", "fd00::1/64", "fd00::/127", "100.64.0.1/10"]
)
def test_overlay_interface(value: str) -> None:
    assert overlay_interface(value) == ip_interface(value)


PRIVATE = "write one of a private range, such as 10.10.10.7/24"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "10.10.10.X/24",
            '"10.10.10.X/24" is the guide\'s placeholder; write a number for X, such as 10.10.10.7/24',
        ),
        ("10.10.10.x", '"10.10.10.x" is the guide\'s placeholder; write a number for X, such as 10.10.10.7'),
        ("10.10.10.7", "10.10.10.7 lacks its prefix length; write 10.10.10.7/24"),
        ("fd00::7", "fd00::7 lacks its prefix length; write fd00::7/64"),
        (
            "10.10.10.0/24",
            "10.10.10.0/24 is the address of the network itself; write one in it, such as 10.10.10.1/24",
        ),
        ("fd00::/64", "fd00::/64 is the address of the network itself; write one in it, such as fd00::1/64"),
        ("10.10.10.255/24", "10.10.10.255/24 is the broadcast address; write one such as 10.10.10.1/24"),
        (
            "10.10.10.7/32",
            "/32 is not a prefix length for a network of several devices; write one from 8 to 31",
        ),
        (
            "10.10.10.7/7",
            "/7 is not a prefix length for a network of several devices; write one from 8 to 31",
        ),
        ("10.10.10.7/", "/ is not a prefix length for a network of several devices; write one from 8 to 31"),
        (
            "fd00::7/128",
            "/128 is not a prefix length for a network of several devices; write one from 8 to 127",
        ),
        (
            "10.10.10.7/255.255.255.0",
            "/255.255.255.0 is not a prefix length for a network of several devices; write one from 8 to 31",
        ),
        (
            "10.10.10/24",
            '"10.10.10" is not an IP address; write one with its prefix length, such as 10.10.10.7/24',
        ),
        (
            "010.1.1.1/24",
            '"010.1.1.1" is not an IP address; write one with its prefix length, such as 10.10.10.7/24',
        ),
        (
            "fe80::1%eth0/64",
            '"fe80::1%eth0" is not an IP address; write one with its prefix length, such as 10.10.10.7/24',
        ),
        ("0.0.0.0/8", f'0.0.0.0 is an unspecified ("this host") address; {PRIVATE}'),
        ("127.0.0.1/8", f"127.0.0.1 is a loopback address; {PRIVATE}"),
        ("169.254.1.1/16", f"169.254.1.1 is a link-local address; {PRIVATE}"),
        ("224.0.0.5/24", f"224.0.0.5 is a multicast address; {PRIVATE}"),
        ("255.255.255.255/24", f"255.255.255.255 is the broadcast address; {PRIVATE}"),
        ("240.0.0.1/24", f"240.0.0.1 is a reserved address; {PRIVATE}"),
        ("::/64", f":: is the unspecified address; {PRIVATE}"),
        ("::1/64", f"::1 is the loopback address; {PRIVATE}"),
        ("::ffff:10.0.0.1/104", f"::ffff:10.0.0.1 is an IPv4 address written as IPv6; {PRIVATE}"),
        ("fe80::1/64", f"fe80::1 is a link-local address; {PRIVATE}"),
        ("ff02::1/64", f"ff02::1 is a multicast address; {PRIVATE}"),
    ],
)
def test_overlay_interface_refuses(value: str, expected: str) -> None:
    got = words(overlay_interface, value)
    assert got == expected.replace("::ffff:10.0.0.1 ", f"{ip_address('::ffff:10.0.0.1')} ")


def test_overlay_ip() -> None:
    assert overlay_ip("fd00::7") == ip_address("fd00::7")
    assert (
        words(overlay_ip, "10.10.10.7/24")
        == '"10.10.10.7/24" is not an IP address; write one such as 10.10.10.7'
    )
    assert words(overlay_ip, "127.0.0.1").startswith("127.0.0.1 is a loopback address; write the overlay IP")


def test_prefix() -> None:
    assert prefix("192.168.7.0/24") == ip_network("192.168.7.0/24")
    assert prefix("192.168.7.9/32") == ip_network("192.168.7.9/32")
    assert prefix("2001:db8::/32") == ip_network("2001:db8::/32")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("192.168.7.0", '"192.168.7.0" lacks a prefix length; write a network such as 192.168.7.0/24'),
        ("192.168.7.0/33", "/33 is not a prefix length; write one from 1 to 32"),
        ("192.168.7.0/", "/ is not a prefix length; write one from 1 to 32"),
        ("fd00::/129", "/129 is not a prefix length; write one from 1 to 128"),
        ("192.168.7.1/24", "192.168.7.1/24 has bits set behind its prefix; write 192.168.7.0/24"),
        (
            "0.0.0.0/0",
            "a default route is not built yet in this version; write a network such as 192.168.7.0/24",
        ),
        ("::/0", "a default route is not built yet in this version; write a network such as 192.168.7.0/24"),
        ("128.0.0.0/1", "128.0.0.0/1 holds a link-local address; write a network such as 192.168.7.0/24"),
        ("lan/24", '"lan" is not an IP address; write a network such as 192.168.7.0/24'),
    ],
)
def test_prefix_refuses(value: str, expected: str) -> None:
    assert words(prefix, value) == expected


def test_host_port() -> None:
    assert host_port("127.0.0.1:9090") == HostPort("127.0.0.1", 9090)
    assert host_port("[::1]:1") == HostPort("::1", 1)
    assert host_port("LocalHost:65535") == HostPort("localhost", 65535)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (":9090", "has no host; write one, such as 127.0.0.1:9090"),
        ("127.0.0.1", '"127.0.0.1" has no port; write one behind it, such as 127.0.0.1:9090'),
        ("127.0.0.1:", '"" is not a port; write a number from 1 to 65535'),
        ("127.0.0.1:0", '"0" is not a port; write a number from 1 to 65535'),
        ("127.0.0.1:65536", '"65536" is not a port; write a number from 1 to 65535'),
        ("::1:9090", '"::1:9090" is no host and port; an IPv6 address needs brackets: [fd00::1]:9545'),
        ("[::1:9090", '"[::1:9090" is no host and port; an IPv6 address needs brackets: [fd00::1]:9545'),
        ("[1.2.3]:9", '"1.2.3" is not an IP address; only an IPv6 address stands in brackets'),
        (
            "example.com:1",
            '"example.com" is not an IP address; write one of this machine with a port, such as '
            "127.0.0.1:9090",
        ),
    ],
)
def test_host_port_refuses(value: str, expected: str) -> None:
    assert words(host_port, value) == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("https://app.example.com", "https://app.example.com"),
        ("HTTPS://App.Example.COM", "https://app.example.com"),
        ("https://app.example.com:443", "https://app.example.com"),
        ("http://app.example.com:80", "http://app.example.com"),
        ("http://app.example.com:443", "http://app.example.com:443"),
        ("https://app.example.com:08443", "https://app.example.com:8443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://127.0.0.1", "http://127.0.0.1"),
        ("http://[FD00:0:0::1]:80", "http://[fd00::1]"),
        ("chrome-extension://ABCdef_-", "chrome-extension://abcdef_-"),
    ],
)
def test_normal_origin(value: str, expected: str) -> None:
    assert normal_origin(value) == expected
    assert normal_origin(expected) == expected


@pytest.mark.parametrize(
    "value",
    [
        *(
            "",
            "null",
            "*",
            "https",
            "https:",
            "//a",
            "://a",
            "1a://b",
            "https://",
            "https://a b",
            "https://a\n",
        ),
        *(
            "https://a/",
            "https://a?b",
            "https://a#b",
            "https://u@a",
            "https://a:0",
            "https://a:",
            "https://a,b",
        ),
        *(
            "https://a https://b",
            "https://::1",
            "https://[::1",
            "https://[a]",
            "https://1.2.3",
            "https://\xfc.de",
        ),
        *("x://", "x://a b", "x://a/b", "x://:1", "https://a:65536", "https://" + "a" * 70),
    ],
)
def test_normal_origin_refuses(value: str) -> None:
    with pytest.raises(ValueError):
        normal_origin(value)


def test_trusted_proxy() -> None:
    for value in ("127.0.0.1", "::1", "10.0.0.0/8", "127.0.0.0/8", "192.0.2.7/32", "fd00::/64", "fe80::/10"):
        assert trusted_proxy(value) == ip_network(value)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "0.0.0.0/0",
            "0.0.0.0/0 trusts so many addresses that others could choose the one they are counted by; "
            "write those of your proxies",
        ),
        (
            "::/0",
            "::/0 trusts so many addresses that others could choose the one they are counted by; "
            "write those of your proxies",
        ),
        (
            "128.0.0.0/1",
            "128.0.0.0/1 trusts so many addresses that others could choose the one they are counted by; "
            "write those of your proxies",
        ),
        ("10.0.0.7/24", "10.0.0.7/24 has bits set behind its prefix; write 10.0.0.0/24, or 10.0.0.7 alone"),
        ("fd00::7/64", "fd00::7/64 has bits set behind its prefix; write fd00::/64, or fd00::7 alone"),
        ("10.0.0.0/33", "/33 is not a prefix length; write one up to 32"),
        ("10.0.0.0/", "/ is not a prefix length; write one up to 32"),
        ("::1/129", "/129 is not a prefix length; write one up to 128"),
        ("10.0.0.0/255.0.0.0", "/255.0.0.0 is not a prefix length; write one up to 32"),
        ("::ffff:10.0.0.1", "::ffff:10.0.0.1 is an IPv4 address written as IPv6; write 10.0.0.1"),
        ("0.0.0.0", "0.0.0.0 is no address that a proxy can have; write one such as 127.0.0.1"),
        ("ff02::1", "ff02::1 is no address that a proxy can have; write one such as 127.0.0.1"),
        (
            "proxy.example.com",
            '"proxy.example.com" is not an IP address; write that of a proxy, such as 127.0.0.1 or '
            "10.0.0.0/24",
        ),
    ],
)
def test_trusted_proxy_refuses(value: str, expected: str) -> None:
    assert words(trusted_proxy, value) == expected


def test_bind_ip_and_host_name() -> None:
    assert [bind_ip(v) for v in ("0.0.0.0", "::", "[::1]")] == ["0.0.0.0", "::", "::1"]
    assert [host_name(v) for v in ("Relay.Example.com", "10.0.0.1", "FD00::1", "a_b-c")] == [
        *("relay.example.com", "10.0.0.1", "fd00::1", "a_b-c"),
    ]
    for bad in ("", "a b", "-a", "a..b", "a" * 64, "b\u00fccher.example", "1.2.3", "1.2.3.999", "x:y", "a/b"):
        words(host_name, bad)
    words(bind_ip, "localhost")
    assert "link-local" in words(bind_ip, "fe80::1")
    assert "multicast" in words(bind_ip, "224.0.0.1")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("ws://h:9545", RelayUrl("ws", "h", 9545, "ws://h:9545/relay")),
        ("ws://h:9545/", RelayUrl("ws", "h", 9545, "ws://h:9545/relay")),
        ("wss://h/relay", RelayUrl("wss", "h", 443, "wss://h/relay")),
        ("wss://h/relay/", RelayUrl("wss", "h", 443, "wss://h/relay")),
        ("wss://h/mesh", RelayUrl("wss", "h", 443, "wss://h/mesh/relay")),
        ("wss://h/myrelay", RelayUrl("wss", "h", 443, "wss://h/myrelay/relay")),
        (
            "WSS://Relay.ShadowMesh.io:443/a/relay",
            RelayUrl("wss", "relay.shadowmesh.io", 443, "wss://relay.shadowmesh.io:443/a/relay"),
        ),
        ("ws://[FD00::1]:9545", RelayUrl("ws", "fd00::1", 9545, "ws://[fd00::1]:9545/relay")),
        ("ws://[::1]", RelayUrl("ws", "::1", 80, "ws://[::1]/relay")),
        ("ws://127.0.0.1:9545", RelayUrl("ws", "127.0.0.1", 9545, "ws://127.0.0.1:9545/relay")),
    ],
)
def test_relay_url(value: str, expected: RelayUrl) -> None:
    assert relay_url(value) == expected


SUCH = "such as ws://203.0.113.9:9545 or wss://relay.example.com/relay"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (
            "ws://YOUR_RELAY_IP:9545",
            f"holds the guide's placeholder; write the address of your relay, {SUCH}",
        ),
        ("http://h:9545", "a relay is not reached by http://; write ws:// instead"),
        ("https://h", "a relay is not reached by https://; write wss:// instead"),
        ("h:9545", f"does not begin with ws:// or wss://; write a URL {SUCH}"),
        ("tcp://h", f"does not begin with ws:// or wss://; write a URL {SUCH}"),
        ("", f"does not begin with ws:// or wss://; write a URL {SUCH}"),
        ("ws://", f"has no host; write one, {SUCH}"),
        ("ws://:9545", f"has no host; write one, {SUCH}"),
        ("ws:///relay", f"has no host; write one, {SUCH}"),
        ("ws://[]:1", f"has no host; write one, {SUCH}"),
        ("ws://h:0", '"0" is not a port; write a number from 1 to 65535'),
        ("ws://h:65536/relay", '"65536" is not a port; write a number from 1 to 65535'),
        ("ws://h:port", '"port" is not a port; write a number from 1 to 65535'),
        (
            "ws://fd00::1:9545",
            '"fd00::1:9545" is no host and port; an IPv6 address needs brackets: [fd00::1]:9545',
        ),
        (
            "ws://me:secret@h",
            "holds a user name or password, which a relay does not take; remove all up to the @",
        ),
        ("ws://h?token=secret", "holds a ? or #, which a relay URL has not; remove it and what follows"),
        ("ws://h/relay#x", "holds a ? or #, which a relay URL has not; remove it and what follows"),
        ("ws://h/a b", '"/a b" is not the path of a URL; write one such as /relay'),
        ("ws://a b", '"a b" is not a host name; write one such as relay.example.com'),
        (
            "ws://10.0.0.300:1",
            '"10.0.0.300" is not an IP address; write all four numbers, such as 203.0.113.9',
        ),
        ("ws://b\u00fccher.example", '"b\\xfccher.example" is not ASCII; write the xn-- form of the name'),
        ("ws://0.0.0.0:9545", f"0.0.0.0 is not the address of one host; write a URL {SUCH}"),
        ("ws://[ff02::1]:9545", f"ff02::1 is not the address of one host; write a URL {SUCH}"),
    ],
)
def test_relay_url_refuses(value: str, expected: str) -> None:
    assert words(relay_url, value) == expected
