"""One behaviour for every TUN device: in memory and of the kernel, with offload and without."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Iterator
from typing import Any, Protocol

import pytest

from shadowmesh.errors import TunError
from shadowmesh.testing.namespace import own_namespace
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.tun.base import MAX_RECORD, TunDevice
from shadowmesh.tun.memory import MemoryTun, memory_pair
from shadowmesh.wire import offload

# No host has them, so the kernel answers nothing.
PAIRS = [("198.51.100.1", "203.0.113.1"), ("2001:db8:1::1", "2001:db8:2::1")]
BULK = bytes(range(250)) * 200
_PACKET_VNET_HDR, _PACKET_IGNORE_OUTGOING, _SOL_PACKET, _ETH_P_ALL = 15, 23, 263, 3


class Kernel(Protocol):
    """The other side of a device: gives it a record, and sees what the device wrote."""

    def give(self, record: bytes) -> None: ...

    def taken(self) -> list[bytes]: ...


class MemoryKernel:
    def __init__(self, end: MemoryTun) -> None:
        self._end = end

    def give(self, record: bytes) -> None:
        assert self._end.write(memoryview(record))

    def taken(self) -> list[bytes]:
        return read_all(self._end)


class LinuxKernel:
    """A packet socket on the interface: Linux itself sends the records, and shows what arrives."""

    def __init__(self, name: str) -> None:
        self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        self._socket.setsockopt(_SOL_PACKET, _PACKET_IGNORE_OUTGOING, 1)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        self._socket.setblocking(False)
        self._socket.bind((name, _ETH_P_ALL))
        self._name = name

    def give(self, record: bytes) -> None:
        self._socket.sendto(record, (self._name, 0x0800 if record[10] >> 4 == 4 else 0x86DD))

    def taken(self) -> list[bytes]:
        records = []
        with contextlib.suppress(BlockingIOError):
            while True:
                records.append(self._socket.recv(MAX_RECORD))
        return records

    def close(self) -> None:
        self._socket.close()


def read_all(device: TunDevice) -> list[bytes]:
    buffer = memoryview(bytearray(MAX_RECORD))
    records = []
    while size := device.read_into(buffer):
        records.append(bytes(buffer[:size]))
    return records


@pytest.fixture(
    params=[
        "memory",
        "memory without offload",
        pytest.param("linux", marks=pytest.mark.netns),
        pytest.param("linux without offload", marks=pytest.mark.netns),
    ]
)
def pair(request: Any) -> Iterator[tuple[TunDevice, Kernel]]:
    with_offload = "without" not in request.param
    if request.param.startswith("memory"):
        ours, theirs = memory_pair(65535, offload=with_offload)
        with contextlib.closing(ours), contextlib.closing(theirs):
            yield ours, MemoryKernel(theirs)
        return
    from shadowmesh.tun.linux import open_tun

    with (
        own_namespace(),
        contextlib.closing(open_tun("tun0", [], 65535, offload=with_offload)) as device,
        contextlib.closing(LinuxKernel("tun0")) as kernel,
    ):
        yield device, kernel


def test_attributes(pair: tuple[TunDevice, Kernel]) -> None:
    device, _ = pair
    assert device.name
    assert device.mtu == 65535
    assert device.warnings == ()
    assert set(device.offload) <= {"csum", "tso4", "tso6", "ecn", "uso"}


def test_nothing_waits(pair: tuple[TunDevice, Kernel]) -> None:
    device, kernel = pair
    assert device.read_into(memoryview(bytearray(MAX_RECORD))) == 0
    assert kernel.taken() == []


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_finished_packets_both_ways(pair: tuple[TunDevice, Kernel], source: str, destination: str) -> None:
    device, kernel = pair
    packets = [udp_packet(source, destination, bytes([n]) * n) for n in range(1, 30)]
    for packet in packets:
        kernel.give(offload.PLAIN + packet)
    assert read_all(device) == [offload.PLAIN + packet for packet in packets]
    for packet in packets:
        assert device.write_packet(memoryview(packet))
        assert device.write(memoryview(offload.PLAIN + packet))
    assert [record[10:] for record in kernel.taken()] == [p for packet in packets for p in (packet, packet)]


@pytest.mark.parametrize(("source", "destination"), PAIRS)
def test_unfinished_packets_are_whole_or_finished(
    pair: tuple[TunDevice, Kernel], source: str, destination: str
) -> None:
    device, kernel = pair
    for packet, gso_size in [
        (tcp_packet(source, destination, BULK), 1400),
        (udp_packet(source, destination, BULK), 1200),
        (tcp_packet(source, destination, b"hello"), 0),
    ]:
        record = bytes(unfinished(packet, gso_size))
        finished = offload.segment(memoryview(record))
        whole = [record] if device.offload else [offload.PLAIN + segment for segment in finished]

        kernel.give(record)
        given = [bytearray(received) for received in read_all(device)]
        for received in given:
            offload.sanitize(memoryview(received))
        assert given == whole

        assert device.write(memoryview(record))
        taken = [bytearray(seen) for seen in kernel.taken()]
        for seen in taken:
            seen[0] &= ~offload.DATA_VALID
            offload.sanitize(memoryview(seen))
        assert taken == whole


def test_the_longest_packet(pair: tuple[TunDevice, Kernel]) -> None:
    device, kernel = pair
    source, destination = PAIRS[1]
    packet = udp_packet(source, destination, bytes(65535 - 8))
    assert len(offload.PLAIN + packet) == MAX_RECORD
    assert device.write_packet(packet)
    assert [record[10:] for record in kernel.taken()] == [packet]


def test_nonsense_is_lost_alone(pair: tuple[TunDevice, Kernel]) -> None:
    device, kernel = pair
    packet = udp_packet(*PAIRS[0], b"fine")
    device.write(memoryview(b"\x01\x01" + bytes(8) + b"\xff" * 60))
    device.write_packet(b"\x00")
    assert device.write_packet(packet)
    assert kernel.taken()[-1][10:] == packet


def test_an_event_loop_can_watch_it(pair: tuple[TunDevice, Kernel]) -> None:
    device, kernel = pair
    assert select.select([device.fileno()], [], [], 0)[0] == []
    kernel.give(offload.PLAIN + udp_packet(*PAIRS[0]))
    assert select.select([device.fileno()], [], [], 5)[0] == [device.fileno()]


def test_close(pair: tuple[TunDevice, Kernel]) -> None:
    device, _ = pair
    device.close()
    device.close()
    assert device.fileno() == -1
    assert not device.write_packet(udp_packet(*PAIRS[0]))
    with pytest.raises(TunError, match="is gone"):
        device.read_into(memoryview(bytearray(MAX_RECORD)))


def test_the_other_side_is_gone() -> None:
    ours, theirs = memory_pair()
    theirs.close()
    assert not ours.write_packet(udp_packet(*PAIRS[0]))
    with pytest.raises(TunError, match="is gone"):
        ours.read_into(memoryview(bytearray(MAX_RECORD)))
    ours.close()
