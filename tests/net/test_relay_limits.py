"""What one source, network or device may take of a relay: each limit from both sides, the others unharmed."""

from __future__ import annotations

import asyncio
from asyncio import BaseEventLoop
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from hashlib import sha256
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shadowmesh.apikey import key_text
from shadowmesh.net.server import Request
from shadowmesh.relay import server as server_module
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.keys import Key, Keys, Previous
from shadowmesh.relay.server import JOINS_PER_TURN
from shadowmesh.relay.sources import FAILURES
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import TestRelay, with_relay

A, B, C, D = (address(name) for name in "abcd")
PROXY = "127.0.0.2"
HERE, THERE = "203.0.113.7", "203.0.113.8"
GOOD, BAD, OTHER = (key_text(name * 8, name.encode() * 32) for name in "abc")


def stored(text: str) -> Key:
    """An API key as the relay knows it."""
    return Key(text[4:12], text[4:12], sha256(text.encode()).digest(), created=0)


def limited(**limits: int) -> Callable[[Callable[[TestRelay], Awaitable[None]]], Callable[[], None]]:
    """A relay with these limits behind a proxy, through which clients of any address can come."""
    return with_relay(trusted_proxies=[PROXY], limits=limits)


def of(relay: TestRelay, source: str, **headers: str) -> RelayClient:
    """A client with that address."""
    return relay.client(local_addr=(PROXY, 0), additional_headers={"X-Real-IP": source} | headers)


async def refusal(relay: TestRelay, source: str, **headers: str) -> tuple[int, str, int]:
    """Status, words and Retry-After of what a client with that address is told."""
    with pytest.raises(InvalidStatus) as refused:
        await connect(
            relay.url, proxy=None, local_addr=(PROXY, 0), additional_headers={"X-Real-IP": source} | headers
        )
    answer = refused.value.response
    return answer.status_code, answer.body.decode().strip(), int(answer.headers["Retry-After"])


@asynccontextmanager
async def joined(
    relay: TestRelay, name: str, source: str = HERE, **claims: Any
) -> AsyncIterator[RelayClient]:
    async with of(relay, source) as client:
        await client.join(address(name), device=name, **claims)
        yield client


async def fails(relay: TestRelay, source: str = HERE) -> None:
    """One join that is refused."""
    async with of(relay, source) as client:
        await client.send_join(client.claims([A]), device="another")
        assert (await client.closed())[0] == 4001


async def talk(one: RelayClient, other: RelayClient, to: bytes, source: bytes) -> None:
    await one.send(frame(to, source, b"still here"))
    assert await other.next_data() == frame(to, source, b"still here")


# New connections


@limited(connects_per_second=1)
async def test_new_connections_of_one_source(relay: TestRelay) -> None:
    for _ in range(10):
        async with of(relay, HERE):
            pass
    assert await refusal(relay, HERE) == (429, "too many new connections from this source", 5)
    async with joined(relay, "a", THERE), joined(relay, "b", THERE):
        pass
    relay.reconfigure(limits={"connects_per_second": 0})
    async with of(relay, HERE):
        pass
    assert relay.counters.refused["connect_rate"] == 1


@with_relay(limits={"connects_per_second": 1})
async def test_of_this_host_all_may_come(relay: TestRelay) -> None:
    """A proxy may run here that is not in `trusted_proxies`: its clients must not share one limit."""
    for _ in range(30):
        async with relay.client():
            pass
    for _ in range(30):
        async with relay.client(local_addr=("127.0.0.3", 0)):
            pass


@with_relay(trusted_proxies=[PROXY], limits={"connects_per_second": 1})
async def test_where_a_connection_is_counted(relay: TestRelay) -> None:
    """Of whom we know the address, at the accept, once; of whom a proxy tells us, with its request."""
    server = relay.server
    assert [server.admits("192.0.2.7") for _ in range(12)] == [True] * 10 + [False] * 2
    assert [server.admits("2001:db8:1:2::7") for _ in range(5)] == [True] * 5
    assert [server.admits("2001:db8:1:2::8") for _ in range(6)] == [True] * 5 + [False]
    assert server.admits("2001:db8:1:3::8")
    assert all(server.admits(PROXY) for _ in range(30))
    assert relay.counters.refused["connect_rate"] == 3
    request = Request("/relay", {"peer_id": "x"}, {}, ("192.0.2.7", 1), ())
    assert all(isinstance(server.upgrade(request), Connection) for _ in range(30))
    assert server.listener is not None
    assert server.listener.admits == server.admits


