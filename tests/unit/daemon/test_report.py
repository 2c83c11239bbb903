"""What /status and /peers say is the truth that the test has made."""

from __future__ import annotations

import itertools
from dataclasses import replace
from ipaddress import ip_network
from typing import Any

import pytest
from openapi_schema_validator import OAS31Validator

from shadowmesh.crypto.keys import fingerprint
from shadowmesh.daemon.openapi import DESCRIPTION
from shadowmesh.testing.memory import Link, MemoryMesh, Node, dropping, packet
from shadowmesh.testing.reports import FakeLink, Reported
from shadowmesh.wire import record
from shadowmesh.wire.message import FINISH, SEALED
from shadowmesh.wire.offload import PLAIN


class Pair:
    """Two nodes in a session, and what the first says."""

    def __init__(self, *links: FakeLink, delay: float = 0.01) -> None:
        self.world = MemoryMesh(2, link=Link(delay=(delay, delay)))
        self.a, self.b = self.world.nodes
        self.reported = Reported(self.world, self.a, *links)
        self.world.meet(self.a, self.b)

    @property
    def status(self) -> dict[str, Any]:
        """GET /status, which is as /openapi.json says."""
        facts = self.reported.report.status()
        schema = {"$ref": "#/components/schemas/Status", "components": DESCRIPTION["components"]}
        OAS31Validator(schema).validate(facts)
        assert {*facts, "next"} == set(DESCRIPTION["components"]["schemas"]["Status"]["properties"])
        return facts

    @property
    def peer(self) -> dict[str, Any]:
        """The other node as the first one sees it."""
        (peer,) = self.reported.report.peers()
        assert set(peer) == set(DESCRIPTION["components"]["schemas"]["Peer"]["properties"])
        return dict(peer)

    @property
    def relay(self) -> dict[str, Any]:
        """The first relay."""
        relay = self.status["relay"]
        assert set(relay) == set(DESCRIPTION["components"]["schemas"]["Relay"]["properties"])
        return dict(relay)


def test_the_device_itself() -> None:
    pair = Pair()
    pair.reported.traffic.packets_in, pair.reported.traffic.packets_out = 5, 7
    pair.world.run(10.0)
    facts = pair.status
    assert (facts["status"], facts["reason"], facts["diagnosis"]) == ("connected", "", [])
    assert (facts["name"], facts["ips"]) == ("a", ["10.10.10.1/24", "fd00::1/64"])
    assert (facts["device"], facts["mtu"], facts["offload"]) == ("shadowmesh0", 1400, ["tso4", "tso6"])
    assert facts["fingerprint"] == fingerprint(pair.a.device.static_public)
    assert facts["network"] == pair.world.network.network_id.hex()
    assert facts["uptime"] == pytest.approx(10.2)
    assert (facts["packets_in"], facts["packets_out"]) == (5, 7)
    assert facts["events"] == {"session": 1, "identity_new": 2}
    assert facts["drops"] == dict(pair.a.drops)
    assert facts["handshakes"] == 1


def test_no_secret_is_said() -> None:
    pair = Pair()
    text = repr(pair.status)
    for secret in (bytes(range(32)), pair.a.seed, pair.world.network.peer_psk):
        assert secret.hex() not in text
        assert repr(secret) not in text


def test_who_a_peer_is() -> None:
    pair = Pair()
    pair.world.run(5.0)
    peer = pair.peer
    assert (peer["name"], peer["ips"]) == ("b", ["10.10.10.2", "fd00::2"])
    assert peer["fingerprint"] == fingerprint(pair.b.device.static_public)
    assert (peer["identity"], peer["connected"], peer["path"]) == ("known", True, "relay-a")
    assert (peer["agent"], peer["mtu"], peer["routes"]) == ("shadowmesh/test", 1400, [])
    assert peer["last_handshake"] == pytest.approx(5.2, abs=0.1)


def test_bytes_are_those_of_the_tunnel() -> None:
    pair = Pair()
    before = pair.peer
    size = record.padded_size(record.HEADER_SIZE + len(packet(pair.a.ip(), pair.b.ip(), b"x" * 1000)))
    for _ in range(5):
        pair.a.ping(pair.b, b"x" * 1000)
    for _ in range(3):
        pair.b.ping(pair.a, b"x" * 1000)
    pair.world.run(0.1)
    peer = pair.peer
    assert (peer["bytes_out"] - before["bytes_out"], peer["bytes_in"] - before["bytes_in"]) == (
        5 * size,
        3 * size,
    )
    assert peer["messages_out"] - before["messages_out"] == 5
    assert peer["messages_in"] - before["messages_in"] == 3


