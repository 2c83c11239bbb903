"""What one connection may take of one turn of the event loop, while the others wait: a bounded part."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from asyncio import BaseEventLoop
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from ssl import create_default_context
from typing import Any

import pytest

from shadowmesh.net import READ_PER_TURN
from shadowmesh.net import server as server_module
from shadowmesh.net.loop import new_loop
from shadowmesh.net.server import HANDSHAKES_PER_TURN, STARTS_PER_TURN, Request
from shadowmesh.net.tls import Certificate
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.websocket import BINARY, UPGRADE, RawPeer, Recorder, drive, frame, serving, until

SMALL = frame(BINARY, bytes(1000))
MANY = 4000
BUSY_READ, LARGE_READ = 36 * 1024 * 9 // 10, 72 * 1024 * 9 // 10


class Meter(Recorder):
    """Counts the bytes of small messages, by the turn that has read them."""

    def __init__(self) -> None:
        super().__init__()
        self.total = self._turn = 0
        self.turns: list[int] = []

    def on_binary(self, data: memoryview) -> None:
        if len(data) != 1000:
            return
        if not self._turn:
            # It runs before the next look at sockets.
            asyncio.get_running_loop().call_soon(self._over)
        self._turn += len(SMALL)
        self.total += 1

    def _over(self) -> None:
        self.turns.append(self._turn)
        self._turn = 0


@pytest.mark.parametrize("new_loop", [None, new_loop])
@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize(("first", "read"), [(b"", BUSY_READ), (bytes(131_000), LARGE_READ)])
def test_a_flood_is_read_in_parts(
    first: bytes, read: int, secure: bool, new_loop: Callable[[], Any] | None, tmp_path: Path
) -> None:
    """READ_PER_TURN, and the read that goes beyond it; a buffer grown for a large message reads no more."""
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    certificate = Certificate(str(paths.cert), str(paths.key)) if secure else None
    trust = create_default_context(cafile=str(paths.ca)) if secure else None
    meter = Meter()

    async def main() -> None:
        async with serving(lambda request: meter, certificate.context if certificate else None) as server:
            peer = await RawPeer.upgraded(server.port, ssl=trust)
            peer.send(frame(BINARY, first) + SMALL * MANY)
            await until(lambda: meter.total == MANY)
            await peer.close()

    drive(main, new_loop=new_loop)
    assert READ_PER_TURN / 4 < max(meter.turns) < READ_PER_TURN + read


def test_behind_a_long_message_another_is_read_at_once() -> None:
    """Once: what comes behind it is short, and so are the reads then."""

    class Bulk(Meter):
        def on_binary(self, data: memoryview) -> None:
            super().on_binary(data)
            self.bulk |= len(data) > READ_PER_TURN

    meter = Bulk()

    async def main() -> None:
        async with serving(lambda request: meter) as server:
            peer = await RawPeer.upgraded(server.port)
            peer.send(SMALL * MANY + frame(BINARY, bytes(131_000)) + SMALL * MANY)
            await until(lambda: meter.total == 2 * MANY)
            await peer.close()

    drive(main)
    assert sum(turn > READ_PER_TURN + LARGE_READ for turn in meter.turns) == 1


def test_the_bound_holds_whatever_is_imported_first_of_ours() -> None:
    """aiofastnet takes it when it is imported, so that must come later."""
    code = "import sys, shadowmesh.relay.app, shadowmesh.daemon.app, aiofastnet.constants as c;"
    code += "print(c.MAX_READ_BYTES_PER_CYCLE_HINT, c is sys.modules['aiofastnet.constants'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(READ_PER_TURN), "True"]


@pytest.mark.parametrize(("secure", "most"), [(False, STARTS_PER_TURN), (True, HANDSHAKES_PER_TURN)])
def test_a_crowd_is_let_in_a_few_at_a_time(
    secure: bool, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    turn, turns = 0, Counter[int]()
    start, run_once = server_module.Server._start, BaseEventLoop._run_once  # type: ignore[attr-defined]
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    certificate = Certificate(str(paths.cert), str(paths.key)) if secure else None

    def started(*args: Any) -> None:
        turns[turn] += 1
        start(*args)

    def counted(loop: BaseEventLoop) -> None:
        nonlocal turn
        turn += 1
        run_once(loop)

    monkeypatch.setattr(server_module.Server, "_start", started)
    monkeypatch.setattr(BaseEventLoop, "_run_once", counted)

    async def main() -> None:
        async with serving(accept_all, certificate.context if certificate else None) as server:
            peers = [await RawPeer.dial(server.port) for _ in range(40)]
            for peer in peers:
                peer.send(b"\x16" if secure else UPGRADE.format(path="/relay", more="").encode())
            await until(lambda: turns.total() == 40)
            for peer in peers:
                await peer.close()

    drive(main)
    assert max(turns.values()) == most


def accept_all(request: Request) -> WebSocket:
    return Recorder()
