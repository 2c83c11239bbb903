"""The soak's clients against a real relay in this process: what they count is what happened."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest

from bench.soak_client import Client, Ended, Place, Tally, serve
from bench.soak_hostile import ATTACKS, Attack, Enemy, title
from bench.soak_members import Crowd, payload, sent_at
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import address
from shadowmesh.testing.relay_server import TestRelay, running_relay
from shadowmesh.testing.websocket import TEXT, until

HERE = "127.0.0.1"
TIMING = Timing(join=0.3, keepalive=0.2, dead=0.6, grace=0.1, probe=0.1, tick=0.01)


@asynccontextmanager
async def place() -> AsyncIterator[tuple[TestRelay, Place]]:
    # Every source is one of its own, as in the namespaces of a soak.
    async with running_relay(TIMING, log_connections=False) as relay:
        yield relay, Place((HERE, relay.port), "127.0.1.{}", 7, 6, 0.02)


async def joined(where: Place, tally: Tally, name: str) -> Client:
    client = await Client.dial(tally, where, where.source(1))
    assert await client.upgraded()
    answer = await client.join(name, addresses=[address(name).hex()])
    assert answer["held"] == [address(name).hex()]
    return client


def test_a_place_survives_the_command_line() -> None:
    where = Place((HERE, 9545), "198.19.1.{}", 7, 60, 0.1)
    assert Place.from_json(where.to_json()) == where
    assert where.source(249) == "198.19.1.250"
    assert where.source(250) == "198.19.1.1"


def test_what_a_client_did_is_counted() -> None:
    tally = Tally()

    async def scenario() -> None:
        async with place() as (relay, where):
            client = await joined(where, tally, "a")
            await client.leave()
            refused = await Client.dial(tally, where, where.source(2))
            assert await refused.upgrade("/elsewhere") == 404
            refused.reset()
            stranger = await Client.dial(tally, where, where.source(3))
            assert await stranger.upgraded()
            await stranger.read()
            stranger.send(TEXT, b"{}")
            with pytest.raises(Ended) as ended:
                await stranger.read()
            assert ended.value.code == 4003
            stranger.reset()
            await until(lambda: not relay.server.connections)
            assert relay.server.counters.joins == 1

    asyncio.run(scenario())
    assert +tally == {"dialled": 3, "joined": 1, "closed 1000": 1, "closed 4003": 1, "http 404": 1}


def test_a_join_whose_answer_nobody_saw_is_in_doubt() -> None:
    tally = Tally()

    async def scenario() -> None:
        async with place() as (relay, where):
            client = await Client.dial(tally, where, where.source(1))
            assert await client.upgraded()
            await asyncio.sleep(0.05)  # for the challenge
            client.vanish()
            joining = asyncio.create_task(client.join("a", addresses=[address("a").hex()]))
            await until(lambda: relay.counters.joins)
            joining.cancel()
            await asyncio.gather(joining, return_exceptions=True)
            client.reset()

    asyncio.run(scenario())
    assert (tally["joined"], tally["joined?"]) == (0, 1)


def test_who_vanishes_is_given_up_without_a_word() -> None:
    async def scenario() -> None:
        async with place() as (relay, where):
            client = await joined(where, Tally(), "a")
            client.vanish()
            # Not heard of again: neither a FIN nor a RST ends it, but the relay's own patience.
            await until(lambda: relay.server.counters.closes[1008])
            client.reset()

    asyncio.run(scenario())


def test_members_come_and_go_until_the_end() -> None:
    tally = Tally()

    async def scenario() -> None:
        async with place() as (relay, where):
            stop = asyncio.Event()
            crowd = asyncio.create_task(Crowd(where, tally, stop).run())
            await until(lambda: tally["frames received"] > 20 and tally["storms"] > 2 and tally["leaves"] > 2)
            stop.set()
            await crowd
            await until(lambda: not relay.server.connections)
            assert relay.server.counters.joins == tally["joined"] + tally["joined?"]
            assert relay.server.listener is not None
            assert relay.server.listener.accepted == tally["dialled"] + tally["dialled?"]

    asyncio.run(scenario())
    assert not tally["frames corrupt"]
    assert not tally["frames late"]


@pytest.mark.parametrize("attack", ATTACKS, ids=title)
def test_an_attack_ends_and_the_relay_goes_on(attack: Attack) -> None:
    tally = Tally()

    async def scenario() -> None:
        async with place() as (_, where):
            enemy = Enemy(where, tally, Random(1), 1)
            try:
                async with asyncio.timeout(0.3):
                    await attack(enemy)
            except (Ended, TimeoutError, OSError):
                pass
            finally:
                enemy.go()
            client = await joined(where, tally, "honest")
            await client.leave()

    asyncio.run(scenario())
    assert tally["dialled"] > 1


def test_a_payload_is_known_by_its_digest() -> None:
    to, source = address("a"), address("b")
    for size in (0, 7, 8, 1399):
        data = payload(to, source, 12345, size)
        assert sent_at(to, source, data) == 12345
        assert not sent_at(source, to, data)
        for at in (0, 8, len(data) - 1):
            assert not sent_at(to, source, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
    assert not sent_at(to, source, b"short")


def test_a_program_prints_its_tally(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["", Place((HERE, 1), "{}", 1, 1).to_json()])

    async def play(_: Place, tally: Tally, __: asyncio.Event) -> None:
        tally["dialled"] += 3

    serve(play)
    assert '{"tally": {"dialled": 3}' in capsys.readouterr().out
