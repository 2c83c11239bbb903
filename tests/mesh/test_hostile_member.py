"""A member with the network key that keeps to no rule: it speaks for itself only, and its cost is bounded."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.mesh import handshake, trust
from shadowmesh.mesh import mesh as engine
from shadowmesh.mesh.peer import JSON_BURST, JSON_RATE
from shadowmesh.mesh.trust import Trust
from shadowmesh.testing.engines import Net
from shadowmesh.testing.hostile import HonestRelay, HostileMember, check_state, hostile_records
from shadowmesh.testing.memory import MemoryMesh, Node, by_address, packet
from shadowmesh.wire import frame, offload, record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED
from shadowmesh.wire.record import Bye, Probe


def ip(text: str) -> bytes:
    return ip_address(text).packed


@dataclass
class Network:
    """a and b are honest, m is not; all know each other. The relay is honest unless a test says otherwise."""

    mesh: MemoryMesh
    a: Node
    b: Node
    m: HostileMember


@pytest.fixture
def net() -> Iterator[Network]:
    mesh = MemoryMesh(2, relay=HonestRelay())
    a, b = mesh.nodes
    m = HostileMember.joined(mesh, "m", "10.10.10.66/24", "fd00::66/64")
    for one, other in ((a, b), (m, a), (m, b)):
        mesh.meet(one, other)
    mesh.run(1.0)
    yield Network(mesh, a, b, m)
    check_state(a)
    check_state(b)


def honest_traffic_goes_on(net: Network) -> None:
    for one, other in ((net.a, net.b), (net.b, net.a)):
        before = len(other.received)
        assert one.ping(other, b"honest") in ("sent", "queued")
        net.mesh.run(0.2)
        assert other.payloads[before:] == [b"honest"]


# -- inner sources and destinations

FOREIGN = [
    "10.10.10.2",  # another member
    "10.10.10.1",  # the victim
    "10.10.10.99",  # nobody
    "10.10.10.0",
    "10.10.10.255",
    "8.8.8.8",
    "192.168.1.1",
    "127.0.0.1",
    "0.0.0.0",
    "224.0.0.1",
    "255.255.255.255",
    "fd00::2",
    "fd00::1",
    "2001:4860:4860::8888",
    "::1",
    "::",
    "fe80::66",
    "ff02::1",
    "::ffff:10.10.10.66",
    "::ffff:10.10.10.2",
]


@pytest.mark.parametrize("forged", FOREIGN)
def test_no_packet_with_a_source_that_is_not_its_own(net: Network, forged: str) -> None:
    a, m = net.a, net.m
    target = a.ip(4 if len(ip(forged)) == 4 else 6)
    m.seal(
        a,
        (record.PACKET, packet(ip(forged), target)),
        (record.OFFLOAD, bytes(10) + packet(ip(forged), target)),
    )
    m.lie(ips=(*m.local.ips, ip(forged)))
    m.seal(a, (record.JSON, m.local.info().encode()))
    m.keepalive_from_everywhere(a)
    m.seal(a, (record.PACKET, packet(ip(forged), target)))
    net.mesh.run(0.1)
    assert a.received == []
    assert a.drops["foreign_source"] == 3
    honest_traffic_goes_on(net)


@pytest.mark.parametrize("forged", [each for each in FOREIGN if each not in ("10.10.10.1", "fd00::1")])
def test_no_packet_to_a_destination_that_is_not_ours(net: Network, forged: str) -> None:
    a, m = net.a, net.m
    source = m.ip(4 if len(ip(forged)) == 4 else 6)
    body = packet(source, ip(forged))
    m.seal(a, (record.PACKET, body), (record.OFFLOAD, bytes(10) + body))
    net.mesh.run(0.1)
    assert a.received == []
    assert a.drops["foreign_destination"] == 2


def test_packets_in_a_finish_are_held_to_the_same_rules(net: Network) -> None:
    a, b, m = net.a, net.b, net.m
    bodies = [
        packet(b.ip(), a.ip(), b"not mine"),
        packet(m.ip(), b.ip(), b"not yours"),
        b"",
        b"\x45",
        packet(m.ip(), a.ip(), b"fine"),
    ]
    records = [(record.JSON, m.local.info().encode())]
    records += [(kind, head + body) for body in bodies for kind, head in ((1, b""), (2, bytes(10)))]
    records += [(record.JSON, Bye().encode()), (9, b"later")]
    payload = b"".join(record.pack(*each) for each in records)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(m.mesh.handshakes, "_finish_payload", lambda attempt: (payload, []))
        m.begin(a.addresses[0])
        net.mesh.run(0.2)
    assert a.payloads == [b"fine", b"fine"]
    assert m.confirmed(a)


@pytest.mark.parametrize("name", ["with prefix", "wider", "narrower"])
def test_a_router_speaks_only_for_what_is_routed_to_it(name: str) -> None:
    """Of two routes the longer one says who may send from an IP, as it says who gets the packets to it."""
    mesh = MemoryMesh(0, relay=HonestRelay())
    a = mesh.add(
        "a",
        "10.10.10.1/24",
        routes=[("172.16.0.0/12", "10.10.10.66"), ("172.20.0.0/16", "10.10.10.3")],
    )
    c = mesh.add("c", "10.10.10.3/24", advertise=["172.20.0.0/16"])
    m = HostileMember.joined(mesh, "m", "10.10.10.66/24")
    mesh.meet(c, a)
    mesh.meet(m, a)
    source = {"with prefix": "172.17.0.1", "wider": "172.32.0.1", "narrower": "172.20.0.9"}[name]
    m.seal(a, (record.PACKET, packet(ip(source), a.ip(), b"from m")))
    mesh.run(0.1)
    assert a.payloads == ([b"from m"] if name == "with prefix" else [])
    c.seal(a, (record.PACKET, packet(ip("172.20.0.9"), a.ip(), b"from c")))
    mesh.run(0.1)
    assert a.payloads[-1] == b"from c"


def test_a_route_that_it_offers_is_not_taken(net: Network) -> None:
    net.m.lie(routes=("10.10.10.0/24", "0.0.0.0/0", "8.8.8.0/24"))
    net.m.seal(net.a, (record.JSON, net.m.local.info().encode()))
    net.mesh.run(0.1)
    assert net.a.peer(net.m).info.routes  # type: ignore[union-attr]
    assert net.a.emit(packet(net.a.ip(), ip("8.8.8.8"))) == "no route"
    honest_traffic_goes_on(net)
    assert not net.m.received


# -- addresses of others


def test_an_honest_relay_gives_it_no_address_that_somebody_has(net: Network) -> None:
    a, b, m = net.a, net.b, net.m
    assert not m.claim("10.10.10.2")
    m.lie(ips=(b.ip(), *m.local.ips))
    before = len(a.received)
    m.seal(a, (record.JSON, m.local.info().encode()))
    m.seal(a, (record.PACKET, packet(b.ip(), a.ip())), source=b.addresses[0])
    m.send(a.addresses[0], b.addresses[0], m.hello(a.addresses[0], b.addresses[0]))
    net.mesh.run(0.2)
    assert len(a.received) == before
    assert a.mesh._owners[b.ip()] is a.peer(b)
    assert b.ip() not in a.peer(m).verified
    assert a.ping(b, b"for b") == "sent"
    net.mesh.run(0.1)
    assert b.payloads[-1] == b"for b"


def test_with_a_relay_as_accomplice_the_one_who_is_there_keeps_its_ip(net: Network) -> None:
    """The frames may go where the relay likes: they are sealed for b, and V is not taken from the living."""
    a, b, m = net.a, net.b, net.m
    net.mesh.relay.forward = lambda each: [each]
    m.lie(ips=(b.ip(), *m.local.ips))
    m.seal(a, (record.JSON, m.local.info().encode()), source=b.addresses[0])
    m.seal(a, (record.PACKET, packet(b.ip(), a.ip())), source=b.addresses[0])
    net.mesh.run(0.1)
    assert a.received == []
    assert a.mesh._owners[b.ip()] is a.peer(b)
    assert "address_conflict" in a.event_names()
    m.seize(b.ip())
    m.begin(a.addresses[0], b.addresses[0])
    a.ping(b, b"for b")
    net.mesh.run(0.5)
    assert m.received == []
    assert a.mesh._owners[b.ip()] is a.peer(b)


def test_an_ip_that_has_gone_to_another_device_is_lost_at_once(net: Network) -> None:
    """Also in a session in which packets from it have been let through before."""
    a, m = net.a, net.m
    forged = packet(ip("10.10.10.77"), a.ip(), b"as before")
    assert m.claim("10.10.10.77")
    m.lie(ips=(*m.local.ips, ip("10.10.10.77")))
    m.seal(a, (record.JSON, m.local.info().encode()))
    m.keepalive_from_everywhere(a)
    m.seal(a, (record.PACKET, forged))
    net.mesh.run(31.0)
    assert a.payloads == [b"as before"]
    m.disconnect()
    c = net.mesh.add("c", "10.10.10.77/24")
    net.mesh.meet(c, a)
    m.connect()
    c.connect()
    m.seal(a, (record.PACKET, forged), (record.PACKET, packet(m.ip(), a.ip(), b"its own")))
    net.mesh.run(0.1)
    assert a.payloads == [b"its own"]
    assert a.mesh._owners[ip("10.10.10.77")] is a.peer(c)


@pytest.mark.parametrize("verify", ["warn", "strict", "pinned"])
@pytest.mark.parametrize("says", ["that IP", "that IP, IPv4-mapped", "its own IP", "no IP"])
@pytest.mark.parametrize("begins", ["a", "m"])
def test_who_stands_in_for_an_absent_member(net: Network, verify: str, says: str, begins: str) -> None:
    """By `warn` it works, and is told; where the key must be the known one, it gets and brings no packet."""
    b, a = by_address(net.a, net.b)  # a's hellos give way to those from b's address
    m = net.m
    pins = {b.ip(): fingerprint(b.device.static_public)} if verify == "pinned" else {}
    a.trust = Trust(a.trust.known, pins, strict=verify == "strict")
    b.disconnect()
    a.restart()
    net.mesh.run(200)
    del a.received[:], m.received[:], a.events[:]
    address = m.seize(b.ip())
    mapped = bytes(10) + b"\xff\xff" + b.ip()
    lies = {"that IP": (b.ip(),), "that IP, IPv4-mapped": (mapped,), "its own IP": (m.ip(),), "no IP": ()}
    m.lie(ips=lies[says])
    m.mesh._own_ips |= {b.ip()}
    if begins == "m":
        silent = net.mesh.relay.forward
        net.mesh.relay.forward = lambda each: [] if each.sender is a and each.kind == HELLO else [each]
        a.ping(b, b"for b alone")
        m.begin(a.addresses[0], address)
        net.mesh.run(0.1)
        net.mesh.relay.forward = silent
    for _ in range(4):
        a.ping(b, b"for b alone")
        if m.knows(a):
            m.seal(a, (record.PACKET, packet(b.ip(), a.ip(), b"from m")), source=address)
        net.mesh.run(1.0)
    stands_in = verify == "warn" and says.startswith("that IP")
    assert bool(m.received) is stands_in
    assert bool(a.received) is stands_in
    if stands_in:
        assert "identity_changed" in a.event_names()
    elif says.startswith("that IP"):
        assert "identity_refused" in a.event_names()
        assert a.trust.known[b.ip()] == b.device.static_public


# -- info records that lie


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[]",
        b'"info"',
        b'{"type":"info"}',
        b"{" * 4000,
        b'{"type":"info","type":"info"}',
        json.dumps({"type": "info", "ips": ["10.10.10.2"] * 9}).encode(),
        b'{"type":"info","seq":1e999}',
        b"\xff" * 100,
        bytes(4097),
    ],
    ids=lambda body: body[:20].hex(),
)
def test_a_bad_info_makes_no_session_and_ends_none(net: Network, body: bytes) -> None:
    a, m = net.a, net.m
    m.seal(a, (record.JSON, body), (record.PACKET, packet(m.ip(), a.ip(), b"beside it")))
    net.mesh.run(0.1)
    assert a.payloads == [b"beside it"]
    assert a.drops["bad_records"] == 1
    handshakes = a.peer(m).handshakes
    m.lie(raw=body or b" ")
    m.begin(a.addresses[0])
    net.mesh.run(1.0)
    assert a.peer(m).handshakes == handshakes
    assert a.drops["bad_handshake"] + a.drops["bad_message"] >= 1


def test_an_old_info_does_not_undo_a_new_one(net: Network) -> None:
    a, m = net.a, net.m
    m.lie(seq=9, ips=(m.ip(),))
    m.seal(a, (record.JSON, m.local.info().encode()))
    m.lie(seq=8, ips=(m.ip(), m.ip(6)))
    m.seal(a, (record.JSON, m.local.info().encode()))
    net.mesh.run(0.1)
    assert a.peer(m).verified == {m.ip()}


def test_ips_outside_of_the_overlay_are_nobodys(net: Network) -> None:
    """Else a member could speak as a name server or as our router, and the kernel would believe it."""
    a, m = net.a, net.m
    outside = ("8.8.8.8", "192.168.1.1", "10.10.11.1", "2001:db8::1", "10.10.10.255", "10.10.10.0")
    assert all(m.claim(each) for each in outside)
    m.lie(seq=1, ips=(m.ip(), m.ip(6), *map(ip, outside)))
    m.seal(a, (record.JSON, m.local.info().encode()))
    m.keepalive_from_everywhere(a)
    for each in outside:
        target = a.ip(4 if "." in each else 6)
        m.seal(a, (record.PACKET, packet(ip(each), target)))
    net.mesh.run(0.1)
    assert a.received == []
    assert a.peer(m).verified == {m.ip(), m.ip(6)}
    assert not {ip(each) for each in outside} & a.trust.known.keys()


def test_keys_that_it_makes_us_remember_are_bounded(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    """And what was known before stays known, so that nobody's change of key gets lost in the crowd."""
    a, b, m = net.a, net.b, net.m
    monkeypatch.setattr(trust, "MAX_KNOWN", 20)
    for i in range(10):
        ips = [f"fd00::{100 + 8 * i + j:x}" for j in range(8)]
        assert all(m.claim(each) for each in ips)
        m.lie(seq=i + 1, ips=tuple(map(ip, ips)))
        m.seal(a, (record.JSON, m.local.info().encode()))
        m.keepalive_from_everywhere(a)
        net.mesh.run(1.0)
        assert a.peer(m).verified == set(map(ip, ips))
    assert len(a.trust.known) == 20
    assert a.trust.known[b.ip()] == b.device.static_public


