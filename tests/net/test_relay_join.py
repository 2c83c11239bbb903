"""A real relay and an independent client: connecting, joining, ownership, closing (protocol section 3)."""

from __future__ import annotations

import asyncio
import json
from base64 import b64decode, b64encode
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shadowmesh.relay.delivery import CONTROL_ROOM
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import RelayClient, address, frame, key, public
from shadowmesh.testing.relay_server import TestRelay, with_relay
from shadowmesh.wire.frame import MAX_FRAME

A, B, C = address("a"), address("b"), address("c")
FAST_JOIN = Timing(join=0.2, tick=0.01)
FAST_PROBE = Timing(probe=0.2, tick=0.01)


def replace(url: str, old: str, new: str) -> str:
    assert old in url
    return url.replace(old, new)


@with_relay(FAST_JOIN, server_name="relay-eu", region="eu-west-2")
async def test_smoke_test_of_the_guide(relay: TestRelay) -> None:
    """wscat speaks no subprotocol, sees the challenge, and is closed with a reason."""
    async with relay.client(subprotocol=False) as client:
        challenge = await client.next_control("challenge")
        assert client.ws.subprotocol is None
        assert len(b64decode(challenge.pop("nonce"))) == 32
        assert challenge == {
            "type": "challenge",
            "version": 1,
            "server_name": "relay-eu",
            "region": "eu-west-2",
            "max_frame": 131072,
            "keepalive_s": 20,
        }
        assert await client.closed() == (4002, "no join in time")
    assert relay.counters.refused["join_timeout"] == 1


@with_relay()
async def test_join(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        assert client.ws.subprotocol == "shadowmesh.v1"
        joined = await client.join(A, B)
        host, port = client.ws.local_address
        assert joined == {
            "type": "joined",
            "remote": f"{host}:{port}",
            "held": sorted([A.hex(), B.hex()]),
            "refused": [],
            "limits": {"addresses": 64, "max_frame": 131072},
        }
        assert relay.server.admission.joined == 1
        nonces = {(await other.next_control("challenge"))["nonce"]}
        async with relay.client() as third:
            nonces.add((await third.next_control("challenge"))["nonce"])
        assert len(nonces) == 2
    await relay.until(lambda: relay.server.admission.joined == 0, "leaving")
    assert relay.server.admission.unjoined == 0


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("", 400),
        ("?peer_id=", 400),
        ("?peer_id=a b", 400),
        ("?peer_id=" + "x" * 65, 400),
        ("?peer_id=" + "x" * 64, None),
        ("?peer_id=A.b_c-9&shard=ff", None),
    ],
)
def test_peer_id(query: str, status: int | None) -> None:
    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        url = replace(relay.url, "?peer_id=test", query.replace(" ", "%20"))
        if status is None:
            async with RelayClient(url) as client:
                await client.next_control("challenge")
        else:
            with pytest.raises(InvalidStatus) as refusal:
                await connect(url, proxy=None)
            assert refusal.value.response.status_code == status
            assert b"peer_id" in refusal.value.response.body

    scenario()


@with_relay()
async def test_other_paths_are_not_found_and_plain_http_is_told_to_upgrade(relay: TestRelay) -> None:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(replace(relay.url, "/relay?", "/other?"), proxy=None)
    assert refusal.value.response.status_code == 404
    reader, writer = await asyncio.open_connection("127.0.0.1", relay.port)
    writer.write(b"GET /relay?peer_id=x HTTP/1.1\r\nHost: x\r\n\r\n")
    assert (await reader.readline()).startswith(b"HTTP/1.1 426 ")
    writer.close()
    await writer.wait_closed()


@with_relay(trusted_proxies=["127.0.0.1"])
async def test_sixteen_unjoined_connections_per_source(relay: TestRelay) -> None:
    clients = [relay.client() for _ in range(16)]
    for client in clients:
        await client.__aenter__()
    await clients[0].join(A)
    async with relay.client() as seventeenth:
        await seventeenth.next_control("challenge")
        with pytest.raises(InvalidStatus) as refusal:
            await connect(relay.url, proxy=None)
    assert refusal.value.response.status_code == 429
    assert refusal.value.response.headers["Retry-After"] == "5"
    for client in clients:
        await client.__aexit__(None, None, None)
    assert relay.counters.refused["too_many_from_source"] == 1


@with_relay()
async def test_a_proxy_on_this_host_that_nobody_told_of_is_no_source(relay: TestRelay) -> None:
    """Twenty clients behind it that do not join keep no other one out."""
    clients = [relay.client() for _ in range(20)]
    for client in clients:
        await client.__aenter__()
    async with relay.client() as another:
        await another.join(A)
    for client in clients:
        await client.__aexit__(None, None, None)
    assert relay.counters.refused["too_many_from_source"] == 0


