"""Each usual mistake is made with a real daemon (on a memory device), and read in its status."""

from __future__ import annotations

import asyncio
import os
import shutil
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.apikey import key_text
from shadowmesh.config.loader import load_client_config
from shadowmesh.daemon.app import Daemon
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.relay.keys import Keys
from shadowmesh.testing import guide
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.packets import udp_packet
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.relay_server import running_relay
from shadowmesh.testing.websocket import accepting, drive, until
from shadowmesh.tun.memory import memory_pair
from shadowmesh.wire.offload import PLAIN

KEY = os.urandom(32).hex()


@pytest.fixture(autouse=True)
def stay_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves behind is to be collected."""
    monkeypatch.setattr("gc.freeze", lambda: None)


class Running:
    """A daemon, and what its device would get of the kernel."""

    def __init__(self, file: Path) -> None:
        config = load_client_config(str(file)).config
        self.state = StateDirectory(config.daemon.state_directory)
        self.tun, self.kernel = memory_pair()
        self.daemon = Daemon(config, self.state, self.state.seed(), self.tun)
        self.task = asyncio.create_task(self.daemon.run())

    async def diagnosed(self, code: str) -> str:
        """Wait until this is said to be wrong, in these words."""
        try:
            await until(lambda: code in self.codes, 15)
        except AssertionError:
            raise AssertionError(f"{code} is not in {self.daemon.status()}") from None
        (text,) = [each["text"] for each in self.daemon.status()["diagnosis"] if each["code"] == code]
        return str(text)

    @property
    def codes(self) -> list[str]:
        return [each["code"] for each in self.daemon.status()["diagnosis"]]

    async def connected(self) -> None:
        await until(lambda: self.daemon.status()["status"] == "connected")

    async def close(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        self.tun.close()
        self.kernel.close()
        self.state.close()


@asynccontextmanager
async def running(
    directory: Path, server: str, *, ip: str = "10.10.10.1/24", name: str = "a", key: str = KEY, **more: Any
) -> AsyncIterator[Running]:
    state = directory / f"state-{name}-{len(list(directory.iterdir()))}"
    daemon = {
        "listen_address": f"127.0.0.1:{free_ports(1)[0]}",
        "state_directory": str(more.pop("state", state)),
        "token_file": f"{state}.token",
    }
    text = guide.client_config(ip=ip, key=key, peer_id=name, server=server)
    file = state.with_suffix(".yaml")
    file.write_text(guide.merged(text, {"daemon": daemon} | more))
    file.chmod(0o600)
    one = Running(file)
    await asyncio.sleep(0)
    try:
        yield one
    finally:
        await one.close()


@asynccontextmanager
async def answering(response: bytes) -> AsyncIterator[str]:
    """A server that answers every request with these bytes."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(4096)
        writer.write(response)
        writer.close()

    async with accepting(answer) as port:
        yield f"127.0.0.1:{port}"


@pytest.mark.parametrize(
    ("response", "code", "words"),
    [
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "not_a_relay", "it is no relay"),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://login.hotel.example/\r\nContent-Length: 0\r\n\r\n",
            "captive_portal",
            "login page",
        ),
    ],
    ids=["web server", "login page"],
)
def test_something_else_answers(tmp_path: Path, response: bytes, code: str, words: str) -> None:
    async def main() -> None:
        async with answering(response) as where, running(tmp_path, f"ws://{where}") as one:
            assert words in await one.diagnosed(code)

    drive(main)


def test_a_proxy_in_the_way(tmp_path: Path) -> None:
    refusal = b"HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\n\r\n"

    async def main() -> None:
        async with (
            answering(refusal) as where,
            running(
                tmp_path,
                "ws://192.0.2.1:9545",
                relay={"proxy": f"http://{where}", "server": "ws://192.0.2.1:9545"},
            ) as one,
        ):
            text = await one.diagnosed("proxy")
            assert "user name and password" in text
            assert "relay.proxy: none" in text

    drive(main)


