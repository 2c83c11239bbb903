"""Before the upgrade: slow requests and handshakes, idle connections, requests that are bombs or riddles."""

from __future__ import annotations

import asyncio
import itertools
import ssl
from contextlib import suppress
from ssl import SSLContext, create_default_context

import pytest

from shadowmesh.net import server as server_module
from shadowmesh.net.server import MAX_PENDING
from shadowmesh.net.tls import Certificate
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.hostile_clients import Siege, source, under_attack
from shadowmesh.testing.websocket import UPGRADE, RawPeer

GOOD = UPGRADE.format(path="/relay?peer_id=x", more="")
APP = "https://app.example.com"


def with_headers(*lines: str) -> str:
    return UPGRADE.format(path="/relay?peer_id=x", more="".join(f"{line}\r\n" for line in lines))


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[SSLContext, SSLContext]:
    """Of a relay and of its clients."""
    paths = make_certificate(tmp_path_factory.mktemp("tls"), ["127.0.0.1"])
    ours = Certificate(str(paths.cert), str(paths.key)).context
    return ours, create_default_context(cafile=str(paths.ca))


async def trickle(peer: RawPeer, data: bytes) -> None:
    """Send byte for byte, and then on and on, as long as somebody listens."""
    for number in itertools.count():
        if peer.reader.at_eof() or peer.writer.is_closing():
            return
        peer.send(data[number : number + 1] or b"x")
        await asyncio.sleep(0 if number < len(data) else 0.01)


async def out_of_time_soon(siege: Siege, count: int, *, plain: bool = False) -> list[RawPeer]:
    """TCP connections that have half a second for their request; those to come have ten again."""
    listener = siege.relay.server.listener
    assert listener is not None
    accepted = listener.accepted + count
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(server_module, "UPGRADE_SECONDS", 0.5)
        peers = [await siege.dial(source(number), plain=plain) for number in range(count)]
        await siege.relay.until(lambda: listener.accepted == accepted, "the last accept")
    return peers


@under_attack()
async def test_requests_byte_for_byte(siege: Siege) -> None:
    """One that is whole in time is answered; one that never ends is cut, however busy it is."""
    listener = siege.relay.server.listener
    assert listener is not None
    endless = await out_of_time_soon(siege, 100)
    tasks = [asyncio.create_task(trickle(peer, GOOD.encode()[:-2] + b"X: ")) for peer in endless]
    slow = await siege.dial()
    for byte in GOOD.encode():
        slow.send(bytes((byte,)))
        await asyncio.sleep(0)
    assert (await slow.head()).startswith("HTTP/1.1 101 ")
    await siege.joined("newcomer")
    for peer in endless:
        await peer.eof()
    await asyncio.wait(tasks)
    await siege.talk()
    assert not listener._pending


@under_attack()
async def test_two_thousand_connections_that_say_nothing(siege: Siege) -> None:
    """1024 of them stay, the newest; whoever has something to say finds its way in between them."""
    listener = siege.relay.server.listener
    assert listener is not None
    idle: list[RawPeer] = []
    for wave in range(20):
        idle += await asyncio.gather(*(siege.dial(source(100 * wave + number)) for number in range(100)))
        await siege.joined(f"newcomer {wave}")
        assert len(listener._pending) <= MAX_PENDING
    for peer in idle[:-MAX_PENDING]:
        await peer.eof()
    assert 2000 - MAX_PENDING <= listener.pending_refused <= 2000 - MAX_PENDING + 20
    for peer in (idle[20 - MAX_PENDING], idle[-1]):  # a newcomer, too, is one of them for a moment
        peer.send(GOOD.encode())
        assert (await peer.head()).startswith("HTTP/1.1 101 ")


