"""The daemon as a whole, on memory devices and a real relay: it starts, serves, and always ends."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from shadowmesh.config import ClientConfig, load_client_config
from shadowmesh.daemon import app as app_module
from shadowmesh.daemon.app import Daemon, run
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.errors import StartError, TunError
from shadowmesh.observe.logging import configure
from shadowmesh.testing import guide
from shadowmesh.testing.packets import udp_packet
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.relay_server import running_relay
from shadowmesh.testing.websocket import drive, until
from shadowmesh.tun.base import MAX_RECORD
from shadowmesh.tun.memory import MemoryTun, memory_pair
from shadowmesh.wire.offload import PLAIN

KEY = "6b8c5c1d5e2d4f7f9a0b1c2d3e4f50617283940a5b6c7d8e9fa0b1c2d3e4f506"


@pytest.fixture(autouse=True)
def stay_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves behind is to be collected."""
    monkeypatch.setattr("gc.freeze", lambda: None)


@pytest.fixture
def log() -> Iterator[io.StringIO]:
    stream = io.StringIO()
    configure("debug", "json", stream)
    yield stream
    configure()


def free_port() -> int:
    return free_ports(1)[0]


def settings(
    path: Path, port: int, *, number: int = 1, name: str = "a", relay: str = "ws://127.0.0.1:1", **more: Any
) -> ClientConfig:
    """The guide's configuration for 10.10.10.<number>, with its own state directory `path`."""
    text = guide.client_config(ip=f"10.10.10.{number}/24", key=KEY, peer_id=name, server=relay)
    daemon = {
        "listen_address": f"127.0.0.1:{port}",
        "state_directory": str(path / name),
        "token_file": str(path / f"{name}.token"),
    }
    file = path / f"{name}.yaml"
    file.write_text(guide.merged(text, {"daemon": daemon} | more))
    file.chmod(0o600)
    return load_client_config(str(file)).config


class Running:
    """A daemon and the kernel's side of its device."""

    def __init__(self, config: ClientConfig) -> None:
        self.state = StateDirectory(config.daemon.state_directory)
        self.tun, self.kernel = memory_pair()
        self.daemon = Daemon(config, self.state, self.state.seed(), self.tun)
        self.task = asyncio.create_task(self.daemon.run())

    async def ready(self) -> None:
        await until(lambda: self.daemon.status()["status"] == "connected")

    def taken(self) -> bytes:
        """The next record that the device gave the kernel, empty if there is none."""
        buffer = memoryview(bytearray(MAX_RECORD))
        return bytes(buffer[: self.kernel.read_into(buffer)])

    async def end(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        self.close()

    def close(self) -> None:
        self.tun.close()
        self.kernel.close()
        self.state.close()


@contextlib.asynccontextmanager
async def running(config: ClientConfig) -> AsyncIterator[Running]:
    daemon = Running(config)
    await asyncio.sleep(0)
    try:
        yield daemon
    finally:
        await daemon.end()


def with_relay(test: Callable[[str], Awaitable[None]]) -> None:
    async def main() -> None:
        async with running_relay() as relay:
            await test(f"ws://127.0.0.1:{relay.port}")

    drive(main)


def stops_in_time(config: ClientConfig, before: Callable[[Running], Awaitable[None]]) -> None:
    """Start a daemon, do something, send SIGTERM: daemon and event loop end within three seconds."""
    signalled = 0.0

    async def main() -> None:
        nonlocal signalled
        daemon = Running(config)
        await asyncio.sleep(0)
        await before(daemon)
        signalled = time.monotonic()
        os.kill(os.getpid(), signal.SIGTERM)
        await daemon.task
        daemon.close()

    drive(main)
    assert time.monotonic() - signalled < 3.0


def test_two_daemons_meet(tmp_path: Path, log: io.StringIO) -> None:
    packet = PLAIN + udp_packet("10.10.10.1", "10.10.10.2", b"hello")

    async def test(url: str) -> None:
        port = free_port()
        async with (
            running(settings(tmp_path, port, relay=url)) as a,
            running(settings(tmp_path, free_port(), number=2, name="b", relay=url)) as b,
        ):
            await a.ready()
            await b.ready()
            a.kernel.write(memoryview(packet))
            await until(lambda: b.daemon.status()["packets_in"])
            assert b.taken() == packet
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                health, status = [(await client.get(path)).json() for path in ("/health", "/status")]
            assert health["status"] == "connected"
            (peer,) = status["peers"]
            assert (peer["name"], peer["ips"], peer["connected"]) == ("b", ["10.10.10.2"], True)
            assert peer["fingerprint"] == b.daemon.status()["fingerprint"]
            assert (status["packets_out"], status["packets_in"]) == (1, 0)
            assert status["drops"] == {}
            assert status["events"] == {"relay_joined": 1, "session": 1, "identity_new": 1}
        known = json.loads((tmp_path / "a" / "known_peers.json").read_text())
        assert [list(peers) for peers in known.values()] == [["10.10.10.2"]]

    with_relay(test)
    seeds = [(tmp_path / name / "device.key").read_text().strip() for name in "ab"]
    text = log.getvalue()
    assert "connected to the relay" in text
    assert not [secret for secret in (KEY, *seeds) if secret in text]


def test_a_name_with_two_addresses_is_shown_as_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    getaddrinfo = socket.getaddrinfo

    def look_up(host: Any, *args: Any, **options: Any) -> Any:
        if host != "relay.example":
            return getaddrinfo(host, *args, **options)
        return [*getaddrinfo("127.0.0.3", *args, **options), *getaddrinfo("127.0.0.2", *args, **options)]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)

    async def main() -> None:
        async with running_relay(address="0.0.0.0") as relay:
            url = f"ws://relay.example:{relay.port}"
            async with running(settings(tmp_path, free_port(), relay=url)) as one:

                def relays() -> list[tuple[str, str]]:
                    return sorted((each["state"], each["address"]) for each in one.daemon.status()["relays"])

                await until(lambda: [state for state, _ in relays()] == ["connected", "standby"])
                assert {address for _, address in relays()} == {"127.0.0.2", "127.0.0.3"}

    drive(main)


