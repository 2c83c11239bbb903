"""Packets that wait for a handshake: how long, how many, and how they go out at its end."""

from __future__ import annotations

import pytest

from shadowmesh.mesh import handshake
from shadowmesh.testing.memory import MemoryMesh, Node, packet
from shadowmesh.wire import record
from shadowmesh.wire.message import FINISH, FINISH_OVERHEAD, SEALED


def two() -> tuple[MemoryMesh, Node, Node]:
    mesh = MemoryMesh(2)
    return mesh, mesh.nodes[0], mesh.nodes[1]


def test_packets_wait_2_s_at_most_and_are_then_told_of() -> None:
    mesh, a, b = two()
    mesh.relay.forward = lambda frame: ()
    a.ping(b, b"first")
    mesh.run(1.5)
    a.ping(b, b"second")
    mesh.run(0.4)
    assert not a.unreachable_packets
    mesh.run(0.2)
    assert [body[20:] for body in a.unreachable_packets] == [b"first"]
    mesh.run(2.0)
    assert [body[20:] for body in a.unreachable_packets] == [b"first", b"second"]
    assert a.drops["no_answer"] == 2


def test_256_kib_wait_at_most_the_oldest_make_room() -> None:
    mesh, a, b = two()
    mesh.relay.forward = lambda frame: ()
    for i in range(300):
        a.ping(b, bytes((i % 256,)) * 1004)
    (waiting,) = a.mesh.handshakes._attempts.values()
    assert waiting.queued == 256 * 1024
    assert a.drops["queue_full"] == len(a.unreachable_packets) == 300 - 256
    assert waiting.queue[0][2][-1] == 300 - 256
    assert len(a.context.timers._heap) == 2, "one for the queue, one for the next hello"


def test_16_mib_wait_in_all_and_what_is_not_kept_is_told_of() -> None:
    mesh, a, _ = two()
    mesh.relay.forward = lambda frame: ()
    body = bytes(65_000)
    for i in range(80):
        for _ in range(4):
            a.emit(packet(a.ip(), bytes((10, 10, 10, 10 + i)), body))
    assert a.mesh.handshakes._queued <= handshake.QUEUE_TOTAL
    assert a.unreachable_packets
    mesh.run(2.0)
    assert len(a.unreachable_packets) == 320
    assert a.mesh.handshakes._queued == 0


def test_what_waits_goes_out_in_order_in_the_finish_and_behind_it() -> None:
    mesh, a, b = two()
    payloads = [bytes((i,)) * 1400 for i in range(40)]
    for payload in payloads:
        a.ping(b, payload)
    mesh.run(1.0)
    assert b.payloads == payloads
    finish = mesh.sent(FINISH, a)[0].message
    assert 16_384 - 1424 < len(finish) - FINISH_OVERHEAD <= 16_384
    assert len([frame for frame in mesh.sent(SEALED, a) if len(frame.message) > 100]) == 1
    assert a.mesh.handshakes._queued == 0


@pytest.mark.parametrize("over", [0, 1, 4])
def test_the_finish_is_filled_up_to_its_last_byte(over: int) -> None:
    mesh, a, b = two()
    room = 16_384 - len(record.pack(record.JSON, a.local.info().encode())) - record.HEADER_SIZE - 20
    a.ping(b, bytes(room + over))
    mesh.run(0.2)
    assert [len(payload) for payload in b.payloads] == [room + over]
    assert (len(mesh.sent(FINISH)[0].message) == FINISH_OVERHEAD + 16_384) is (over == 0)


def test_what_waited_is_sent_in_messages_of_lawful_size() -> None:
    mesh, a, b = two()
    for i in range(180):
        a.ping(b, i.to_bytes(2) * 700)
    mesh.run(1.0)
    assert [int.from_bytes(payload[:2]) for payload in b.payloads] == list(range(180))
    sizes = [len(frame.message) for frame in mesh.sent(SEALED, a) if len(frame.message) > 100]
    assert len(sizes) == 4
    assert max(sizes) <= 65_600 + 32
    assert a.peer(b).messages_out == b.peer(a).messages_in == 1 + 4  # the finish, too
    assert 180 * 1424 <= a.peer(b).bytes_out == b.peer(a).bytes_in < 180 * 1424 + 4 * 20
