"""Several relays, with real relays, real connections and engines: one of them is lost, or is there twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import cast
from unittest.mock import Mock

import pytest

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon import link as link_module
from shadowmesh.daemon import links as links_module
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.daemon.links import Links
from shadowmesh.daemon.listener import Engine
from shadowmesh.daemon.names import located
from shadowmesh.testing.devices import Device, reaches
from shadowmesh.testing.memory import SECRET
from shadowmesh.testing.packets import tcp_packet, unfinished
from shadowmesh.testing.relay_server import TestRelay, running_relay
from shadowmesh.testing.websocket import accepting, until


class Way:
    """TCP from a device to a relay that can be cut, so that both ends know, or swallow everything."""

    def __init__(self, relay: TestRelay) -> None:
        self.relay = relay
        self.port = 0
        self.swallowing = self.refusing = False
        self.takes = 0  # bytes from the device, each 20 ms; 0: all there is
        self._pipes: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Way]:
        async with accepting(self._accept) as self.port:
            yield self

    def cut(self) -> None:
        for writer in self._pipes:
            writer.transport.abort()
        self._pipes.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self.refusing:
            writer.transport.abort()
            return
        to_relay = await asyncio.open_connection("127.0.0.1", self.relay.port)
        self._pipes += [writer, to_relay[1]]
        await asyncio.gather(self._pump(reader, to_relay[1], up=True), self._pump(to_relay[0], writer))

    async def _read(self, reader: asyncio.StreamReader, up: bool) -> bytes:
        if up and self.takes:
            await asyncio.sleep(0.02)
            return await reader.read(self.takes)
        return await reader.read(65536)

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, up: bool = False
    ) -> None:
        with suppress(ConnectionError):
            while data := await self._read(reader, up):
                if not self.swallowing:
                    writer.write(data)
        writer.close()


def urls(ways: list[Way]) -> list[str]:
    return [f"ws://127.0.0.1:{way.port}/relay" for way in ways]


Scenario = Callable[[list[TestRelay], list[list[Way]], list[Device]], Awaitable[None]]


def with_devices(relays: int, lists: list[list[int]]) -> Callable[[Scenario], None]:
    """Run a scenario with relays, and devices that have a way to each relay of their list."""

    def run(scenario: Scenario) -> None:
        async def main() -> None:
            async with asyncio.timeout(30), AsyncExitStack() as stack:
                there = [await stack.enter_async_context(running_relay()) for _ in range(relays)]
                ways = [
                    [await stack.enter_async_context(Way(there[i]).open()) for i in chosen]
                    for chosen in lists
                ]
                devices = [Device("abc"[i], f"10.10.10.{i + 1}", *urls(own)) for i, own in enumerate(ways)]
                for device in devices:
                    stack.push_async_callback(device.stop)
                await scenario(there, ways, devices)

        asyncio.run(main())

    return run


def all_joined(*devices: Device) -> bool:
    return all(link.ready for device in devices for link in device.links)


def test_a_device_is_joined_to_every_relay_and_one_of_them_carries_the_packets() -> None:
    @with_devices(2, [[0, 1], [0, 1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: all_joined(a, b))
        await reaches(a, b)
        await reaches(b, a)
        await until(lambda: a.via == b.via)
        before = [relay.counters.frames_in for relay in relays]
        for _ in range(20):
            a.send(b)
            await asyncio.sleep(0.01)
        carried = [relay.counters.frames_in - count for relay, count in zip(relays, before, strict=True)]
        assert carried[a.via] >= 20
        assert carried[1 - a.via] <= 6, "probes alone"


@pytest.mark.parametrize("who", [[0, 1], [0], [1]], ids=["both", "a", "b"])
@pytest.mark.parametrize("how", ["cut", "swallow"])
def test_one_of_two_relays_is_lost(who: list[int], how: str) -> None:
    @with_devices(2, [[0, 1], [0, 1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: all_joined(a, b))
        await reaches(a, b)
        await reaches(b, a)
        await until(lambda: a.via == b.via)
        lost, handshakes = a.via, a.peer.handshakes
        for i in who:
            ways[i][lost].refusing = True
            if how == "cut":
                ways[i][lost].cut()
            else:
                ways[i][lost].swallowing = True
        took = await asyncio.gather(reaches(a, b), reaches(b, a))
        assert max(took) < (1.0 if how == "cut" else 3.0)
        await until(lambda: (a.via, b.via) == (1 - lost, 1 - lost))
        assert a.peer.handshakes == handshakes, "the session goes on"
        if how == "swallow":  # while there is traffic, the link itself notices too
            loop = asyncio.get_running_loop()
            began = loop.time()
            broken = devices[who[0]].links[lost]
            while broken.ready and loop.time() - began < 1.0:
                await reaches(a, b)
        for i in who:
            ways[i][lost].refusing = ways[i][lost].swallowing = False
            devices[i].links[lost].redial("the test has mended the way")
        await until(lambda: all_joined(a, b))
        await reaches(a, b)
        assert (a.via, b.via) == (1 - lost, 1 - lost), "who failed has to wait"


def test_the_loss_of_the_only_relay_is_noticed_within_3_s_under_traffic() -> None:
    @with_devices(1, [[0], [0]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: all_joined(a, b))
        await reaches(a, b)
        await reaches(b, a)
        ways[0][0].swallowing = True
        loop = asyncio.get_running_loop()
        began = loop.time()
        while a.link.ready:
            a.send(b)
            await asyncio.sleep(0.02)
        assert 1.5 < loop.time() - began <= 3.0
        await until(lambda: a.happened("relay_lost"))
        assert a.happened("relay_lost")[0]["reason"].startswith("the relay does not answer any more")


def test_lists_that_overlap_meet_at_the_common_relay() -> None:
    @with_devices(3, [[0, 1], [1, 2]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: all_joined(a, b))
        await reaches(a, b)
        await reaches(b, a)
        assert (a.via, b.via) == (1, 0)


def test_one_side_knows_one_relay_only() -> None:
    @with_devices(2, [[0, 1], [1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: all_joined(a, b))
        assert isinstance(b.link, RelayLink), "its frames go no other way than before"
        await reaches(a, b)
        await reaches(b, a)
        assert a.via == 1
        assert b.peer.via is None


def test_all_relays_are_lost_and_come_back() -> None:
    @with_devices(2, [[0, 1], [0, 1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: all_joined(a, b))
        await reaches(a, b)
        handshakes = a.peer.handshakes
        for way in ways[0]:
            way.refusing = True
            way.cut()
        await until(lambda: not a.link.ready)
        await asyncio.sleep(0.3)
        for way in ways[0]:
            way.refusing = False
        a.link.check("the test has mended the way")
        await reaches(a, b)
        assert a.peer.handshakes == handshakes


def test_two_entries_that_are_one_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    """One stands by, without a noise, and takes over when the other is lost."""
    monkeypatch.setattr(link_module, "TWIN_KNOWN_AFTER", 0.1)
    monkeypatch.setattr(links_module, "TWIN_WITHIN", 1.0)

    @with_devices(1, [[0, 0], [0]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b = devices
        await until(lambda: sorted(link.state for link in a.links) == ["connected", "standby"])
        await reaches(a, b)
        await asyncio.sleep(1.5)
        assert sorted(link.state for link in a.links) == ["connected", "standby"]
        assert len(a.happened("relay_twin")) == 1
        assert not a.happened("relay_lost")
        used = next(i for i, link in enumerate(a.links) if link.ready)
        assert a.links[used].url in a.links[1 - used].reason
        ways[0][used].refusing = True
        ways[0][used].cut()
        await until(lambda: a.links[1 - used].ready)
        await reaches(a, b)


def test_a_duplicate_elsewhere_is_no_twin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "TWIN_KNOWN_AFTER", 0.1)
    monkeypatch.setattr(links_module, "TWIN_WITHIN", 0.2)

    @with_devices(2, [[0, 1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        (a,) = devices
        await until(lambda: all_joined(a))
        await asyncio.sleep(0.4)
        copy = Device("a", "10.10.10.1", *urls(ways[0][:1]))
        try:
            await until(lambda: a.happened("relay_lost"))
            assert a.happened("relay_lost")[0]["reason"].startswith("duplicate_device: ")
            assert a.links[0].state == "waiting"
            assert a.links[1].ready
        finally:
            await copy.stop()


@pytest.mark.parametrize("common", [0, 1])
def test_two_devices_with_one_ip_where_they_share_one_relay_of_two(common: int) -> None:
    @with_devices(2, [[0, 1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        (a,) = devices
        await until(lambda: all_joined(a))
        other = Device("a", "10.10.10.1", *urls([ways[0][common]]), seed="another device")
        try:
            await until(lambda: other.happened("address_refused") and a.happened("address_contested"))
            assert len(other.links[0].refused) == 2, "its IP and its name"
            assert len(a.links[common].contested) == 2
            assert not a.links[1 - common].contested
        finally:
            await other.stop()


@pytest.mark.parametrize("takes", [1, 2000], ids=["nothing", "a little now and then"])
def test_a_relay_that_takes_little_holds_up_nothing_but_its_own(takes: int) -> None:
    @with_devices(2, [[0, 1], [0], [1]])
    async def scenario(relays: list[TestRelay], ways: list[list[Way]], devices: list[Device]) -> None:
        a, b, c = devices
        await until(lambda: all_joined(a, b, c))
        await reaches(a, b)
        await reaches(a, c)
        ways[0][0].takes = takes
        record = memoryview(unfinished(tcp_packet("10.10.10.1", "10.10.10.2", bytes(60_000)), 1000))

        def flooded() -> bool:
            a.kernel.write(record)
            return a.links[0].full

        times = []
        try:
            await until(flooded)
            for _ in range(20):
                flooded()
                times.append(await reaches(a, c))
        finally:
            ways[0][0].takes = 0  # or what it has already would keep it busy
        assert max(times) < 0.4
        assert a.happened("relay_lost") == []


def test_a_full_link_stays_one_when_others_come_and_go(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RelayLink, "full", True)

    async def main() -> None:
        identity = Identity(NetworkKeys(SECRET), DeviceKeys(bytes(32), bytes(32)), bytes(16), (bytes(16),))
        link = RelayLink("ws://name/relay", "name", identity, "p", lambda *a, **f: None)
        links = Links([link])
        told: list[tuple[str, object]] = []

        def tell(what: str, via: object = None) -> None:
            told.append((what, via))

        names = ("joined", "lost", "pause", "resume")
        others = dict.fromkeys(("on_frame", "gone", "refused", "hold", "release", "draining"), Mock())
        links.listener = cast(
            Engine, SimpleNamespace(**others, **{name: partial(tell, name) for name in names})
        )
        link.listener.joined()
        (entry,) = links._entries
        addresses = [located(f"192.0.2.{number}", 80) for number in (1, 2)]
        told.clear()
        links._answered(entry, addresses, link)
        assert len(links.links) == 2
        assert told == [("joined", link), ("pause", link), ("resume", None)]
        link.listener.resume()
        assert told.pop() == ("resume", link)
        told.clear()
        links._remove(entry, links.links[1])
        assert told == [("lost", link), ("joined", None), ("pause", None)]

    asyncio.run(main())
