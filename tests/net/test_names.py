"""A name with several addresses is several relays: real relays on addresses of loopback, a made-up DNS."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon import link as link_module
from shadowmesh.daemon import links as links_module
from shadowmesh.daemon import names
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.daemon.links import Links, as_one
from shadowmesh.daemon.names import located, several
from shadowmesh.net.client import ConnectFailed, connect
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.devices import Device, reaches
from shadowmesh.testing.memory import SECRET
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.relay_server import TestRelay, running_relay
from shadowmesh.testing.websocket import Recorder, serving, until

NAME = "relay.example"
ONE, TWO, THREE, FOUR, FIVE = (f"127.0.0.{number}" for number in range(2, 7))
_getaddrinfo = socket.getaddrinfo


class Names:
    """What a made-up DNS says: name → addresses, in an order that changes as with round-robin."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer: dict[str, list[str]] = {}
        self.asked = 0
        monkeypatch.setattr(socket, "getaddrinfo", self.look_up)
        monkeypatch.setattr(links_module, "LOOK_EVERY", (0.05, 0.05))
        monkeypatch.setattr(links_module, "LOOK_AGAIN", 0.0)
        monkeypatch.setattr(names, "GONE_AFTER", 0.3)
        monkeypatch.setattr(links_module, "GONE_AFTER", 0.3)
        monkeypatch.setattr(links_module, "TWIN_WITHIN", 1.0)
        monkeypatch.setattr(link_module, "TWIN_KNOWN_AFTER", 0.1)

    def look_up(self, host: Any, port: Any, *args: Any, **options: Any) -> Any:
        if host not in self.answer:
            return _getaddrinfo(host, port, *args, **options)
        self.asked += 1
        found = self.answer[host]
        if not found:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        turn = self.asked % len(found)
        return [located(address, port) for address in found[turn:] + found[:turn]]


@pytest.fixture
def dns(monkeypatch: pytest.MonkeyPatch) -> Names:
    return Names(monkeypatch)


