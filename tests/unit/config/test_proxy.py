"""A proxy's URL: both kinds, what they ask for, and that no text ever holds it."""

from __future__ import annotations

import pytest

from shadowmesh.config.proxy import ProxyUrl, proxy_url, relay_proxy

EXAMPLE = "write one such as http://proxy.example.com:3128 or socks5://127.0.0.1:1080"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://proxy.example.com:3128", ProxyUrl("http", "proxy.example.com", 3128)),
        ("HTTP://Proxy/", ProxyUrl("http", "proxy", 80)),
        ("socks5://[::1]", ProxyUrl("socks5", "::1", 1080)),
        ("socks5://u:p%3Aq%2f@10.0.0.1:1", ProxyUrl("socks5", "10.0.0.1", 1, "u", "p:q/")),
        ("http://me@h:1", ProxyUrl("http", "h", 1, "me")),
        ("http://me:a@b@h:1", ProxyUrl("http", "h", 1, "me", "a@b")),
    ],
)
def test_a_url(value: str, expected: ProxyUrl) -> None:
    assert proxy_url(value) == expected == relay_proxy(value)
    assert hash(proxy_url(value)) == hash(expected)


def test_the_words() -> None:
    assert (relay_proxy(""), relay_proxy("none"), relay_proxy("None"), relay_proxy("environment")) == (
        "environment",
        None,
        None,
        "environment",
    )
    with pytest.raises(ValueError, match="has no value"):
        relay_proxy(None)


def test_credentials_are_shown_only_when_asked() -> None:
    url = proxy_url("http://Aladdin:sesame@h:3128")
    assert url.reveal() == ("Aladdin", "sesame")
    assert str(url) == "http://(hidden)@h:3128"
    assert repr([url]) == "[ProxyUrl(http://(hidden)@h:3128)]"
    assert str(proxy_url("socks5://[fd00::1]:9")) == "socks5://[fd00::1]:9"
    assert relay_proxy(url) is url


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("h:3128", f"does not begin with http:// or socks5://; {EXAMPLE}"),
        ("https://h:3128", f"does not begin with http:// or socks5://; {EXAMPLE}"),
        ("http://", f"has no valid host and port behind http://; {EXAMPLE}"),
        ("http://sesame:secret", f"has no valid host and port behind http://; {EXAMPLE}"),
        ("http://u:sesame@h:0", f"has no valid host and port behind http://; {EXAMPLE}"),
        ("http://:sesame@h:1", "has an @ without a user name before it; remove it, or write USER:PASSWORD@"),
        (
            "http://u:sesame%@h:1",
            "has a % in its user name or password that is no percent encoding; write it as %25",
        ),
        (
            "socks5://u:sesame@h:1/x",
            f"has something behind its port; {EXAMPLE}, and in a user name or password %2F for /, "
            "%3F for ? and %23 for #",
        ),
    ],
)
def test_refuses_without_showing(value: str, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        proxy_url(value)
    assert str(caught.value) == words
    assert "sesame" not in str(caught.value)
