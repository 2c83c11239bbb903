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

from shadowmesh.observe.systemd import PATIENCE, Notifier


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


def test_a_systemd_that_is_gone_or_does_not_read_costs_next_to_nothing(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    Notifier({"NOTIFY_SOCKET": name}).ready("nobody there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as filler:
            filler.setblocking(False)
            with suppress(BlockingIOError):
                while True:
                    filler.sendto(b"x", name)
        before = time.monotonic()
        Notifier({"NOTIFY_SOCKET": name}).ready("queue full")
        assert time.monotonic() - before < PATIENCE + 1