# -- floods


def test_probes_and_infos_are_read_at_a_bounded_rate(net: Network) -> None:
    """Each costs us much more than its sender, and each probe makes us send: 10 per second, burst 30."""
    a, m = net.a, net.m
    probe = (record.JSON, Probe(7, ack=False).encode())
    info = (record.JSON, m.local.info().encode())
    at = len(net.mesh.log)
    for _ in range(10):
        m.seal(a, *[probe] * 1000)
        m.seal(a, *[info] * 100)
        net.mesh.run(0.1)
    answers = [each for each in net.mesh.log[at:] if each.sender is a]
    assert len(answers) <= JSON_BURST + JSON_RATE * 1.0 + 1
    assert a.drops["json_rate"] >= 10_900
    honest_traffic_goes_on(net)
    net.mesh.run(3.0)
    m.seal(a, probe)
    net.mesh.run(0.1)
    assert ("probe_ack", {"peer": m.peer(a), "id": 7}) in m.events


def test_a_flood_of_hellos_is_bounded_and_parts_nobody(net: Network) -> None:
    a, m = net.a, net.m
    addresses = [m.context.random(16) for _ in range(40)]
    assert all(m.claim_address(address) for address in addresses)
    net.mesh.run(30.0)
    session = a.session(net.b)
    at = len(net.mesh.sent(ANSWER, a))
    for _ in range(3):
        for source in addresses * 4:
            m.send(a.addresses[0], source, m.hello(a.addresses[0], source))
        net.mesh.run(0.1)
        check_state(a)
    assert len(net.mesh.sent(ANSWER, a)) - at <= handshake.ALL_BURST + handshake.ALL_RATE * 0.3
    assert a.drops["hello_rate"] >= 1
    assert len(a.mesh.handshakes._half_open) <= len(addresses) * handshake.MAX_HALF_OPEN_PER_SOURCE
    assert a.session(net.b) is session
    honest_traffic_goes_on(net)
    net.mesh.run(11.0)
    assert not a.mesh.handshakes._half_open
    c = net.mesh.add("c", "10.10.10.3/24", "fd00::3/64")
    net.mesh.meet(c, a)


