"""The honest clients of the other tests notice what they are there for."""

from __future__ import annotations

from typing import Any

import pytest

from shadowmesh.relay.connection import Connection
from shadowmesh.testing.hostile_clients import Siege, under_attack


@pytest.mark.parametrize("harm", ["lost", "changed", "twice"])
def test_harm_to_a_single_frame_is_noticed(monkeypatch: pytest.MonkeyPatch, harm: str) -> None:
    deliver = Connection.deliver
    count = 0

    def once(self: Connection, frame: memoryview, *rest: Any) -> None:
        nonlocal count
        count += 1
        match harm if count == 100 else "none":
            case "lost":
                return
            case "changed":
                frame = memoryview(bytes(frame[:-1]) + bytes([frame[-1] ^ 1]))
            case "twice":
                deliver(self, frame, *rest)
        deliver(self, frame, *rest)

    monkeypatch.setattr(Connection, "deliver", once)

    @under_attack()
    async def attack(siege: Siege) -> None:
        await siege.talk(200)

    with pytest.raises(AssertionError):
        attack()
