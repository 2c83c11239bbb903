"""A program as `bench soak` and `bench flap` start it: with a look inside that it does not offer itself.

It is `shadowmesh-relay` or `shadowmesh-daemon` after a few lines that hang on signals, each of which has one
JSON line written:

    SIGUSR1   asyncio tasks and blocks of memory, which costs nothing
    SIGUSR2   a relay's connections and what they count, which stops it for a moment
    SIGRTMIN  objects of each type after a collection, which stops it longer and changes what it measures
"""

from __future__ import annotations

import asyncio
import gc
import json
import signal
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from shadowmesh.testing.program import Program

Look = dict[str, Any]


def main() -> None:
    """Arguments: file for the lines; `quick` or `full` for a relay, or `daemon`; those of the program."""
    file, kind = sys.argv[1:3]
    del sys.argv[1:3]
    for number in _LOOKS:
        signal.signal(number, lambda number, _: _write(file, _LOOKS[number]()))
    if kind == "daemon":
        from shadowmesh.cli import daemon

        daemon.main()
    else:
        from shadowmesh.cli import relay

        if kind == "quick":
            _hurry()
        relay.main()


def _hurry() -> None:
    """Let a relay's timers be for a run of seconds."""
    from shadowmesh.net import server as listener
    from shadowmesh.relay import server
    from shadowmesh.relay.timing import Timing

    class Quick(Timing):
        @classmethod
        def for_idle_timeout(cls, seconds: float) -> Timing:
            return Timing(join=1.0, keepalive=2.0, dead=5.0, grace=1.0, probe=0.5, tick=0.1)

    vars(server)["Timing"] = Quick
    vars(listener)["UPGRADE_SECONDS"] = 1.0


def _glance() -> Look:
    tasks = sorted(getattr(task.get_coro(), "__qualname__", "?") for task in asyncio.all_tasks())
    return {"tasks": tasks, "blocks": sys.getallocatedblocks()}


def _connections() -> Look:
    return {
        "connections": [
            [each.peer_id, each.frames_in, each.bytes_in, each.frames_out, each.bytes_out]
            for each in _objects()
            if not each.done
        ]
    }


def _types() -> Look:
    gc.collect()
    types = Counter(f"{type(each).__module__}.{type(each).__qualname__}" for each in gc.get_objects())
    return {"types": types, "connections": len(_objects())}


def _objects() -> list[Any]:
    """Connections, of a relay."""
    module = sys.modules.get("shadowmesh.relay.connection")
    if module is None:
        return []
    # Not isinstance, which a weak proxy of a connection would pass, too.
    return [each for each in gc.get_objects() if issubclass(type(each), module.Connection)]


_LOOKS: dict[int, Callable[[], Look]] = {
    signal.SIGUSR1: _glance,
    signal.SIGUSR2: _connections,
    signal.SIGRTMIN: _types,
}


def _write(file: str, look: Look) -> None:
    with open(file, "a") as stream:
        stream.write(json.dumps(look) + "\n")


class Probe:
    """Asks a program that runs with this module."""

    def __init__(self, file: Path) -> None:
        self.file = file
        file.touch()

    def glance(self, program: Program) -> Look:
        """`tasks`: the names of their functions; `blocks` of memory, in the Python allocator."""
        return self._ask(program, signal.SIGUSR1)

    def connections(self, program: Program) -> list[list[Any]]:
        """For each that lives: peer_id, frames in, bytes in, frames out, bytes out."""
        found: list[list[Any]] = self._ask(program, signal.SIGUSR2)["connections"]
        return found

    def types(self, program: Program) -> Look:
        """`types`: how many objects there are of each; `connections`: how many of these are left."""
        return self._ask(program, signal.SIGRTMIN)

    def _ask(self, program: Program, number: signal.Signals) -> Look:
        before = self._lines()
        program.signal(number)

        def answer() -> str | None:
            lines = self._lines()
            return lines[-1] if len(lines) > len(before) else None

        look: Look = json.loads(program.wait_for(answer, "answer of the probe", 30.0))
        return look

    def _lines(self) -> list[str]:
        return [line for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]