def test_a_member_that_says_hello_all_the_time_keeps_nobody_else_from_it(net: Network) -> None:
    """2 per second of one address: the rate is the source's, not everybody's."""
    a, m = net.a, net.m
    at = len(net.mesh.sent(ANSWER, a))
    for _ in range(50):
        m.send(a.addresses[0], m.addresses[0], m.hello(a.addresses[0]))
    net.mesh.run(0.1)
    assert len(net.mesh.sent(ANSWER, a)) - at == handshake.SOURCE_BURST
    c = net.mesh.add("c", "10.10.10.3/24", "fd00::3/64")
    net.mesh.meet(c, a)


def test_a_hello_is_answered_once(net: Network) -> None:
    a, m = net.a, net.m
    hello = m.hello(a.addresses[0])
    at = len(net.mesh.sent(ANSWER, a))
    for i in range(5):
        m.send(a.addresses[0], m.addresses[0], hello[:4] + bytes((i,) * 4) + hello[8:])
        net.mesh.run(1.0)
    assert len(net.mesh.sent(ANSWER, a)) - at == 1
    assert a.drops["hello_replayed"] == 4


def test_sessions_of_one_device_push_out_only_their_own_kind(net: Network) -> None:
    a, b, m = net.a, net.b, net.m
    session = a.session(b)
    for _ in range(12):
        m.begin(a.addresses[0])
        net.mesh.run(0.6)
        check_state(a)
    assert len(a.peer(m).sessions) == 3
    assert a.session(b) is session
    honest_traffic_goes_on(net)


