"""What the link does when the network around it changes: ask the relay, or dial at once."""

from __future__ import annotations

import asyncio
import time

import pytest
from websockets.asyncio.server import ServerConnection

from shadowmesh.daemon import backoff
from shadowmesh.daemon import link as link_module
from shadowmesh.daemon.link import _Connection
from shadowmesh.testing.scripted_relay import (
    Linked,
    RawRelay,
    admit,
    closing,
    linked,
    quicken,
    silent,
    stay,
    with_raw_relay,
    with_relay,
)
from shadowmesh.testing.websocket import PING, PONG, accepting, drive, until


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)
    monkeypatch.setattr(link_module, "REDIAL_EVERY", 0.05)


def test_a_relay_that_answers_is_kept() -> None:
    async def test(running: Linked, relay: RawRelay) -> None:
        for _ in range(3):
            running.link.check("a route has changed")
            running.link.check("and another")
            opcode, payload = await relay.peer.frame()
            assert opcode == PING
            relay.send(PONG, payload)
            await asyncio.sleep(0.2)
        assert running.link.ready

    with_raw_relay(test)


def test_a_relay_that_does_not_answer_is_dialled_anew_without_a_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Long before its keepalive would show it, though nothing is sent."""
    monkeypatch.setattr(backoff, "USUAL", (9.0, 9.0))

    async def test(running: Linked, relay: RawRelay) -> None:
        running.link.check("a route has changed")
        began = asyncio.get_running_loop().time()
        facts = await running.lost()
        assert 0.15 <= asyncio.get_running_loop().time() - began < 0.4
        assert facts["reason"].startswith("the relay does not answer any more")
        assert facts["retry_in"] == 0.0
        await asyncio.sleep(0.1)

    with_raw_relay(test)


def test_an_address_that_is_gone_is_reason_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "USUAL", (9.0, 9.0))

    @with_relay(stay)
    async def test(running: Linked) -> None:
        await running.joined()
        monkeypatch.setattr(_Connection, "is_local", lambda ws: False)
        running.link.check("address removed")
        assert (await running.lost())["reason"] == "address removed"
        await running.joined(2)
        assert running.engine.losses == 1


def test_own_addresses_are_known() -> None:
    @with_relay(stay)
    async def test(running: Linked) -> None:
        await running.joined()
        ws = running.link._ws
        assert ws is not None
        assert ws.is_local()
        for other in ("203.0.113.77", "2001:db8::77"):
            ws.local = (other, 1)
            assert not ws.is_local()


def test_a_change_ends_the_wait_before_the_next_try(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "USUAL", (9.0, 9.0))

    @with_relay(closing(1012), stay)
    async def test(running: Linked) -> None:
        await running.lost()
        running.link.check("link up")
        await running.joined(2)


def test_but_not_what_the_relay_has_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    @with_relay(closing(4001), stay)
    async def test(running: Linked) -> None:
        await running.lost()
        for _ in range(5):
            running.link.check("link up")
            await asyncio.sleep(0.03)
        assert running.engine.joins == 1


def test_changes_one_behind_the_other_are_no_storm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backoff, "USUAL", (9.0, 9.0))
    monkeypatch.setattr(link_module, "REDIAL_EVERY", 0.2)
    tries: list[float] = []

    async def cut(ws: ServerConnection) -> None:
        tries.append(time.monotonic())
        ws.transport.abort()

    @with_relay(cut)
    async def test(running: Linked) -> None:
        for _ in range(100):
            running.link.check("up and down")
            await asyncio.sleep(0.01)

    assert 3 <= len(tries) <= 8


def test_a_dial_that_hangs_is_begun_anew() -> None:
    dials = 0

    async def main() -> None:
        nonlocal dials

        async def hang(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal dials
            dials += 1
            await reader.read()

        async with accepting(hang) as port, linked(port) as running:
            await until(lambda: dials == 1)
            await asyncio.sleep(0.1)
            running.link.check("route changed")
            await until(lambda: dials == 2)

    drive(main)


def test_a_process_that_was_stopped_asks_before_it_judges(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "ASLEEP_AFTER", 0.1)
    monkeypatch.setattr(asyncio.BaseEventLoop, "time", lambda loop: time.monotonic())

    async def test(running: Linked, relay: RawRelay) -> None:
        time.sleep(0.5)
        opcode, payload = await relay.peer.frame()
        assert opcode == PING
        relay.send(PONG, payload)
        await asyncio.sleep(0.3)
        assert running.link.ready
        time.sleep(0.5)
        assert (await running.lost())["reason"].startswith("the relay does not answer any more")

    with_raw_relay(test)


def test_a_draining_relay_is_told_to_who_has_another() -> None:
    async def script(ws: ServerConnection) -> None:
        await admit(ws)
        await ws.send('{"type":"drain","reconnect_after_ms":100}')
        await ws.wait_closed()

    @with_relay(script, silent)
    async def test(running: Linked) -> None:
        await until(lambda: running.engine.drained)
        assert running.link.ready
