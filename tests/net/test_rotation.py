"""The network key is replaced while packets flow: devices at any stage of docs/rotation.md meet."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from shadowmesh.config import load_client_config
from shadowmesh.daemon.app import Daemon
from shadowmesh.daemon.link import RelayLink
from shadowmesh.daemon.networks import Network
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.testing import guide
from shadowmesh.testing.packets import udp_packet
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.relay_server import running_relay
from shadowmesh.testing.websocket import drive
from shadowmesh.tun.base import MAX_RECORD
from shadowmesh.tun.memory import memory_pair
from shadowmesh.wire.offload import PLAIN

OLD = "6b8c5c1d5e2d4f7f9a0b1c2d3e4f50617283940a5b6c7d8e9fa0b1c2d3e4f506"
NEW = "9f2c4e6a81b3d5f7092b4d6f8193a5c7e9fb0d1f31537597b9dbfd1e3f507294"
STAGES = [{"key": OLD}, {"key": OLD, "next_key": NEW}, {"key": NEW, "next_key": OLD}, {"key": NEW}]


@pytest.fixture(autouse=True)
def stay_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves behind is to be collected."""
    monkeypatch.setattr("gc.freeze", lambda: None)


class Device:
    """A running daemon, 10.10.10.<number>, and the kernel's side of its device."""

    def __init__(self, path: Path, number: int, relays: list[str], stage: int, **peers: object) -> None:
        self.number = number
        self.path = path / str(number)
        self.path.mkdir()
        self._relays = relays
        self._peers = peers
        self._port = free_ports(1)[0]
        self._sent = itertools.count()
        self.at(stage)
        self.state = StateDirectory(self.path / "state")
        self.tun, self.kernel = memory_pair()
        file = str(self.path / "c.yaml")
        config = load_client_config(file).config
        self.daemon = Daemon(config, self.state, self.state.seed(), self.tun, file)
        self.task = asyncio.create_task(self.daemon.run())

    def at(self, stage: int) -> None:
        """Write the configuration of a stage."""
        text = guide.client_config(ip=f"10.10.10.{self.number}/24", key="KEY", peer_id="x", server="SERVER")
        text = text.replace('key: "KEY"', json.dumps(STAGES[stage])[1:-1].replace(", ", "\n  "))
        text = text.replace('server: "SERVER"', f"servers: {json.dumps(self._relays)}")
        daemon = {
            "listen_address": f"127.0.0.1:{self._port}",
            "state_directory": str(self.path / "state"),
            "token_file": str(self.path / "token"),
        }
        changes = {"daemon": daemon, "peer": {"id": f"device-{self.number}"}, "peers": self._peers}
        (self.path / "c.yaml").write_text(guide.merged(text, changes))
        (self.path / "c.yaml").chmod(0o600)

    async def reload(self, stage: int) -> None:
        """Go to a stage while running."""
        self.at(stage)
        outcome = await self.daemon.reload()
        assert outcome["refused"] == []
        assert outcome["applied"]

    def packet(self, other: Device, data: bytes) -> bytes:
        """A packet to another device, as the kernel gives it."""
        return PLAIN + udp_packet(f"10.10.10.{self.number}", f"10.10.10.{other.number}", data)

    def taken(self) -> set[bytes]:
        """All packets that have come for the kernel."""
        buffer = memoryview(bytearray(MAX_RECORD))
        found = set()
        while size := self.kernel.read_into(buffer):
            found.add(bytes(buffer[:size]))
        return found

    async def reaches(self, other: Device, seconds: float = 6.0) -> None:
        """Send a packet every tenth of a second until one arrives."""
        deadline = asyncio.get_running_loop().time() + seconds
        sent: set[bytes] = set()
        while not sent & other.taken():
            assert asyncio.get_running_loop().time() < deadline, (
                f"{self.number} does not reach {other.number}"
            )
            packet = self.packet(other, f"{self.number} {next(self._sent)}".encode())
            sent.add(packet)
            self.kernel.write(memoryview(packet))
            await asyncio.sleep(0.1)

    async def ready(self) -> None:
        while any(link["state"] != "connected" for link in self.daemon.status()["relays"]):
            await asyncio.sleep(0.01)