def test_the_same_ip_twice_is_named(tmp_path: Path, log: io.StringIO) -> None:
    async def test(url: str) -> None:
        async with (
            running(settings(tmp_path, free_port(), relay=url)) as first,
            running(settings(tmp_path, free_port(), name="b", relay=url)) as second,
        ):
            await first.ready()
            await second.ready()
            statuses = [each.daemon.status()["relay"]["refused"] for each in (first, second)]
            assert sorted(statuses, key=len) == [{}, {"10.10.10.1": "address_in_use"}]
            reasons = {each.daemon.status()["reason"] for each in (first, second)}
            assert reasons == {"", "the relay gives to another device: 10.10.10.1"}

    with_relay(test)
    lines = [json.loads(line) for line in log.getvalue().splitlines()]
    # The one that comes too late, and the one that has it, are told.
    twice = [line["address"] for line in lines if "is local_ip or peer.id used twice" in line["event"]]
    assert twice == ["10.10.10.1", "10.10.10.1"]


def test_sigterm(tmp_path: Path) -> None:
    async def nothing(daemon: Running) -> None:
        await until(lambda: daemon.daemon.status()["reason"])

    stops_in_time(settings(tmp_path, free_port()), nothing)


def test_sigterm_while_a_name_is_looked_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer, asked = threading.Event(), threading.Event()
    getaddrinfo = socket.getaddrinfo

    def hang(host: Any, *args: Any, **options: Any) -> Any:
        if host == "relay.example":
            asked.set()
            answer.wait(30)
        return getaddrinfo("127.0.0.1", *args, **options)

    monkeypatch.setattr(socket, "getaddrinfo", hang)

    async def asking(daemon: Running) -> None:
        await until(asked.is_set)

    try:
        stops_in_time(settings(tmp_path, free_port(), relay="ws://relay.example:9545"), asking)
    finally:
        answer.set()