@limited(connects_per_second=1)
async def test_a_trusted_proxy_that_names_nobody_is_one_source(relay: TestRelay) -> None:
    for _ in range(10):
        async with relay.client(local_addr=(PROXY, 0)):
            pass
    assert (await refusal(relay, "nonsense"))[0] == 429
    async with of(relay, HERE):
        pass


# Connections at a time


@limited(connections_per_source=3)
async def test_connections_of_one_source(relay: TestRelay) -> None:
    async with joined(relay, "a"), joined(relay, "b"), of(relay, HERE):
        assert await refusal(relay, HERE) == (429, "too many connections from this source", 5)
        async with joined(relay, "c", THERE):
            pass
    await relay.until(lambda: not relay.server.connections, "leaving")
    async with joined(relay, "a"):
        pass
    assert relay.counters.refused["too_many_from_source"] == 1


@pytest.mark.parametrize(
    ("settings", "share"),
    [
        ({}, 250),
        ({"max_connections": 100}, 64),
        ({"limits": {"connections_per_source": 7}}, 7),
        ({"limits": {"connections_per_source": 0}}, 0),
    ],
)
def test_the_share_of_a_source(settings: dict[str, Any], share: int) -> None:
    @with_relay(**settings)
    async def scenario(relay: TestRelay) -> None:
        assert relay.server.sources.most == share

    scenario()


@limited(connections_per_source=2)
async def test_a_device_that_was_here_takes_its_own_place_and_no_other(relay: TestRelay) -> None:
    rejoin = {"Shadowmesh-Rejoin": "1"}
    async with joined(relay, "a") as a, joined(relay, "b") as b, of(relay, HERE, **rejoin) as again:
        assert (await again.join(A, device="a"))["held"] == [A.hex()]
        assert (await a.closed())[0] == 4004
        async with of(relay, HERE, **rejoin) as another:
            await another.send_join(another.claims([C], device="c"), device="c")
            assert await another.closed() == (1013, "too many connections from this source")
        await talk(again, b, B, A)
    assert relay.counters.refused["too_many_from_source"] == 1


# Failed joins


@limited()
async def test_a_penalty_after_failed_joins(relay: TestRelay) -> None:
    async with joined(relay, "a") as a, joined(relay, "b") as b:
        for _ in range(FAILURES - 1):
            await fails(relay)
        async with joined(relay, "c"):
            pass
        await fails(relay)
        status, words, wait = await refusal(relay, HERE)
        assert (status, words) == (429, "too many failed joins from this source")
        assert 55 <= wait <= 60
        async with joined(relay, "d", THERE):
            pass
        await talk(a, b, B, A)
    assert relay.counters.refused["penalty"] == 1


@limited()
async def test_what_counts_as_a_failed_join(relay: TestRelay) -> None:
    """Who shows nothing (4002), leaves, or finds the relay full, has not failed."""
    failures = relay.server.sources._known
    async with of(relay, THERE):
        pass
    relay.server.admission.resize(1)
    async with joined(relay, "a", THERE), of(relay, THERE, **{"Shadowmesh-Rejoin": "1"}) as full:
        await full.send_join(full.claims([B], device="b"), device="b")
        assert (await full.closed())[0] == 1013
    assert not [known for known in failures.values() if known.failures]
    for said in ("nonsense", b"data", "x" * 9000):
        async with of(relay, HERE) as client:
            await client.send(said)
            assert (await client.closed())[0] == 4003
    assert len(failures[HERE].failures) == 3


@limited()
async def test_a_request_without_a_good_key_counts_as_a_failed_join(relay: TestRelay) -> None:
    await relay.server.use_keys(Keys())
    for _ in range(FAILURES):
        with pytest.raises(InvalidStatus) as refused:
            await of(relay, HERE).__aenter__()
        assert refused.value.response.status_code == 401
    await relay.server.use_keys(None)
    assert (await refusal(relay, HERE))[:2] == (429, "too many failed joins from this source")