def test_loss_is_of_the_messages_that_did_not_come() -> None:
    pair = Pair()
    sealed = pair.b.session(pair.a).sealer
    while sealed.counter < 20:
        pair.b.ping(pair.a)
    pair.world.run(0.1)
    assert pair.peer["loss_percent"] == 0.0
    pair.world.relay.forward = dropping(SEALED, pair.b, times=10)
    while sealed.counter < 99:
        pair.b.ping(pair.a)
    pair.world.run(0.1)
    assert sealed.counter == 99
    pair.b.ping(pair.a)
    pair.world.run(0.1)
    assert pair.peer["loss_percent"] == 10.0
    # What we send and the other side does not get is not ours to know.
    pair.world.relay.forward = dropping(SEALED, pair.a, times=10)
    for _ in range(20):
        pair.a.ping(pair.b)
    pair.world.run(0.1)
    assert pair.peer["loss_percent"] == 10.0


def test_a_message_that_comes_late_was_not_lost() -> None:
    pair = Pair()
    pair.world.link = Link(delay=(0.01, 0.2))
    for _ in range(200):
        pair.b.ping(pair.a)
    pair.world.run(0.1)
    assert pair.peer["loss_percent"] > 0
    pair.world.run(0.2)
    assert pair.peer["loss_percent"] == 0.0


def test_rekeys_and_the_last_handshake() -> None:
    pair = Pair()
    for _ in range(28):
        pair.a.ping(pair.b)
        pair.world.run(10.0)
    finishes = {frame.message for frame in pair.world.sent(FINISH)}
    peer = pair.peer
    assert (peer["handshakes"], peer["rekeys"]) == (len(finishes), 2)
    last = max(frame.at for frame in pair.world.sent(FINISH))
    assert peer["last_handshake"] == pytest.approx(pair.world.now - last, abs=0.1)
    assert peer["heard"] < 11.0


def test_offload_is_seen_when_it_is_used() -> None:
    pair = Pair()
    assert pair.peer["offload"] is False
    pair.b.seal(pair.a, (record.OFFLOAD, PLAIN + packet(pair.b.ip(), pair.a.ip())))
    pair.world.run(0.1)
    assert pair.peer["offload"] is True


def test_a_slow_path() -> None:
    pair = Pair(delay=0.04)
    assert pair.peer["rtt_ms"] is None
    pair.a.ping(pair.b)
    pair.reported.pinger.look()
    pair.world.run(0.2)
    assert pair.peer["rtt_ms"] == 80.0


def test_a_peer_that_was_killed() -> None:
    pair = Pair()
    pair.b.disconnect()
    pair.a.ping(pair.b)
    pair.world.run(0.1)
    peer = pair.peer
    assert peer["connected"] is False
    bytes_out = peer["bytes_out"]
    pair.world.run(200.0)
    facts = pair.status
    assert facts["peers"] == []
    assert facts["events"]["peer_gone"] == 1
    # What was counted for it stays counted.
    assert pair.reported.report.totals().bytes_out == bytes_out
    assert pair.reported.report.totals().handshakes == 1


def test_another_key_for_an_ip_is_a_changed_identity_until_it_is_trusted() -> None:
    pair = Pair()
    pair.b.mesh.bye()
    pair.b.disconnect()
    pair.world.run(40.0)
    pair.world.nodes.remove(pair.b)
    other = pair.world.add("b", "10.10.10.2/24", seed=bytes(32))
    pair.world.meet(pair.a, other)
    assert pair.peer["identity"] == "changed"
    (found,) = pair.status["diagnosis"]
    assert found["code"] == "identity_changed"
    assert fingerprint(other.device.static_public) in found["text"]
    pair.reported.report.trusted(other.ip())
    assert pair.peer["identity"] == "known"


