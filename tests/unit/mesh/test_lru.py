"""A table that strangers fill stays as small as it is said to be."""

from __future__ import annotations

from shadowmesh.mesh.lru import Lru


def test_forgets_what_was_set_longest_ago() -> None:
    table: Lru[str, int] = Lru(2)
    table["a"] = 1
    table["b"] = 2
    table["c"] = 3
    assert list(table.items()) == [("b", 2), ("c", 3)]


def test_setting_makes_newest_and_reading_does_not() -> None:
    table: Lru[str, int] = Lru(2)
    table["a"] = 1
    table["b"] = 2
    table["a"] = 3
    assert table.get("b") == 2
    table["c"] = 4
    assert list(table.items()) == [("a", 3), ("c", 4)]


def test_removed_entries_make_room() -> None:
    table: Lru[int, int] = Lru(3)
    for number in range(100):
        table[number] = number
        assert len(table) <= 3
    assert table.pop(98, None) == 98
    assert table.pop(98, None) is None
    table[100] = 100
    assert list(table) == [97, 99, 100]
