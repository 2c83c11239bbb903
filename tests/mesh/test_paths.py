"""Several relays: which of them two peers use, and when they change it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from shadowmesh.mesh.paths import BAR, MAX_BAR, MAX_PATHS, SUSPECT_AFTER
from shadowmesh.testing.hostile import check_state
from shadowmesh.testing.memory import Frame, Link, MemoryMesh, Node, Relay
from shadowmesh.wire import record
from shadowmesh.wire.message import ANSWER, FINISH, HELLO, SEALED
from shadowmesh.wire.record import Conflict

FAR, NEAR = 0.05, 0.01  # seconds from one device to the other


class World:
    """Devices a and b, each on some of several relays, that send each other a packet every 50 ms."""

    def __init__(
        self,
        *delays: float,
        a: Sequence[int] | None = None,
        b: Sequence[int] | None = None,
        seed: int = 0,
        traffic: bool = True,
    ) -> None:
        self.mesh = MemoryMesh(0, seed=seed)
        self.relays = [Relay(link=Link(delay=(delay, delay))) for delay in delays]
        self.a = self._add("a", 1, a)
        self.b = self._add("b", 2, b)
        self.sent: dict[bytes, float] = {}
        self.traffic = traffic
        self._send()

    def _add(self, name: str, number: int, relays: Sequence[int] | None) -> Node:
        chosen = [self.relays[i] for i in (range(len(self.relays)) if relays is None else relays)]
        return self.mesh.add(name, f"10.10.10.{number}/24", relays=chosen)

    def _send(self) -> None:
        if self.traffic:
            for one, other in ((self.a, self.b), (self.b, self.a)):
                payload = f"{one} {len(self.sent)}".encode()
                self.sent[payload] = self.mesh.now
                one.ping(other, payload)
        self.mesh.at(self.mesh.now + 0.05, self._send)

    @property
    def leader(self) -> Node:
        """The one that chooses by round trips."""
        return min(self.a, self.b, key=lambda node: node.device.static_public)

    @property
    def follower(self) -> Node:
        return max(self.a, self.b, key=lambda node: node.device.static_public)

    def via(self, node: Node) -> int:
        """The number of the relay that a node uses."""
        via = node.peer(self.b if node is self.a else self.a).via
        return self.relays.index(via)  # type: ignore[arg-type]

    @property
    def vias(self) -> tuple[int, int]:
        return self.via(self.a), self.via(self.b)

    @property
    def changes(self) -> int:
        return self.a.mesh.paths.changes + self.b.mesh.paths.changes

    def settle(self, seconds: float = 20.0) -> None:
        self.mesh.run(seconds)
        for node in (self.a, self.b):
            check_state(node)

    def outage(self, seconds: float = 20.0) -> float:
        """Let time pass; the longest time in which of the packets sent all were lost, in either direction."""
        since = self.mesh.now
        self.mesh.run(seconds)
        longest = 0.0
        for node in (self.a, self.b):
            lost_since: float | None = None
            came = set(node.payloads)
            mine = [(p, at) for p, at in self.sent.items() if not p.startswith(f"{node}".encode())]
            for payload, at in mine:
                if not since <= at < self.mesh.now - 0.5:
                    continue
                if payload in came:
                    lost_since = None
                else:
                    lost_since = at if lost_since is None else lost_since
                    longest = max(longest, at - lost_since + 0.05)
            check_state(node)
        return longest

    def handshakes(self) -> int:
        return self.a.peer(self.b).handshakes


# -- choice


@pytest.mark.parametrize("delays", [(FAR, NEAR), (NEAR, FAR), (FAR, NEAR, FAR), (0.02, FAR, NEAR, 0.03)])
def test_the_nearest_relay_is_used_by_both(delays: tuple[float, ...]) -> None:
    world = World(*delays)
    world.settle()
    nearest = delays.index(NEAR)
    assert world.vias == (nearest, nearest)
    assert world.a.peer(world.b).rtt == pytest.approx(2 * NEAR)
    assert len(set(world.a.payloads)) == len(world.a.payloads), "hellos on all relays deliver nothing twice"


@pytest.mark.parametrize(
    ("a", "b", "common"), [((0,), (0, 1), 0), ((0, 1), (1, 2), 1), ((2, 1, 0), (2,), 2), ((1,), (1,), 1)]
)
def test_relay_lists_that_overlap(a: Sequence[int], b: Sequence[int], common: int) -> None:
    world = World(NEAR, FAR, 0.02, a=a, b=b)
    world.settle()
    assert world.vias == (common, common)
    world.settle(200.0)
    assert world.vias == (common, common)
    assert world.outage() == 0.0
    assert world.changes == 0


def test_relay_lists_that_do_not_overlap() -> None:
    world = World(NEAR, FAR, a=[0], b=[1])
    world.settle()
    assert not world.a.knows(world.b)
    assert world.a.ping(world.b) == "held", "its only relay has said so"
    assert world.a.unreachable_packets


def test_what_is_held_back_needs_the_word_of_all_relays() -> None:
    world = World(NEAR, FAR)
    world.settle()
    world.traffic = False
    (address,) = world.b.mesh._own_ips and [world.b.addresses[0]]
    world.a.mesh.gone(address, world.mesh.now, world.relays[0])
    assert world.a.ping(world.b) == "sent"
    world.a.mesh.gone(address, world.mesh.now, world.relays[1])
    assert world.a.ping(world.b) == "held"


def test_a_little_nearer_is_not_enough() -> None:
    world = World(0.010, 0.012)
    world.settle(100.0)
    before, changes = world.vias, world.changes
    for i in range(20):  # the one is nearer, then the other, by 4 ms of a round trip
        world.relays[i % 2].link = Link(delay=(0.010, 0.010))
        world.relays[1 - i % 2].link = Link(delay=(0.012, 0.012))
        world.mesh.run(70.0)
    assert world.vias == before
    assert world.changes == changes


def test_much_nearer_must_be_so_twice() -> None:
    world = World(NEAR, FAR)
    world.settle(100.0)
    assert world.vias == (0, 0)
    changes = world.changes
    rounds = [frame.at for frame in world.mesh.sent(SEALED, world.leader) if frame.via is world.relays[1]]
    world.relays[0].link = Link(delay=(0.2, 0.2))
    world.mesh.run_until(lambda: world.via(world.leader) == 1, 160.0)
    later = [frame.at for frame in world.mesh.sent(SEALED, world.leader) if frame.via is world.relays[1]][
        len(rounds) :
    ]
    assert later[-1] - later[0] >= 48.0
    world.mesh.run(2.0)
    assert world.vias == (1, 1)
    assert world.changes == changes + 2


def test_a_path_that_is_slow_by_its_own_load_is_kept() -> None:
    """Its queue would go with the traffic to the other path, and so on for ever."""
    world = World(NEAR, 0.02)
    world.settle(100.0)
    world.traffic = False
    changes = world.changes

    def bulk() -> None:
        world.a.ping(world.b, bytes(30_000))
        world.b.ping(world.a, bytes(30_000))
        for number, relay in enumerate(world.relays):
            loaded = number == world.via(world.a)
            delay = (NEAR, 0.02)[number] + (0.1 if loaded else 0.0)
            relay.link = Link(delay=(delay, delay))
        world.mesh.at(world.mesh.now + 0.2, bulk)

    bulk()
    world.mesh.run(600.0)
    assert world.changes == changes


# -- loss


def lose(world: World, at: int, *nodes: Node, noticed: bool = True) -> None:
    for node in nodes:
        node.leave(world.relays[at], noticed=noticed)


def test_a_relay_is_lost_to_both() -> None:
    world = World(NEAR, FAR)
    world.settle()
    handshakes = world.handshakes()
    world.mesh.at(world.mesh.now + 1.0, lambda: lose(world, 0, world.a, world.b))
    assert world.outage() <= 0.1
    assert world.vias == (1, 1)
    assert world.handshakes() == handshakes


@pytest.mark.parametrize("who", ["a", "b"])
@pytest.mark.parametrize("noticed", [True, False], ids=["noticed", "by the relay alone"])
def test_a_relay_is_lost_to_one_side(who: str, noticed: bool) -> None:
    world = World(NEAR, FAR)
    world.settle()
    changes = world.changes
    node = world.a if who == "a" else world.b
    world.mesh.at(world.mesh.now + 1.0, lambda: lose(world, 0, node, noticed=noticed))
    assert world.outage() <= 0.25, "`gone` says it"
    assert world.vias == (1, 1)
    world.settle(150.0)
    assert world.changes == changes + 2
    assert world.outage() == 0.0


@pytest.mark.parametrize("who", ["a", "b", "ab"])
def test_a_black_hole(who: str) -> None:
    """Nobody says anything; the link itself notices after three seconds, the sessions before that."""
    world = World(NEAR, FAR)
    world.settle()
    changes = world.changes
    cut = {world.a if name == "a" else world.b for name in who}
    world.mesh.at(world.mesh.now + 1.0, lambda: world.relays[0].cut.update(cut))
    assert world.outage() <= SUSPECT_AFTER + 1.5
    assert world.vias == (1, 1)
    world.settle(30.0)
    assert world.changes == changes + 2


def test_a_black_hole_while_one_side_only_sends() -> None:
    world = World(NEAR, FAR)
    world.settle()
    world.traffic = False
    world.mesh.run(1.0)
    world.relays[0].cut.add(world.b)
    came = len(world.b.received)
    for _ in range(100):
        world.a.ping(world.b)
        world.mesh.run(0.05)
    assert len(world.b.received) - came >= 50
    assert world.via(world.a) == 1


def test_all_relays_are_lost_and_come_back() -> None:
    world = World(NEAR, FAR)
    world.settle()
    handshakes = world.handshakes()
    for i in (0, 1):
        lose(world, i, world.a)
    world.mesh.run(5.0)
    world.a.join(world.relays[1])
    world.a.join(world.relays[0])
    world.mesh.run(1.0)
    assert world.outage() == 0.0
    assert world.handshakes() == handshakes
    world.mesh.run(2.5 * BAR)
    assert world.vias == (0, 0)


def test_the_peer_leaves_all_relays_and_comes_back_by_another() -> None:
    world = World(NEAR, FAR)
    world.settle()
    for i in (0, 1):
        lose(world, i, world.b)
    world.mesh.run(10.0)
    assert world.a.ping(world.b) == "held"
    world.b.boot()
    world.b.join(world.relays[1])
    world.mesh.run(4.0)
    assert world.vias == (1, 1)
    assert world.outage() == 0.0


def test_a_relay_that_drains_is_left_before_it_closes() -> None:
    world = World(NEAR, FAR)
    world.settle()
    for node in (world.a, world.b):  # `drain` came: it drops what is sent, and has not closed yet
        node.mesh.lost(world.relays[0], world.mesh.now)
    world.relays[0].forward = lambda frame: ()
    assert world.outage() == 0.0
    assert world.vias == (1, 1)


@pytest.mark.parametrize("period", [1.0, 7.0, 45.0])
@pytest.mark.parametrize("who", ["leader", "follower", "both"])
def test_a_flapping_relay_does_not_make_paths_flap(period: float, who: str) -> None:
    world = World(NEAR, FAR)
    world.settle()
    nodes = [world.a, world.b] if who == "both" else [getattr(world, who)]
    changes = world.changes
    for _ in range(int(600 / period)):
        lose(world, 0, *nodes)
        world.mesh.run(period / 2)
        for node in nodes:
            node.join(world.relays[0])
        world.mesh.run(period / 2)
    assert world.changes - changes <= 2 * 2 * 5, "in 10 minutes: the bar doubles from 60 s on"
    assert world.outage(60.0) <= 0.1
    assert BAR < MAX_BAR


# -- a hostile relay


def test_a_slow_relay_is_left_and_its_late_messages_change_nothing() -> None:
    world = World(NEAR, FAR)
    world.settle()
    kept: list[Frame] = []

    def keep(frame: Frame) -> list[Frame]:
        kept.append(frame)
        return []

    world.relays[0].forward = keep
    world.mesh.run(10.0)
    assert world.vias == (1, 1)
    changes = world.changes
    for frame in kept:
        world.mesh.hand_over(frame)
        assert world.vias == (1, 1)
    world.mesh.run(10.0)
    assert world.changes == changes


def test_the_newest_message_of_an_older_session_changes_no_path() -> None:
    world = World(NEAR, FAR)
    world.settle(118.0)
    kept: list[Frame] = []
    world.relays[0].forward = lambda frame: kept.append(frame) or []  # type: ignore[func-returns-value]
    world.mesh.run(10.0)
    assert world.handshakes() == 2
    assert world.vias == (1, 1)
    changes = world.changes
    for frame in kept[-3:]:
        world.mesh.hand_over(frame)
    assert world.vias == (1, 1)
    assert world.changes == changes


def test_replays_change_no_path() -> None:
    world = World(NEAR, FAR)
    world.settle()
    seen = [frame for frame in world.mesh.log if -15.0 < frame.at - world.mesh.now < -0.1]
    for frame in seen:
        world.mesh.hand_over(frame._replace(via=world.relays[1], sender=frame.sender))
        assert world.vias == (0, 0)
    world.mesh.run(5.0)
    assert world.vias == (0, 0)


def test_forgeries_change_no_path() -> None:
    world = World(NEAR, FAR)
    world.settle()
    changes = world.changes
    for frame in [frame for frame in world.mesh.log if frame.kind == SEALED][-50:]:
        counter = (2**40).to_bytes(8, "little")
        for forged in (
            frame.message[:8] + counter + frame.message[16:],
            frame.message[:-1] + bytes((frame.message[-1] ^ 1,)),
        ):
            world.mesh.hand_over(frame._replace(message=forged, via=world.relays[1]))
    assert world.changes == changes
    assert world.vias == (0, 0)


def test_forged_gone_only_drives_traffic_away_from_the_liar() -> None:
    world = World(NEAR, FAR)
    world.settle()
    for _ in range(100):
        for node, other in ((world.a, world.b), (world.b, world.a)):
            for address in other.addresses:
                node.mesh.gone(address, world.mesh.now, world.relays[0])
        assert world.outage(0.3) <= 0.15
    assert world.vias == (1, 1)
    assert world.a.drops["held_back"] == 0


def test_a_relay_that_carries_probes_and_swallows_packets() -> None:
    """It is found out after 15 s, and from then on the last choice for longer each time."""
    world = World(NEAR, FAR)
    world.settle()
    probes = 100  # bytes; packets here are longer
    world.traffic = False
    world.relays[0].forward = lambda frame: [frame] if len(frame.message) < probes else []
    lost = 0
    for _ in range(900):
        before = len(world.b.received)
        world.a.ping(world.b, bytes(200))
        world.mesh.run(1.0)
        lost += len(world.b.received) == before
    assert lost <= 5 * 15


def test_hellos_go_by_all_relays_and_so_do_answers() -> None:
    world = World(NEAR, FAR, 0.03, 0.04, traffic=False)
    world.a.ping(world.b, b"first")
    world.mesh.run(1.0)
    assert len(world.mesh.sent(HELLO, world.a)) == 4
    assert len(world.mesh.sent(ANSWER, world.b)) >= 2
    assert len(world.mesh.sent(FINISH, world.a)) == 1
    assert world.b.payloads == [b"first"]
    assert world.vias == (0, 0)


# -- two devices with one IP


@pytest.mark.parametrize("first", [0, 1])
def test_two_devices_with_one_ip_on_different_relays_are_both_told(first: int) -> None:
    """No relay sees both; whoever talks to both does, and says so."""
    mesh = MemoryMesh(0)
    relays = [Relay(), Relay()]
    a = mesh.add("a", "10.10.10.1/24", relays=[relays[0]])
    twin = mesh.add("d", "10.10.10.1/24", relays=[relays[1]])
    c = mesh.add("c", "10.10.10.3/24", relays=relays)
    one, other = (a, twin) if first == 0 else (twin, a)
    one.ping(c)
    mesh.run(1.0)
    other.ping(c)
    mesh.run(1.0)
    assert c.event_names().count("address_conflict") == 1
    for node in (a, twin):
        told = [facts for name, facts in node.events if name == "address_reported"]
        assert [facts["ip"] for facts in told] == [a.ip()]
    one.received.clear()
    c.ping(one, b"to the first")
    mesh.run(1.0)
    assert one.payloads == [b"to the first"]
    assert not other.received


def test_a_conflict_about_somebody_elses_ip_is_nobodys_business() -> None:
    world = World(NEAR)
    world.settle()
    world.b.seal(world.a, (record.JSON, Conflict(bytes((10, 10, 10, 77))).encode()))
    world.mesh.run(1.0)
    assert "address_reported" not in world.a.event_names()
    world.b.seal(world.a, (record.JSON, b'{"type":"conflict","ip":"fe80::1%eth0"}'))
    world.mesh.run(1.0)
    assert world.a.drops["bad_records"] == 1


def test_paths_by_links_that_are_gone_for_good_are_forgotten() -> None:
    world = World(NEAR, NEAR)
    world.mesh.run(1.0)
    a = world.a
    (peer,) = a.mesh.peers.values()
    for number in range(100):
        a.mesh.joined(world.mesh.now, via=f"link {number}")
        a.mesh.lost(f"link {number}", world.mesh.now)
    assert len(peer.paths) <= MAX_PATHS
    assert set(world.relays) <= peer.paths.keys()
