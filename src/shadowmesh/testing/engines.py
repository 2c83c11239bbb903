"""Daemon engines in memory: real mesh engines and TUN devices of socket pairs, a manual clock, a blind relay.

    net = Net("a", "b")
    a, b = net.stations
    a.give(plain(udp_packet(a.ip, b.ip, b"hello")))
    net.run()
    assert b.taken() == [...]

Frames travel when the sender's callback has returned, as they do on a network.
"""

from __future__ import annotations

import asyncio
import select
import socket
from collections import deque
from collections.abc import Callable, Collection
from ipaddress import ip_address
from random import Random
from typing import Any, cast

from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.engine import Engine
from shadowmesh.mesh.context import Context
from shadowmesh.mesh.peer import Peer
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.memory import SECRET, local_settings, packet
from shadowmesh.tun.base import MAX_RECORD
from shadowmesh.tun.memory import MemoryTun
from shadowmesh.wire import frame, message
from shadowmesh.wire.offload import PLAIN

_SEND_BUFFER = 212_992  # Linux' net.core.wmem_max, which counts double: six records of 64 KiB


class ManualLoop:
    """As much of an asyncio event loop as an engine needs; `turn` is one iteration, and time stands still."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.readers: dict[int, Callable[[], object]] = {}
        self.errors: list[BaseException] = []
        self._timers: list[asyncio.TimerHandle] = []

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        self.errors.append(context["exception"])

    def add_reader(self, fd: int, callback: Callable[[], object]) -> None:
        self.readers[fd] = callback

    def remove_reader(self, fd: int) -> bool:
        return self.readers.pop(fd, None) is not None

    def call_soon(self, callback: Callable[[], object]) -> asyncio.TimerHandle:
        return self.call_at(self.now, callback)

    def call_at(self, when: float, callback: Callable[[], object]) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, (), cast(asyncio.AbstractEventLoop, self))
        self._timers.append(handle)
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers.remove(handle)

    @property
    def next_timer(self) -> float | None:
        """When the next timer is due."""
        return min((handle.when() for handle in self._timers), default=None)

    def turn(self) -> bool:
        """Call the timers that are due and the readers that have something to read; whether there was one."""
        poll = select.poll()
        for fd in self.readers:
            poll.register(fd, select.POLLIN)
        calls = [self.readers[fd] for fd, _ in poll.poll(0)]
        due = [handle for handle in self._timers if handle.when() <= self.now]
        for handle in due:
            self._timers.remove(handle)
            handle._run()
        for call in calls:
            call()
        return bool(calls or due)


class StationLink:
    """The link of a station: counts and passes on what is sent. takes: frames before it pauses the engine."""

    def __init__(self, station: Station) -> None:
        self.ready = True
        self.since = station.net.loop.now
        self.max_frame = frame.MAX_FRAME
        self.takes = -1
        self.frames: list[bytes] = []
        self._station = station

    def send_frame(self, data: memoryview | bytes, via: object = None) -> None:
        """See daemon.listener.Link."""
        assert self.ready
        assert frame.MIN_FRAME <= len(data) <= self.max_frame
        self.frames.append(bytes(data))
        self._station.net.travelling.append((self._station, bytes(data)))
        self.takes -= 1
        if self.takes == 0:
            self._station.engine.pause()


class Station:
    """One device: engine, link and the kernel's side of its TUN device."""

    def __init__(self, net: Net, name: str, interface: str, *, offload: bool) -> None:
        self.net = net
        self.name = name
        self.ip = interface.partition("/")[0]
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (ours, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.tun = MemoryTun(ours, name, 1400, offload=offload)
        self.kernel = MemoryTun(theirs, "kernel", 1400, offload=True)
        self.events: list[tuple[str, dict[str, Any]]] = []
        self.link = StationLink(self)
        self.engine = Engine(self.tun, self.link, cast(asyncio.AbstractEventLoop, net.loop), self._on_event)
        keys = NetworkKeys(SECRET)
        random = Random(name)
        self.context = Context(
            network=keys,
            device=DeviceKeys(random.randbytes(32), keys.network_id),
            local=local_settings(name, interface),
            output=self.engine,
            trust=Trust(),
            random=random.randbytes,
            uniform=random.uniform,
        )
        self.mesh = self.engine.start(self.context)

    def _on_event(self, name: str, /, **facts: object) -> None:
        self.events.append((name, facts))

    @property
    def drops(self) -> dict[str, int]:
        """What was dropped, by reason."""
        return dict(self.engine.drops)

    def peer(self, other: Station) -> Peer:
        """What this station knows of another."""
        return self.mesh.peers[other.context.device.static_public]

    def give(self, *records: bytes | bytearray) -> None:
        """The kernel has these records for the device."""
        for record in records:
            assert self.kernel.write(memoryview(record)), "the socket pair is full"

    def taken(self) -> list[bytes]:
        """The records that the device has given the kernel since the last time."""
        buffer = memoryview(bytearray(MAX_RECORD))
        records = []
        while select.select([self.kernel.fileno()], [], [], 0)[0] and (size := self.kernel.read_into(buffer)):
            records.append(bytes(buffer[:size]))
        return records

    def sent(self) -> list[bytes]:
        """The sealed messages among the frames sent since the last time."""
        frames, self.link.frames = self.link.frames, []
        return [each for each in frames if each[frame.HEADER_SIZE :][:4] == message.SEALED]

    def connect(self, ready: bool = True) -> None:
        """The link is there, or not any more."""
        self.link.ready = ready
        self.link.since = self.net.loop.now
        if ready:
            self.engine.joined()


class Net:
    """Stations 10.10.10.1, 10.10.10.2, … on one relay that knows addresses only.

    plain: those whose devices have no offload. deaf: those to which nothing gets through.
    """

    def __init__(self, *names: str, plain: Collection[str] = ()) -> None:
        self.loop = ManualLoop()
        self.travelling: deque[tuple[Station, bytes]] = deque()
        self.deaf: set[Station] = set()
        self.stations = [
            Station(self, name, f"10.10.10.{number}/24", offload=name not in plain)
            for number, name in enumerate(names, 1)
        ]
        self.holders = {
            address: station for station in self.stations for address in station.context.addresses
        }

    def leave(self, station: Station) -> None:
        """The relay has this station no more."""
        for address in station.context.addresses:
            del self.holders[address]

    def close(self) -> None:
        """Close the socket pairs. No callback may have raised anything."""
        for station in self.stations:
            station.tun.close()
            station.kernel.close()
        assert not self.loop.errors

    def meet(self) -> None:
        """Bring about sessions between all stations."""
        for one in self.stations:
            for other in self.stations:
                if one is not other:
                    one.give(PLAIN + packet(ip_address(one.ip).packed, ip_address(other.ip).packed))
                    self.run(0.1)
        for station in self.stations:
            station.taken()
            station.sent()
            station.engine.packets_in = station.engine.packets_out = 0
            assert len(station.mesh.peers) == len(self.stations) - 1
            assert not station.drops, station.drops

    def hand_over(self) -> bool:
        """Let all frames arrive that travel; whether there was one."""
        moved = bool(self.travelling)
        while self.travelling:
            sender, data = self.travelling.popleft()
            holder = self.holders.get(data[1:17])
            if holder in self.deaf:
                continue
            if holder is not None and holder.link.ready:
                holder.engine.on_frame(memoryview(data))
            elif sender.link.ready:
                sender.engine.gone(data[1:17])
        return moved

    def run(self, seconds: float = 0.0) -> None:
        """Let happen all that happens within this time, then let the clock show its end."""
        end = self.loop.now + seconds
        while True:
            while self.loop.turn() | self.hand_over():
                pass
            due = self.loop.next_timer
            if due is None or due > end:
                break
            self.loop.now = max(self.loop.now, due)
        self.loop.now = end
