"""What one connection may hold: its read buffer, its limits, its fragments and its answers."""

from __future__ import annotations

import asyncio

import pytest
from picows.picows import WSProtocol  # type: ignore[attr-defined]

from shadowmesh.net.server import serve
from shadowmesh.net.websocket import EARLY_LIMIT, PONG_ROOM, WebSocket
from shadowmesh.testing.websocket import (
    BINARY,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawPeer,
    Recorder,
    drive,
    frame,
    raw,
    raw_server,
    serving,
    until,
)
from shadowmesh.wire.frame import MAX_FRAME

pytestmark = pytest.mark.usefixtures("short_close")


def buffer_size(ws: WebSocket) -> int:
    """What picows really has as read buffer, while nothing is in it."""
    return len(WSProtocol.get_buffer(ws._protocol, -1))


def test_limit_before_and_after_the_join() -> None:
    async def main() -> None:
        ws = Recorder(joined=False)
        async with raw(ws) as peer:
            peer.send(frame(BINARY, bytes(EARLY_LIMIT)))
            await until(lambda: ws.messages == [bytes(EARLY_LIMIT)])
            ws.raise_limit()
            peer.send(frame(BINARY, bytes(MAX_FRAME)))
            await until(lambda: ws.messages[-1] == bytes(MAX_FRAME))

    drive(main)


def test_limit_of_the_client() -> None:
    async def main() -> None:
        ws = Recorder(joined=False)
        async with raw_server(ws) as peer:
            peer.send(frame(BINARY, bytes(MAX_FRAME), masked=False))
            await until(lambda: ws.messages == [bytes(MAX_FRAME)])
            peer.send(frame(BINARY, bytes(MAX_FRAME + 1), masked=False))
            assert await peer.close_code() == 1009

    drive(main)


def test_read_buffer_is_bounded() -> None:
    async def main() -> None:
        ws = Recorder(joined=False)
        async with raw(ws) as peer:
            assert buffer_size(ws) == 2304
            for _ in range(20):
                peer.send(frame(TEXT, bytes(EARLY_LIMIT)))
            await until(lambda: len(ws.messages) == 20)
            assert buffer_size(ws) == 9216
            ws.raise_limit()
            for _ in range(60):
                peer.send(frame(BINARY, bytes(65_698)))
            for _ in range(20):
                peer.send(frame(BINARY, bytes(MAX_FRAME)))
            await until(lambda: len(ws.messages) == 100)
            assert ws._protocol is not None
            assert buffer_size(ws) == ws._protocol._size == 147_456

    drive(main)


@pytest.mark.parametrize(
    ("wanted", "first"),
    [(1, 2304), (4096, 2304), (4608, 4608), (65_536, 36_864), (147_456, 147_456), (2**24, 147_456)],
)
def test_first_read_buffer(wanted: int, first: int) -> None:
    async def main() -> None:
        sockets = [Recorder(), Recorder()]
        waiting = list(sockets)
        async with serving(lambda request: waiting.pop(0), read_buffer_size=wanted) as server:
            peer = await RawPeer.upgraded(server.port)
            assert buffer_size(sockets[0]) == first
            server.read_buffer_size = 9216
            other = await RawPeer.upgraded(server.port)
            assert (buffer_size(sockets[0]), buffer_size(sockets[1])) == (first, 9216)
            peer.send(frame(BINARY, bytes(MAX_FRAME)) * 3)
            await until(lambda: len(sockets[0].messages) == 3)
            assert buffer_size(sockets[0]) == 147_456
            await peer.close()
            await other.close()

    drive(main)


def test_small_read_buffer_grows_with_the_traffic() -> None:
    """So that a small one costs no speed; and an idle connection stays small."""

    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(BINARY, bytes(1000)))
            await until(lambda: ws.messages)
            assert buffer_size(ws) == 2304
            assert ws._protocol is not None
            while ws._protocol._size < 36_864:
                peer.send(frame(BINARY, bytes(1000)) * 200)
                await peer.writer.drain()
            peer.send(frame(BINARY, bytes(1000)) * 2000 + frame(TEXT, b"end"))
            await until(lambda: ws.messages[-1] == "end")
            assert buffer_size(ws) == 36_864

    drive(main)


@pytest.mark.parametrize("max_frame", [100, 126, 8192, 66_048, 131_072, 1_000_000])
def test_read_buffer_holds_every_max_frame(max_frame: int) -> None:
    async def main() -> None:
        ws = Recorder()
        server = await serve("127.0.0.1", 0, lambda request: ws, max_frame=max_frame)
        peer = await RawPeer.upgraded(server.port)
        for _ in range(5):
            peer.send(frame(BINARY, bytes(max_frame)) + frame(BINARY, bytes(1)))
        await until(lambda: len(ws.messages) == 10)
        assert buffer_size(ws) < max(2.3 * max_frame, 9217)
        peer.send(frame(BINARY, bytes(max_frame + 1)))
        assert await peer.close_code() == (1009 if max_frame > EARLY_LIMIT else 4003)
        server.close()
        await peer.close()
        await server.wait_closed()

    drive(main)


def test_empty_fragments_take_no_memory() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(BINARY, b"x", fin=False) + frame(CONTINUATION, fin=False) * 20_000)
            peer.send(frame(PING))
            assert await peer.frame() == (PONG, b"")
            assert ws._parts is not None
            assert len(ws._parts) == 1
            peer.send(frame(CONTINUATION))
            await until(lambda: ws.messages == [b"x"])

    drive(main)


def test_no_pongs_for_a_peer_that_does_not_read() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while ws.write_buffer_size() <= PONG_ROOM:
                ws.send_binary(bytes(60_000))
            waiting = ws.write_buffer_size()
            peer.send(frame(PING, b"x") * 90 + frame(BINARY, b"end"))
            await until(lambda: ws.messages)
            assert ws.write_buffer_size() <= waiting
            ws.abort()

    drive(main)


def test_garbage_after_the_close_is_not_kept() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            ws.close(1000)
            protocol = ws._protocol
            assert protocol is not None
            peer.send(b"\x82\xff" + (2**62).to_bytes(8))
            for _ in range(200):
                peer.send(bytes(65536))
                await asyncio.sleep(0)
            assert protocol._size <= 147_456
            await until(lambda: ws.closed)
            assert ws.closed == [(1000, "")]

    drive(main)
