"""Which proxy the environment's variables name for a relay: as curl reads them."""

from __future__ import annotations

import pytest

from shadowmesh.config.address import relay_url
from shadowmesh.config.proxy import ENVIRONMENT, ProxyUrl, proxy_to
from shadowmesh.errors import StartError

PLAIN, SECURE = relay_url("ws://relay.example.com:9545"), relay_url("wss://relay.example.com")


def found(server: str, **environment: str) -> str | None:
    """`PROXY of VARIABLE`."""
    proxy = proxy_to(relay_url(server), ENVIRONMENT, environment)
    return f"{proxy} of {proxy.source}" if proxy else None


def test_a_setting_comes_before_the_environment() -> None:
    environment = {"all_proxy": "http://env:1"}
    proxy = ProxyUrl("http", "h", 1)
    assert proxy_to(PLAIN, proxy, environment) is proxy
    assert proxy_to(PLAIN, None, environment) is None
    assert proxy_to(PLAIN, ENVIRONMENT, {}) is None


@pytest.mark.parametrize(
    ("variables", "plain", "secure"),
    [
        ({"http_proxy": "http://a:1"}, "http://a:1 of http_proxy", None),
        ({"HTTP_PROXY": "http://a:1"}, None, None),
        ({"https_proxy": "http://a:1"}, None, "http://a:1 of https_proxy"),
        ({"HTTPS_PROXY": "http://a:1"}, None, "http://a:1 of HTTPS_PROXY"),
        ({"HTTPS_PROXY": "http://a:1", "https_proxy": "http://b:1"}, None, "http://b:1 of https_proxy"),
        ({"HTTPS_PROXY": "", "ALL_PROXY": "socks5h://a"}, *["socks5://a:1080 of ALL_PROXY"] * 2),
        ({"all_proxy": "A"}, *["http://a:1080 of all_proxy"] * 2),
        ({"all_proxy": "user:word@a:8080/"}, *["http://(hidden)@a:8080 of all_proxy"] * 2),
    ],
)
def test_which_variable_counts(variables: dict[str, str], plain: str | None, secure: str | None) -> None:
    assert found(PLAIN.url, **variables) == plain
    assert found(SECURE.url, **variables) == secure


@pytest.mark.parametrize(
    "value", ["https://u:sesame@a:1", "socks4://u:sesame@a", "u:sesame@", "http://u:sesame%@a"]
)
def test_a_malformed_one_is_named_and_not_shown(value: str) -> None:
    with pytest.raises(
        StartError, match=r"^the environment variable ALL_PROXY .*relay\.proxy: none"
    ) as caught:
        found(PLAIN.url, ALL_PROXY=value)
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize(
    ("exempt", "host", "direct"),
    [
        ("*", "relay.example.com", True),
        (" * ", "10.0.0.1", True),
        ("*,x", "relay.example.com", False),
        ("relay.example.com", "relay.example.com", True),
        ("RELAY.Example.com.", "relay.example.com", True),
        ("example.com", "relay.example.com", True),
        (".example.com", "relay.example.com", True),
        (".example.com", "example.com", True),
        ("ample.com", "relay.example.com", False),
        ("a, b\texample.com", "relay.example.com", True),
        ("relay.example.com:9545", "relay.example.com", False),
        ("", "relay.example.com", False),
        (",.,", "relay.example.com", False),
        ("10.0.0.1", "10.0.0.1", True),
        ("10.0.0.0/8", "10.0.0.1", True),
        ("10.0.0.7/8", "10.0.0.1", True),
        ("11.0.0.0/8,10.0.0.0/99", "10.0.0.1", False),
        ("10.0.0.0/8", "relay.example.com", False),
        (".0.0.1", "10.0.0.1", False),
        ("[fd00::1]", "[fd00::1]", True),
        ("fd00::/8", "[fd00::1]", True),
        ("10.0.0.0/8", "[fd00::1]", False),
    ],
)
def test_hosts_without_a_proxy(exempt: str, host: str, direct: bool) -> None:
    assert (found(f"ws://{host}", all_proxy="a", NO_PROXY=exempt) is None) is direct
    assert (found(f"wss://{host}", all_proxy="a", no_proxy=exempt, NO_PROXY="no") is None) is (
        direct if exempt else False
    )
