"""Each HTTP status with which the relay refuses, and each code with which it closes, in words."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from shadowmesh.relay.connection import Connection
from shadowmesh.relay.keys import Keys
from shadowmesh.relay.server import JOINS_PER_TURN
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.light_client import LightClient, join_message
from shadowmesh.testing.relay_client import address, frame
from shadowmesh.testing.relay_server import TestRelay, with_relay
from shadowmesh.testing.websocket import BINARY, CLOSE, PING, TEXT, UPGRADE, RawPeer
from shadowmesh.testing.websocket import frame as websocket_frame

GOOD = UPGRADE.format(path="/relay?peer_id=x", more="")


def full(relay: TestRelay) -> None:
    relay.server.admission.joined = relay.server.admission.max_connections


def crowded(relay: TestRelay) -> None:
    relay.server.admission.max_unjoined = 0


def one_source(relay: TestRelay) -> None:
    for _ in range(16):
        relay.server.admission.open(Connection(relay.server, ("127.0.0.1", 0), "127.0.0.1", "x"))


def broken(relay: TestRelay) -> None:
    relay.server.admission = None  # type: ignore[assignment]


REASONS = {
    **dict.fromkeys((400, 404, 426, 431), "bad_request"),
    403: "origin",
    429: "too_many_from_source",
    500: "internal_error",
    503: "full",
}


@pytest.mark.parametrize(
    ("request_", "prepare", "status", "words"),
    [
        (GOOD, None, 101, ""),
        (GOOD.replace("==", ""), None, 400, "Sec-WebSocket-Key"),
        (GOOD.replace("peer_id", "peer"), None, 400, "peer_id: 1 to 64 of"),
        (GOOD.replace("Host:", "Origin: https://evil.example\r\nHost:"), None, 403, "Origin"),
        (GOOD.replace("/relay", "/other"), None, 404, "clients connect to /relay"),
        ("GET /relay?peer_id=x HTTP/1.1\r\nHost: x\r\n\r\n", None, 426, "speaks WebSocket"),
        (GOOD.replace("Version: 13", "Version: 8"), None, 426, "version 13"),
        (GOOD, one_source, 429, "too many connections from this source"),
        (GOOD.replace("Host:", f"X: {'x' * 8192}\r\nHost:"), None, 431, ""),
        (GOOD, broken, 500, "internal error"),
        (GOOD, crowded, 503, "too many connections have not joined yet"),
        (GOOD, full, 503, "the relay is full"),
    ],
)
def test_http(request_: str, prepare: Callable[[TestRelay], None] | None, status: int, words: str) -> None:
    # As a trusted proxy that names no client, this host is one source.
    @with_relay(allowed_origins=["https://app.example.com"], trusted_proxies=["127.0.0.1"])
    async def scenario(relay: TestRelay) -> None:
        asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
        admission = relay.server.admission
        if prepare is not None:
            prepare(relay)
        peer = await RawPeer.dial(relay.port)
        peer.send(request_.encode())
        head = await peer.head()
        assert head.startswith(f"HTTP/1.1 {status} ")
        assert ("Retry-After: 5" in head) == (status in (429, 503))
        assert status == 101 or words in (await peer.reader.read(1000)).decode()
        await peer.close()
        relay.server.admission = admission
        if reason := REASONS.get(status):
            await relay.until(lambda: relay.counters.refused.total(), "counting it")
            assert +relay.counters.refused == {reason: 1}

    scenario()


Act = Callable[[TestRelay, LightClient], Coroutine[Any, Any, None]]


def saying(*frames: bytes) -> Act:
    async def act(relay: TestRelay, client: LightClient) -> None:
        for each in frames:
            client.peer.send(each)

    return act


async def is_replaced(relay: TestRelay, client: LightClient) -> None:
    other = await LightClient.join(relay.port, "a")
    await other.peer.close()


async def stops(relay: TestRelay, client: LightClient) -> None:
    await relay.server.drain()


async def is_silent(relay: TestRelay, client: LightClient) -> None:
    relay.server.timing = Timing(keepalive=0.02, dead=0.1, tick=0.01)


async def meets_a_bug(relay: TestRelay, client: LightClient) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    relay.server.router.claim = None  # type: ignore[method-assign, assignment]
    client.peer.send(websocket_frame(TEXT, b'{"type":"addresses"}'))


JOIN_AGAIN = websocket_frame(TEXT, json.dumps(join_message(b'{"nonce":"AAAA"}', "a")).encode())


@pytest.mark.parametrize(
    ("act", "code", "words"),
    [
        (saying(websocket_frame(BINARY, b"x", rsv=4)), 1002, "reserved bit set"),
        (saying(websocket_frame(TEXT, b"\xff")), 1007, "text is not UTF-8"),
        (saying(*[websocket_frame(PING)] * 101), 1008, "too many pings"),
        (is_silent, 1008, "no answer to pings"),
        (saying(websocket_frame(BINARY, frame(b"", b"", bytes(131_072)))), 1009, "message too long"),
        (meets_a_bug, 1011, "internal error"),
        (stops, 1012, "the relay restarts"),
        (saying(websocket_frame(TEXT, b"{")), 4003, "not JSON"),
        (saying(JOIN_AGAIN), 4003, "joined already"),
        (saying(*[websocket_frame(TEXT, b'{"type":"later"}')] * 31), 4003, "too many control messages"),
        (is_replaced, 4004, "replaced by a newer connection of this device"),
    ],
)
def test_close_codes_of_a_joined_client(act: Act, code: int, words: str) -> None:
    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        client = await LightClient.join(relay.port, "a")
        acting = asyncio.create_task(act(relay, client))
        sent, reason = await client.closed()
        assert (sent, words in reason) == (code, True), reason
        client.peer.send(websocket_frame(CLOSE, code.to_bytes(2)))
        await client.peer.eof()
        await client.peer.close()
        await acting
        await relay.until(lambda: relay.counters.closes[code] == 1, "counting it")

    scenario()


@pytest.mark.parametrize("how", ["replaced", "drained", "withdrawn"])
def test_a_close_is_counted_by_the_code_that_was_sent(how: str) -> None:
    """The first one: whatever ends the connection before its WebSocket is gone sends no other."""

    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        client = await LightClient.join(relay.port, "a")
        client.peer.send(websocket_frame(TEXT, b"\xff"))
        assert (await client.closed())[0] == 1007
        assert len(relay.server.connections) == 1
        if how == "replaced":
            await (await LightClient.join(relay.port, "a")).peer.close()
        elif how == "drained":
            await relay.server.drain(flush=0)
        else:
            await relay.server.use_keys(Keys())
        await client.peer.close()
        await relay.until(lambda: not relay.server.connections, "the end")
        assert relay.counters.closes == {1007: 1}
        assert (relay.server.admission.joined, relay.server.admission.unjoined) == (0, 0)

    scenario()


@with_relay()
async def test_a_join_of_who_is_closed_meanwhile_comes_to_nothing(relay: TestRelay) -> None:
    """It waited for its turn to be verified; now it must not replace its device's good connection."""
    first = await LightClient.join(relay.port, "a")
    relay.server._verified = JOINS_PER_TURN
    peer = await RawPeer.upgraded(relay.port, "/relay?peer_id=x")
    _, challenge = await peer.frame()
    join = json.dumps(join_message(challenge, "a")).encode()
    peer.send(websocket_frame(TEXT, join) + websocket_frame(BINARY, b"x", rsv=4))
    assert await peer.close_code() == 1002
    relay.server._join_more()
    first.send("a", b"")
    assert (await first.peer.frame())[0] == TEXT, "it is still there"
    assert relay.counters.joins == 1
    await first.peer.close()
    await peer.close()