def test_refused_identities_are_listed() -> None:
    pair = Pair()
    pair.reported.event("identity_refused", ip=pair.b.ip(), static=bytes(32))
    pair.world.run(3.0)
    assert pair.status["identities_refused"] == {
        "10.10.10.2": {"fingerprint": fingerprint(bytes(32)), "seconds_ago": 3.0}
    }
    assert "shadowmesh trust 10.10.10.2" in pair.status["diagnosis"][0]["text"]


def test_the_relay() -> None:
    link = FakeLink()
    pair = Pair(link)
    link.rtt, link.connects, link.dropped = 0.0123, 4, 9
    link.since = pair.world.now - 60
    relay = pair.relay
    assert (relay["server"], relay["name"], relay["region"]) == (link.url, "relay-a", "eu-west-2")
    assert (relay["state"], relay["seconds"], relay["rtt_ms"]) == ("connected", 60.0, 12.3)
    assert (relay["connects"], relay["reconnects"], relay["dropped"]) == (4, 3, 9)
    assert relay["remote"] == "192.0.2.1:1234"
    assert (relay["refused"], relay["history"]) == ({}, [])


def test_refused_addresses_have_their_names() -> None:
    link = FakeLink()
    pair = Pair(link)
    first, *_, name = pair.a.addresses
    link.refused = {first: "address_in_use", name: "address_in_use"}
    assert pair.relay["refused"] == {"10.10.10.1": "address_in_use", "a": "address_in_use"}
    assert pair.status["reason"] == "the relay gives to another device: 10.10.10.1, a"


def test_why_the_relay_was_lost() -> None:
    link = FakeLink()
    pair = Pair(link)
    for number in range(12):
        pair.reported.event("relay_lost", relay=link.url, code=1012, reason=f"the relay restarts {number}")
        pair.world.run(10.0)
    pair.reported.event("relay_unreachable", relay=link.url, reason="x refuses connections: is it there?")
    pair.world.run(1.0)
    history = pair.relay["history"]
    assert len(history) == 10
    assert (history[0]["event"], history[0]["kind"], history[0]["seconds_ago"]) == (
        *("unreachable", "refused"),
        1.0,
    )
    assert [each["reason"] for each in history[1:3]] == ["the relay restarts 11", "the relay restarts 10"]
    assert history[1]["seconds_ago"] == 11.0
    assert history[0]["time"].endswith("Z")
    assert sum(pair.reported.report.losses.values()) == 12


def test_of_several_relays_the_best_counts() -> None:
    links = FakeLink("relay-a"), FakeLink("relay-b")
    pair = Pair(*links)
    links[0].lose("the connection was lost")
    facts = pair.status
    assert (facts["status"], facts["reason"]) == ("connected", "")
    assert [relay["state"] for relay in facts["relays"]] == ["waiting", "connected"]
    assert facts["relay"] == facts["relays"][0]
    links[1].lose("the relay restarts")
    assert (pair.status["status"], pair.status["reason"]) == ("waiting", "the connection was lost")


def test_the_path_is_the_relay_that_the_peer_is_reached_by() -> None:
    links = FakeLink("relay-a"), FakeLink("relay-b")
    pair = Pair(*links)
    peer = pair.a.peer(pair.b)
    for link in links:
        peer.via = link
        assert pair.peer["path"] == link.relay.server_name if link.relay else ""
    links[1].relay = links[0].relay  # as of two relays that nobody has named
    assert pair.peer["path"] == "relay-a (relay-b.example:9545)"
    links[1].relay = None
    assert pair.peer["path"] == links[1].url


def test_a_relay_that_stands_by_is_no_trouble() -> None:
    links = FakeLink("relay-a"), FakeLink("relay-b")
    pair = Pair(*links)
    links[0].state, links[0].reason = "standby", "the same relay as ws://relay-b, which is used"
    facts = pair.status
    assert (facts["status"], facts["reason"], facts["diagnosis"]) == ("connected", "", [])
    links[1].lose("the connection was lost")
    assert pair.status["reason"] == "the connection was lost"


def test_a_clash_that_a_peer_reports_is_told() -> None:
    pair = Pair()
    pair.reported.event("address_reported", ip=pair.a.ip(), peer=pair.a.peer(pair.b))
    assert [each["code"] for each in pair.status["diagnosis"]] == ["duplicate_local_ip"]