def test_a_relay_that_is_off(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, f"ws://127.0.0.1:{free_ports(1)[0]}") as one:
            assert "is the relay running" in await one.diagnosed("refused")

    drive(main)


def test_an_untrusted_certificate(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths.cert, paths.key)

    async def main() -> None:
        async with running_relay(ssl=context) as relay:
            async with running(tmp_path, f"wss://127.0.0.1:{relay.port}") as one:
                assert "relay.tls_ca_file" in await one.diagnosed("certificate")
            async with running(tmp_path, f"ws://127.0.0.1:{relay.port}") as one:
                await until(lambda: one.codes, 15)

    drive(main)


def test_an_api_key_that_is_missing_and_one_that_is_wrong(tmp_path: Path) -> None:
    async def main() -> None:
        async with running_relay() as relay:
            await relay.server.use_keys(Keys(()))
            server = f"ws://127.0.0.1:{relay.port}"
            async with running(tmp_path, server) as one:
                assert "asks for an API key" in await one.diagnosed("api_key")
            mistyped = {"api_key": key_text("aaaaaaaa", b"x" * 32), "server": server}
            async with running(tmp_path, server, relay=mistyped) as one:
                assert "refuses our API key" in await one.diagnosed("api_key")

    drive(main)


def test_a_wrong_key(tmp_path: Path) -> None:
    packet = memoryview(PLAIN + udp_packet("10.10.10.1", "10.10.10.2", b"hello"))

    async def main() -> None:
        async with running_relay() as relay:
            server = f"ws://127.0.0.1:{relay.port}"
            async with (
                running(tmp_path, server) as one,
                running(tmp_path, server, ip="10.10.10.2/24", name="b", key=os.urandom(32).hex()) as other,
            ):
                await one.connected()
                await other.connected()
                assert one.codes == []
                one.kernel.write(packet)
                assert "encryption.key must be the same" in await one.diagnosed("wrong_key")
            async with running(tmp_path, server, ip="10.10.10.2/24", name="b") as right:
                await right.connected()

    drive(main)


@pytest.mark.parametrize(
    ("ip", "name", "code", "key"),
    [
        ("10.10.10.1/24", "b", "duplicate_local_ip", "network.local_ip"),
        ("10.10.10.2/24", "a", "duplicate_id", "peer.id"),
    ],
)
def test_two_devices_with_one_address_are_both_told(
    tmp_path: Path, ip: str, name: str, code: str, key: str
) -> None:
    async def main() -> None:
        async with running_relay() as relay:
            server = f"ws://127.0.0.1:{relay.port}"
            async with (
                running(tmp_path, server) as first,
                running(tmp_path, server, ip=ip, name=name) as second,
            ):
                for each in (first, second):
                    assert key in await each.diagnosed(code)

    drive(main)


def test_a_copied_device(tmp_path: Path) -> None:
    """The later one pushes the first one out."""

    async def main() -> None:
        async with running_relay() as relay:
            server = f"ws://127.0.0.1:{relay.port}"
            async with running(tmp_path, server, state=tmp_path / "original") as first:
                await first.connected()
                (tmp_path / "copy").mkdir(mode=0o700)
                shutil.copy(tmp_path / "original/device.key", tmp_path / "copy/device.key")
                async with running(tmp_path, server, state=tmp_path / "copy") as second:
                    await second.connected()
                    assert "remove device.key" in await first.diagnosed("duplicate_device")

    drive(main)


def test_the_clock_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that believes it is 1970, with a relay and a peer that do not."""
    packet = memoryview(PLAIN + udp_packet("10.10.10.1", "10.10.10.2", b"hello"))

    async def main() -> None:
        async with running_relay() as relay:
            server = f"ws://127.0.0.1:{relay.port}"
            async with running(tmp_path, server, ip="10.10.10.2/24", name="b") as other:
                await other.connected()
                monkeypatch.setattr("time.time", lambda: 1.0)
                async with running(tmp_path, server) as one:
                    await one.connected()
                    one.kernel.write(packet)
                    await until(lambda: other.daemon.status()["packets_in"])
                    assert (one.codes, other.codes) == ([], [])

    drive(main)