async def answered(relay: TestRelay, source: str, key: str = "", **more: Any) -> int:
    """The status that a client with that address, and this API key, gets."""
    authorization = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with of(relay, source, **authorization | more):
            return 101
    except InvalidStatus as refused:
        return refused.response.status_code


@limited()
async def test_who_is_barred_learns_of_no_key_whether_it_is_good(relay: TestRelay) -> None:
    await relay.server.use_keys(Keys([stored(GOOD)]))
    for _ in range(FAILURES):
        assert await answered(relay, HERE, BAD) == 401
    for tried in (BAD, GOOD, "", "nonsense"):
        assert await answered(relay, HERE, tried) == 429
    assert await answered(relay, HERE, GOOD, Origin="https://evil.example") == 429
    assert await answered(relay, THERE, GOOD) == 101
    known = relay.server.sources._known[HERE]
    assert not known.failures, "what is tried while barred does not count"
    assert known.penalty == 60.0


@limited()
async def test_an_operator_s_own_revocation_bars_nobody(relay: TestRelay) -> None:
    """A key of an office behind one address: its other devices have other keys, or none to fear."""
    changes: list[dict[str, Any]] = [
        {"revoked": 1},
        {"expires": 1},
        {"digest": bytes(32), "previous": Previous(stored(GOOD).digest, 1)},
    ]
    for change in changes:
        await relay.server.use_keys(Keys([replace(stored(GOOD), **change), stored(OTHER)]))
        for _ in range(2 * FAILURES):
            assert await answered(relay, HERE, GOOD) == 401
        assert await answered(relay, HERE, OTHER) == 101
    assert relay.counters.refused["api_key"] == 6 * FAILURES
    assert relay.counters.refused["penalty"] == 0


@limited()
async def test_all_hosts_of_an_ipv6_prefix_fail_together(relay: TestRelay) -> None:
    for number in range(FAILURES):
        await fails(relay, f"2001:db8:1:2::{number:x}")
    assert await answered(relay, "2001:db8:1:2:ffff::") == 429
    assert await answered(relay, "2001:db8:1:3::1") == 101


