"""A relay that asks for API keys, before an independent WebSocket client and before our own."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shadowmesh.apikey import key_text
from shadowmesh.config.secret import ApiKey
from shadowmesh.daemon.link import RelayLink
from shadowmesh.relay.keys import ASKED, Key, Keys, Previous
from shadowmesh.testing.relay_client import RelayClient, address, frame, key, public
from shadowmesh.testing.relay_server import TestRelay, at_once, named, running_relay
from shadowmesh.testing.scripted_relay import IDENTITY, Engine, quicken
from shadowmesh.testing.websocket import until

A, B, C = map(address, "abc")
TEXT, OTHER = key_text("aaaaaaaa", b"a" * 32), key_text("bbbbbbbb", b"b" * 32)
WRONG = key_text("aaaaaaaa", b"x" * 32)


def stored(text: str, **changes: Any) -> Key:
    """A key as the relay knows it."""
    return replace(Key(text[4:12], f"name-{text[4]}", sha256(text.encode()).digest(), created=0), **changes)


class Clock:
    """A wall clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1_800_000_000.0

    def __call__(self) -> float:
        return self.now


class AskingRelay(TestRelay):
    """A relay with API keys and a clock of its own."""

    clock: Clock

    def use(self, *keys: Key) -> int:
        return at_once(self.server.use_keys(Keys(keys)))

    def holder(self, text: str = TEXT, **options: Any) -> RelayClient:
        return self.client(additional_headers={"Authorization": f"Bearer {text}"}, **options)


def with_keys(*keys: Key, **settings: Any) -> Callable[[Callable[[AskingRelay], Awaitable[None]]], Any]:
    """Decorator: run an async test against a relay with these keys."""

    def decorate(test: Callable[[AskingRelay], Awaitable[None]]) -> Callable[[], None]:
        async def scenario() -> None:
            async with asyncio.timeout(20), running_relay(**settings) as plain:
                relay = AskingRelay(plain.server, plain.port, settings)
                relay.clock = relay.server.gate.clock = Clock()
                relay.use(*keys)
                await test(relay)

        return named(lambda: asyncio.run(scenario()), test)

    return decorate


async def answer(relay: TestRelay, *authorization: str, path: str = "", origin: str = "") -> tuple[int, str]:
    """Status and words with which an upgrade request is refused; 401 comes with its challenge."""
    headers = [("Authorization", each) for each in authorization]
    headers += [("Origin", origin)] if origin else []
    url = relay.url.replace("/relay?peer_id=test", path) if path else relay.url
    with pytest.raises(InvalidStatus) as refused:
        await connect(url, additional_headers=headers, proxy=None)
    found = refused.value.response
    challenge = 'Bearer realm="shadowmesh"' if found.status_code == 401 else None
    assert found.headers.get("WWW-Authenticate") == challenge
    return found.status_code, (found.body or b"").decode().strip()


@with_keys(stored(TEXT), allowed_origins=["https://app.example.com"])
async def test_without_a_good_key_there_is_no_websocket(relay: AskingRelay) -> None:
    unknown = (401, "unknown API key")
    malformed = (401, "malformed Authorization header; Bearer and an API key belong there")
    assert await answer(relay) == (401, ASKED)
    assert await answer(relay, f"Bearer {OTHER}") == unknown
    assert await answer(relay, f"Bearer {WRONG}") == unknown
    assert await answer(relay, f"Basic {TEXT}") == malformed
    assert await answer(relay, f"Bearer {TEXT}", f"Bearer {TEXT}") == malformed
    assert relay.counters.refused["api_key"] == 5
    assert (relay.server.admission.unjoined, relay.server.connections) == (0, set())
    async with relay.holder() as client:
        await client.join(A)


@with_keys(stored(TEXT), allowed_origins=["https://app.example.com"])
async def test_the_order_of_answers(relay: AskingRelay) -> None:
    evil = "https://evil.example"
    assert (await answer(relay, path="/other"))[0] == 404
    assert (await answer(relay, path="/relay?peer_id=", origin=evil))[0] == 400
    assert (await answer(relay, origin=evil))[0] == 401
    assert (await answer(relay, f"Bearer {TEXT}", origin=evil))[0] == 403


