"""A namespace for one block: alone in it, back after it."""

from __future__ import annotations

import socket

import pytest

from shadowmesh.testing.namespace import own_namespace

pytestmark = pytest.mark.netns


def test_alone_within_and_back_after() -> None:
    outside = socket.if_nameindex()
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with own_namespace(), socket.create_server(("127.0.0.1", port)):
            assert [name for _, name in socket.if_nameindex()] == ["lo"]
    assert socket.if_nameindex() == outside


def test_back_after_an_error() -> None:
    outside = socket.if_nameindex()
    with pytest.raises(ZeroDivisionError), own_namespace():
        _ = 1 / 0
    assert socket.if_nameindex() == outside