def test_a_crowd_of_made_up_devices_pushes_out_itself(net: Network, monkeypatch: pytest.MonkeyPatch) -> None:
    a, b = net.a, net.b
    monkeypatch.setattr(engine, "MAX_PEERS", 8)
    for i in range(20):
        crowd = HostileMember.joined(net.mesh, f"crowd{i}", f"10.10.10.{100 + i}/24")
        net.mesh.meet(crowd, a)
        honest_traffic_goes_on(net)
    assert a.knows(b)
    assert len(a.mesh.peers) == 8


@pytest.mark.parametrize("kind", [HELLO, ANSWER, FINISH, SEALED])
def test_garbage_under_the_right_header_costs_a_counter(net: Network, kind: bytes) -> None:
    a, m = net.a, net.m
    indices = [*a.context.indices, bytes(4)]
    before = {node: set(node.context.indices) for node in (a, net.b)}
    for size in (0, 1, 28, 32, 68, 1204, 1248, 5000):
        for index in indices:
            for head in (kind + index, kind + bytes(4) + index):
                m.send(a.addresses[0], m.addresses[0], head + m.context.random(size))
    net.mesh.run(0.005 + 0.01)
    # An unknown index is a reason to ask its sender for a session, once.
    assert {node: set(node.context.indices) for node in (a, net.b)} == before or kind == SEALED
    assert a.received == []
    net.mesh.run(1.0)
    honest_traffic_goes_on(net)