@with_keys(stored(TEXT))
async def test_a_key_that_is_added_is_good_at_once_and_a_revoked_one_ends(relay: AskingRelay) -> None:
    async with relay.holder() as first, relay.holder() as unjoined:
        await first.join(A, device="a")
        await unjoined.next_control("challenge")
        assert relay.use(stored(TEXT), stored(OTHER)) == 0
        async with relay.holder(OTHER) as second:
            await second.join(B, device="b")
            await first.send(frame(B, A, b"hello"))
            assert (await second.next_data())[33:] == b"hello"
            assert relay.use(stored(TEXT, revoked=1), stored(OTHER)) == 2
            assert await first.closed() == (4005, "this API key is revoked")
            assert await unjoined.closed() == (4005, "this API key is revoked")
            assert await answer(relay, f"Bearer {TEXT}") == (401, "this API key is revoked")
            assert relay.counters.refused["api_key"] == 2
            # The other one stays, and the address is away as that of anybody who has left.
            await second.send(frame(A, B))
            assert (await second.next_control("gone"))["reason"] == "disconnected"


@with_keys(stored(TEXT), stored(OTHER))
async def test_a_key_that_is_taken_out_of_the_file_ends(relay: AskingRelay) -> None:
    async with relay.holder() as client, relay.holder(OTHER) as other:
        await client.join(A, device="a")
        await other.join(B, device="b")
        assert relay.use(stored(OTHER)) == 1
        assert await client.closed() == (4005, "unknown API key")
        assert relay.server.admission.joined == 1


@with_keys(stored(TEXT, expires=1_800_000_100))
async def test_expiry_by_the_wall_clock_also_when_it_jumps(relay: AskingRelay) -> None:
    async with relay.holder() as client:
        await client.join(A)
        relay.clock.now += 99.5
        await relay.server.expire_keys()
        assert relay.server.admission.joined == 1
        relay.clock.now -= 1e9
        await relay.server.expire_keys()
        assert relay.server.admission.joined == 1
        relay.clock.now += 1e9 + 1
        await relay.server.expire_keys()
        assert await client.closed() == (4005, "this API key has expired")
    assert await answer(relay, f"Bearer {TEXT}") == (401, "this API key has expired")
    relay.clock.now -= 1000  # the clock was wrong: the key is good, nothing has to be mended
    async with relay.holder() as client:
        await client.join(A)


@with_keys(stored(TEXT))
async def test_rotation_with_grace(relay: AskingRelay) -> None:
    new = key_text(TEXT[4:12], b"n" * 32)
    async with relay.holder() as old:
        await old.join(A, device="old")
        previous = Previous(sha256(TEXT.encode()).digest(), int(relay.clock.now) + 60)
        assert relay.use(stored(new, previous=previous)) == 0
        async with relay.holder(new) as fresh, relay.holder() as late:
            await fresh.join(B, device="fresh")
            await late.join(C, device="late")
            relay.clock.now += 60
            await relay.server.expire_keys()
            assert await old.closed() == (4005, "this API key was replaced by a new one")
            assert await late.closed() == (4005, "this API key was replaced by a new one")
            assert await answer(relay, f"Bearer {TEXT}") == (401, "this API key was replaced by a new one")
            assert relay.server.admission.joined == 1


@with_keys(stored(TEXT, network=public(key("network"))))
async def test_a_key_for_one_network(relay: AskingRelay) -> None:
    async with relay.holder() as good:
        await good.join(A)
        async with relay.holder() as wrong:
            await wrong.send_join(wrong.claims([A], "other", "b"), "other", "b")
            assert await wrong.closed() == (4001, "this API key is for another network")
        assert relay.counters.refused["join_refused"] == 1
        # The binding changes: whoever does not fit any more has to go.
        assert relay.use(stored(TEXT, network=public(key("other")))) == 1
        assert await good.closed() == (4005, "this API key is for another network")


