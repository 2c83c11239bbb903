"""Packets that wait for the link: where a congestion mark goes."""

from __future__ import annotations

import pytest

from shadowmesh.daemon.queue import PacketQueue
from shadowmesh.wire import record

_NOT_YET_SUMMED = bytes((1, 0, 0, 0, 0, 0, 20, 0, 16, 0))  # virtio_net_hdr: NEEDS_CSUM, TCP
_ECT_0 = bytes.fromhex("4502 05dc 0000 4000 4006 0000 0a0a0a01 0a0a0a02")


@pytest.mark.parametrize(("kind", "header"), [(record.PACKET, b""), (record.OFFLOAD, _NOT_YET_SUMMED)])
def test_a_packet_is_marked_and_not_the_header_before_it(kind: int, header: bytes) -> None:
    lost: list[str] = []
    queue = PacketQueue(lost.append)
    body = header + _ECT_0 + bytes(1480)
    for _ in range(50):
        queue.push(kind, memoryview(body), 0.0)
    assert queue.pop(0.1) is not None
    found = queue.pop(0.3)
    assert found is not None
    _, _, whole = found
    marked = whole[record.HEADER_SIZE : -record.MOST_PADDING]
    assert lost == []
    assert marked[: len(header)] == header
    assert marked[len(header) + 1] == 0x03
    assert marked[len(header) + 12 :] == body[len(header) + 12 :]
