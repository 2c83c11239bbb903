"""The mesh in memory: the same seed gives the same run, and the link does what it is told."""

from __future__ import annotations

from random import Random

import pytest

from shadowmesh.testing.memory import START, Frame, Link, MemoryMesh, by_address, dropping, met, packet
from shadowmesh.wire import ip
from shadowmesh.wire.message import FINISH, HELLO


def shape(frame: Frame) -> tuple[float, str, bytes, bytes, bytes, int]:
    return frame.at, frame.sender.local.name, frame.destination, frame.source, frame.kind, len(frame.message)


def run(seed: int) -> list[tuple[float, str, bytes, bytes, bytes, int]]:
    mesh = MemoryMesh(2, seed=seed, link=Link(loss=0.3, duplicate=0.3, delay=(0.01, 0.5)))
    for _ in range(30):
        mesh.nodes[0].ping(mesh.nodes[1])
        mesh.run(1.0)
    return [shape(frame) for frame in mesh.log]


def test_the_same_seed_gives_the_same_run() -> None:
    assert run(1) == run(1)
    assert run(1) != run(2)


def test_links_lose_copy_and_delay() -> None:
    random = Random(0)
    assert Link(delay=(0.5, 0.5)).delays(random) == [0.5]
    assert Link(loss=1.0).delays(random) == []
    copies = Link(duplicate=1.0, delay=(0.1, 0.2)).delays(random)
    assert len(copies) == 2
    assert all(0.1 <= delay <= 0.2 for delay in copies)


def test_dropping_loses_so_many_of_one_kind_from_one_node() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    forward = dropping(HELLO, a, times=2)
    frames = [Frame(START, node, b"", b"", kind) for node, kind in ((a, HELLO), (b, HELLO), (a, FINISH))] * 3
    assert [len(list(forward(frame))) for frame in frames] == [0, 1, 1, 0, 1, 1, 1, 1, 1]


def test_time_stands_still_but_for_run() -> None:
    mesh = MemoryMesh(2)
    mesh.nodes[0].ping(mesh.nodes[1])
    assert mesh.now == START
    mesh.run_until(lambda: mesh.nodes[0].confirmed(mesh.nodes[1]), within=1.0)
    assert mesh.now == pytest.approx(START + 0.04)
    with pytest.raises(AssertionError):
        mesh.run_until(lambda: False, within=1.0)


def test_nodes_that_have_met_know_each_other() -> None:
    _, a, b = met()
    assert a.session(b).remote == b.addresses[0]
    assert b.confirmed(a)
    b.restart()
    assert not b.knows(a)
    assert {one.addresses[0] < other.addresses[0] for one, other in (by_address(a, b), by_address(b, a))} == {
        True
    }


@pytest.mark.parametrize("size", [4, 16])
def test_packets_are_whole(size: int) -> None:
    whole = packet(b"s" * size, b"d" * size, b"payload")
    assert ip.flow_key(whole, 0, len(whole)) == b"s" * size + b"d" * size
