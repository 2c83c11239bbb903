"""What the load generator's peers send. That they join is seen in tests/netns/test_bench.py."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import closing

import pytest

from bench.load import FIRST_BYTE
from bench.peers import CONGESTION, Crowd, Peer, Proxied
from shadowmesh.testing.program import LabError
from shadowmesh.testing.websocket import BINARY, TEXT, frame
from shadowmesh.wire.frame import pack


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening


@pytest.fixture
def crowd(listener: socket.socket) -> Iterator[Crowd]:
    """Four peers that believe they have joined."""
    with closing(Crowd(listener.getsockname())) as made:
        made._peers = [Peer(number, listener.getsockname()) for number in range(4)]
        yield made


@pytest.mark.parametrize(("size", "frames"), [(64, 32), (1434, 8), (16384, 2), (65536, 1)])
def test_a_burst_is_data_frames_from_one_peer_to_the_next(size: int, frames: int, crowd: Crowd) -> None:
    second = crowd.bursts(2, size, frames, "kind")[1]
    peers = crowd._peers
    data = pack(peers[3].address, peers[2].address, bytes(size))
    assert b"".join(second.parts) == frame(BINARY, data) * frames
    assert second.arrives == frames * len(frame(BINARY, data, masked=False))
    assert (second.kind, second.frames, second.payload) == ("kind", frames, frames * size)
    assert frame(BINARY, data, masked=False)[0] == FIRST_BYTE
    assert crowd.flows(2)[1].sender is peers[2].socket
    assert crowd.flows(2)[1].receiver is peers[3].socket


def test_large_payloads_are_in_memory_once(crowd: Crowd) -> None:
    first, second = crowd.bursts(2, 65536, 1)
    assert first.parts[0] != second.parts[0]
    assert first.parts[1] is second.parts[1]


def test_a_refusal_is_told_in_the_relays_words(crowd: Crowd, listener: socket.socket) -> None:
    peer = crowd._peers[0]
    with closing(listener.accept()[0]) as relay:
        relay.sendall(b"HTTP/1.1 503 Full\r\n\r\n")
        with pytest.raises(LabError, match="503 Full"):
            peer.answer()
        relay.sendall(b"HTTP/1.1 101 Yes\r\n\r\n" + frame(TEXT, b"no JSON", masked=False))
        with pytest.raises(LabError, match="no JSON"):
            peer.answer()
        relay.shutdown(socket.SHUT_WR)
        with pytest.raises(LabError, match="ended the connection of bench 0"):
            peer.joined()


def test_through_a_proxy_the_payload_alone_is_sent(listener: socket.socket) -> None:
    """There is no proxy here: connections come straight to the listening socket."""
    where = listener.getsockname()
    listener.close()
    with closing(Proxied(where, where)) as ends:
        ends.grow(6)
        assert len(ends.sockets) == 6
        first = ends.bursts(2, 1434, 8)[0]
        assert first.size == first.arrives == first.payload == 8 * 1434
        assert first.parts[0][0] == FIRST_BYTE
        flow = ends.flows(3)[2]
        flow.sender.sendall(b"x")
        assert flow.receiver.recv(2) == b"x"
        for end in ends.sockets:
            name = end.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16)
            assert name.rstrip(b"\0").decode() == CONGESTION