@with_keys(stored(TEXT, max_connections=2), stored(OTHER))
async def test_a_key_for_two_connections(relay: AskingRelay) -> None:
    full = (1013, "this API key has as many connections as it may have")
    async with relay.holder() as first, relay.holder(OTHER) as other:
        await first.join(A, device="a")
        await other.join(address("d"), device="d")
        async with relay.holder() as second:
            await second.join(B, device="b")
            async with relay.holder() as third:
                await third.send_join(third.claims([C], device="c"), device="c")
                assert await third.closed() == full
            # A device takes the place of its own connection with that key, not of one with another key.
            async with relay.holder() as again:
                await again.join(B, device="b")
                assert (await second.closed())[0] == 4004
                async with relay.holder() as changed:
                    await changed.send_join(changed.claims([address("d")], device="d"), device="d")
                    assert await changed.closed() == full
        await relay.until(lambda: relay.server.admission.joined == 2, "the end of one")
        async with relay.holder() as third:
            await third.join(C, device="c")


@with_keys(stored(TEXT, max_addresses=3), stored(OTHER))
async def test_a_key_for_three_addresses(relay: AskingRelay) -> None:
    d, e = address("d"), address("e")
    async with relay.holder() as one, relay.holder() as two, relay.holder(OTHER) as other:
        assert (await one.join(A, B, device="a"))["refused"] == []
        answer = await two.join(C, d, device="c")
        assert (answer["held"], answer["refused"]) == ([C.hex()], [{"address": d.hex(), "code": "too_many"}])
        assert (await other.join(e, address("f"), device="e"))["refused"] == [], "of another key"
        # What one gives back another may have, in the same message too.
        await one.send({"type": "addresses", "add": [d.hex()], "remove": [A.hex()]})
        assert (await one.next_control("addresses"))["held"] == sorted([B.hex(), d.hex()])
        await one.send({"type": "addresses", "remove": [d.hex()]})
        await one.next_control("addresses")
        await two.send({"type": "addresses", "add": [A.hex(), d.hex()]})
        answer = await two.next_control("addresses")
        assert answer["held"] == sorted([A.hex(), C.hex()])
        assert answer["refused"] == [{"address": d.hex(), "code": "too_many"}]
        # A device that comes again has its own.
        async with relay.holder() as again:
            assert (await again.join(B, device="a"))["refused"] == []
            assert (await one.closed())[0] == 4004
            # The bound is lowered: what is held stays, and nothing comes to it.
            assert relay.use(stored(TEXT, max_addresses=1), stored(OTHER)) == 0
            await two.send({"type": "addresses", "add": [d.hex()], "remove": []})
            answer = await two.next_control("addresses")
            assert answer["held"] == sorted([A.hex(), C.hex()])
            assert answer["refused"] == [{"address": d.hex(), "code": "too_many"}]
    await relay.until(lambda: not relay.server.admission.joined, "leaving")
    async with relay.holder() as last:
        assert len((await last.join(B, d, device="a"))["held"]) == 1
    await relay.until(lambda: not relay.server.gate._addresses, "the end of all")


@with_keys(stored(TEXT, bytes_per_second=20_000, max_connections=1))
async def test_bounds_of_a_key_change_while_its_connections_stay(relay: AskingRelay) -> None:
    async with relay.holder() as client:
        await client.join(A, device="a")
        (connection,) = relay.server.connections
        assert connection.grant is not None
        assert (connection.grant.bytes_per_second, connection.grant.max_connections) == (20_000, 1)
        assert relay.use(stored(TEXT, bytes_per_second=30_000, max_connections=2)) == 0
        assert (connection.grant.bytes_per_second, connection.grant.max_connections) == (30_000, 2)
        async with relay.holder() as second:
            await second.join(B, device="b")


@with_keys(stored(TEXT, bytes_per_second=100_000), stored(OTHER))
async def test_all_connections_of_a_key_share_its_rate(relay: AskingRelay) -> None:
    """320 KiB, of which 128 KiB may come at once: nothing is dropped, and another key is not slowed down."""
    async with relay.holder() as one, relay.holder() as two, relay.holder(OTHER) as other:
        for client, name in ((one, "1"), (two, "2"), (other, "3")):
            await client.join(address(name), device=name)
        began = time.monotonic()
        sending = [
            asyncio.create_task(each.send(frame(address("3"), address(name), bytes(8159))))
            for each, name in ((one, "1"), (two, "2"))
            for _ in range(20)
        ]
        for _ in range(20):
            await other.send(frame(address("1"), address("3"), bytes(8159)))
            await one.next_data()
        assert time.monotonic() - began < 1
        for _ in range(40):
            await other.next_data()
        assert time.monotonic() - began > 1
        await asyncio.gather(*sending)
        assert relay.counters.drops.total() == 0


