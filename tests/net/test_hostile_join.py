"""Joins that are not what they seem, against the real relay; and relays that lie, against the real link."""

from __future__ import annotations

import asyncio
import hashlib
import json
from base64 import b64decode, b64encode
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Any

import pytest
from websockets.asyncio.client import connect
from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.typing import Subprotocol

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.relay import admission
from shadowmesh.testing.hostile_clients import Siege, under_attack
from shadowmesh.testing.hostile_clients import source as from_source
from shadowmesh.testing.light_client import join_message
from shadowmesh.testing.relay_client import RelayClient, address, frame, key, public
from shadowmesh.testing.relay_server import QUICK, TestRelay, running_relay, with_relay
from shadowmesh.testing.scripted_relay import Engine
from shadowmesh.testing.websocket import TEXT, UPGRADE, drive, until
from shadowmesh.testing.websocket import frame as websocket_frame

A, B = address("a"), address("b")
SUBPROTOCOL = Subprotocol("shadowmesh.v1")
NETWORK = NetworkKeys(bytes(range(32)))


@asynccontextmanager
async def linked(url: str, host: str) -> AsyncIterator[tuple[RelayLink, Engine, list[tuple[str, Any]]]]:
    """A running link of a device, that believes to dial `host`."""
    events: list[tuple[str, Any]] = []
    identity = Identity(NETWORK, DeviceKeys(bytes(32), NETWORK.network_id), bytes(16), (A, B))
    link = RelayLink(url, host, identity, "test", lambda name, /, **facts: events.append((name, facts)))
    link.listener = listener = Engine()
    task = asyncio.create_task(link.run())
    try:
        yield link, listener, events
    finally:
        task.cancel()
        await asyncio.wait({task})


@asynccontextmanager
async def fake_relay(handler: Callable[[ServerConnection], Any]) -> AsyncIterator[str]:
    """The URL of a server that does this with each connection."""

    async def quietly(connection: ServerConnection) -> None:
        with suppress(ConnectionClosed):
            await handler(connection)

    async with serve(
        quietly, "127.0.0.1", 0, subprotocols=[SUBPROTOCOL], compression=None, max_size=None
    ) as server:
        host, port = next(iter(server.sockets)).getsockname()
        yield f"ws://{host}:{port}/relay"


# -- another relay's challenge


def passing_on(target: str) -> Callable[[ServerConnection], Any]:
    """A relay that has no challenge of its own: it shows another relay's, and takes the answer there."""

    async def handler(victim: ServerConnection) -> None:
        async with connect(target, subprotocols=[SUBPROTOCOL], compression=None, proxy=None) as other:

            async def pump(source: Any, sink: Any) -> None:
                try:
                    async for message in source:
                        await sink.send(message)
                finally:
                    await sink.close()

            with suppress(ConnectionClosed):
                await asyncio.gather(pump(other, victim), pump(victim, other))

    return handler


@pytest.mark.parametrize(("dialled", "joins"), [("evil.example", False), ("relay.example", True)])
def test_a_challenge_that_is_passed_on_is_of_no_use_elsewhere(dialled: str, joins: bool) -> None:
    """A signature names the relay that was dialled, and a relay that knows its names takes no other."""

    async def main() -> None:
        async with (
            running_relay(QUICK, public_names=["relay.example"]) as relay,
            fake_relay(passing_on(relay.url)) as url,
            linked(url, dialled) as (_, listener, _),
        ):
            refused = relay.counters.refused
            await until(lambda: listener.joins or refused["join_refused"])
            assert listener.joins == joins
            assert relay.server.router.addresses == (2 if joins else 0)
            assert bool(refused["join_refused"]) is not joins  # it comes again: the fake closes with 1000

    drive(main)


def test_without_public_names_a_relay_cannot_know() -> None:
    """Said in docs/security.md: then a hostile relay can hold its victim's addresses at another relay too."""

    async def main() -> None:
        async with (
            running_relay(QUICK) as relay,
            fake_relay(passing_on(relay.url)) as url,
            linked(url, "evil.example") as (_, listener, _),
        ):
            await until(lambda: listener.joins)
            assert relay.server.router.addresses == 2

    drive(main)


# -- joins


