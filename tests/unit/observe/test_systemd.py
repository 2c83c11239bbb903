from __future__ import annotations

import asyncio
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from shadowmesh.observe.systemd import RETRY_SECONDS, Notifier


@pytest.fixture(params=["path", "abstract"])
def service(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    """The socket of a systemd, and its name in $NOTIFY_SOCKET."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@shadowmesh-{secrets.token_hex(4)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name.replace("@", "\0", 1))
        receiver.settimeout(2.0)
        yield receiver, name


def test_messages_are_those_of_sd_notify(service: tuple[socket.socket, str]) -> None:
    receiver, name = service
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("Serving")
    assert receiver.recv(4096) == b"READY=1\nSTATUS=Serving"
    before = time.monotonic_ns() // 1000
    notifier.reloading()
    reloading, _, usec = receiver.recv(4096).partition(b"\nMONOTONIC_USEC=")
    assert reloading == b"RELOADING=1"
    assert before <= int(usec) <= time.monotonic_ns() // 1000
    notifier.stopping("Stopping")
    assert receiver.recv(4096) == b"STOPPING=1\nSTATUS=Stopping"


def test_a_status_is_sent_when_it_is_another_one(service: tuple[socket.socket, str]) -> None:
    receiver, name = service
    notifier = Notifier({"NOTIFY_SOCKET": name})
    notifier.ready("0 clients")
    for status in ("0 clients", "1 client", "1 client", "2 clients"):
        notifier.status(status)
    received = [receiver.recv(4096) for _ in range(3)]
    assert received == [b"READY=1\nSTATUS=0 clients", b"STATUS=1 client", b"STATUS=2 clients"]


def test_the_watchdog_is_fed_by_the_event_loop_and_only_by_it(service: tuple[socket.socket, str]) -> None:
    receiver, name = service
    receiver.setblocking(False)

    def waiting() -> int:
        """How many messages have come."""
        count = 0
        try:
            while receiver.recv(4096) == b"WATCHDOG=1":
                count += 1
        except BlockingIOError:
            pass
        return count

    async def scenario() -> None:
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "100000"})
        feeding = asyncio.create_task(notifier.feed_watchdog())
        deadline, fed = time.monotonic() + 5, 0
        while fed < 5:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.02)
            fed += waiting()
        time.sleep(0.3)  # a loop that hangs
        assert waiting() == 0
        feeding.cancel()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("environment", "watchdog"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_is_wanted_only_of_the_process_it_names(
    environment: dict[str, str], watchdog: float | None
) -> None:
    assert Notifier({"NOTIFY_SOCKET": "/run/systemd/notify", **environment}).watchdog == watchdog


def test_outside_systemd_nothing_happens() -> None:
    notifier = Notifier({"WATCHDOG_USEC": "1000"})
    notifier.ready("Serving")
    assert notifier.watchdog is None
    asyncio.run(notifier.feed_watchdog())


def test_a_systemd_that_is_gone_costs_nothing(tmp_path: Path) -> None:
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")}).ready("nobody there")


def test_a_systemd_that_does_not_read_holds_nothing_up_and_hears_the_states_later(tmp_path: Path) -> None:
    """In their order, and none of the rest: the next status and sign of life are as good."""
    name = str(tmp_path / "notify")

    async def scenario() -> None:
        notifier = Notifier({"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "20000"})
        feeding = asyncio.create_task(notifier.feed_watchdog())
        before = time.monotonic()
        notifier.reloading()
        notifier.ready("reloaded")
        for n in range(50):
            notifier.status(f"{n} clients")
        notifier.stopping("stopping")
        assert time.monotonic() - before < 0.05
        await asyncio.sleep(2 * RETRY_SECONDS)
        feeding.cancel()
        for _ in range(filled):
            assert receiver.recv(4096) == b"x"
        heard: list[str] = []
        while len(heard) < 3:
            with suppress(BlockingIOError):
                heard.append(receiver.recv(4096).decode().partition("\n")[0])
            await asyncio.sleep(0.01)
            assert time.monotonic() < before + 5
        assert heard == ["RELOADING=1", "READY=1", "STOPPING=1"]
        await asyncio.sleep(2 * RETRY_SECONDS)
        with suppress(BlockingIOError):
            raise AssertionError(receiver.recv(4096))

    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        receiver.setblocking(False)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            filled = 0
            with suppress(BlockingIOError):
                while True:
                    filled += filler.sendto(b"x", name)
        asyncio.run(scenario())


def test_a_status_that_was_lost_is_sent_with_the_next_one(tmp_path: Path) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": str(tmp_path / "notify")})
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(str(tmp_path / "notify"))
        receiver.setblocking(False)
        count = 0
        while notifier._send("x"):
            count += 1
        notifier.status("1 client")
        for _ in range(count):
            receiver.recv(4096)
        notifier.status("1 client")
        assert receiver.recv(4096) == b"STATUS=1 client"
