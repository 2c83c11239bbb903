"""The relay program and its file of API keys, changed by `shadowmesh relay-keys` while it runs."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from shadowmesh.testing.relay_client import RelayClient, address
from shadowmesh.testing.relay_program import RelayProgram

COMMAND = [sys.executable, "-c", "from shadowmesh.cli.ctl import main; main()", "relay-keys"]
QUICK = "from shadowmesh.relay import app; app.KEYS_SECONDS = 0.1"
WITHIN = 5.0
"""Seconds in which a revocation has to be felt."""


class Place:
    """A directory with a file of keys and the settings of a relay that uses it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.file = directory / "keys.json"
        self.settings: dict[str, Any] = {"auth": {"mode": "api_key", "keys_file": str(self.file)}}

    def keys(self, *arguments: str) -> str:
        done = subprocess.run(
            [*COMMAND, *arguments, "--file", str(self.file)], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    def relay(self, before: str = QUICK) -> RelayProgram:
        return RelayProgram(self.directory, self.settings, before=before)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def holder(relay: RelayProgram, key: str) -> RelayClient:
    return RelayClient(relay.url, additional_headers={"Authorization": f"Bearer {key}"})


async def is_refused(relay: RelayProgram, key: str) -> bool:
    try:
        async with holder(relay, key) as client:
            await client.join(address("probe"), device="probe")
            return False
    except InvalidStatus as error:
        return error.response.status_code == 401


async def becomes(relay: RelayProgram, key: str, *, refused: bool) -> None:
    """Wait until a key is good, or no good any more."""
    async with asyncio.timeout(WITHIN):
        while await is_refused(relay, key) is not refused:
            await asyncio.sleep(0.05)


def test_without_a_file_it_does_not_start_and_says_how_to_make_one(place: Place) -> None:
    with place.relay() as relay:
        assert relay.wait() == 1
        assert (
            f"auth.keys_file {place.file}: no such file; make it and its first key with: "
            f"shadowmesh relay-keys add NAME --file {place.file}"
        ) in relay.text()
    place.file.write_text("{")
    with place.relay() as relay:
        assert relay.wait() == 1
        assert f"auth.keys_file {place.file}: not JSON; `shadowmesh relay-keys` writes" in relay.text()


def test_added_revoked_and_rotated_while_it_runs(place: Place) -> None:
    """With the interval of the program, not a shorter one."""
    first = place.keys("add", "first")

    async def scenario(relay: RelayProgram) -> None:
        assert await is_refused(relay, first[:-1] + ("A" if first[-1] != "A" else "B"))
        second = place.keys("add", "second")
        await becomes(relay, second, refused=False)
        async with holder(relay, first) as one, holder(relay, second) as two:
            await one.join(address("1"), device="1")
            await two.join(address("2"), device="2")
            began = time.monotonic()
            place.keys("revoke", "first")
            assert await one.closed() == (4005, "this API key is revoked")
            assert time.monotonic() - began < WITHIN
            assert await is_refused(relay, first)
            third = place.keys("rotate", "second", "--grace", "1h")
            await becomes(relay, third, refused=False)
            assert not await is_refused(relay, second)
            assert two.ws.close_code is None
            place.keys("rotate", "second", "--grace", "0")
            assert await two.closed() == (4005, "unknown API key")
        for key in (first, second, third):
            assert key[13:] not in relay.text()

    with place.relay(before="") as relay:
        assert "auth=api_key keys=1 " in relay.ready().text()
        asyncio.run(scenario(relay))
        assert relay.metric("connections") == 0
        assert 'refused_total{reason="api_key",region="us-east-1"}' in (
            relay.get("/metrics", relay.metrics_port).text
        )
        assert relay.stop() == 0


def test_a_broken_or_missing_file_leaves_the_keys_as_they_are_and_is_said_once(place: Place) -> None:
    key = place.keys("add", "laptop")
    good = place.file.read_bytes()

    async def scenario(relay: RelayProgram) -> None:
        async with holder(relay, key) as client:
            await client.join(address("a"), device="a")
            place.file.write_text("{")
            await asyncio.to_thread(
                relay.wait_for_text, "API keys not reloaded, those in use stay .*not JSON"
            )
            place.file.unlink()
            await asyncio.to_thread(relay.wait_for_text, "those in use stay .*no such file")
            await asyncio.sleep(0.5)
            assert relay.text().count("those in use stay") == 2
            assert not await is_refused(relay, key)
            place.file.write_bytes(good)
            await asyncio.to_thread(relay.wait_for_text, "API keys reloaded .*keys=1 connections_ended=0")
            assert client.ws.close_code is None

    with place.relay() as relay:
        relay.ready()
        asyncio.run(scenario(relay))
        assert "Traceback" not in relay.text()


def test_reload_by_signal(place: Place) -> None:
    """SIGHUP takes the keys as well as the mode; a file that cannot be used changes nothing."""
    key = place.keys("add", "laptop")
    never = "from shadowmesh.relay import app; app.KEYS_SECONDS = 3600"

    async def scenario(relay: RelayProgram) -> None:
        async with holder(relay, key) as client, RelayClient(relay.url) as guest:
            await client.join(address("a"), device="a")
            await guest.join(address("b"), device="b")
            relay.configure(place.settings)
            assert "changed=auth" in await asyncio.to_thread(relay.hang_up)
            # Both came when nobody was asked: they have to show their key.
            for each in (client, guest):
                assert await each.closed() == (4005, "this relay asks for an API key")
        async with holder(relay, key) as client:
            await client.join(address("a"), device="a")
            good = place.file.read_bytes()
            place.file.write_text("{")
            said = await asyncio.to_thread(relay.hang_up)
            assert f"configuration not reloaded [relay] why='auth.keys_file {place.file}: not JSON" in said
            assert client.ws.close_code is None
            place.file.write_bytes(good)
            place.keys("revoke", "laptop")
            assert "changed=nothing" in await asyncio.to_thread(relay.hang_up)
            assert await client.closed() == (4005, "this API key is revoked")
        relay.configure({})
        assert "changed=auth" in await asyncio.to_thread(relay.hang_up)
        async with RelayClient(relay.url) as guest:
            await guest.join(address("b"), device="b")

    with RelayProgram(place.directory, before=never) as relay:
        assert "auth=open " in relay.ready().text()
        asyncio.run(scenario(relay))


def test_a_jump_of_the_wall_clock_ends_what_has_expired_by_it(place: Place) -> None:
    clock = place.directory / "clock"
    clock.write_text("0")
    jumping = f"""
import time
from pathlib import Path
real = time.time
time.time = lambda: real() + float(Path({str(clock)!r}).read_text() or 0)
{QUICK}
"""
    short, long = place.keys("add", "short", "--expires", "1h"), place.keys("add", "long")

    async def scenario(relay: RelayProgram) -> None:
        async with holder(relay, short) as one, holder(relay, long) as other:
            await one.join(address("1"), device="1")
            await other.join(address("2"), device="2")
            clock.write_text("-1e8")
            await asyncio.sleep(0.3)
            clock.write_text("3601")
            assert await one.closed() == (4005, "this API key has expired")
            clock.write_text("0")
            await becomes(relay, short, refused=False)
            assert other.ws.close_code is None

    with place.relay(before=jumping) as relay:
        relay.ready()
        asyncio.run(scenario(relay))
        assert relay.get("/health").json()["status"] == "healthy"