def join_of(
    client: RelayClient, nonce: bytes, raw: bytes, network: str = "network", device: str = "device"
) -> dict[str, str]:
    """A join with these claims, signed by the keys of these names under any nonce."""
    bound = nonce + hashlib.sha256(raw).digest()
    return {
        "type": "join",
        "claims": b64encode(raw).decode(),
        "network_signature": b64encode(key(network).sign(b"shadowmesh/v1 join network\0" + bound)).decode(),
        "device_signature": b64encode(key(device).sign(b"shadowmesh/v1 join device\0" + bound)).decode(),
    }


async def challenged(client: RelayClient) -> bytes:
    return b64decode((await client.next_control("challenge"))["nonce"])


@with_relay()
async def test_a_recorded_join_is_refused_on_the_next_connection(relay: TestRelay) -> None:
    async with relay.client() as first, relay.client() as second:
        recorded = join_of(first, await challenged(first), json.dumps(first.claims([A])).encode())
        await first.send(recorded)
        await first.next_control("joined")
        await second.next_control("challenge")
        await second.send(recorded)
        assert await second.closed() == (4001, "the network signature does not verify")
        assert relay.server.admission.joined == 1
    async with running_relay() as restarted, restarted.client() as third:
        await third.next_control("challenge")
        await third.send(recorded)
        assert (await third.closed())[0] == 4001


@pytest.mark.parametrize(
    ("network", "device", "reason"),
    [
        ("another network", "device", "the network signature does not verify"),
        ("device", "device", "the network signature does not verify"),
        ("network", "network", "the device signature does not verify"),
        ("network", "another device", "the device signature does not verify"),
    ],
)
def test_signatures_by_other_keys_are_refused(network: str, device: str, reason: str) -> None:
    """A member cannot join as another device, nor anybody into a network without its key."""

    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as holder, relay.client() as client:
            await holder.join(A)
            raw = json.dumps(client.claims([A, B])).encode()
            await client.send(join_of(client, await challenged(client), raw, network, device))
            assert await client.closed() == (4001, reason)
            await holder.send(frame(A, A))
            await holder.next_control("problem")
            assert relay.server.admission.joined == 1

    scenario()


@pytest.mark.parametrize("change", ["claims", "swapped", "prefix", "cut", "zeros"])
def test_what_is_signed_cannot_be_changed(change: str) -> None:
    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as client:
            nonce = await challenged(client)
            raw = json.dumps(client.claims([A])).encode()
            join = join_of(client, nonce, raw)
            one, other = join["network_signature"], join["device_signature"]
            match change:
                case "claims":
                    join["claims"] = b64encode(raw.replace(A.hex().encode(), B.hex().encode())).decode()
                case "swapped":
                    join |= {"network_signature": other, "device_signature": one}
                case "prefix":  # one key in both roles: a signature for the one is none for the other
                    both = json.dumps(client.claims([A], device="network")).encode()
                    join = join_of(client, nonce, both, "network", "network")
                    join["device_signature"] = join["network_signature"]
                case "cut":
                    join["network_signature"] = b64encode(b64decode(one)[:-1]).decode()
                case "zeros":
                    join |= {"network_signature": b64encode(bytes(64)).decode()}
            await client.send(join)
            assert (await client.closed())[0] == (4003 if change == "cut" else 4001)
        assert relay.server.router.networks == 0

    scenario()


SMALL = [
    "00" * 32,
    "01" + "00" * 31,
    "01" + "00" * 30 + "80",
    "ec" + "ff" * 30 + "7f",
    "ee" + "ff" * 30 + "ff",
]


@pytest.mark.parametrize("role", ["network", "device"])
@pytest.mark.parametrize("small", SMALL)
def test_a_key_under_which_anything_verifies_is_refused(role: str, small: str) -> None:
    """Under the identity, R = the identity and S = 0 is a signature of everything: nobody owns such a key."""

    @with_relay()
    async def scenario(relay: TestRelay) -> None:
        async with relay.client() as client:
            raw = json.dumps(client.claims([A]) | {role: small}).encode()
            join = join_of(client, await challenged(client), raw)
            join[f"{role}_signature"] = b64encode(bytes.fromhex("01" + "00" * 63)).decode()
            await client.send(join)
            code, reason = await client.closed()
            assert code == 4001
            assert f"the {role} key is of small order" in (reason or "")

    scenario()


