"""Connections reset with input unread, of which uvloop says nothing more: each ends, and harms no other."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable, Coroutine
from pathlib import Path
from ssl import PROTOCOL_TLS_SERVER, SSLContext
from typing import Any, TypeAlias

import pytest

from shadowmesh.net import server
from shadowmesh.net.server import Server
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.websocket import RawPeer, Recorder, drive, serving, until

Run: TypeAlias = Callable[[Callable[[], Coroutine[Any, Any, None]]], object]


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a test to its end in one of the loops."""
    monkeypatch.setattr(server, "UPGRADE_SECONDS", 0.3)
    loop = pytest.importorskip(request.param)
    return lambda main: drive(main, new_loop=loop.new_event_loop)


def dial(port: int) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port))


def reset(peer: socket.socket) -> None:
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    peer.close()


async def upgrades(port: int, count: int = 10) -> None:
    """So many at once, which have all the file descriptors that were used before, get an answer."""
    for peer in await asyncio.gather(*(RawPeer.upgraded(port) for _ in range(count))):
        await peer.close()


async def all_ended(listening: Server) -> None:
    await until(lambda: not listening._alive)


def test_a_reset_right_after_the_first_byte(run: Run) -> None:
    async def scenario() -> None:
        async with serving(lambda _: Recorder()) as listening:
            for _ in range(10):
                peer = dial(listening.port)
                peer.send(b"G")
                reset(peer)
                await asyncio.sleep(0.002)
            await upgrades(listening.port)
            await all_ended(listening)

    run(scenario)


def test_a_reset_amid_the_request(run: Run) -> None:
    async def scenario() -> None:
        async with serving(lambda _: Recorder()) as listening:
            peers = [dial(listening.port) for _ in range(10)]
            for peer in peers:
                peer.send(b"G")
            await asyncio.sleep(0.05)
            for peer in peers:
                peer.send(b"ET /relay")
                reset(peer)
            await all_ended(listening)
            await upgrades(listening.port)
            await all_ended(listening)

    run(scenario)


def test_a_reset_amid_the_handshake(run: Run, tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["localhost"])
    context = SSLContext(PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths.cert, paths.key)

    async def scenario() -> None:
        async with serving(lambda _: Recorder(), context) as listening:
            for hello in (b"\x16", b"\x16\x03\x01\x02\x00", b"\x16\x03\x01\x00\x05hello"):
                for _ in range(5):
                    peer = dial(listening.port)
                    peer.send(hello)
                    reset(peer)
                    await asyncio.sleep(0.002)
            await all_ended(listening)
            assert listening.tls_failed == 15

    run(scenario)