@pytest.mark.parametrize(
    ("code", "words", "changes", "settings"),
    [
        (1013, "the relay is full", {}, {"max_connections": 1}),
        (4001, "the network key is of small order", {"network": "00" * 32}, {}),
        (4001, "another name", {}, {"public_names": ["relay.example.com"]}),
        (4001, "does not serve this network", {}, {"allowed_networks": ["11" * 32]}),
        (4002, "no join in time", None, {}),
        (4003, "the first message must be a join", None, {}),
    ],
)
def test_close_codes_before_the_join(
    code: int, words: str, changes: dict[str, Any] | None, settings: dict[str, Any]
) -> None:
    @with_relay(Timing(join=0.2, tick=0.01), **settings)
    async def scenario(relay: TestRelay) -> None:
        peer = await RawPeer.upgraded(relay.port, "/relay?peer_id=x")
        _, challenge = await peer.frame()
        if code == 1013:
            full(relay)
        if changes is not None:
            peer.send(websocket_frame(TEXT, json.dumps(join_message(challenge, "a", **changes)).encode()))
        elif code == 4003:
            peer.send(websocket_frame(BINARY, frame(address("b"), address("a"))))
        opcode, payload = await peer.frame()
        assert (opcode, int.from_bytes(payload[:2])) == (CLOSE, code)
        assert words in payload[2:].decode()
        await peer.close()

    scenario()


@with_relay()
async def test_a_client_that_leaves_is_answered_in_kind(relay: TestRelay) -> None:
    client = await LightClient.join(relay.port, "a")
    client.peer.send(websocket_frame(CLOSE, (1000).to_bytes(2)))
    assert (await client.closed())[0] == 1000
    await client.peer.eof()
    await client.peer.close()
    assert relay.counters.closes == {}
