"""The TUN device with a real kernel: set-up and its errors, ICMP errors as programs see them, offload."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import random
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_interface, ip_network
from pathlib import Path

import pytest

from shadowmesh.errors import OffloadError, TunError
from shadowmesh.testing.namespace import own_namespace
from shadowmesh.testing.packets import is_valid, tcp_packet, udp_packet, unfinished
from shadowmesh.tun import linux
from shadowmesh.tun.base import MAX_RECORD, TunDevice
from shadowmesh.tun.linux import open_tun
from shadowmesh.wire import ip, offload, record
from shadowmesh.wire.coalesce import coalesce
from shadowmesh.wire.ip import Bytes, Unreachable

pytestmark = pytest.mark.netns

OWN = [ip_interface("10.10.10.1/24"), ip_interface("fd00::1/64")]
OTHER = [ip_interface("10.10.10.2/24"), ip_interface("fd00::2/64")]
FAMILIES = [(socket.AF_INET, "10.10.10.7"), (socket.AF_INET6, "fd00::7")]
IP_RECVERR, IPV6_RECVERR, IP_MTU, IPV6_MTU = 11, 25, 14, 24


@pytest.fixture(autouse=True)
def namespace() -> Iterator[None]:
    with own_namespace():
        yield


def run(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def read_all(device: TunDevice) -> list[bytes]:
    buffer = memoryview(bytearray(MAX_RECORD))
    records = []
    while size := device.read_into(buffer):
        records.append(bytes(buffer[:size]))
    return records


def wait_until(
    done: Callable[[], bool], each: Callable[[], None] = lambda: None, timeout: float = 10
) -> None:
    deadline = time.monotonic() + timeout
    while not done():
        assert time.monotonic() < deadline, "nothing happened in time"
        each()


# --- set-up


def test_addresses_mtu_and_routes() -> None:
    routes = [ip_network("192.168.7.0/24"), ip_network("fd01::/48"), ip_network("10.10.10.0/24")]
    with contextlib.closing(open_tun("mesh0", OWN, 1380, routes)) as device:
        assert device.warnings == ()
        link = run("ip", "-d", "address", "show", "mesh0")
        assert "mtu 1380" in link
        assert "qlen 500" in link
        assert "UP" in link
        assert "persist off" in link
        assert "inet 10.10.10.1/24" in link
        assert "inet6 fd00::1/64" in link
        assert "tentative" not in link
        assert "fe80" not in link
        assert "192.168.7.0/24 dev mesh0" in run("ip", "route")
        assert "fd01::/48 dev mesh0" in run("ip", "-6", "route")
        assert not os.get_blocking(device.fileno())
        assert not os.get_inheritable(device.fileno())
    assert "mesh0" not in run("ip", "link") + run("ip", "route") + run("ip", "-6", "route")


def test_offload_as_far_as_the_kernel_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real, known = fcntl.ioctl, 0x0F

    def older_kernel(fd: int, request: int, argument: bytes | int) -> bytes | int:
        if request == linux._TUNSETOFFLOAD and isinstance(argument, int) and argument & ~known:
            raise OSError(errno.EINVAL, "Invalid argument")
        result: bytes | int = real(fd, request, argument)
        return result

    monkeypatch.setattr(fcntl, "ioctl", older_kernel)
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        assert device.offload == ("csum", "tso4", "tso6", "ecn")
        # It takes no UDP segments either, so they are cut here.
        with contextlib.closing(listener("mesh0")) as packets:
            record = unfinished(udp_packet("198.51.100.1", "203.0.113.1", bytes(3000)), 1000)
            assert device.write(memoryview(record))
            assert [packets.recv(MAX_RECORD) for _ in range(3)] == offload.segment(memoryview(record))
    known = 0
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        assert device.offload == ()


def listener(name: str) -> socket.socket:
    packets = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    packets.setsockopt(263, 23, 1)  # PACKET_IGNORE_OUTGOING
    packets.settimeout(5)
    packets.bind((name, 3))
    return packets


def test_a_persistent_device_is_taken_over_and_left_in_place() -> None:
    run("ip", "tuntap", "add", "mesh0", "mode", "tun")
    run("ip", "address", "add", "10.99.0.1/16", "dev", "mesh0")
    run("ip", "address", "add", "10.10.10.1/24", "dev", "mesh0")
    run("ip", "link", "set", "mesh0", "up")
    run("ip", "route", "add", "10.98.0.0/16", "dev", "mesh0")
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        assert device.offload
        assert "10.99.0.1" not in run("ip", "address")
        assert "10.98.0.0" not in run("ip", "route")
        assert "10.10.10.0/24 dev mesh0" in run("ip", "route")
    assert "state DOWN" in run("ip", "link", "show", "mesh0")
    assert run("ip", "route") == ""
    with contextlib.closing(open_tun("mesh0", OWN, 1400, offload=False)) as device:
        assert device.offload == ()


def test_a_start_after_kill_9() -> None:
    code = (
        "import sys, time; from ipaddress import *; from shadowmesh.tun.linux import open_tun\n"
        "open_tun('mesh0', [ip_interface('10.10.10.1/24')], 1400, [ip_network('192.168.7.0/24')])\n"
        "print('open', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == "open\n"
        with pytest.raises(TunError, match=rf"mesh0 is in use by process {program.pid} \(\w+\): stop it"):
            open_tun("mesh0", OWN, 1400)
        program.send_signal(signal.SIGKILL)
        program.wait()
    with contextlib.closing(open_tun("mesh0", OWN, 1400, [ip_network("192.168.7.0/24")])):
        assert "192.168.7.0/24 dev mesh0" in run("ip", "route")


def test_a_device_deleted_by_another_program() -> None:
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        run("ip", "link", "delete", "mesh0")
        with pytest.raises(TunError, match="mesh0 is gone"):
            read_all(device)
        assert not device.write_packet(udp_packet("10.10.10.7", "10.10.10.1"))


def test_a_device_that_is_down_loses_packets_only() -> None:
    packet = udp_packet("10.10.10.7", "10.10.10.1")
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        run("ip", "link", "set", "mesh0", "down")
        read_all(device)
        assert not device.write_packet(packet)
        assert not device.write(memoryview(offload.PLAIN + packet))
        run("ip", "link", "set", "mesh0", "up")
        assert device.write_packet(packet)


# --- errors of the set-up


def test_no_permission() -> None:
    os.seteuid(65534)
    try:
        with pytest.raises(
            TunError, match=r"Permission denied creating TUN device mesh0: run .* sudo.*CAP_NET_ADMIN"
        ):
            open_tun("mesh0", OWN, 1400)
    finally:
        os.seteuid(0)


def test_permission_for_the_device_but_not_for_its_addresses() -> None:
    run("ip", "tuntap", "add", "mesh0", "mode", "tun", "user", "65534")
    os.seteuid(65534)
    try:
        with pytest.raises(
            TunError, match=r"cannot set up the device mesh0: Permission denied.*CAP_NET_ADMIN"
        ):
            open_tun("mesh0", OWN, 1400)
    finally:
        os.seteuid(0)


def test_no_permission_to_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(TunError, match="Permission denied creating TUN device mesh0"):
        open_tun("mesh0", OWN, 1400)


def test_no_tun_module(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(linux, "_PATH", str(tmp_path / "tun"))
    with pytest.raises(TunError, match=r"No such file.*modprobe tun.*--device /dev/net/tun"):
        open_tun("mesh0", OWN, 1400)


@pytest.mark.parametrize("name", ["", "a" * 16, "é" * 8, "a b", "a/b", "mesh%d", "a:b", ".", "..", "a\0b"])
def test_bad_names(name: str) -> None:
    with pytest.raises(TunError, match="cannot name a network interface"):
        open_tun(name, OWN, 1400)


def test_the_name_of_another_kind_of_interface() -> None:
    with pytest.raises(TunError, match="lo exists and is no TUN device"):
        open_tun("lo", OWN, 1400)


@pytest.mark.parametrize(
    ("mtu", "words"), [(1279, "needs network.mtu 1280"), (67, "68 to"), (65536, "68 to")]
)
def test_bad_mtu(mtu: int, words: str) -> None:
    with pytest.raises(TunError, match=words):
        open_tun("mesh0", OWN, mtu)
    assert "mesh0" not in run("ip", "link")


@pytest.mark.parametrize("address", ["10.10.10.1/32", "fd00::1/128"])
def test_an_address_in_use(address: str) -> None:
    run("ip", "address", "add", address, "dev", "lo")
    with pytest.raises(TunError, match=f"{address.split('/')[0]} is in use on interface lo"):
        open_tun("mesh0", OWN, 1400)
    assert "mesh0" not in run("ip", "link")


def test_a_network_that_another_interface_has_too() -> None:
    run("ip", "tuntap", "add", "lan", "mode", "tun")
    run("ip", "address", "add", "10.10.0.5/16", "dev", "lan")
    with contextlib.closing(open_tun("mesh0", OWN, 1400)) as device:
        (warning,) = device.warnings
        assert "10.10.10.0/24 overlaps with 10.10.0.0/16 on interface lan" in warning


def test_a_route_that_exists() -> None:
    run("ip", "route", "add", "192.168.7.0/24", "dev", "lo")
    with pytest.raises(
        TunError, match=r"cannot add the route 192\.168\.7\.0/24 to mesh0: there is one already"
    ):
        open_tun("mesh0", OWN, 1400, [ip_network("192.168.7.0/24")])


def test_ipv6_switched_off() -> None:
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    with pytest.raises(TunError, match=r"IPv6 is switched off on this host.*fd00::1/64.*sysctl.*or remove"):
        open_tun("mesh0", OWN, 1400)
    with pytest.raises(TunError, match=r"cannot have fd01::/48"):
        open_tun("mesh0", OWN[:1], 1400, [ip_network("fd01::/48")])
    open_tun("mesh0", OWN[:1], 1400).close()


def test_what_else_the_kernel_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(TunError, match="cannot give the address ff02::5/64 to mesh0: Cannot assign"):
        open_tun("mesh0", [ip_interface("ff02::5/64")], 1400)

    def no_memory(*_: object) -> bytes:
        raise OSError(errno.ENOMEM, "Cannot allocate memory")

    monkeypatch.setattr(fcntl, "ioctl", no_memory)
    with pytest.raises(TunError, match="cannot make TUN device mesh0: Cannot allocate memory"):
        open_tun("mesh0", OWN, 1400)


# --- unreachable, as programs see it


ERRORS = [(Unreachable.NO_ROUTE, errno.ENETUNREACH), (Unreachable.HELD_BACK, errno.EHOSTUNREACH)]


def answer(device: TunDevice, kind: Unreachable, mtu: int = 0) -> None:
    """As the daemon: an ICMP error about everything the device gives."""
    select.select([device.fileno()], [], [], 0.05)
    for given in read_all(device):
        error = ip.unreachable(given[10:], kind, mtu=mtu)
        if error is not None:
            assert device.write_packet(error)


@pytest.mark.parametrize("with_offload", [True, False])
@pytest.mark.parametrize(("family", "host"), FAMILIES)
@pytest.mark.parametrize(("kind", "expected"), ERRORS)
def test_connect_fails_at_once(
    kind: Unreachable, expected: int, family: socket.AddressFamily, host: str, with_offload: bool
) -> None:
    started = time.monotonic()
    with (
        contextlib.closing(open_tun("mesh0", OWN, 1400, offload=with_offload)) as device,
        socket.socket(family, socket.SOCK_STREAM) as client,
    ):
        client.setblocking(False)
        assert client.connect_ex((host, 80)) == errno.EINPROGRESS
        writable = lambda: bool(select.select([], [client], [], 0)[1])  # noqa: E731
        wait_until(writable, lambda: answer(device, kind))
        assert client.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == expected
    assert time.monotonic() - started < 0.9  # before the first retry of a SYN


@pytest.mark.parametrize(("family", "host"), FAMILIES)
@pytest.mark.parametrize("program", ["udp", "ping"])
def test_udp_and_ping_hear_of_it(program: str, family: socket.AddressFamily, host: str) -> None:
    six = family == socket.AF_INET6
    level, option = (socket.IPPROTO_IPV6, IPV6_RECVERR) if six else (socket.IPPROTO_IP, IP_RECVERR)
    kind, protocol, data = socket.SOCK_DGRAM, 0, b"hello"
    if program == "ping":
        kind, protocol = socket.SOCK_RAW, socket.IPPROTO_ICMPV6 if six else socket.IPPROTO_ICMP
        echo = struct.pack(">BBHHH", 128 if six else 8, 0, 0, 1, 1)
        data = echo if six else echo[:2] + ip.checksum(echo).to_bytes(2, "big") + echo[4:]
    errors = []
    with (
        contextlib.closing(open_tun("mesh0", OWN, 1400)) as device,
        socket.socket(family, kind, protocol) as one,
    ):
        one.setsockopt(level, option, 1)
        one.connect((host, 53 if program == "udp" else 0))
        one.send(data)

        def step() -> None:
            answer(device, Unreachable.HELD_BACK)
            if error := one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                errors.append(error)

        wait_until(lambda: bool(errors), step)
    assert errors == [errno.EHOSTUNREACH]


@pytest.mark.parametrize(("family", "host"), FAMILIES)
def test_too_big_lowers_the_path_mtu(family: socket.AddressFamily, host: str) -> None:
    level, option = (
        (socket.IPPROTO_IPV6, IPV6_MTU) if family == socket.AF_INET6 else (socket.IPPROTO_IP, IP_MTU)
    )
    with (
        contextlib.closing(open_tun("mesh0", OWN, 1400)) as device,
        socket.socket(family, socket.SOCK_DGRAM) as udp,
    ):
        udp.connect((host, 53))
        assert udp.getsockopt(level, option) == 1400
        udp.send(bytes(1300))
        wait_until(
            lambda: udp.getsockopt(level, option) == 1290,
            lambda: answer(device, Unreachable.TOO_BIG, mtu=1290),
        )


# --- offload, both ways


def bridge(a: TunDevice, b: TunDevice, seen: Callable[[bytes], None] = lambda packet: None) -> None:
    """Carry everything from each to the other as two daemons do; `seen` gets what travels."""
    select.select([a.fileno(), b.fileno()], [], [], 0.05)
    for source, target in ((a, b), (b, a)):
        for given in read_all(source):
            record = bytearray(given)
            kind = offload.from_tun(memoryview(record))
            pieces = [(kind, bytes(record[10:] if kind == offload.KIND_PACKET else record))]
            if kind == offload.KIND_SPLIT:
                pieces = offload.split(memoryview(record))
            for kind, body in pieces:
                seen(body)
                if kind == offload.KIND_PACKET:
                    target.write_packet(body)
                    continue
                received = bytearray(body)
                offload.sanitize(memoryview(received))
                assert target.write(memoryview(received))


@contextlib.contextmanager
def two_hosts(
    offload_a: bool, offload_b: bool, mss: int, family: socket.AddressFamily
) -> Iterator[tuple[TunDevice, TunDevice, socket.socket, socket.socket]]:
    """Devices in two namespaces, and a TCP connection from the one to the other."""
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(contextlib.closing(open_tun("mesh0", OWN, 1400, offload=offload_a)))
        client = stack.enter_context(socket.socket(family, socket.SOCK_STREAM))
        client.setblocking(False)
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, mss)
        with own_namespace():
            b = stack.enter_context(contextlib.closing(open_tun("mesh0", OTHER, 1400, offload=offload_b)))
            server = stack.enter_context(socket.create_server(("", 80), family=family))
        host = str(OTHER[family == socket.AF_INET6].ip)
        client.connect_ex((host, 80))
        wait_until(lambda: bool(select.select([server], [], [], 0)[0]), lambda: bridge(a, b))
        accepted = stack.enter_context(server.accept()[0])
        accepted.setblocking(False)
        yield a, b, client, accepted


def transfer(data: bytes, client: socket.socket, server: socket.socket, carry: Callable[[], None]) -> bytes:
    received = bytearray()
    left = memoryview(data)

    def step() -> None:
        nonlocal left
        with contextlib.suppress(BlockingIOError):
            left = left[client.send(left) :] if left else left
        carry()
        with contextlib.suppress(BlockingIOError):
            received.extend(server.recv(1 << 20))

    wait_until(lambda: len(received) >= len(data), step, timeout=30)
    return bytes(received)


@pytest.mark.parametrize(("offload_a", "offload_b"), [(True, True), (True, False), (False, True)])
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_tcp_arrives_whole(offload_a: bool, offload_b: bool, family: socket.AddressFamily) -> None:
    data = random.Random(1).randbytes(3_000_000)
    sizes: list[int] = []
    with two_hosts(offload_a, offload_b, 1300, family) as (a, b, client, server):
        received = transfer(data, client, server, lambda: bridge(a, b, lambda body: sizes.append(len(body))))
    assert hashlib.sha256(received).digest() == hashlib.sha256(data).digest()
    assert (max(sizes) > 10_000) is offload_a


def test_segments_that_a_host_without_offload_gets_are_valid() -> None:
    data = random.Random(2).randbytes(500_000)
    with two_hosts(True, False, 1300, socket.AF_INET) as (a, b, client, server):
        sent: list[bytes] = []
        write_packet = b.write_packet

        def write_and_keep(packet: Bytes) -> bool:
            sent.append(bytes(packet))
            return write_packet(packet)

        b.write_packet = write_and_keep  # type: ignore[method-assign]
        assert transfer(data, client, server, lambda: bridge(a, b)) == data
    assert len(sent) > 300
    assert all(is_valid(packet) and len(packet) <= 1400 for packet in sent)


def test_small_segments_are_split_for_peers() -> None:
    data = random.Random(3).randbytes(1_000_000)
    with two_hosts(True, True, 100, socket.AF_INET) as (a, b, client, server):
        assert transfer(data, client, server, lambda: bridge(a, b)) == data


def test_segmentation_is_the_kernels() -> None:
    """Linux cuts what a packet socket sends over a device without offload: byte for byte as `segment`."""
    chosen = random.Random(4)
    with (
        contextlib.closing(open_tun("mesh0", [], 65535, offload=False)) as device,
        contextlib.closing(listener("mesh0")) as packets,
    ):
        packets.setsockopt(263, 15, 1)  # PACKET_VNET_HDR
        for _ in range(1000):
            record = random_record(chosen)
            packets.sendto(record, ("mesh0", 0x0800 if record[10] >> 4 == 4 else 0x86DD))
            expected = offload.segment(memoryview(record))
            assert [given[10:] for given in read_all(device)] == expected, bytes(record[:80]).hex()


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
@pytest.mark.parametrize(
    ("sizes", "writes"),
    [
        ([1] * 50, 1),
        ([100] * 100, 2),
        ([1200] * 40 + [7], 1),
        ([100, 200, 300] * 10, 30),
        ([100] * 9 + [60] * 8 + [0] * 3 + [1352] * 5, 6),  # 60 ends the hundreds
        ([0] * 9, 9),
    ],
)
def test_datagrams_joined_for_the_kernel_arrive_as_they_were_sent(
    family: socket.AddressFamily, sizes: list[int], writes: int
) -> None:
    chosen = random.Random(6)
    payloads = [chosen.randbytes(size) for size in sizes]
    to = str(OTHER[family == socket.AF_INET6].ip), 9
    with contextlib.ExitStack() as stack:
        a = stack.enter_context(contextlib.closing(open_tun("mesh0", OWN, 1400)))
        near = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        with own_namespace():
            b = stack.enter_context(contextlib.closing(open_tun("mesh0", OTHER, 1400)))
            far = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
        far.bind(to)
        far.setblocking(False)
        for payload in payloads:
            near.sendto(payload, to)
        plain = bytearray()
        for given in read_all(a):
            assert offload.from_tun(memoryview(bytearray(given))) == record.OFFLOAD
            plain += record.pack(record.OFFLOAD, given)
        whole = memoryview(plain)
        left, _ = coalesce(whole, record.split(whole, len(plain)))
        assert len(left) == writes
        for _, start, end in left:
            offload.sanitize(whole[start:end])
            assert b.write(whole[start:end])
        assert [far.recv(2000) for _ in payloads] == payloads
        with pytest.raises(BlockingIOError):
            far.recv(2000)


def random_record(chosen: random.Random) -> bytearray:
    pair = chosen.choice([("10.10.10.1", "10.10.10.7"), ("fd00::1", "fd00::7")])
    size = chosen.choice([1, 2, 99, 1348, 5000, chosen.randrange(1, 60_000)])
    payload = chosen.randbytes(size)
    # Linux cuts nothing that fits a segment together with TCP options.
    cut = chosen.random() < 0.8 and size > 50
    gso_size = chosen.randrange(max(1, size // 100), size - 44) if cut else 0
    if chosen.random() < 0.3:
        return unfinished(udp_packet(*pair, payload), gso_size)
    packet = tcp_packet(
        *pair,
        payload,
        flags=chosen.randrange(256) & ~0x06,
        sequence=chosen.choice([2**32 - 5, chosen.randrange(2**32)]),
        options=b"\x01" * 4 * chosen.randrange(11),
    )
    return unfinished(packet, gso_size, ecn=chosen.random() < 0.2 and cut)


def test_hostile_records_do_no_harm() -> None:
    """What `sanitize` lets through of changed records, the kernel takes or refuses, and goes on."""
    chosen = random.Random(5)
    tainted = Path("/proc/sys/kernel/tainted").read_text()
    passed = accepted = 0
    with two_hosts(True, True, 1300, socket.AF_INET) as (a, b, client, server):
        for _ in range(5000):
            record = to_this_host(random_record(chosen))
            for _ in range(chosen.randrange(4)):
                record[chosen.randrange(min(len(record), 70))] = chosen.randrange(256)
            try:
                offload.sanitize(memoryview(record))
            except OffloadError:
                continue
            passed += 1
            accepted += b.write(memoryview(record))
            read_all(b)
        assert passed > 1000
        assert accepted > 1000
        data = chosen.randbytes(100_000)
        assert transfer(data, client, server, lambda: bridge(a, b)) == data
    assert Path("/proc/sys/kernel/tainted").read_text() == tainted


def to_this_host(record: bytearray) -> bytearray:
    """To the address of OTHER, so that the kernel looks at it instead of dropping it as not its own."""
    at, address = (26, OTHER[0].ip.packed) if record[10] >> 4 == 4 else (34, OTHER[1].ip.packed)
    record[at : at + len(address)] = address
    if record[10] >> 4 == 4:
        record[20:22] = bytes(2)
        record[20:22] = ip.checksum(record[10:30]).to_bytes(2, "big")
    return record
