"""Several relays, with real relays, real connections and engines: one of them is lost, or is there twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, suppress

import pytest

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon import link as link_module
from shadowmesh.daemon import links as links_module
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.daemon.links import Links
from shadowmesh.testing.devices import Device, reaches
from shadowmesh.testing.memory import SECRET
from shadowmesh.testing.relay_server import TestRelay, running_relay
from shadowmesh.testing.websocket import until


class Way:
    """TCP from a device to a relay that can be cut, so that both ends know, or swallow everything."""

    def __init__(self, relay: TestRelay) -> None:
        self.relay = relay
        self.port = 0
        self.swallowing = self.refusing = False
        self._pipes: list[asyncio.StreamWriter] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Way]:
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        async with server:
            yield self
            self.cut()

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
        await asyncio.gather(self._pump(reader, to_relay[1]), self._pump(to_relay[0], writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
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


def test_a_full_socket_holds_up_the_others_for_a_moment_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(links_module, "NO_PROGRESS", 0.05)

    class Counting(Engine):
        def __init__(self) -> None:
            self.paused = 0

        def pause(self) -> None:
            self.paused += 1

        def resume(self) -> None:
            self.paused = 0

    async def main() -> None:
        identity = Identity(NetworkKeys(SECRET), DeviceKeys(bytes(32), bytes(32)), bytes(16), (bytes(16),))
        two = [RelayLink(f"ws://h{i}/relay", "h", identity, "p", lambda *a, **f: None) for i in range(2)]
        links, engine = Links(two), Counting()
        links.listener = engine
        links.fills(two[0])
        assert engine.paused
        links.flows(two[1])
        assert engine.paused
        await until(lambda: not engine.paused)
        links.fills(two[0])
        links.flows(two[0])
        assert not engine.paused

    asyncio.run(main())
