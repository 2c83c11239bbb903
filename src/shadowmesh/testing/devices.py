"""Devices with real connections to relays and TUN devices in memory."""

from __future__ import annotations

import asyncio
import random
import secrets
import select
import socket
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.daemon.links import as_one
from shadowmesh.mesh.context import Context
from shadowmesh.mesh.peer import Peer
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.memory import SECRET, local_settings, packet
from shadowmesh.tun.base import MAX_RECORD
from shadowmesh.tun.memory import MemoryTun
from shadowmesh.wire.offload import PLAIN


class Device:
    """A device with a TUN device in memory, whose kernel side the test reads and writes."""

    def __init__(self, name: str, ip: str, *urls: str, seed: str = "") -> None:
        self.ip = ip_address(ip).packed
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.tun = MemoryTun(ours, name, 1400, offload=True)
        self.kernel = MemoryTun(theirs, "kernel", 1400, offload=True)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.keys = NetworkKeys(SECRET)
        device = DeviceKeys(random.Random(seed or name).randbytes(32), self.keys.network_id)
        context = Context(
            network=self.keys,
            device=device,
            local=local_settings(name, f"{ip}/24"),
            output=None,  # type: ignore[arg-type]
            trust=Trust(),
            random=secrets.token_bytes,
            uniform=random.uniform,
        )
        identity = Identity(self.keys, device, secrets.token_bytes(16), tuple(context.addresses))
        self.link = as_one(
            [RelayLink(url, urlsplit(url).hostname or "", identity, name, self._event) for url in urls]
        )
        self.engine = context.output = Engine(self.tun, self.link, asyncio.get_running_loop(), self._event)
        self.mesh = self.engine.start(context)
        self.link.listener = self.engine
        self.task = asyncio.create_task(self.link.run())
        self._buffer = memoryview(bytearray(MAX_RECORD))

    def _event(self, name: str, /, **facts: object) -> None:
        self.events.append((name, facts))

    def happened(self, name: str) -> list[dict[str, Any]]:
        return [facts for event, facts in self.events if event == name]

    @property
    def links(self) -> tuple[RelayLink, ...]:
        """The connections to relays."""
        return self.link.links

    @property
    def peer(self) -> Peer:
        (peer,) = self.mesh.peers.values()
        return peer

    @property
    def via(self) -> int:
        """The number of the link in use."""
        return self.links.index(self.peer.via)

    def send(self, other: Device) -> None:
        assert self.kernel.write(memoryview(PLAIN + packet(self.ip, other.ip)))

    def received(self) -> int:
        """Packets from the other since the last call."""
        number = 0
        while select.select([self.kernel.fileno()], [], [], 0)[0] and self.kernel.read_into(self._buffer):
            number += 1
        return number

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        self.engine.stop()
        self.tun.close()
        self.kernel.close()


async def reaches(one: Device, other: Device, seconds: float = 5.0) -> float:
    """Send until something arrives; returns the seconds that it took."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    other.received()
    while not other.received():
        assert loop.time() - began < seconds, "nothing arrives"
        one.send(other)
        await asyncio.sleep(0.02)
    return loop.time() - began
