"""Where clients come from: browsers of allowed origins, clients behind trusted proxies."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shadowmesh.testing.relay_client import RelayClient, address
from shadowmesh.testing.relay_server import TestRelay, with_relay

A, B = address("a"), address("b")
PROXY = ("127.0.0.2", 0)


def from_proxy(relay: TestRelay, client: str, header: str = "X-Forwarded-For") -> RelayClient:
    return relay.client(local_addr=PROXY, additional_headers={header: client})


@pytest.mark.parametrize(
    ("allowed", "origin", "passes"),
    [
        (["https://app.example.com"], "https://app.example.com", True),
        (["https://app.example.com"], "https://evil.example", False),
        (["https://app.example.com"], "null", False),
        (["https://app.example.com"], None, True),
        (["*"], "https://anything.example", True),
        ([], "https://app.example.com", False),
        ([], None, True),
    ],
)
def test_origins(allowed: list[str], origin: str | None, passes: bool) -> None:
    """A browser says from which page it comes and cannot help it; our clients say nothing."""

    @with_relay(allowed_origins=allowed)
    async def scenario(relay: TestRelay) -> None:
        if passes:
            async with relay.client(origin=origin) as client:
                await client.join(A)
        else:
            with pytest.raises(InvalidStatus) as refusal:
                await connect(relay.url, proxy=None, origin=origin)  # type: ignore[arg-type]
            assert refusal.value.response.status_code == 403
        assert relay.counters.refused["origin"] == (0 if passes else 1)

    scenario()


@pytest.mark.parametrize(
    ("header", "said", "shown"),
    [
        ("X-Real-IP", "203.0.113.7", "203.0.113.7:0"),
        ("X-Forwarded-For", "198.51.100.1, 203.0.113.7", "203.0.113.7:0"),
        ("X-Forwarded-For", "203.0.113.7, 127.0.0.2", "203.0.113.7:0"),
        ("X-Real-IP", "2001:db8::7", "[2001:db8::7]:0"),
    ],
)
def test_a_trusted_proxy_says_who_its_client_is(header: str, said: str, shown: str) -> None:
    @with_relay(trusted_proxies=["127.0.0.2"])
    async def scenario(relay: TestRelay) -> None:
        async with from_proxy(relay, said, header) as client:
            assert (await client.join(A))["remote"] == shown

    scenario()


@pytest.mark.parametrize("settings", [{}, {"trusted_proxies": ["127.0.0.3"]}])
def test_nobody_else_can_say_so(settings: dict[str, Any]) -> None:
    @with_relay(**settings)
    async def scenario(relay: TestRelay) -> None:
        async with from_proxy(relay, "203.0.113.7") as client:
            remote = (await client.join(A))["remote"]
            assert remote == f"127.0.0.2:{client.ws.local_address[1]}"

    scenario()


@with_relay(trusted_proxies=["127.0.0.2"])
async def test_bounds_are_those_of_the_client_behind_the_proxy(relay: TestRelay) -> None:
    """A crowd keeps nobody else behind the same proxy out; those without an address are one source."""
    for said, others in (("203.0.113.7", "203.0.113.8"), ("nonsense", "203.0.113.8")):
        crowd = [from_proxy(relay, said) for _ in range(16)]
        await asyncio.gather(*(client.__aenter__() for client in crowd))
        with pytest.raises(InvalidStatus) as refusal:
            await from_proxy(relay, said).__aenter__()
        assert refusal.value.response.status_code == 429
        async with from_proxy(relay, others) as client:
            await client.join(A)
        for client in crowd:
            await client.__aexit__(None, None, None)


@with_relay()
async def test_proxies_and_origins_change_with_the_configuration(relay: TestRelay) -> None:
    new = {"trusted_proxies": ["127.0.0.2"], "allowed_origins": []}
    relay.reconfigure(**new)
    assert relay.server.listener is not None
    assert relay.server.listener.trusted("127.0.0.2")
    async with from_proxy(relay, "203.0.113.7") as client:
        assert (await client.join(A))["remote"] == "203.0.113.7:0"
    with pytest.raises(InvalidStatus):
        await connect(relay.url, proxy=None, origin="https://app.example.com")  # type: ignore[arg-type]