@with_keys(stored(TEXT))
async def test_open_and_back(relay: AskingRelay) -> None:
    async with relay.holder() as holder:
        await holder.join(A, device="a")
        await relay.server.use_keys(None)
        async with relay.client() as guest, relay.holder("nonsense") as odd:
            await guest.join(B, device="b")
            await odd.join(C, device="c")
            await guest.send(frame(A, B))
            await holder.next_data()
            assert relay.use(stored(TEXT)) == 3
            for each in (holder, guest, odd):
                assert await each.closed() == (4005, ASKED)


@pytest.mark.parametrize(("zero_knowledge", "shown"), [(True, "aaaaaaaa"), (False, "name-a")])
def test_what_the_log_shows_of_a_key(zero_knowledge: bool, shown: str) -> None:
    @with_keys(stored(TEXT), zero_knowledge=zero_knowledge)
    async def scenario(relay: AskingRelay) -> None:
        async with relay.holder() as client:
            await client.join(A)
            await answer(relay, f"Bearer {WRONG}")
            relay.use(stored(TEXT, revoked=1))
            await client.closed()

    with capture_logs() as logs:
        scenario()
    assert [(line["event"], line.get("key"), line.get("reason") or line.get("detail")) for line in logs] == [
        ("client joined", shown, None),
        ("client refused", None, "unknown API key"),
        ("client left", shown, "closed with 4005: this API key is revoked"),
    ]
    for text in (TEXT, WRONG):
        assert text[13:] not in str(logs)
        assert sha256(text.encode()).hexdigest() not in str(logs)


# Our client


@asynccontextmanager
async def our_link(relay: AskingRelay, text: str | None) -> Any:
    engine = Engine()
    url = relay.url.partition("?")[0]
    link = RelayLink(url, "127.0.0.1", IDENTITY, "p", engine.event, ApiKey(text) if text else None)
    link.listener = engine
    running = asyncio.create_task(link.run())
    try:
        yield link, engine
    finally:
        running.cancel()
        await asyncio.wait({running})


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "the relay asks for an API key: write it as relay.api_key"),
        (WRONG, "the relay refuses our API key: unknown API key"),
    ],
)
def test_our_client_says_why_it_is_refused_and_does_not_come_back_at_once(
    text: str | None, words: str
) -> None:
    @with_keys(stored(TEXT))
    async def scenario(relay: AskingRelay) -> None:
        async with our_link(relay, text) as (link, engine):
            await until(lambda: link.reason)
            assert (link.state, link.reason) == ("waiting", words)
            assert engine.happened("relay_unreachable") == [{"relay": link.url, "ip": None, "reason": words}]
            await asyncio.sleep(0.3)
            assert relay.counters.refused["api_key"] == 1

    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        scenario()


def test_our_client_joins_loses_its_access_and_says_why(capsys: pytest.CaptureFixture[str]) -> None:
    @with_keys(stored(TEXT))
    async def scenario(relay: AskingRelay) -> None:
        async with our_link(relay, TEXT) as (link, engine):
            await until(lambda: link.ready)
            began = time.monotonic()
            relay.use(stored(TEXT, revoked=1))
            await until(lambda: not link.ready)
            assert time.monotonic() - began < 1
            words = "the relay withdrew our access: this API key is revoked"
            (lost,) = engine.happened("relay_lost")
            assert (lost["code"], lost["reason"], link.reason) == (4005, words, words)
            assert lost["retry_in"] == 30.0
            assert TEXT[13:] not in str(engine.events) + repr(vars(link))

    with pytest.MonkeyPatch.context() as patch:
        quicken(patch)
        scenario()
    said = capsys.readouterr()
    assert TEXT[13:] not in said.out + said.err
