"""A bug that meets one connection ends that one: nobody else notices, and the account still adds up."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from shadowmesh.relay.connection import Connection
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_server import QUICK, TestRelay, running_relay
from shadowmesh.testing.websocket import drive

A, B, C = address("a"), address("b"), address("c")


def fails(*args: Any) -> Any:
    raise RuntimeError("a bug")


def holder(relay: TestRelay, of: bytes) -> Connection:
    (connection,) = (c for c in relay.server.connections if c.member and of in c.member.held)
    return connection


def break_one(monkeypatch: pytest.MonkeyPatch, victim: Connection, name: str) -> None:
    """Let a method of this connection raise, and of no other."""
    good = getattr(Connection, name)
    monkeypatch.setattr(
        Connection, name, lambda self, *args: fails() if self is victim else good(self, *args)
    )


async def unharmed(one: RelayClient, other: RelayClient) -> None:
    """Frames pass between A and C, both ways."""
    await one.send(frame(C, A, b"there"))
    assert await other.next_data() == frame(C, A, b"there")
    await other.send(frame(A, C, b"back"))
    assert await one.next_data() == frame(A, C, b"back")


async def sends_to_b(relay: TestRelay, a: RelayClient, b: RelayClient) -> None:
    for _ in range(5):
        await a.send(frame(B, A))


async def b_sends(relay: TestRelay, a: RelayClient, b: RelayClient) -> None:
    await b.send(frame(A, B))


async def b_asks(relay: TestRelay, a: RelayClient, b: RelayClient) -> None:
    await b.send({"type": "addresses"})


async def somebody_wants_b(relay: TestRelay, a: RelayClient, b: RelayClient) -> None:
    await a.send({"type": "addresses", "add": [B.hex()]})
    assert (await a.next_control("addresses"))["refused"]


async def nobody(relay: TestRelay, a: RelayClient, b: RelayClient) -> None:
    pass


@pytest.mark.parametrize(
    ("broken", "act"),
    [
        ("deliver", sends_to_b),
        ("on_binary", b_sends),
        ("on_text", b_asks),
        ("probe", somebody_wants_b),
        ("tell_conflict", somebody_wants_b),
        ("check", nobody),
    ],
)
def test_a_broken_handler(monkeypatch: pytest.MonkeyPatch, broken: str, act: Callable[..., Any]) -> None:
    async def main() -> None:
        async with (
            running_relay(QUICK) as relay,
            relay.client() as a,
            relay.client() as b,
            relay.client() as c,
        ):
            await a.join(A, device="a")
            await b.join(B, device="b")
            await c.join(C, device="c")
            break_one(monkeypatch, holder(relay, B), broken)
            await act(relay, a, b)
            assert await b.closed() == (1011, "internal error")
            await unharmed(a, c)
            assert relay.server.admission.joined == 2
            assert relay.counters.closes == {1011: 1}
            if broken == "deliver":
                assert relay.counters.drops["internal_error"] >= 1
            relay.check_account()

    reports = drive(main, errors=None)
    assert reports
    assert set(reports) == {"unhandled exception in Connection: RuntimeError('a bug')"}


def test_a_broken_write_at_the_end_of_a_read() -> None:
    """What could not be sent is counted."""

    async def main() -> None:
        async with running_relay(QUICK) as relay, relay.client() as a, relay.client() as b:
            await a.join(A, device="a")
            await b.join(B, device="b")
            holder(relay, B).write_frames = lambda frames: fails()
            await sends_to_b(relay, a, b)
            assert await b.closed() == (1011, "internal error")
            assert relay.counters.drops["internal_error"] >= 1
            relay.check_account()

    assert drive(main, errors=None) == ["unhandled exception in Connection: RuntimeError('a bug')"]


def test_a_broken_write_of_what_waited() -> None:
    async def main() -> None:
        async with (
            running_relay(QUICK, write_buffer_size=1) as relay,
            relay.client() as a,
            relay.client() as b,
        ):
            await a.join(A, device="a")
            await b.join(B, device="b")
            victim = holder(relay, B)
            b.ws.transport.pause_reading()
            while not relay.server.memory.frames:
                await a.send(frame(B, A, bytes(60_000)))
            victim.send_binary = lambda frame: fails()
            b.ws.transport.resume_reading()
            await relay.until(lambda: victim.done, "the end of the connection")
            assert relay.counters.drops["internal_error"] == 1
            assert relay.counters.closes == {1011: 1}
            relay.check_account()

    assert drive(main, errors=None) == ["unhandled exception in Connection: RuntimeError('a bug')"]


def test_a_broken_connection_does_not_stop_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_relay(QUICK) as relay, relay.client() as a, relay.client() as b:
            await a.join(A, device="a")
            await b.join(B, device="b")
            break_one(monkeypatch, holder(relay, B), "drain")
            await relay.server.drain()
            await a.next_control("drain")
            assert (await a.closed())[0] == 1012
            assert (await b.closed())[0] == 1011

    drive(main, errors=1)


def test_a_replaced_connection_that_is_broken_does_not_bar_its_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def main() -> None:
        async with running_relay(QUICK) as relay, relay.client() as old, relay.client() as new:
            await old.join(A)
            victim = holder(relay, A)
            break_one(monkeypatch, victim, "end")
            assert (await new.join(A))["held"] == [A.hex()]
            assert (await old.closed())[0] == 1011
            await relay.until(lambda: victim.done, "the end of the old one")
            assert relay.server.admission.joined == 1

    drive(main, errors=1)


def test_an_upgrade_that_fails_costs_one_request(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with running_relay(QUICK) as relay, relay.client() as a, relay.client() as c:
            await a.join(A, device="a")
            await c.join(C, device="c")
            with monkeypatch.context() as patch:
                patch.setattr(relay.server.admission, "refuses", fails)
                with pytest.raises(Exception, match="HTTP 500"):
                    await relay.client().__aenter__()
            await unharmed(a, c)

    drive(main, errors=1)
