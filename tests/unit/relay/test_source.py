from __future__ import annotations

from ipaddress import ip_network

import pytest

from shadowmesh.relay.source import Proxies, origin_allowed, source_of

PROXIES = Proxies(map(ip_network, ("127.0.0.1/32", "10.0.0.0/24", "fd00::/64")))
PROXY = ("127.0.0.1", 40000)


@pytest.mark.parametrize(
    ("ip", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_a_source_is_an_ipv4_address_or_an_ipv6_network(ip: str, source: str) -> None:
    assert source_of(ip) == source


@pytest.mark.parametrize(
    ("headers", "client"),
    [
        ({}, None),
        ({"X-Real-IP": "192.0.2.7"}, "192.0.2.7"),
        ({"x-real-ip": " 2001:DB8::0:7 "}, "2001:db8::7"),
        ({"X-Real-IP": "::ffff:192.0.2.7"}, "192.0.2.7"),
        ({"X-Real-IP": "192.0.2.7", "X-Forwarded-For": "192.0.2.8"}, "192.0.2.7"),
        ({"X-Real-IP": "10.0.0.9", "X-Forwarded-For": "192.0.2.8, 10.0.0.9"}, None),
        ({"X-Real-IP": "unknown", "X-Forwarded-For": "192.0.2.8"}, None),
        ({"X-Real-IP": "", "X-Forwarded-For": "192.0.2.8"}, None),
        ({"X-Real-IP": "192.0.2.7, 192.0.2.8", "X-Forwarded-For": "192.0.2.8"}, None),
        ({"X-Forwarded-For": "198.51.100.1, 192.0.2.7"}, "192.0.2.7"),
        ({"X-Forwarded-For": "198.51.100.1,192.0.2.7, 10.0.0.3 , fd00::3"}, "192.0.2.7"),
        ({"X-Forwarded-For": "192.0.2.7:50000, 10.0.0.3:80"}, "192.0.2.7"),
        ({"X-Forwarded-For": "[2001:db8::7]:50000"}, "2001:db8::7"),
        ({"X-Forwarded-For": "10.0.0.3, 10.0.0.4"}, None),
        ({"X-Forwarded-For": "192.0.2.7, nonsense"}, None),
        ({"X-Forwarded-For": "192.0.2.7, "}, None),
        ({"X-Forwarded-For": "fe80::1%eth0"}, None),
        ({"X-Forwarded-For": "192.0.2.300"}, None),
        ({"Forwarded": "for=192.0.2.7"}, None),
    ],
)
def test_what_a_trusted_proxy_says_of_its_client(headers: dict[str, str], client: str | None) -> None:
    """Nothing but well-formed words of its own counts; otherwise the proxy is the client."""
    assert PROXIES.client(PROXY, headers) == ((client, 0) if client else PROXY)


@pytest.mark.parametrize("remote", ["127.0.0.2", "10.0.1.1", "192.0.2.1", "fd00:0:0:1::1", "fe80::1%eth0"])
def test_from_anybody_else_it_is_ignored(remote: str) -> None:
    headers = {"X-Real-IP": "192.0.2.7", "X-Forwarded-For": "192.0.2.7"}
    assert PROXIES.client((remote, 5), headers) == (remote, 5)
    assert Proxies().client((remote, 5), headers) == (remote, 5)


@pytest.mark.parametrize(
    ("origin", "passes"),
    [
        (None, True),
        ("https://app.example.com", True),
        ("HTTPS://App.Example.COM", True),
        ("https://app.example.com:443", True),
        ("http://app.example.com:8080", True),
        ("https://app.example.com:8443", False),
        ("http://app.example.com", False),
        ("https://app.example.com.evil.example", False),
        ("https://evil.example/https://app.example.com", False),
        ("https://app.example.com/", False),
        ("null", False),
        ("", False),
        ("*", False),
    ],
)
def test_origins(origin: str | None, passes: bool) -> None:
    headers = {} if origin is None else {"Origin": origin}
    allowed = ("https://app.example.com", "http://app.example.com:8080")
    assert origin_allowed(headers, allowed) == passes
    assert origin_allowed(headers, ("*",))
    assert origin_allowed(headers, ()) == (origin is None)