def test_the_network_of_the_next_key_is_shown() -> None:
    pair = Pair()
    other = MemoryMesh(1).nodes[0]
    report = pair.reported.report
    report.use([pair.a.context, other.context], pair.a.mesh, report.links)
    assert pair.status["next"] == {
        "network": other.world.network.network_id.hex(),
        "fingerprint": fingerprint(other.device.static_public),
    }


def test_down() -> None:
    pair = Pair()
    pair.reported.report.down = True
    assert (pair.status["status"], pair.relay["state"]) == ("down", "down")
    assert pair.reported.report.health()["status"] == "down"
    assert [each["code"] for each in pair.status["diagnosis"]] == ["down"]


def test_memory_has_bounds() -> None:
    pair = Pair()
    for number in range(1000):
        ip = bytes((10, 10, number // 256, number % 256))
        pair.reported.event("identity_refused", ip=ip, static=bytes(32))
        pair.reported.event("address_conflict", ip=ip)
        pair.reported.event("address_contested", address=ip * 4)
    facts = pair.status
    assert all(len(facts[name]) <= 64 for name in ("identities_refused", "conflicts", "contested"))


def test_a_route_that_its_peer_does_not_offer() -> None:
    pair = Pair()
    a, b = pair.a, pair.b

    def told() -> list[str]:
        return [each["code"] for each in pair.reported.report.diagnosis()]

    lan = ip_network("192.168.7.0/24")
    a.mesh.use(replace(a.context.local, routes=((lan, b.ip()),)))
    assert told() == ["route_not_offered"]
    offering = replace(b.context.local, advertise=(lan,), seq=b.context.local.seq + 1)
    b.mesh.use(offering)
    pair.world.run(0.1)
    assert told() == []
    b.mesh.use(replace(offering, advertise=(), seq=offering.seq + 1))
    pair.world.run(0.1)
    assert told() == ["route_not_offered"]
    b.mesh.bye()
    pair.world.run(0.1)
    assert told() == []


def test_counters_never_fall() -> None:
    """Also when peers go and come: Prometheus would take it for a restart."""
    pair = Pair()
    seen: list[tuple[int, ...]] = []

    def look(node: Node) -> None:
        node.ping(pair.b if node is pair.a else pair.a, b"x" * 50)
        pair.world.run(0.3)
        seen.append(tuple(pair.reported.report.totals()))

    for _ in range(3):
        look(pair.a)
        look(pair.b)
        pair.b.mesh.bye()
        pair.world.run(1.0)
        seen.append(tuple(pair.reported.report.totals()))
    for before, after in itertools.pairwise(seen):
        assert all(a <= b for a, b in zip(before, after, strict=True))


def test_a_name_with_several_addresses() -> None:
    """Each connection has its address and its own history; what came before there were several, all have."""
    links = FakeLink("relay"), FakeLink("relay")
    pair = Pair(*links)
    for link, address in zip(links, ("192.0.2.1", "192.0.2.2"), strict=True):
        link.pinned = link.address = address
    lost = {"relay": links[0].url, "code": None, "reason": "the connection was lost"}
    pair.reported.event("relay_lost", ip=None, **lost)
    pair.reported.event("relay_lost", ip="192.0.2.2", **lost)
    relays = pair.status["relays"]
    assert [relay["address"] for relay in relays] == ["192.0.2.1", "192.0.2.2"]
    assert [len(relay["history"]) for relay in relays] == [1, 2]
    for _ in range(12):  # one that flaps does not push out what is known of the other
        pair.world.run(1.0)
        pair.reported.event("relay_lost", ip="192.0.2.1", **lost)
    assert [len(relay["history"]) for relay in pair.status["relays"]] == [10, 2]
    links[0].pinned = ""
    history = pair.status["relays"][0]["history"]
    assert [each["seconds_ago"] for each in history] == [float(number) for number in range(10)]


def test_what_is_remembered_of_addresses_is_bounded() -> None:
    link = FakeLink()
    pair = Pair(link)
    for number in range(100):
        lost = {"relay": link.url, "code": None, "reason": f"lost {number}"}
        pair.reported.event("relay_lost", ip=f"192.0.2.{number}", **lost)
    assert len(pair.reported.report._history) == 64
    assert [each["reason"] for each in pair.relay["history"]][:2] == ["lost 99", "lost 98"]
