"""What a hostile member sends reaches real kernels refused or harmless, and honest traffic goes on.

First the engine alone with a TUN device, for thousands of records; then the daemon behind the real relay.
"""

from __future__ import annotations

import contextlib
import random
import secrets
import select
import socket
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_interface
from pathlib import Path

import pytest
from websockets.sync.client import connect
from websockets.typing import Subprotocol

from shadowmesh.mesh.peer import Session
from shadowmesh.testing import guide
from shadowmesh.testing.engines import Net, Station
from shadowmesh.testing.hostile import HostileMember, RelayedMesh, hostile_records
from shadowmesh.testing.memory import packet
from shadowmesh.testing.namespace import own_namespace
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.packets import tcp_packet, udp_packet, unfinished
from shadowmesh.tun.base import TunDevice
from shadowmesh.tun.linux import open_tun
from shadowmesh.wire import frame, ip, record
from shadowmesh.wire.message import FINISH, HELLO, SEALED
from shadowmesh.wire.record import Probe

pytestmark = pytest.mark.netns

TAINTED = Path("/proc/sys/kernel/tainted")
SOL_PACKET, PACKET_IGNORE_OUTGOING, SO_RCVBUFFORCE = 263, 23, 33


@pytest.fixture(autouse=True)
def healthy_kernel() -> Iterator[None]:
    """No warning and no oops of the kernel during a test."""
    before = TAINTED.read_text()
    yield
    assert TAINTED.read_text() == before


# -- the engine and its device