def test_a_bye_ends_a_session_of_its_sender(net: Network) -> None:
    a, b, m = net.a, net.b, net.m
    m.seal(a, (record.JSON, Bye().encode()))
    net.mesh.run(0.1)
    assert not a.knows(m)
    assert a.knows(b)
    honest_traffic_goes_on(net)


# -- offload headers


def test_no_offload_header_of_a_peer_reaches_the_device() -> None:
    """In memory; with kernels: tests/netns/test_hostile_kernel.py."""
    net = Net("a", "m")
    a, m = net.stations
    net.meet()
    session = m.peer(a).sessions[-1]
    refused = 0
    for body in hostile_records(m.ip, a.ip).values():
        plaintext = record.pack(record.OFFLOAD, body)
        sealed = session.sealer.seal(plaintext + record.padding(len(plaintext)))
        m.link.send_frame(frame.pack(session.remote, session.local, sealed))
        net.run()
        taken = a.taken()
        refused += not taken
        for each in taken:
            assert each[10:] == body[10:], "the packet is passed on as it is"
            again = bytearray(each)
            offload.sanitize(memoryview(again))
            assert again == each, "under the header that follows from it"
    assert refused > 100
    assert a.drops["bad_offload"] + a.drops["bad_packet"] + a.drops.get("tun_refused", 0) == refused
    net.close()


def test_a_refused_key_takes_no_ip_from_its_owner() -> None:
    """Not even from one that has long been silent, with a relay that lends the owner's address."""
    mesh = MemoryMesh(3)
    a, b, m = mesh.nodes
    mesh.meet(a, b)
    mesh.meet(a, m)
    a.context.trust = Trust(a.context.trust.known, strict=True)
    mesh.run(31.0)
    session = a.session(m)
    assert session is not None
    session.info = replace(session.info, ips=(*session.info.ips, b.ip()))
    a.mesh._new_source(session, b.addresses[0], mesh.now)
    assert "identity_refused" in a.event_names()
    assert b.ip() in a.peer(b).verified
    check_state(a)
