"""The bound of what has come and was not read, on real sockets."""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from unittest.mock import Mock

import pytest

from shadowmesh.net.receivebuffer import LEAST, MOST, RATE, ReceiveBuffer
from shadowmesh.net.sendbuffer import RECEIVE_LOCK, SEND_LOCK, unlock

_BUF_LOCK = 72  # SO_BUF_LOCK


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Both ends of a TCP connection."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
        with ours, theirs:
            yield ours, theirs


def size(connection: socket.socket) -> int:
    """The kernel counts its own bookkeeping, too, and doubles what it is told."""
    return connection.getsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF) // 2


def slow(connection: socket.socket, round_trip: float) -> Mock:
    """The same socket, as one with this round trip."""
    info = bytes(148) + struct.pack("=I", int(round_trip * 1e6))

    def option(level: int, name: int, *length: int) -> object:
        return info if name == socket.TCP_INFO and length else connection.getsockopt(level, name)

    return Mock(getsockopt=option, setsockopt=connection.setsockopt)


def test_on_a_short_way_it_is_small(pair: tuple[socket.socket, socket.socket]) -> None:
    ReceiveBuffer(pair[0]).look()
    assert size(pair[0]) == LEAST
    assert pair[0].getsockopt(socket.SOL_SOCKET, _BUF_LOCK) == RECEIVE_LOCK


def test_it_has_room_for_a_round_trip(pair: tuple[socket.socket, socket.socket]) -> None:
    ReceiveBuffer(slow(pair[0], 0.0005)).look()
    assert size(pair[0]) == int(2 * RATE * 0.0005)


def test_a_long_way_is_left_to_the_system(pair: tuple[socket.socket, socket.socket]) -> None:
    before = size(pair[0])
    buffer = ReceiveBuffer(slow(pair[0], MOST / RATE))
    buffer.look()
    assert size(pair[0]) == before
    buffer._connection = slow(pair[0], 0.0)
    buffer.look()
    assert size(pair[0]) == LEAST
    buffer._connection = slow(pair[0], MOST / RATE)
    buffer.look()
    assert not pair[0].getsockopt(socket.SOL_SOCKET, _BUF_LOCK)


def test_a_small_change_of_the_way_changes_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    buffer = ReceiveBuffer(slow(pair[0], 0.0004))
    buffer.look()
    buffer._connection = slow(pair[0], 0.0006)
    buffer.look()
    assert size(pair[0]) == int(2 * RATE * 0.0004)


def test_without_the_right_the_system_may_allow_less(pair: tuple[socket.socket, socket.socket]) -> None:
    connection = slow(pair[0], 0.0)
    forced: list[int] = []

    def option(level: int, name: int, value: int) -> None:
        if name == 33:
            forced.append(value)
            raise PermissionError
        pair[0].setsockopt(level, name, min(value, 100_000) if name == socket.SO_RCVBUF else value)

    connection.setsockopt = option
    ReceiveBuffer(connection).look()
    assert forced == [LEAST]
    assert not pair[0].getsockopt(socket.SOL_SOCKET, _BUF_LOCK)


def test_an_old_kernel_and_a_dead_socket_are_left_alone(pair: tuple[socket.socket, socket.socket]) -> None:
    before = size(pair[0])
    connection = slow(pair[0], 0.0)
    connection.setsockopt = Mock(side_effect=OSError)
    ReceiveBuffer(connection).look()
    assert size(pair[0]) == before
    pair[0].close()
    ReceiveBuffer(pair[0]).look()


def test_the_lock_of_the_other_buffer_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    for name in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        pair[0].setsockopt(socket.SOL_SOCKET, name, 100_000)
    unlock(pair[0], SEND_LOCK)
    assert pair[0].getsockopt(socket.SOL_SOCKET, _BUF_LOCK) == RECEIVE_LOCK