class Victim:
    """Station a with a real device; m attacks; c is honest and has a device in a namespace of its own."""

    def __init__(self, stack: contextlib.ExitStack, *, offload: bool) -> None:
        self.net = Net("a", "m", "c")
        stack.callback(self.net.close)
        self.a, self.m, self.c = self.net.stations
        self.net.meet()
        self.server = stack.enter_context(socket.create_server(("", 80), family=socket.AF_INET))
        self.device = self._give(self.a, stack, offload)
        self.sniffer = stack.enter_context(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0))
        self.sniffer.setsockopt(SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)
        self.sniffer.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 1 << 26)
        self.sniffer.bind(("mesh0", 3))
        self.sniffer.setblocking(False)
        with own_namespace():
            self._give(self.c, stack, True)
            self.client = stack.enter_context(socket.socket())

    def _give(self, station: Station, stack: contextlib.ExitStack, offload: bool) -> TunDevice:
        interfaces = [ip_interface(f"{station.ip}/24")]
        device = stack.enter_context(contextlib.closing(open_tun("mesh0", interfaces, 1400, offload=offload)))
        station.engine.pause()
        station.engine._tun = device
        station.engine.resume()
        stack.callback(station.engine.stop)
        return device

    def attack(self, kind: int, body: bytes) -> None:
        """One record from m to a, in their session."""
        session = self.m.peer(self.a).sessions[-1]
        plaintext = record.pack(kind, body)
        sealed = session.sealer.seal(plaintext + record.padding(len(plaintext)))
        self.m.link.send_frame(frame.pack(session.remote, session.local, sealed))
        self.net.hand_over()

    def seen(self) -> list[bytes]:
        """The packets that a's kernel has taken from its device."""
        packets = []
        with contextlib.suppress(BlockingIOError):
            while True:
                packets.append(self.sniffer.recv(1 << 17))
        return packets

    def transfer(self, data: bytes) -> bytes:
        """Data from a program at c to one at a, over both kernels and engines."""
        self.client.setblocking(False)
        with contextlib.suppress(BlockingIOError):
            self.client.connect((self.a.ip, 80))
        self.until(lambda: bool(select.select([self.server], [], [], 0)[0]))
        accepted, peer = self.server.accept()
        assert peer[0] == self.c.ip
        received, left = bytearray(), memoryview(data)

        def step() -> bool:
            nonlocal left
            with contextlib.suppress(BlockingIOError):
                left = left[self.client.send(left) :] if left else left
            with contextlib.suppress(BlockingIOError):
                received.extend(accepted.recv(1 << 20))
            return len(received) >= len(data)

        with accepted:
            accepted.setblocking(False)
            self.until(step)
        return bytes(received)

    def until(self, done: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 20
        while not done():
            assert time.monotonic() < deadline, "nothing arrives"
            self.net.run()
            select.select(list(self.net.loop.readers), [], [], 0.01)


@pytest.fixture(params=[True, False], ids=["with offload", "without offload"])
def victim(request: pytest.FixtureRequest) -> Iterator[Victim]:
    with own_namespace(), contextlib.ExitStack() as stack:
        yield Victim(stack, offload=request.param)


def test_hostile_records_are_refused_or_harmless(victim: Victim) -> None:
    """What the kernel takes comes from the attacker's own IP to ours; a transfer in between arrives whole."""
    a, m = victim.a, victim.m
    chosen = random.Random(6)
    key = ip_address(m.ip).packed + ip_address(a.ip).packed
    bodies = [*hostile_records(m.ip, a.ip).values(), *hostile_records("fd00::66", "fd00::1").values()]
    for _ in range(4000):
        changed = bytearray(chosen.choice(bodies[:300]))
        for _ in range(chosen.randrange(1, 5) if changed else 0):
            changed[chosen.randrange(min(len(changed), 70))] = chosen.randrange(256)
        bodies.append(bytes(changed))
    data = chosen.randbytes(300_000)
    for number, body in enumerate(bodies):
        victim.attack(record.OFFLOAD, body)
        if number % 3 == 0:
            victim.attack(record.PACKET, body[10:])
        if number == len(bodies) // 2:
            assert victim.transfer(data) == data
    taken = [ip.flow_key(each, 0, len(each)) for each in victim.seen()]
    honest = ip_address(victim.c.ip).packed + ip_address(a.ip).packed
    assert set(taken) == {key, honest}
    assert taken.count(key) > 300, "some are harmless"
    assert a.drops["bad_offload"] > 300
    assert a.drops["foreign_source"] > 100
    assert "tun_lost" not in [name for name, _ in a.events]


def test_the_programs_get_nothing_that_is_forged(victim: Victim) -> None:
    """Sources of others, of ourselves, of the Internet; destinations of others; in every form of a record."""
    a, m, c = victim.a, victim.m, victim.c
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as program:
        program.bind(("", 53))
        program.setblocking(False)
        for source in (c.ip, a.ip, "8.8.8.8", "192.168.1.1", "127.0.0.1", "10.10.10.255", "0.0.0.0"):
            datagram = udp_packet(source, a.ip, b"forged")
            victim.attack(record.PACKET, datagram)
            victim.attack(record.OFFLOAD, bytes(10) + datagram)
            victim.attack(record.OFFLOAD, bytes(unfinished(datagram)))
        for target in (c.ip, "10.10.10.255", "224.0.0.1", "127.0.0.1", "8.8.8.8"):
            victim.attack(record.PACKET, udp_packet(m.ip, target, b"forged"))
        victim.attack(record.PACKET, udp_packet(m.ip, a.ip, b"its own"))
        assert select.select([program], [], [], 5)[0]
        assert program.recvfrom(100) == (b"its own", (m.ip, 40000))
        with pytest.raises(BlockingIOError):
            program.recv(100)
    assert a.drops["foreign_source"] == 21
    assert a.drops["foreign_destination"] == 5


# -- the daemon behind the relay


@pytest.fixture(scope="module")
def lab() -> Iterator[tuple[Lab, bytes]]:
    key = secrets.token_bytes(32)
    with Lab("a", "b", "m") as lab:
        lab.start_relay(log_connections=False)
        for name, address in (("a", "10.10.10.1/24"), ("b", "10.10.10.2/24")):
            lab.start_client(name, address, key.hex(), wait=False)
        for name in ("a", "b"):
            lab.wait_connected(name)
        yield lab, key


@contextlib.contextmanager
def member(lab: Lab, key: bytes) -> Iterator[tuple[HostileMember, Session]]:
    """A hostile member behind the real relay with five addresses, and its session with a."""
    with connect(
        f"ws://{RELAY_IP4}:{guide.RELAY_PORT}/relay?peer_id=m",
        sock=lab["m"].connect(RELAY_IP4, guide.RELAY_PORT),
        subprotocols=[Subprotocol("shadowmesh.v1")],
        compression=None,
        proxy=None,
        ping_interval=None,
        close_timeout=0.1,
    ) as connection:
        mesh = RelayedMesh(connection, key)
        m = HostileMember.joined(mesh, "m", "10.10.10.66/24")
        assert all(m.claim(f"10.10.10.{i}") for i in (67, 68, 69))
        mesh.join(m)
        m.emit(packet(m.ip(), ip_address("10.10.10.1").packed))
        mesh.pump(lambda: any(peer.sessions[0].confirmed for peer in m.mesh.peers.values()), 5.0)
        ((session,),) = (peer.sessions for peer in m.mesh.peers.values())
        yield m, session


def test_a_daemon_under_attack_stays_well(lab: tuple[Lab, bytes]) -> None:
    """All records, forged packets, floods of hellos and of probes, garbage: pings between others go on."""
    with member(*lab) as (m, session):
        attack_the_daemon(lab[0], m, session)


def attack_the_daemon(lab: Lab, m: HostileMember, session: Session) -> None:
    a, b, program = lab["a"], lab["b"], lab.client_programs["a"]
    b.wait_for_ping("10.10.10.1")
    target = session.remote
    chosen = random.Random(7)
    listener = a.new_socket(kind=socket.SOCK_DGRAM)
    listener.bind(("0.0.0.0", 53))

    def seal(*records: tuple[int, bytes]) -> None:
        plaintext = b"".join(record.pack(*each) for each in records)
        m.send(target, m.addresses[0], session.sealer.seal(plaintext + record.padding(len(plaintext))))

    pinging = b.start("ping", "-n", "-i0.05", "-c40", "-W2", "10.10.10.1")
    for body in hostile_records("10.10.10.66", "10.10.10.1").values():
        seal((record.OFFLOAD, body))
        seal((record.PACKET, body[10:]))
    for forged in ("10.10.10.2", "10.10.10.1", "8.8.8.8", "198.18.0.5"):
        for body in (udp_packet(forged, "10.10.10.1", b"forged"), tcp_packet(forged, "10.10.10.1", flags=2)):
            seal((record.PACKET, body), (record.OFFLOAD, bytes(unfinished(body))))
    for _ in range(5):
        seal(*[(record.JSON, Probe(1, ack=False).encode())] * 1000)
        for source in m.addresses:
            for _ in range(20):
                m.send(target, source, m.hello(target, source))
        for _ in range(200):
            head = chosen.choice((HELLO, FINISH, SEALED, SEALED + session.sealer._prefix[4:]))
            m.send(target, m.addresses[0], head + chosen.randbytes(chosen.randrange(1500)))
    for size in (1, 100, 66_000):
        m.send(target, m.addresses[0], SEALED + bytes(size))
    seal((record.PACKET, udp_packet("10.10.10.66", "10.10.10.1", b"the last")))

    payload, senders = b"", set()
    while payload != b"the last":
        payload, sender = listener.recvfrom(1 << 16)
        senders.add(sender[0])
    listener.close()
    assert senders == {"10.10.10.66"}
    pinging.wait(10.0)
    assert " 0% packet loss" in pinging.text()
    b.wait_for_ping("10.10.10.1")
    a.wait_for_ping("10.10.10.2")
    assert program.status is None
    status = lab.status("a")
    assert status is not None
    assert status["status"] == "connected"
    assert status["relay"]["connects"] == 1
    for reason in ("bad_offload", "foreign_source", "hello_rate", "json_rate", "bad_sealed", "bad_message"):
        assert status["drops"].get(reason, 0) > 0, status["drops"]
    assert {tuple(peer["ips"]) for peer in status["peers"]} == {("10.10.10.2",), ("10.10.10.66",)}
    assert "Traceback" not in lab.logs()