@with_relay()
async def test_a_network_does_not_notice_another_with_the_same_addresses(relay: TestRelay) -> None:
    """Not even by a claim of its addresses or by frames that bear them."""
    async with relay.client() as a, relay.client() as b, relay.client() as stranger:
        await a.join(A, device="a")
        await b.join(B, device="b")
        joined = await stranger.join(A, B, network="other", device="a")
        assert joined["held"] == sorted([A.hex(), B.hex()])
        await stranger.send(frame(A, B, b"from the stranger"))
        await stranger.next_control("problem")
        await b.send(frame(A, B, b"from b"))
        assert await a.next_data() == frame(A, B, b"from b")
        assert a.data.empty()
        assert a.control.empty()


@with_relay()
async def test_a_frame_bears_only_an_address_of_its_sender(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b, relay.client() as m:
        await a.join(A, device="a")
        await b.join(B, device="b")
        await m.join(B, address("m"), device="m")
        await m.send(frame(A, B, b"as b"))
        await m.send(frame(A, address("nobody"), b"as nobody"))
        assert (await m.next_control("problem"))["code"] == "foreign_source"
        await m.send(frame(A, address("m"), b"as m"))
        assert await a.next_data() == frame(A, address("m"), b"as m")
        assert relay.counters.drops["foreign_source"] == 2


FORGERIES: dict[str, dict[str, Any]] = {
    "another device's": {"device": public(key("honest a")).hex()},
    "another network's": {"network": public(key("no such")).hex()},
    "small order": {"network": SMALL[0], "device": SMALL[1]},
    "too many addresses": {"addresses": [f"{n:032x}" for n in range(49)]},
    "bad signature": {},
    "replay": {},
}


def forged(kind: str, challenge: bytes, recorded: bytes) -> bytes:
    """The answer of an outsider, or of a member in another one's name, to a challenge."""
    if kind == "replay":
        return recorded
    join = join_message(challenge, "attacker", **FORGERIES[kind])
    if kind == "bad signature":
        join["device_signature"] = join["network_signature"]
    return json.dumps(join).encode()


@pytest.mark.parametrize("kind", FORGERIES)
def test_a_flood_of_joins_that_are_refused(kind: str) -> None:
    """From as many sources as it takes not to be refused earlier; newcomers find their way in between."""

    @under_attack()
    async def attack(siege: Siege) -> None:
        first = await siege.upgraded()
        _, challenge = await first.frame()
        recorded = json.dumps(join_message(challenge, "recorded")).encode()
        first.send(websocket_frame(TEXT, recorded))
        assert b"joined" in (await first.frame())[1]
        for wave in range(10):
            peers = [await siege.upgraded(from_source(20 * wave + number)) for number in range(20)]
            for peer in peers:
                _, challenge = await peer.frame()
                peer.send(websocket_frame(TEXT, forged(kind, challenge, recorded)))
            for peer in peers:
                assert await peer.close_code() == 4001
                peer.writer.transport.abort()
            newcomer = await siege.joined(f"newcomer {wave}")
            newcomer.peer.writer.transport.abort()
        assert siege.relay.counters.refused["join_refused"] == 200
        await siege.relay.until(lambda: siege.relay.server.admission.joined == 3, "leaving")
        assert siege.relay.server.router.addresses == 3
        assert siege.relay.server.admission.unjoined == 0

    attack()


def test_connections_that_do_not_join_from_both_sides() -> None:
    """The oldest of the source with most has to go for a newcomer. Who is in stays in."""

    @under_attack(max_connections=100)
    async def attack(siege: Siege) -> None:
        door, counters = siege.relay.server.admission, siege.relay.counters
        waiting = [await siege.upgraded(from_source(number // 16)) for number in range(64)]
        assert (door.unjoined, door.max_unjoined) == (64, 64)
        for number in range(4):
            await siege.upgraded(from_source(100 + number))
            assert door.unjoined == 64
            await siege.joined(f"newcomer {number}", from_source(200))
            await siege.upgraded(from_source(300 + number))
        assert (door.unjoined, door.joined) == (64, 6)
        assert counters.refused["full"] == counters.closes[1013] == 8
        for first in (0, 16, 32, 48):
            for peer in waiting[first : first + 2]:
                assert await peer.close_code() == 1013
        await siege.talk()

    attack()


def test_as_many_sources_as_places_get_them_for_a_second_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or else honest clients that all come at once would push out each other, and nobody got in."""

    @under_attack(max_connections=100)
    async def attack(siege: Siege) -> None:
        monkeypatch.setattr(admission, "SOON", 60.0)
        waiting = [await siege.upgraded(from_source(number)) for number in range(64)]
        late = await siege.dial()
        late.send(UPGRADE.format(path="/relay?peer_id=x", more="Shadowmesh-Rejoin: 1\r\n").encode())
        head = await late.head()
        assert head.startswith("HTTP/1.1 503 ")
        assert "Retry-After: 5" in head
        monkeypatch.setattr(admission, "SOON", 0.0)
        await siege.joined("newcomer")
        assert await waiting[0].close_code() == 1013
        siege.relay.server.timing = replace(siege.relay.server.timing, join=0.1)
        assert await waiting[1].close_code() == 4002

    attack()


# -- relays that lie

CHALLENGE = {
    "type": "challenge",
    "version": 1,
    "nonce": b64encode(public(key("nonce"))).decode(),
    "server_name": "evil",
    "region": "",
    "max_frame": 131072,
    "keepalive_s": 20,
}
JOINED = {
    "type": "joined",
    "remote": "x",
    "held": [],
    "refused": [],
    "limits": {"addresses": 64, "max_frame": 131072},
}


@pytest.mark.parametrize(
    "words",
    [
        [JOINED],
        [{"type": "gone", "address": A.hex(), "reason": "not_here"}],
        [{"type": "addresses", "held": [], "refused": []}],
        [CHALLENGE | {"version": 2}],
        [CHALLENGE | {"nonce": "AAAA"}],
        [CHALLENGE | {"max_frame": 1000}],
        [CHALLENGE, CHALLENGE],
        [CHALLENGE, JOINED, CHALLENGE],
        [CHALLENGE, JOINED, JOINED],
        [CHALLENGE, JOINED | {"held": ["00"]}],
        ["{"],
        ["[" * 5000],
        ["x" * 9000],
        ['{"type":"challenge","type":"challenge"}'],
    ],
    ids=lambda words: str(words)[:40],
)
def test_a_relay_out_of_its_mind_is_left(words: list[dict[str, Any] | str]) -> None:
    """The connection ends with a reason in words, the link comes back later, and no frame got through."""

    async def handler(connection: ServerConnection) -> None:
        await connection.send(b"\x10" + bytes(60))
        for each in words:
            await connection.send(each if isinstance(each, str) else json.dumps(each))
        await connection.wait_closed()

    async def main() -> None:
        async with fake_relay(handler) as url, linked(url, "evil.example") as (link, listener, events):
            await until(lambda: any(name == "relay_lost" for name, _ in events))
            (reason,) = {facts["reason"] for name, facts in events if name == "relay_lost"}
            assert "protocol" in reason
            assert not listener.frames
            assert link.connects <= 1 or len(words) == 3
            await until(lambda: sum(name == "relay_lost" for name, _ in events) > 1)

    drive(main)


def test_what_a_lying_relay_says_is_only_a_hint() -> None:
    """Refusals of addresses that are not ours, problems and `gone` about anybody change nothing else."""

    async def handler(connection: ServerConnection) -> None:
        await connection.send(json.dumps(CHALLENGE))
        await connection.recv()
        foreign = {"address": address("somebody").hex(), "code": "address_in_use"}
        await connection.send(json.dumps(JOINED | {"refused": [foreign]}))
        for i in range(500):
            gone = {"type": "gone", "address": bytes([i % 256] * 16).hex(), "reason": "x"}
            for each in ({"type": "problem", "code": f"p{i}", "detail": "[2J"}, gone, {"type": f"later{i}"}):
                await connection.send(json.dumps(each))
        for size in (0, 1, 33, 34, 131_072):
            await connection.send(b"\x10" + bytes(size - 1) if size else b"")
        await connection.wait_closed()

    async def main() -> None:
        async with fake_relay(handler) as url, linked(url, "evil.example") as (link, listener, _):
            await until(lambda: len(listener.frames) == 5)
            assert link.ready
            assert link.refused == {}
            assert len(listener.absent) == 500
            assert link.connects == 1

    drive(main)


def test_a_frame_longer_than_any_ends_the_connection() -> None:
    async def handler(connection: ServerConnection) -> None:
        await connection.send(json.dumps(CHALLENGE))
        await connection.recv()
        await connection.send(json.dumps(JOINED))
        await connection.send(bytes(131_073))
        await connection.wait_closed()

    async def main() -> None:
        async with fake_relay(handler) as url, linked(url, "evil.example") as (_, listener, events):
            await until(lambda: any(name == "relay_lost" for name, _ in events))
            assert not listener.frames

    drive(main)
