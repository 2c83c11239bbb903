"""Devices of different releases in one network: the newer one talks version 1 or is counted."""

from __future__ import annotations

import pytest

from shadowmesh.mesh.context import Local
from shadowmesh.testing.memory import MemoryMesh, Node, met
from shadowmesh.wire.record import Info


def speaking(node: Node, *versions: int) -> None:
    """Make it a device that says it speaks these versions."""

    class Other(Local):
        def info(self) -> Info:
            return Info(**(vars(super().info()) | {"versions": versions}))

    node.local = Other(**vars(node.local))
    node.restart()


@pytest.mark.parametrize("newer", [0, 1], ids=["newer asks", "older asks"])
def test_a_newer_device_that_still_speaks_version_1(newer: int) -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    speaking(mesh.nodes[newer], 1, 2)
    a.ping(b, b"hello")
    mesh.run(1.0)
    b.ping(a, b"hello yourself")
    mesh.run(1.0)
    assert (b.payloads, a.payloads) == ([b"hello"], [b"hello yourself"])


def test_a_newer_device_that_no_longer_does() -> None:
    """Never a session, and the reason is counted (docs/troubleshooting.md has it in words)."""
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    speaking(b, 2)
    a.ping(b, b"hello")
    mesh.run(1.0)
    assert b.payloads == []
    assert a.context.drops["downgrade"] > 0


@pytest.mark.parametrize("message", range(5))
def test_its_own_messages_change_nothing(message: int) -> None:
    """First byte: version << 4 | type. The session of version 1 that is there goes on."""
    _, a, b = met()
    sessions = dict(b.context.indices)
    b.mesh.receive(
        a.addresses[0],
        b.addresses[0],
        memoryview(bytes((0x20 | message, 0, 0, 0)) + bytes(1252)),
        b.world.now,
    )
    assert b.context.drops["bad_message"] == 1
    assert b.context.indices == sessions
