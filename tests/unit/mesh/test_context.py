"""What the parts of an engine share: own addresses, the info record, indices."""

from __future__ import annotations

from collections.abc import Callable

from shadowmesh.testing.memory import MemoryMesh, local_settings
from shadowmesh.wire.record import Info


def test_own_addresses_are_those_of_the_ips_and_of_the_name() -> None:
    mesh = MemoryMesh(0)
    node = mesh.add("laptop", "10.10.10.1/24", "fd00::1/64")
    expected = {
        "01ef81d938159a2d654cde065ab9058f": node.local.ips[0],  # the vectors of docs/protocol.md
        "509bdb8eb419ecb0a80ea8b9ab7fb961": node.local.ips[1],
        "f083b1eea54555e3028a9af46a5b8abf": b"",
    }
    assert {address.hex(): ip for address, ip in node.context.addresses.items()} == expected


def test_a_name_that_can_have_no_address_has_none() -> None:
    node = MemoryMesh(0).add("not a name!", "10.10.10.1/24")
    assert list(node.context.addresses.values()) == [node.local.ips[0]]


def test_the_info_record_says_what_the_settings_say() -> None:
    local = local_settings("a", "10.10.10.1/24", "fd00::1/64", advertise=["192.168.7.0/24"])
    info = local.info()
    assert info == Info(0, "a", local.ips, ("192.168.7.0/24",), "shadowmesh/test", 1400, (1,), 130_992)


def test_a_new_index_is_none_that_is_in_use() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    mesh.meet(a, b)
    taken = next(iter(a.context.indices))
    answers = iter([taken, taken, b"new!"])
    draw: Callable[[int], bytes] = lambda size: next(answers)  # noqa: E731
    a.context.random = draw
    assert a.context.new_index() == b"new!"


def test_the_ip_behind_an_address() -> None:
    mesh = MemoryMesh(2)
    a, b = mesh.nodes
    info = b.local.info()
    assert [a.context.ips_at(info, address) for address in b.addresses] == [
        [b.local.ips[0]],
        [b.local.ips[1]],
        [],  # the name has no IP
    ]
    assert a.context.ips_at(info, a.addresses[0]) == []