@asynccontextmanager
async def devices(
    path: Path, stages: list[int], relays: int = 1, **peers: object
) -> AsyncIterator[list[Device]]:
    async with AsyncExitStack() as stack:
        running = [await stack.enter_async_context(running_relay()) for _ in range(relays)]
        urls = [f"ws://127.0.0.1:{relay.port}" for relay in running]
        started = [Device(path, i + 1, urls, stage, **peers) for i, stage in enumerate(stages)]
        await asyncio.sleep(0)
        try:
            async with asyncio.timeout(10):
                for device in started:
                    await device.ready()
            yield started
        finally:
            for device in started:
                device.task.cancel()
                await asyncio.wait({device.task})
                for each in (device.tun, device.kernel, device.state):
                    each.close()


@pytest.mark.parametrize(
    ("one", "other", "relays"),
    [(0, 1, 1), (0, 2, 1), (1, 1, 1), (1, 2, 1), (1, 3, 1), (2, 2, 1), (2, 3, 1), (1, 2, 2), (1, 3, 2)],
)
def test_every_two_stages_with_a_network_in_common(tmp_path: Path, one: int, other: int, relays: int) -> None:
    async def main() -> None:
        for first in (0, 1):  # who begins
            (tmp_path / str(first)).mkdir()
            async with devices(tmp_path / str(first), [one, other], relays) as pair:
                await pair[first].reaches(pair[1 - first])
                await pair[1 - first].reaches(pair[first])
                drops = {**pair[0].daemon.status()["drops"], **pair[1].daemon.status()["drops"]}
                assert not {"bad_sealed", "foreign_source", "no_route", "bad_frame"} & drops.keys()

    drive(main)


