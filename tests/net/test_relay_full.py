"""A full relay: who is there stays unharmed, who is new is told so, who was there before gets its place."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import Iterator

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.backoff import Backoff
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.testing.light_client import LightClient
from shadowmesh.testing.relay_client import RelayClient, address
from shadowmesh.testing.relay_server import TestRelay, with_relay
from shadowmesh.testing.scripted_relay import Engine

A, B = address("a"), address("b")
REJOIN = {"Shadowmesh-Rejoin": "1"}
MANY = 1000


@pytest.fixture(autouse=True)
def open_files() -> Iterator[None]:
    """Both ends of all connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def refusal(url: str, **options: object) -> tuple[int, str, str]:
    """Status, words and Retry-After of the answer to an upgrade request."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, proxy=None, **options)  # type: ignore[arg-type]
    answer = refused.value.response
    return answer.status_code, answer.body.decode().strip(), answer.headers["Retry-After"]


@with_relay(max_connections=MANY)
async def test_a_thousand_connections_and_one_more(relay: TestRelay) -> None:
    clients: list[LightClient] = []
    while len(clients) < MANY:
        names = [f"device {number}" for number in range(len(clients), min(len(clients) + 16, MANY))]
        clients += await asyncio.gather(*(LightClient.join(relay.port, name) for name in names))
    assert relay.server.admission.joined == MANY

    assert await refusal(relay.url) == (503, "the relay is full", "5")
    async with relay.client(additional_headers=REJOIN) as another:
        await another.send_join(another.claims([A], device="another"), device="another")
        assert await another.closed() == (1013, "the relay is full")

    for number, client in enumerate(clients):
        client.send(clients[number - 1].name, b"to the one before")
    for number, client in enumerate(clients):
        source = address(clients[(number + 1) % MANY].name)
        assert await client.receive() == (source, b"to the one before")
    assert relay.counters.frames_in == relay.counters.frames_out == MANY
    assert relay.counters.refused["full"] == 2
    await asyncio.gather(*(client.peer.close() for client in clients))


@with_relay(max_connections=1)
async def test_a_device_that_was_here_takes_the_place_of_its_own_dead_connection(relay: TestRelay) -> None:
    async with relay.client() as first:
        await first.join(A, device="one")
        assert await refusal(relay.url) == (503, "the relay is full", "5")
        async with relay.client(additional_headers=REJOIN) as again:
            assert (await again.join(A, device="one"))["held"] == [A.hex()]
            assert (await first.closed())[0] == 4004
            assert relay.server.admission.joined == 1


@with_relay(max_connections=1)
async def test_the_place_may_be_taken_while_a_client_joins(relay: TestRelay) -> None:
    async with relay.client() as first, relay.client() as second:
        await first.join(A, device="one")
        await second.send_join(second.claims([B], device="two"), device="two")
        assert await second.closed() == (1013, "the relay is full")
        assert relay.server.admission.joined == 1


@with_relay(max_connections=1, trusted_proxies=["127.0.0.1"])
async def test_the_hint_passes_no_other_bound(relay: TestRelay) -> None:
    async with relay.client() as first:
        await first.join(A)
        waiting = [RelayClient(relay.url, additional_headers=REJOIN) for _ in range(16)]
        for client in waiting:
            await client.__aenter__()
        status, words, _ = await refusal(relay.url, additional_headers=REJOIN)
        assert (status, words) == (429, "too many connections from this source have not joined yet")
        for client in waiting:
            await client.__aexit__(None, None, None)


@with_relay(max_connections=1)
async def test_our_client_says_that_it_was_here(relay: TestRelay) -> None:
    """Or else its own half-open connection, which the relay still counts, would bar it."""
    network = NetworkKeys(bytes(range(32)))
    identity = Identity(network, DeviceKeys(bytes(32), network.network_id), bytes(16), (A,))
    reasons: list[str] = []

    def on_event(name: str, /, **facts: object) -> None:
        if name in ("relay_lost", "relay_unreachable"):
            reasons.append(str(facts["reason"]))

    link = RelayLink(relay.url.partition("?")[0], "127.0.0.1", identity, "test", on_event)
    link.listener = Engine()
    link._backoff = Backoff(lambda least, most: most)  # so that the other one is quicker
    async with relay.client() as other:
        await other.join(B)
        running = asyncio.create_task(link.run())
        await relay.until(lambda: reasons, "a refusal")
        assert reasons == ["HTTP 503 Service Unavailable: the relay is full"]
    running.cancel()
    await asyncio.wait({running})
    running = asyncio.create_task(link.run())
    await relay.until(lambda: link.ready, "the join")
    (mine,) = relay.server.connections
    async with relay.client(additional_headers=REJOIN) as other:
        mine.abort()
        await relay.until(lambda: relay.server.admission.joined == 0, "the loss")
        await other.join(B)
        await relay.until(lambda: len(reasons) == 3, "the second refusal")
        assert reasons[1:] == ["the connection was lost", "the relay has no place for us: the relay is full"]
    running.cancel()
    await asyncio.wait({running})