@limited(connects_per_second=1)
async def test_whatever_is_refused_to_a_client_of_a_proxy_counts_as_a_connection(relay: TestRelay) -> None:
    await relay.server.use_keys(Keys([stored(GOOD)]))
    here = {"X-Real-IP": HERE, "Host": "relay"}
    good = {**here, "Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
    good |= {"Sec-WebSocket-Key": "A" * 22 + "=="}

    async def status(path: str, headers: dict[str, str]) -> int:
        reader, writer = await asyncio.open_connection("127.0.0.1", relay.port, local_addr=(PROXY, 0))
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        writer.write(f"GET {path} HTTP/1.1\r\n{head}\r\n".encode())
        line = await reader.readline()
        writer.close()
        return int(line.split()[1])

    path = "/relay?peer_id=x"
    bad = [
        (path, {"X-Real-IP": HERE}, 400),
        (path, here, 426),
        (path, good | {"Sec-WebSocket-Key": "x"}, 400),
        ("/", good, 404),
        ("/relay", good, 400),
        (path, good, 401),
        (path, good | {"Authorization": f"Bearer {BAD}"}, 401),
        (path, good | {"Authorization": f"Bearer {GOOD}", "Origin": "https://evil.example"}, 101),
        (path, good | {"Authorization": f"Bearer {GOOD}"}, 101),
        ("/", good, 404),
    ]
    assert [await status(path, headers) for path, headers, _ in bad] == [each[2] for each in bad]
    for where, headers, _ in bad:
        assert await status(where, headers) == 429
    assert relay.counters.refused["connect_rate"] == len(bad)
    assert await answered(relay, THERE, GOOD) == 101


@with_relay()
async def test_nobody_has_all_barred_who_come_through_this_host(relay: TestRelay) -> None:
    for _ in range(2 * FAILURES):
        async with relay.client() as client:
            await client.send("nonsense")
            assert (await client.closed())[0] == 4003
    async with relay.client() as client:
        await client.join(A)


# Networks


@limited(connections_per_network=2)
async def test_connections_of_one_network(relay: TestRelay) -> None:
    async with joined(relay, "a") as a, joined(relay, "b"):
        async with of(relay, HERE) as third:
            await third.send_join(third.claims([C], device="c"), device="c")
            assert await third.closed() == (1013, "this network has its share of this relay")
        async with of(relay, HERE) as other:
            await other.join(C, network="another", device="c")
        async with of(relay, HERE) as again:
            assert (await again.join(A, device="a"))["held"] == [A.hex()]
            assert (await a.closed())[0] == 4004
    await relay.until(lambda: not relay.server.admission.joined, "leaving")
    async with joined(relay, "c"), joined(relay, "d"):
        pass
    assert relay.counters.refused["network_full"] == 1


@limited(addresses_per_network=3)
async def test_addresses_of_one_network(relay: TestRelay) -> None:
    async with of(relay, HERE) as one, of(relay, HERE) as two, of(relay, HERE) as other:
        assert (await one.join(A, B, device="one"))["refused"] == []
        answer = await two.join(C, D, device="two")
        assert answer["held"] == [C.hex()]
        assert answer["refused"] == [{"address": D.hex(), "code": "too_many"}]
        assert len((await other.join(A, B, C, network="another"))["held"]) == 3
        await one.send({"type": "addresses", "add": [D.hex()], "remove": [A.hex()]})
        answer = await one.next_control("addresses")
        assert (answer["held"], answer["refused"]) == (sorted([B.hex(), D.hex()]), [])
        await talk(one, two, C, D)


# Turns


def by_turn(monkeypatch: pytest.MonkeyPatch, method: str) -> Counter[int]:
    """How often a method of connections will have been called in each turn of the event loop."""
    turn, turns = 0, Counter[int]()
    called, run_once = getattr(Connection, method), BaseEventLoop._run_once  # type: ignore[attr-defined]

    def call(self: Connection, *args: Any) -> None:
        turns[turn] += 1
        called(self, *args)

    def counted(self: BaseEventLoop) -> None:
        nonlocal turn
        turn += 1
        run_once(self)

    monkeypatch.setattr(Connection, method, call)
    monkeypatch.setattr(BaseEventLoop, "_run_once", counted)
    return turns


def test_joins_are_verified_a_few_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two signatures each: a crowd that comes at once must not keep the frames of the others waiting."""
    turns = by_turn(monkeypatch, "join")

    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        crowd = {f"c{number}": relay.client() for number in range(16)}
        for client in crowd.values():
            await client.__aenter__()
        for name, client in crowd.items():
            await client.send_join(client.claims([address(name)], device=name), device=name)
        for client in crowd.values():
            await client.next_control("joined")
            await client.__aexit__(None, None, None)
        assert turns.total() == 16
        assert max(turns.values()) <= JOINS_PER_TURN

    scenario()


@with_relay()
async def test_a_join_that_waits_is_neither_late_nor_followed_by_anything(relay: TestRelay) -> None:
    server = relay.server
    async with relay.client() as good, relay.client() as eager, relay.client() as gone:
        for client in (good, eager, gone):
            await client.control.put(await client.next_control("challenge"))
        server._verified = JOINS_PER_TURN  # as if this turn had its share
        await good.send_join(good.claims([A], device="good"), device="good")
        await gone.send_join(gone.claims([B], device="gone"), device="gone")
        await eager.send_join(eager.claims([C], device="eager"), device="eager")
        await eager.send(frame(A, C))
        assert await eager.closed() == (4003, "nothing may follow a join unanswered")
        gone.ws.transport.abort()
        await relay.until(lambda: len(server.connections) == 1, "the loss")
        (waiting,) = server.connections
        waiting.check(waiting.opened_at + 100)
        assert not waiting.done
        server._join_more()
        assert (await good.next_control("joined"))["held"] == [A.hex()]
        assert server.admission.joined == 1
        assert not server._joins


def test_deadlines_are_looked_at_a_few_in_a_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "CHECKS_PER_TURN", 3)
    turns = by_turn(monkeypatch, "check")

    @with_relay(Timing(tick=0.05))
    async def scenario(relay: TestRelay) -> None:
        crowd = [relay.client() for _ in range(10)]
        for client in crowd:
            await client.__aenter__()
        turns.clear()
        await relay.until(lambda: turns.total() >= 30, "three looks at all")
        assert max(turns.values()) == 3
        for client in crowd:
            await client.__aexit__(None, None, None)

    scenario()