def test_stages_that_share_no_network_do_not_meet(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices(tmp_path, [0, 3]) as (a, b):
            with pytest.raises(AssertionError, match="1 does not reach 2"):
                await a.reaches(b, 1.0)

    drive(main)


def test_three_devices_go_through_all_stages_one_after_the_other(tmp_path: Path) -> None:
    async def everybody(found: list[Device]) -> None:
        for a, b in itertools.permutations(found, 2):
            await a.reaches(b)

    async def main() -> None:
        async with devices(tmp_path, [0, 0, 0]) as found:
            await everybody(found)
            for stage in (1, 2, 3):
                for device in found:
                    await device.reload(stage)
                    await everybody(found)
            for device in found:
                status = device.daemon.status()
                assert "next" not in status
                assert len(status["relays"]) == 1
                (network,) = device.daemon._networks
                assert len(network.trust.known) == 2
                known = json.loads((device.path / "state/known_peers.json").read_text())
                old = known.keys() - {network.keys.network_id.hex()}
                assert [len(known[name]) for name in old] == [2]  # the old one's are kept

    drive(main)


@pytest.mark.parametrize("relays", [1, 2])
def test_the_connections_of_a_network_that_stays_are_left_alone(tmp_path: Path, relays: int) -> None:
    """Through all stages of one device: not one packet that the other sends in it meanwhile is lost."""

    async def main() -> None:
        async with devices(tmp_path, [0, 1], relays) as (a, b):
            await b.reaches(a)
            for stage in (1, 0, 1, 2, 1, 2, 3):
                before = {network.key: network for network in a.daemon._networks}
                since = {key: [link.since for link in network.links] for key, network in before.items()}
                a.taken()
                reloading = asyncio.create_task(a.reload(stage))
                for number in range(20):
                    b.kernel.write(memoryview(b.packet(a, b"%d" % number)))
                    await asyncio.sleep(0.002)
                await reloading
                await a.ready()
                got: set[bytes] = set()
                if stage < 3:  # else both go to a network that they have shared for a moment only
                    async with asyncio.timeout(2):
                        while len(got) < 20:
                            got |= a.taken()
                            await asyncio.sleep(0.01)
                stays = [network for network in a.daemon._networks if network.key in before]
                assert stays
                for network in stays:
                    assert before[network.key] is network
                    assert [link.since for link in network.links] == since[network.key]
                    assert [link.connects for link in network.links] == [1] * relays
            assert len([task for task in asyncio.all_tasks() if task.get_name().startswith("network ")]) == 3

    drive(main)


def fill(monkeypatch: pytest.MonkeyPatch, network: Network) -> Callable[[], None]:
    """The only link of a network takes no more; returns what ends that."""
    (link,) = network.links
    full = {link}
    monkeypatch.setattr(RelayLink, "full", property(lambda each: each in full))
    network.pause()

    def release() -> None:
        full.clear()
        network.resume()

    return release


def test_a_link_that_takes_no_more_holds_up_its_own_network_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def main() -> None:
        async with devices(tmp_path, [1, 0, 3]) as (a, b, c):
            await a.reaches(b)
            await a.reaches(c)
            release = fill(monkeypatch, a.daemon._networks[0])
            b.taken()
            waits = a.packet(b, b"waits")
            a.kernel.write(memoryview(waits))
            await a.reaches(c, 2.0)
            assert b.taken() == set()
            release()
            async with asyncio.timeout(2):
                while b.taken() != {waits}:
                    await asyncio.sleep(0.01)

    drive(main)


@pytest.mark.parametrize(("before", "after"), [(0, 1), (1, 0), (1, 2)])
def test_a_link_that_takes_no_more_does_not_after_a_reload_either(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int, after: int
) -> None:
    async def main() -> None:
        async with devices(tmp_path, [before, 0]) as (a, b):
            await a.reaches(b)
            release = fill(monkeypatch, a.daemon._networks[0])
            b.taken()
            waits = [a.packet(b, b"%d" % number) for number in range(3)]
            a.kernel.write(memoryview(waits[0]))
            await asyncio.sleep(0.2)  # until it is not left in the kernel any more
            for packet, stage in zip(waits[1:], (after, before), strict=True):
                await a.reload(stage)
                a.kernel.write(memoryview(packet))
                await asyncio.sleep(0.2)
            assert b.taken() == set()
            release()
            got: set[bytes] = set()
            async with asyncio.timeout(2):
                while got != set(waits):
                    got |= b.taken()
                    await asyncio.sleep(0.01)
            await a.reaches(b)

    drive(main)


def test_a_reload_without_the_overlap_is_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with devices(tmp_path, [0]) as (a,):
            a.at(3)
            assert (await a.daemon.reload())["refused"] == ["needs a restart: encryption.key"]
            assert OLD not in repr(a.daemon.status())

    drive(main)


def test_pins_hold_in_both_networks(tmp_path: Path) -> None:
    """A pin of the old network keeps the peer out of the new one; with both fingerprints it is in both."""

    async def main() -> None:
        async with devices(tmp_path, [1, 1]) as (a, b):
            status = b.daemon.status()
            both = [status["fingerprint"], status["next"]["fingerprint"]]
            assert both[0] != both[1]
            a._peers = {"trusted": {"10.10.10.2": both[0]}}
            await a.reload(1)
            old, new = a.daemon._networks
            ip = bytes([10, 10, 10, 2])
            statics = [network.device.static_public for network in b.daemon._networks]
            checks = [[each.trust.check(ip, static).value for static in statics] for each in (old, new)]
            assert checks == [["new", "refused"], ["new", "refused"]]
            await a.reaches(b)
            a._peers = {"trusted": {"10.10.10.2": both}}
            await a.reload(2)
            await b.reload(2)
            await a.reaches(b)
            await b.reaches(a)

    drive(main)