def test_sigterm_while_a_relay_does_not_answer(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        async def dialled(daemon: Running) -> None:
            listener.setblocking(False)
            dialled_in.append((await asyncio.get_running_loop().sock_accept(listener))[0])

        dialled_in: list[socket.socket] = []
        url = f"ws://127.0.0.1:{listener.getsockname()[1]}"
        stops_in_time(settings(tmp_path, free_port(), relay=url), dialled)
        dialled_in[0].close()


def test_sigterm_with_half_a_request_open(tmp_path: Path) -> None:
    port = free_port()
    with socket.socket() as client:

        async def ask(daemon: Running) -> None:
            await until(lambda: client.connect_ex(("127.0.0.1", port)) == 0)
            client.sendall(b"GET /status HTTP/1.1\r\nHost: ")
            await asyncio.sleep(0.05)

        stops_in_time(settings(tmp_path, port), ask)


def test_a_second_signal_ends_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ended(Exception):
        pass

    def end(status: int) -> None:
        assert status == 1
        raise Ended

    monkeypatch.setattr(os, "_exit", end)

    async def main() -> None:
        async with running(settings(tmp_path, free_port())) as one:
            one.daemon._on_signal()
            with pytest.raises(Ended):
                one.daemon._on_signal()
            await one.task

    drive(main)


def test_a_lost_device_ends_the_daemon(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(settings(tmp_path, free_port())) as one:
            one.kernel.close()
            with pytest.raises(TunError, match="memory0 is gone"):
                await one.task

    drive(main)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            async with running(settings(tmp_path, listener.getsockname()[1])) as one:
                with pytest.raises(StartError, match=r"daemon\.listen_address .*another program has this"):
                    await one.task

    drive(main)


def test_peers_are_remembered_in_one_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And a disk that is full stops nothing."""
    monkeypatch.setattr(app_module, "REMEMBER_AFTER", 0.05)
    writes: list[int] = []

    def remember(state: StateDirectory, known: dict[bytes, dict[bytes, bytes]]) -> None:
        writes.extend(map(len, known.values()))
        raise StartError("cannot write: No space left on device")

    monkeypatch.setattr(StateDirectory, "remember_peers", remember)

    async def main() -> None:
        async with running(settings(tmp_path, free_port())) as one:
            for number in range(20):
                one.daemon._networks[0].trust.remember(bytes([10, 10, 10, number]), b"k" * 32)
                one.daemon._on_event("identity_new", ip=bytes([10, 10, 10, number]))
            await until(lambda: writes)
            one.daemon._on_event("identity_new", ip=bytes([10, 10, 10, 1]))
        assert writes == [20, 20]  # the second at the end

    drive(main)


# run()


def device(monkeypatch: pytest.MonkeyPatch) -> MemoryTun:
    ours, theirs = memory_pair()
    theirs.close()
    monkeypatch.setattr(app_module, "open_tun", lambda *args: ours)
    return ours


def test_permission_for_the_device_is_asked_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any) -> None:
        raise TunError("Permission denied creating TUN device")

    monkeypatch.setattr(app_module, "open_tun", refuse)
    with pytest.raises(TunError, match="Permission denied"):
        run(settings(tmp_path, free_port()))
    assert not (tmp_path / "a").exists()


def test_a_state_directory_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tun = device(monkeypatch)
    (tmp_path / "a").touch()
    with pytest.raises(StartError, match=r"daemon\.state_directory"):
        run(settings(tmp_path, free_port()))
    assert tun.fileno() == -1


def test_whatever_ends_a_run_the_device_and_the_directory_are_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tun = device(monkeypatch)
    with pytest.raises(TunError, match="is gone"):
        run(settings(tmp_path, free_port()))
    assert tun.fileno() == -1
    StateDirectory(tmp_path / "a").close()


@pytest.mark.parametrize(
    ("configured", "environment", "path"),
    [
        (None, None, "/var/lib/shadowmesh"),
        (None, "/run/state", "/run/state"),
        (None, "/run/state:/run/other", "/run/state"),
        ("/srv/state", "/run/state", "/srv/state"),
    ],
)
def test_where_the_state_is(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    configured: str | None,
    environment: str | None,
    path: str,
) -> None:
    monkeypatch.delenv("STATE_DIRECTORY", raising=False)
    if environment:
        monkeypatch.setenv("STATE_DIRECTORY", environment)
    text = guide.client_config(ip="10.10.10.1/24", key=KEY, peer_id="a", server="ws://127.0.0.1:1")
    file = tmp_path / "client.yaml"
    file.write_text(guide.merged(text, {"daemon": {"state_directory": configured}} if configured else {}))
    file.chmod(0o600)
    assert app_module._state_path(load_client_config(str(file)).config) == path
