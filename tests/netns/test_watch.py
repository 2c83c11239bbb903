"""What the watch notices of a real kernel: addresses, links, routes, sleep, and hands laid on our device."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.net import watch
from shadowmesh.net.loop import new_loop
from shadowmesh.net.watch import NetworkWatch
from shadowmesh.testing.namespace import own_namespace
from shadowmesh.testing.websocket import drive, until
from shadowmesh.tun.linux import open_tun

pytestmark = pytest.mark.netns

Main = Callable[["Seen"], Coroutine[Any, Any, None]]


class Seen:
    """reasons: what was told; tun: how often our device was changed by others."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self.tun = 0

    def on_tun(self) -> None:
        self.tun += 1

    async def after(self, command: str) -> str:
        """What is told after this command of `ip`; "" for nothing within twice the time of gathering."""
        self.reasons.clear()
        ip(command)
        with contextlib.suppress(AssertionError):
            await until(lambda: self.reasons, 2 * watch.GATHER_SECONDS)
        return ", ".join(self.reasons)


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        # A link-local address, with its detection of duplicates, would come at a time of its own.
        Path("/proc/sys/net/ipv6/conf/default/addr_gen_mode").write_text("1")
        yield


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[[Main], None]:
    """Drives a coroutine beside a watch that ignores mesh0."""
    monkeypatch.setattr(watch, "GATHER_SECONDS", 0.1)

    def start(main: Main) -> None:
        async def watched() -> None:
            seen = Seen()
            observer = NetworkWatch(seen.reasons.append, "mesh0", seen.on_tun)
            try:
                await main(seen)
            finally:
                observer.close()
            ip("address add 10.77.0.1/32 dev lo")  # nobody listens any more

        drive(watched, new_loop=new_loop if request.param == "uvloop" else None)

    return start


def ip(command: str) -> None:
    subprocess.run(["ip", *command.split()], check=True, capture_output=True)


def test_addresses_links_and_routes(run: Callable[[Main], None]) -> None:
    async def main(seen: Seen) -> None:
        both = {"an address changed and a route changed", "a route changed and an address changed"}
        assert await seen.after("link add veth7 type veth peer name veth8") == ""  # both are down
        assert await seen.after("link set veth7 up") == "a link changed"
        assert await seen.after("link set veth8 up") != ""  # and now the carrier is there
        await asyncio.sleep(2 * watch.GATHER_SECONDS)
        assert await seen.after("address add 10.1.0.2/24 dev veth7") in both
        assert await seen.after("route add default via 10.1.0.1") == "a route changed"
        assert await seen.after("route replace default via 10.1.0.3") == "a route changed"
        assert await seen.after("route del default") == "a route changed"
        assert await seen.after("address change 10.1.0.2/24 dev veth7 valid_lft 1000 preferred_lft 900") == ""
        assert await seen.after("address del 10.1.0.2/24 dev veth7") in both | {"an address changed"}
        assert await seen.after("-6 address add fd00::2/64 dev veth7 nodad") in both
        assert await seen.after("link set veth7 alias nothing") == ""
        assert "a link changed" in await seen.after("link set veth8 down")
        assert "a link changed" in await seen.after("link del veth7")
        assert seen.tun == 0

    run(main)


def test_what_comes_together_is_told_once(run: Callable[[Main], None]) -> None:
    async def main(seen: Seen) -> None:
        for i in range(1, 20):
            ip(f"address add 10.2.0.{i}/32 dev lo")
        await until(lambda: seen.reasons)
        await asyncio.sleep(2 * watch.GATHER_SECONDS)
        assert 1 <= len(seen.reasons) <= 3

    run(main)


def test_more_than_the_socket_holds(run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch) -> None:
    async def main(seen: Seen) -> None:
        observer = NetworkWatch(seen.reasons.append, "mesh0")
        assert observer._socket is not None
        observer._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for i in range(1, 30):
            ip(f"address add 10.2.0.{i}/32 dev lo")
        await until(lambda: any("the network changed" in each for each in seen.reasons))
        await asyncio.sleep(2 * watch.GATHER_SECONDS)
        observer._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        for i in range(1, 3):  # it goes on listening
            seen.reasons.clear()
            ip(f"address add 10.3.0.{i}/32 dev lo")
            await until(lambda: seen.reasons.count("an address changed") == 2)  # both watches
        observer.close()

    run(main)


def test_our_own_device(run: Callable[[Main], None]) -> None:
    """What we do to it is nobody's news; what others do is told once, and mended in a thread."""
    addresses = [ip_interface("10.10.10.1/24"), ip_interface("fd00::1/64")]
    routes = [ip_network("192.168.7.0/24"), ip_network("fd01::/48")]
    with contextlib.closing(open_tun("mesh0", addresses, 1400, routes)) as tun:

        async def main(seen: Seen) -> None:
            loop = asyncio.get_running_loop()
            for command, lost in (
                ("link set mesh0 down", ()),
                ("link set mesh0 up", ("fd00::1/64", "192.168.7.0/24", "fd01::/48")),
                ("address flush dev mesh0", ("10.10.10.1/24", "fd00::1/64", "192.168.7.0/24")),
                ("route del 192.168.7.0/24", ("192.168.7.0/24",)),
                ("-6 route del fd01::/48", ("fd01::/48",)),
            ):
                seen.tun = 0
                ip(command)
                await until(lambda: seen.tun)
                assert await loop.run_in_executor(None, tun.repair) == lost
                await asyncio.sleep(2 * watch.GATHER_SECONDS)
                assert await loop.run_in_executor(None, tun.repair) == ()
            assert seen.reasons == []

        run(main)


def test_sleep(run: Callable[[Main], None], monkeypatch: pytest.MonkeyPatch) -> None:
    real = watch._sleep
    asleep = 0.0
    monkeypatch.setattr(watch, "_sleep", lambda: real() + asleep)
    monkeypatch.setattr(watch, "TICK_SECONDS", 0.05)

    async def main(seen: Seen) -> None:
        nonlocal asleep
        await asyncio.sleep(0.2)
        assert seen.reasons == []
        asleep = 3600.0
        await until(lambda: seen.reasons == ["the device slept"])
        await asyncio.sleep(0.3)
        assert seen.reasons == ["the device slept"]

    run(main)


def test_stopped_and_continued() -> None:
    code = (
        "import asyncio; from shadowmesh.net import watch\n"
        "watch.TICK_SECONDS, watch.STOPPED_SECONDS = 0.05, 0.5\n"
        "async def main():\n"
        "    watch.NetworkWatch(lambda why: print(why, flush=True), 'mesh0')\n"
        "    print('ready', flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            program.send_signal(signal.SIGSTOP)
            with pytest.raises(subprocess.TimeoutExpired):
                program.wait(0.8)
            program.send_signal(signal.SIGCONT)
            assert program.stdout.readline() == "the daemon was stopped\n"
        finally:
            program.kill()


def test_without_netlink(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sandbox, or on another system, nothing is noticed and nothing breaks."""

    async def main() -> None:
        NetworkWatch(lambda why: None, "mesh0").close()

    def refuse(self: NetworkWatch) -> None:
        raise OSError

    with monkeypatch.context() as patch:
        patch.setattr(NetworkWatch, "_open", refuse)
        drive(main)
    monkeypatch.setattr(sys, "platform", "darwin")
    drive(main)