class World:
    """Relays, each at an address of its own and all at one port, and devices that know a name."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.port = free_ports(1)[0]
        self.relays: dict[str, TestRelay] = {}
        self._stack = stack

    async def relay(self, address: str, **settings: Any) -> TestRelay:
        relay = running_relay(address=address, port=self.port, **settings)
        self.relays[address] = await self._stack.enter_async_context(relay)
        return self.relays[address]

    def device(self, name: str, number: int, *hosts: str) -> Device:
        urls = [f"ws://{host}:{self.port}/relay" for host in hosts or (NAME,)]
        device = Device(name, f"10.10.10.{number}", *urls)
        self._stack.push_async_callback(device.stop)
        return device


def with_world(scenario: Callable[[World], Awaitable[None]]) -> None:
    async def main() -> None:
        async with asyncio.timeout(30), AsyncExitStack() as stack:
            await scenario(World(stack))

    asyncio.run(main())


def connected(device: Device) -> list[str]:
    return sorted(link.address for link in device.links if link.ready)


def test_two_devices_are_joined_to_each_address_and_meet(dns: Names) -> None:
    dns.answer[NAME] = [THREE, ONE, TWO]

    @with_world
    async def scenario(world: World) -> None:
        for address in (ONE, TWO, THREE):
            await world.relay(address, server_name=address)
        a, b = world.device("a", 1), world.device("b", 2)
        await until(lambda: connected(a) == connected(b) == [ONE, TWO, THREE])
        await reaches(a, b)
        await reaches(b, a)
        assert {link.relay.server_name for link in a.links if link.relay} == {ONE, TWO, THREE}
        assert all(link.title == f"{link.url} ({link.address})" for link in a.links)
        assert {facts["ip"] for facts in a.happened("relay_joined")} == {ONE, TWO, THREE}
        assert len(a.happened("relay_joined")) == 3, "no connection for nothing"


def test_one_address_is_one_link_and_nothing_is_in_between(dns: Names) -> None:
    dns.answer[NAME] = [ONE]

    @with_world
    async def scenario(world: World) -> None:
        await world.relay(ONE)
        a, b = world.device("a", 1), world.device("b", 2)
        await until(lambda: a.link.ready and b.link.ready)
        await reaches(a, b)
        (link,) = a.links
        assert (link.pinned, link.title, link.address) == ("", link.url, ONE)
        assert a.link.send_frame == link.send_frame
        assert link.listener.on_frame == a.engine.on_frame
        assert a.peer.via is None


def test_an_address_comes_and_goes_while_packets_go_on(dns: Names) -> None:
    dns.answer[NAME] = [ONE]

    @with_world
    async def scenario(world: World) -> None:
        for address in (ONE, TWO):
            await world.relay(address, server_name=address)
        a, b = world.device("a", 1), world.device("b", 2)
        await until(lambda: a.link.ready and b.link.ready)
        await reaches(a, b)
        handshakes = a.peer.handshakes
        dns.answer[NAME] = [ONE, TWO]
        await until(lambda: connected(a) == connected(b) == [ONE, TWO])
        await reaches(a, b)
        await reaches(b, a)
        assert a.peer.via in a.links
        assert len(a.happened("relay_joined")) == 2, "the first connection goes on"
        dns.answer[NAME] = [TWO]
        await until(lambda: connected(a) == connected(b) == [TWO])
        await until(lambda: len(a.links) == len(b.links) == 1)
        assert await reaches(a, b) < 0.5
        assert await reaches(b, a) < 0.5
        assert a.link.send_frame == a.links[0].send_frame
        assert a.peer.via is None
        assert a.peer.handshakes == handshakes, "the session goes on"
        assert not a.happened("relay_lost")


def test_a_name_that_moves_is_followed_before_the_old_relay_is_left(dns: Names) -> None:
    dns.answer[NAME] = [ONE]

    @with_world
    async def scenario(world: World) -> None:
        await world.relay(ONE, server_name=ONE)
        a, b = world.device("a", 1), world.device("b", 2)
        await until(lambda: a.link.ready and b.link.ready)
        await reaches(a, b)
        dns.answer[NAME] = [TWO]
        await until(lambda: len(a.links) == 2)
        await asyncio.sleep(0.2)
        assert connected(a) == [ONE], "nothing answers at the new address yet"
        assert await reaches(a, b) < 0.5
        await world.relay(TWO, server_name=TWO)
        await until(lambda: connected(a) == connected(b) == [TWO])
        assert await reaches(a, b) < 0.5
        assert len(a.links) == 1


def test_one_bad_answer_costs_no_connection(dns: Names) -> None:
    dns.answer[NAME] = [ONE, TWO]

    @with_world
    async def scenario(world: World) -> None:
        for address in (ONE, TWO):
            await world.relay(address)
        a = world.device("a", 1)
        await until(lambda: connected(a) == [ONE, TWO])
        for answer in ([ONE], [], [ONE, TWO]):
            dns.answer[NAME] = answer
            asked = dns.asked
            await until(lambda: dns.asked > asked + 1)  # noqa: B023
            assert connected(a) == [ONE, TWO]
        await asyncio.sleep(0.4)
        assert connected(a) == [ONE, TWO]
        assert len(a.happened("relay_joined")) == 2


def test_a_relay_that_is_lost_is_looked_up_anew(dns: Names) -> None:
    dns.answer[NAME] = [ONE, TWO]

    @with_world
    async def scenario(world: World) -> None:
        async with running_relay(address=TWO, port=world.port):
            await world.relay(ONE)
            a = world.device("a", 1)
            await until(lambda: connected(a) == [ONE, TWO])
            dns.answer[NAME] = [ONE, THREE]
            await world.relay(THREE)
        await until(lambda: connected(a) == [ONE, THREE])


def test_two_addresses_of_one_relay(dns: Names) -> None:
    dns.answer[NAME] = [ONE, TWO, THREE]

    @with_world
    async def scenario(world: World) -> None:
        relay = await world.relay("0.0.0.0", server_name="one")
        a, b = world.device("a", 1), world.device("b", 2)

        def settled(device: Device) -> bool:
            return sorted(link.state for link in device.links) == ["connected", "standby", "standby"]

        await until(lambda: settled(a) and settled(b))
        await reaches(a, b)
        await asyncio.sleep(1.5)
        assert settled(a)
        joins = len(a.happened("relay_joined"))
        assert joins <= 3
        assert not a.happened("relay_lost")
        (used,) = (link for link in a.links if link.ready)
        assert all(link.instead is used for link in a.links if link is not used)
        used.redial("the test cuts it")
        await until(lambda: a.link.ready and settled(a))
        assert await reaches(a, b) < 1.0
        assert relay.counters.frames_in


def test_the_stand_bys_take_over_one_after_the_other(dns: Names) -> None:
    """The first that is asked finds nobody, the next one does."""

    async def main() -> None:
        links = Links([link_to(NAME) for _ in range(3)])
        used, first, second = links.links
        first.last_rtt, second.last_rtt = 0.01, 0.02
        first.stand_by(used)
        second.stand_by(used)
        links._over(used)
        assert (first.instead, second.instead) == (None, first)
        links._over(first)
        assert second.instead is None

    asyncio.run(main())


class Deaf:
    """An engine that is told everything in vain."""

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *args, **facts: None


def link_to(host: str) -> RelayLink:
    identity = Identity(NetworkKeys(SECRET), DeviceKeys(bytes(32), bytes(32)), bytes(16), (bytes(16),))
    return RelayLink(f"ws://{host}/relay", host, identity, "p", lambda *a, **f: None)


@pytest.mark.parametrize(
    ("rtt", "other", "takes_over"),
    [
        (0.010, 0.030, True),
        (0.010, 0.012, False),  # not by 5 ms
        (0.090, 0.100, False),  # not by a fifth
        (0.080, 0.100, True),
        (0.030, 0.010, False),
        (None, 0.100, False),
        (0.010, None, False),
    ],
)
def test_the_nearer_of_two_ways_to_one_relay(
    rtt: float | None, other: float | None, takes_over: bool
) -> None:
    async def main() -> None:
        class Near(RelayLink):
            rtt = other

        link = link_to("one.example")
        twin = link_to("two.example")
        twin.__class__ = Near
        links = Links([link, twin])
        links.listener = Deaf()
        links.joined(twin)
        link.stand_by(twin)
        links._compare(link, twin, rtt)
        assert (link.instead is None) is takes_over

    asyncio.run(main())


def test_not_compared_with_one_that_was_lost_meanwhile() -> None:
    async def main() -> None:
        links = Links([link_to("one.example"), link_to("two.example")])
        link, twin = links.links
        link.stand_by(twin)
        links._compare(link, twin, 0.001)
        assert link.instead is twin

    asyncio.run(main())


def test_four_links_at_most_and_the_same_ones_on_each_device(dns: Names) -> None:
    dns.answer[NAME] = [FIVE, FOUR, THREE, TWO, ONE]
    dns.answer["other.example"] = [FIVE]

    @with_world
    async def scenario(world: World) -> None:
        for address in (ONE, TWO, THREE, FOUR, FIVE):
            await world.relay(address, server_name=address)
        a = world.device("a", 1)
        await until(lambda: connected(a) == [ONE, TWO, THREE, FOUR])
        assert [facts["left_out"] for facts in a.happened("relay_left_out")] == [FIVE]
        b = world.device("b", 2, "other.example", NAME)
        await until(lambda: connected(b) == [ONE, TWO, THREE, FIVE])
        assert [facts["left_out"] for facts in b.happened("relay_left_out")] == [f"{FOUR}, {FIVE}"]


def test_through_a_proxy_the_name_is_not_ours_to_look_up(dns: Names) -> None:
    dns.answer[NAME] = [ONE, TWO]

    @with_world
    async def scenario(world: World) -> None:
        class Proxy:
            scheme, host, port, source = "http", "127.0.0.1", world.port, "relay.proxy"

            def reveal(self) -> tuple[str, str]:
                return "", ""

        link = link_to(NAME)
        link._proxy = Proxy
        links = Links([link])
        links.listener = Deaf()
        task = asyncio.create_task(links.run())
        await until(lambda: link.reason)
        await asyncio.sleep(0.2)
        assert links.links == (link,)
        assert (link.address, dns.asked) == ("", 0)
        task.cancel()
        await asyncio.wait({task})


def test_the_certificate_must_have_the_name(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, [NAME])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths.cert, paths.key)

    async def main(monkeypatch: pytest.MonkeyPatch) -> None:
        async with serving(lambda request: Recorder(), context) as server:

            def here(found: Any) -> list[Any]:
                return [located("127.0.0.1", server.port)]

            ws = Recorder()
            for name in (NAME, "other.example"):
                answer = [located(ONE, 1), located(TWO, 1)]
                monkeypatch.setattr(socket, "getaddrinfo", lambda *a, answer=answer, **o: answer)
                url = f"wss://{name}:{server.port}/relay"
                if name == NAME:
                    await connect(url, ws, max_frame=131072, ca_file=str(paths.ca), choose=here)
                    ws.close()
                    await until(lambda: ws.closed)
                else:
                    with pytest.raises(
                        ConnectFailed, match=r"certificate of other\.example.*\(127\.0\.0\.1\)"
                    ):
                        await connect(url, Recorder(), max_frame=131072, ca_file=str(paths.ca), choose=here)

    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(main(monkeypatch))


def test_which_addresses_count(monkeypatch: pytest.MonkeyPatch) -> None:
    four, six = ["192.0.2.20", "192.0.2.3"], ["2001:db8::20", "2001:db8::3"]

    def found(*addresses: str) -> list[Any]:
        return [located(address, 9545) for address in addresses]

    monkeypatch.setattr(names, "_has_way", lambda address: True)
    assert several(found(*six, *four)) == ("192.0.2.3", "192.0.2.20")
    assert several(found(*four, *four[:1])) == ("192.0.2.3", "192.0.2.20")
    assert several(found(*six)) == ("2001:db8::3", "2001:db8::20")
    assert several(found(four[0], *six)) == ()
    assert several(found(four[0], six[0])) == several(found(four[0])) == several([]) == ()
    monkeypatch.setattr(names, "_has_way", lambda address: False)
    assert several(found(*six, *four)) == ("2001:db8::3", "2001:db8::20")
    assert several(found(*four)) == ("192.0.2.3", "192.0.2.20")


def test_an_address_written_out_needs_no_look() -> None:
    async def main() -> None:
        link = link_to("127.0.0.1")
        assert as_one([link]) is link
        assert isinstance(as_one([link_to(NAME)]), Links)

    asyncio.run(main())
