"""Members who want what is others', or more than their share: of addresses, of answers, of attention."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from time import monotonic

import pytest

from shadowmesh.relay.admission import GONE_BURST, GONE_RATE
from shadowmesh.relay.connection import CONTROL_BURST
from shadowmesh.relay.router import MAX_HELD, Router
from shadowmesh.testing.hostile_clients import HONEST, Siege, source, under_attack
from shadowmesh.testing.light_client import LightClient
from shadowmesh.testing.relay_client import address, frame
from shadowmesh.testing.websocket import BINARY, CLOSE, PING, PONG, TEXT
from shadowmesh.testing.websocket import frame as websocket_frame

MILLION = 1_000_000


def asking(*names: str) -> bytes:
    """A claim of these addresses."""
    message = {"type": "addresses", "add": [address(name).hex() for name in names]}
    return websocket_frame(TEXT, json.dumps(message).encode())


async def answer(client: LightClient) -> dict[str, object]:
    """What the relay says to a claim; hints and frames before it are skipped."""
    while True:
        opcode, data = await client.peer.frame()
        assert opcode != CLOSE, data
        if opcode == TEXT and (said := json.loads(data))["type"] == "addresses":
            return dict(said)


async def all_that_comes(client: LightClient) -> list[tuple[int, bytes]]:
    """Every WebSocket frame until the close frame, or the end."""
    frames: list[tuple[int, bytes]] = []
    with suppress(asyncio.IncompleteReadError, ConnectionError):
        while not frames or frames[-1][0] != CLOSE:
            frames.append(await client.peer.frame())
    return frames


@under_attack()
async def test_addresses_of_others_asked_for_all_the_time(siege: Siege) -> None:
    """In the join and afterwards, by many at once: who is there keeps its addresses and its connection."""
    thieves = [await siege.joined(f"thief {number}", source(number)) for number in range(10)]
    for _ in range(int(CONTROL_BURST)):
        for thief in thieves:
            thief.peer.send(asking(*HONEST))
            forged = frame(address(HONEST[0]), address(HONEST[1]), b"as the other")
            thief.peer.send(websocket_frame(BINARY, forged))
            said = await answer(thief)
            assert said["held"] == [address(thief.name).hex()]
            assert len(said["refused"]) == len(HONEST)  # type: ignore[arg-type]
            await siege.talk(1)  # they have answered the ping by which the relay asks whether they live
    assert siege.relay.server.router.addresses == len(HONEST) + len(thieves)
    assert siege.relay.counters.drops["foreign_source"] == 10 * int(CONTROL_BURST)
    assert siege.relay.counters.closes.total() == 0


@under_attack()
async def test_a_device_that_runs_twice(siege: Siege) -> None:
    """Each of both replaces the other until it is enough; every frame for it comes to one of them, once."""
    sender = await siege.joined("sender")
    clones = [await siege.joined("clone", source(0), instance=f"{0:032x}")]
    for number in range(3):
        sender.send("clone", b"%d" % number)
        assert await clones[-1].receive() == (address("sender"), b"%d" % number)
        clones.append(await siege.joined("clone", source(1), instance=f"{1 - number % 2:032x}"))
        assert (await clones[-2].closed())[0] == 4004
    with pytest.raises(AssertionError, match="several running processes use the identity of this device"):
        await siege.joined("clone", source(2), instance=f"{2:032x}")
    sender.send("clone", b"to the last")
    assert await clones[-1].receive() == (address("sender"), b"to the last")
    assert siege.relay.counters.frames_out - 2 * siege.honest.rounds >= 4
    siege.relay.check_account()


def test_a_million_addresses_at_the_router() -> None:
    """64 are held, and nothing is remembered of the others."""
    router: Router[object] = Router(64)
    member = router.join(object(), b"network", b"device", b"instance", [], 0.0).member
    for start in range(0, MILLION, 64):
        outcome = router.claim(member, (n.to_bytes(16) for n in range(start, start + 64)), (), 0.0)
        assert start == 0 or len(outcome.refused) == 64
    assert len(member.held) == len(member.routes) == len(member.network.entries) == MAX_HELD
    router.claim(member, (), list(member.held)[:1], 0.0)
    assert not router.claim(member, [b"one more"], (), 0.0).refused


@under_attack(max_connections=20)
async def test_a_client_that_registers_addresses_all_the_time(siege: Siege) -> None:
    """64 are held, 64 more in grace for each allowed connection, whatever the networks and devices are."""
    router = siege.relay.server.router
    for number in range(60):
        client = await siege.joined(f"device {number}", source(number))
        for message in range(int(CONTROL_BURST)):
            client.peer.send(asking(*(f"{number} {message} {each}" for each in range(64))))
        for message in range(int(CONTROL_BURST)):
            said = await answer(client)
            assert len(said["held"]) == MAX_HELD  # type: ignore[arg-type]
            if message:
                assert len(said["refused"]) == 64  # type: ignore[arg-type]
        client.peer.send(asking("one more") * 2)
        assert await client.closed() == (4003, "too many control messages")
        client.peer.writer.transport.abort()
        assert router.addresses <= MAX_HELD + len(HONEST)
        assert len(router._away) <= 64 * 20
        await siege.talk(1)
    assert len(router._away) == 64 * 20


@under_attack()
async def test_frames_to_nobody_amplify_nothing(siege: Siege) -> None:
    """Their sender gets some hints, by TCP, so no address can be forged; nobody else gets a byte."""
    bystander, sender = await siege.joined("bystander"), await siege.joined("sender")
    begin, sent = monotonic(), 0
    one = websocket_frame(BINARY, frame(address("nobody 0"), address("sender"), b"x"))
    sender.peer.send(one)
    first = await sender.peer.frame()
    assert json.loads(first[1])["type"] == "gone"
    assert len(first[1]) + 2 < 2.5 * len(one), "the most that comes back for a byte"
    for number in range(1, 20_000):
        sender.peer.send(websocket_frame(BINARY, frame(address(f"nobody {number}"), address("sender"), b"x")))
        sent += len(one)
    sender.peer.send(websocket_frame(CLOSE, b"\x03\xe8"))
    hints = await all_that_comes(sender)
    most = GONE_BURST + GONE_RATE * (monotonic() - begin)
    assert GONE_BURST - 1 <= len(hints) - 1 <= most
    assert sum(len(payload) + 2 for _, payload in hints) < sent / 100
    assert siege.relay.counters.drops["not_here"] == 20_000
    bystander.peer.send(websocket_frame(PING))
    assert await bystander.peer.frame() == (PONG, b"")


@under_attack()
async def test_claims_of_an_address_amplify_nothing(siege: Siege) -> None:
    """Its holder gets one hint and a few pings; who asks what it holds gets a hundred bytes for one."""
    holder = await siege.joined("holder")
    for number in range(20):
        thief = await siege.joined(f"thief {number}", source(number))
        thief.peer.send(asking(*(f"{thief.name} {each}" for each in range(MAX_HELD - 2))))
        await answer(thief)
        thief.peer.send(asking("holder") * (int(CONTROL_BURST) - 2))
        for _ in range(int(CONTROL_BURST) - 2):
            assert len((await answer(thief))["refused"]) == 1  # type: ignore[arg-type]
        thief.peer.send(asking(f"{thief.name} last"))
        said = await answer(thief)
        assert len(said["held"]) == MAX_HELD  # type: ignore[arg-type]
        assert len(json.dumps(said)) < 100 * len(websocket_frame(TEXT, b'{"type":"addresses"}'))
    holder.peer.send(websocket_frame(CLOSE, b"\x03\xe8"))
    came = await all_that_comes(holder)
    assert [json.loads(data)["code"] for opcode, data in came if opcode == TEXT] == ["address_in_use"]
    assert sum(opcode == PING for opcode, _ in came) < 5


FLOODS: dict[str, tuple[bytes, int]] = {
    "control": (websocket_frame(TEXT, b'{"type":"addresses"}'), 4003),
    "unknown control": (websocket_frame(TEXT, b'{"type":"later"}'), 4003),
    "pings": (websocket_frame(PING, bytes(125)), 1008),
    "pongs": (websocket_frame(PONG, bytes(125)), 1008),
}


@under_attack()
async def test_floods_of_messages_from_both_sides(siege: Siege) -> None:
    """Each flooder by itself; one that stays below the bound stays."""
    modest = {
        "control": await siege.joined("modest control"),
        "pings": await siege.joined("modest pings"),
    }
    modest["control"].peer.send(FLOODS["control"][0] * int(CONTROL_BURST))
    modest["pings"].peer.send(FLOODS["pings"][0] * 100)
    flooders = []
    for number, kind in enumerate([*FLOODS] * 10):
        flooder = await siege.joined(f"{kind} {number}", source(number))
        flooder.peer.send(FLOODS[kind][0] * 10_000)
        flooders.append((kind, flooder))
    for kind, flooder in flooders:
        came = await all_that_comes(flooder)
        assert int.from_bytes(came[-1][1][:2]) == FLOODS[kind][1], kind
        assert len(came) <= 110, "answers and hints before the end"
    for client in modest.values():  # it is still there
        client.peer.send(websocket_frame(BINARY, frame(address("nobody"), address(client.name), b"x")))
        while b'"gone"' not in (await client.peer.frame())[1]:
            pass
    siege.abort()
    await siege.relay.until(lambda: siege.relay.counters.closes.total() == len(flooders), "the last close")