def test_handshakes_byte_for_byte(tls: tuple[SSLContext, SSLContext]) -> None:
    """TLS that begins and never comes to an end, from a crowd; others shake hands in between."""

    @under_attack(ssl=tls)
    async def attack(siege: Siege) -> None:
        listener = siege.relay.server.listener
        assert listener is not None
        hello = client_hello(tls[1])
        halves = await out_of_time_soon(siege, 50, plain=True)
        tasks = [asyncio.create_task(trickle(peer, hello[:-1])) for peer in halves[:25]]
        for peer in halves[25:]:
            peer.send(hello)
        await siege.joined("newcomer")
        for peer in halves:
            await peer.eof()
        await asyncio.wait(tasks)
        await siege.joined("another")
        await siege.talk()
        assert listener.tls_failed.total() == len(halves)
        assert not listener._pending

    attack()


def client_hello(context: SSLContext) -> bytes:
    """The first flight of a TLS client."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing, server_hostname="127.0.0.1").do_handshake()
    return outgoing.read()


def padded(size: int) -> str:
    return with_headers("X: " + "x" * (size - len(with_headers("X: "))))


REQUESTS = {
    "8 KiB": (padded(8192), 101),
    "a byte more": (padded(8193), 431),
    "a path without an end": ("GET /" + "x" * 1_000_000, 431),
    "headers without an end": (GOOD[:-2] + "X: y\r\n" * 100_000, 431),
    "128 headers": (with_headers(*["a:b"] * 123), 101),
    "a header more": (with_headers(*["a:b"] * 124), 400),
    "an empty body": (with_headers("Content-Length: 0"), 101),
    "a body": (with_headers("Content-Length: 1000000000"), 400),
    "chunks": (with_headers("Transfer-Encoding: chunked"), 400),
    "a folded header": (with_headers("X: a", " folded"), 400),
    "a second request behind a refused one": (GOOD.replace("/relay", "/other") + GOOD, 404),
    "a whole URL": (GOOD.replace("/relay", "http://other.example/relay"), 404),
    "an encoded path": (GOOD.replace("/relay", "/%72elay"), 404),
    "two keys": (with_headers("Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA=="), 400),
    "two versions": (with_headers("Sec-WebSocket-Version: 13"), 426),
    "another Host": (GOOD.replace("Host: relay", "Host: other.example"), 101),
    "no Host": (GOOD.replace("Host: relay\r\n", ""), 400),
    "two Hosts": (with_headers("Host: other.example"), 400),
    "a Host with a NUL": (GOOD.replace("Host: relay", "Host: a\0b"), 400),
    "an allowed Origin": (with_headers("Origin: HTTPS://APP.example.com:443"), 101),
    "another Origin": (with_headers("oRiGiN: https://evil.example"), 403),
    "two Origins": (with_headers(f"Origin: {APP}", "Origin: https://evil.example"), 403),
    "two Origins in one": (with_headers(f"Origin: {APP} https://evil.example"), 403),
    "an Origin that begins well": (with_headers(f"Origin: {APP}.evil.example"), 403),
    "an Origin with a user": (with_headers(f"Origin: {APP}@evil.example"), 403),
    "an Origin with a path": (with_headers(f"Origin: {APP}/"), 403),
    "an opaque Origin": (with_headers("Origin: null"), 403),
    "an empty Origin": (with_headers("Origin:"), 403),
}


@under_attack(allowed_origins=[APP])
async def test_odd_requests(siege: Siege) -> None:
    """Each from a few sources at once. Nothing behind a refused one is read; its Host means nothing."""
    asked = [(name, await siege.dial(source(number))) for number, name in enumerate([*REQUESTS] * 4)]
    for name, peer in asked:
        peer.send(REQUESTS[name][0].encode())
    for name, peer in asked:
        status = REQUESTS[name][1]
        assert (await peer.head()).startswith(f"HTTP/1.1 {status} "), name
        if status != 101:
            rest = await peer.reader.read()
            assert b"HTTP/1.1" not in rest, name
            assert len(rest) < 200, name
    assert siege.relay.counters.refused["origin"] == 4 * 8
