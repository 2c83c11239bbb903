"""The rules of one connection: a peer of raw bytes against our two sides."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from shadowmesh.errors import LocalProtocolError
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.websocket import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    RawPeer,
    Recorder,
    drive,
    frame,
    raw,
    serving,
    until,
)

pytestmark = pytest.mark.usefixtures("short_close")


def test_messages_both_ways() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            for size in (0, 1, 125, 126, 4000, 65535, 65536, 100_000):
                peer.send(frame(BINARY, bytes(size)))
                await until(lambda: bytes(size) in ws.messages[-1:])  # noqa: B023
                ws.send_binary(memoryview(bytes(size)))
                assert await peer.frame() == (BINARY, bytes(size))
            peer.send(frame(TEXT, "ä".encode()))
            await until(lambda: ws.messages[-1] == "ä")
            ws.send_text("ö")
            assert await peer.frame() == (TEXT, "ö".encode())
            assert ws.opened == 1
            assert ws.remote == peer.writer.get_extra_info("sockname")
            assert ws.local == peer.writer.get_extra_info("peername")

    drive(main)


def test_message_that_comes_with_the_upgrade_request() -> None:
    async def main() -> None:
        ws = Recorder()
        async with serving(lambda request: ws) as server:
            peer = await RawPeer.dial(server.port)
            peer.send(UPGRADE.format(path="/", more="").encode() + frame(BINARY, b"early"))
            await until(lambda: ws.messages == [b"early"])
            await peer.close()

    drive(main)


def test_fragments_are_joined_around_control_frames() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(
                frame(BINARY, b"a", fin=False) + frame(PING, b"now") + frame(CONTINUATION, b"b", fin=False)
            )
            assert await peer.frame() == (PONG, b"now")
            peer.send(frame(CONTINUATION) + frame(BINARY, b"next"))
            peer.send(frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"\xa4"))
            await until(lambda: ws.messages == [b"ab", b"next", "ä"])

    drive(main)


def test_ping_flood() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(PING, b"x") * 200)
            assert await peer.close_code() == 1008
            await until(lambda: ws.closed)

    drive(main)


def test_pause_and_resume_writing() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            ws.set_write_limits(100_000, 50_000)
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not ws.paused:
                ws.send_binary(bytes(60_000))
            assert ws.write_buffer_size() > 100_000
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            reading = asyncio.create_task(peer.eof())
            await until(lambda: not ws.paused)
            ws.abort()
            await reading

    drive(main)


def test_ping_measures_round_trip_and_reads_are_heard() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            ws.heard = False
            peer.send(frame(PONG, b"unasked"))
            await until(lambda: ws.pongs == [b"unasked"])
            assert ws.heard
            assert ws.rtt is None
            ws.ping()
            opcode, payload = await peer.frame()
            assert opcode == PING
            peer.send(frame(PONG, payload))
            await until(lambda: len(ws.pongs) == 2)
            assert ws.rtt is not None
            assert 0 < ws.rtt < 5

    drive(main)


def test_before_it_is_open() -> None:
    ws = WebSocket()
    assert ws.write_buffer_size() == 0
    ws.abort()
    uses: list[Callable[[], None]] = [
        lambda: ws.send_binary(b""),
        lambda: ws.send_text(""),
        ws.ping,
        ws.close,
    ]
    for use in uses:
        with pytest.raises(LocalProtocolError):
            use()