@with_relay()
async def test_full_of_unjoined_connections_is_503_with_retry_after(relay: TestRelay) -> None:
    relay.server.admission.max_unjoined = 0
    with pytest.raises(InvalidStatus) as refusal:
        await connect(relay.url, proxy=None)
    assert refusal.value.response.status_code == 503
    assert int(refusal.value.response.headers["Retry-After"]) > 0


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"version": 2}, "protocol version 2"),
        ({"version": True}, "version"),
        ({"network": "00" * 32}, "network key"),
        ({"device": public(key("somebody else")).hex()}, "device signature"),
        ({"addresses": []}, "addresses"),
        ({"addresses": [A.hex()] * 49}, "addresses"),
        ({"addresses": [A.hex().upper()]}, "addresses"),
        ({"instance": "00"}, "instance"),
        ({"relay": "Relay.Example"}, "relay"),
        ({"agent": "x" * 65}, "agent"),
    ],
)
def test_join_is_refused_in_words(changes: dict[str, Any], reason: str) -> None:
    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as client:
            await client.send_join(client.claims([A]) | changes)
            code, words = await client.closed()
            assert code == 4001
            assert reason in (words or "")
        assert relay.counters.refused["join_refused"] == 1

    scenario()


@with_relay()
async def test_signatures_are_bound_to_the_nonce(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        first = await client.next_control("challenge")
        await other.next_control("challenge")
        other.control.put_nowait(first)
        await other.send_join(other.claims([A]))
        assert await other.closed() == (4001, "the network signature does not verify")


@with_relay(public_names=["relay.example.org"])
async def test_public_names(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        await client.send_join(client.claims([A], relay="evil.example.org"))
        assert await client.closed() == (4001, "this relay has another name than the one dialled")
        await other.join(A, relay="relay.example.org")


@with_relay(allowed_networks=[public(key("network")).hex()])
async def test_allowed_networks(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        await client.send_join(client.claims([A], network="another"), network="another")
        assert await client.closed() == (4001, "this relay does not serve this network")
        await other.join(A)


@pytest.mark.parametrize(
    "message",
    [
        "{",
        "[]",
        '{"type":"addresses"}',
        '{"type":"unknown"}',
        '{"a":1,"a":2}',
        "[" * 5000,
        b"\x10" + bytes(40),
    ],
)
def test_anything_but_a_join_comes_first_is_a_protocol_error(message: str | bytes) -> None:
    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as client:
            await client.send(message)
            assert (await client.closed())[0] == 4003
        assert relay.counters.refused["protocol"] == 1
        assert relay.counters.closes == {4003: 1}

    scenario()


@pytest.mark.parametrize("message", ["x" * 8193, b"\x10" + bytes(9000)])
def test_messages_before_the_join_are_short(message: str | bytes) -> None:
    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as client:
            await client.send(message)
            assert (await client.closed())[0] == 4003
        await relay.until(lambda: not relay.server.connections, "close")
        assert relay.counters.closes == {4003: 1}
        assert relay.server.admission.unjoined == 0

    scenario()


@with_relay()
async def test_broken_base64_and_a_second_join_are_protocol_errors(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        await client.send({"type": "join", "claims": "e30", "network_signature": "", "device_signature": ""})
        assert (await client.closed())[0] == 4003
        await other.join(A)
        signature = b64encode(bytes(64)).decode()
        await other.send(
            {"type": "join", "claims": "e30=", "network_signature": signature, "device_signature": signature}
        )
        assert await other.closed() == (4003, "joined already")


@with_relay()
async def test_control_messages_are_rate_limited_and_short(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        await client.join(A, device="a")
        await other.join(B, device="b")
        for _ in range(30):
            await client.send({"type": "unknown"})
        await client.send({"type": "addresses"})
        assert await client.closed() == (4003, "too many control messages")
        await other.send(json.dumps({"type": "addresses", "ignored": "x" * 8192}))
        assert await other.closed() == (4003, "control message too long")


@with_relay(write_buffer_size=5000)
async def test_who_asks_without_reading_the_answers_is_closed(relay: TestRelay) -> None:
    """Answers to control messages are bounded too: no outbox holds them."""
    async with relay.client() as client:
        await client.join(A)
        (connection,) = relay.server.connections
        connection.write_buffer_size = lambda: MAX_FRAME + CONTROL_ROOM + 5000
        await client.send({"type": "addresses"})
        await client.next_control("addresses")
        connection.write_buffer_size = lambda: MAX_FRAME + CONTROL_ROOM + 5001
        await client.send({"type": "addresses"})
        assert await client.closed() == (1008, "asks without reading the answers")


@with_relay()
async def test_addresses_are_added_and_removed(relay: TestRelay) -> None:
    async with relay.client() as client, relay.client() as other:
        await client.join(A, device="a")
        await other.join(B, device="b")
        await client.send({"type": "addresses", "add": [B.hex(), C.hex()], "remove": [A.hex()]})
        assert await client.next_control("addresses") == {
            "type": "addresses",
            "held": [C.hex()],
            "refused": [{"address": B.hex(), "code": "address_in_use"}],
        }
        assert await other.next_control("problem") == {
            "type": "problem",
            "code": "address_in_use",
            "detail": B.hex(),
        }
        many = [address(str(n)).hex() for n in range(64)]
        await other.send({"type": "addresses", "add": many})
        answer = await other.next_control("addresses")
        assert len(answer["held"]) == 64
        assert answer["refused"] == [{"address": many[-1], "code": "too_many"}]


@with_relay(FAST_PROBE)
async def test_a_living_holder_keeps_its_address(relay: TestRelay) -> None:
    async with relay.client() as holder, relay.client() as other:
        await holder.join(A, device="a")
        joined = await other.join(A, B, device="b")
        assert joined["held"] == [B.hex()]
        assert joined["refused"] == [{"address": A.hex(), "code": "address_in_use"}]
        await asyncio.sleep(0.25)
        await other.send({"type": "addresses", "add": [A.hex()]})
        assert (await other.next_control("addresses"))["held"] == [B.hex()]
        await other.send(frame(A, B))
        await holder.next_data()


@with_relay(FAST_PROBE)
async def test_a_dead_holder_does_not_block_its_address(relay: TestRelay) -> None:
    async with relay.client(reading=False, max_queue=1) as holder, relay.client() as other:
        challenge = json.loads(await holder.ws.recv())
        holder.control.put_nowait(challenge)
        await holder.send_join(holder.claims([A], device="a"), device="a")
        await relay.until(lambda: relay.server.admission.joined == 1, "join")
        holder.ws.transport.pause_reading()
        assert (await other.join(A, device="b"))["refused"] == [
            {"address": A.hex(), "code": "address_in_use"}
        ]
        await asyncio.sleep(0.25)
        await other.send({"type": "addresses", "add": [A.hex()]})
        assert (await other.next_control("addresses"))["held"] == [A.hex()]
        assert relay.counters.closes == {1008: 1}


@with_relay()
async def test_a_newer_connection_of_the_device_replaces_the_old_one(relay: TestRelay) -> None:
    async with relay.client() as old, relay.client() as new, relay.client() as peer:
        await old.join(A, device="a")
        await peer.join(B, device="b")
        await new.join(A, device="a")
        code, reason = await old.closed()
        assert code == 4004
        assert (reason or "").startswith("replaced")
        await peer.send(frame(A, B))
        assert await new.next_data() == frame(A, B)
        assert relay.server.admission.joined == 2


@with_relay()
async def test_fourth_replacement_between_processes_is_refused(relay: TestRelay) -> None:
    clients = [relay.client() for _ in range(5)]
    for number, client in enumerate(clients):
        await client.__aenter__()
        await client.send_join(client.claims([A], instance=f"{number:032x}"))
        if number < 4:
            await client.next_control("joined")
    assert (await clients[4].closed())[0] == 4001
    assert [(await client.closed())[0] for client in clients[:3]] == [4004] * 3
    await clients[3].send(frame(A, A))
    await clients[3].next_control("problem")
    for client in clients:
        await client.__aexit__(None, None, None)


@with_relay(Timing(keepalive=0.05, dead=0.8, tick=0.01))
async def test_silent_clients_are_pinged_and_those_that_answer_are_not_idle(relay: TestRelay) -> None:
    async with relay.client() as alive, relay.client(reading=False) as dead:
        dead.control.put_nowait(json.loads(await dead.ws.recv()))
        await dead.send_join(dead.claims([A], device="a"), device="a")
        await alive.join(B, device="b")
        dead.ws.transport.pause_reading()
        await relay.until(lambda: relay.counters.closes == {1008: 1}, "end of the dead client")
        await asyncio.sleep(0.8)
        await alive.send(frame(B, B))
        await alive.next_control("problem")
        assert relay.server.admission.joined == 1


@pytest.mark.parametrize(
    ("seconds", "keepalive", "dead"), [(300, 20, 45), (60, 20, 45), (30, 10, 25), (6, 2, 6)]
)
def test_timers_follow_the_idle_timeout(seconds: int, keepalive: float, dead: float) -> None:
    timing = Timing.for_idle_timeout(seconds)
    assert (timing.keepalive, timing.dead) == (keepalive, dead)
