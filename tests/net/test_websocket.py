"""The rules of one connection: a peer of raw bytes against our two sides."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Callable

import pytest
from picows.picows import WSProtocol  # type: ignore[attr-defined]
from websockets.utils import accept_key

from shadowmesh.errors import LocalProtocolError
from shadowmesh.net import websocket
from shadowmesh.net.client import connect
from shadowmesh.net.server import serve
from shadowmesh.net.websocket import EARLY_LIMIT, PONG_ROOM, WebSocket
from shadowmesh.testing.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    RawPeer,
    Recorder,
    drive,
    frame,
    serving,
    until,
)

MAX_FRAME = 131072


@pytest.fixture(autouse=True)
def short_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw peers do not answer close frames, and nobody wants to wait for that."""
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)


@contextlib.asynccontextmanager
async def raw(ws: WebSocket) -> AsyncIterator[RawPeer]:
    """A raw client connected to `ws` on our server."""
    async with serving(lambda request: ws) as server:
        peer = await RawPeer.upgraded(server.port)
        try:
            yield peer
        finally:
            await peer.close()


@contextlib.asynccontextmanager
async def raw_server(ws: WebSocket) -> AsyncIterator[RawPeer]:
    """A raw server that our client `ws` is connected to."""
    peers: asyncio.Queue[RawPeer] = asyncio.Queue()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer = RawPeer(reader, writer)
        head = await peer.head()
        key = head.partition("Sec-WebSocket-Key: ")[2].partition("\r\n")[0]
        accepted = accept_key(key)
        peer.send(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accepted.encode() + b"\r\n\r\n"
        )
        peers.put_nowait(peer)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    async with listener:
        await connect(f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}/", ws, max_frame=MAX_FRAME)
        peer = await peers.get()
        try:
            yield peer
        finally:
            ws.abort()
            await peer.close()


def buffer_size(ws: WebSocket) -> int:
    """What picows really has as read buffer, while nothing is in it."""
    return len(WSProtocol.get_buffer(ws._protocol, -1))


def expect_close(
    sent: bytes, code: int, *, joined: bool = True, delivered: list[bytes | str] | None = None
) -> None:
    """Our server answers `sent` with a close frame of `code` and delivers nothing after it."""

    async def main() -> None:
        ws = Recorder(joined=joined)
        async with raw(ws) as peer:
            # What follows the mistake, in the same read and later, must not be delivered.
            peer.send(sent + frame(BINARY, b"after"))
            assert await peer.close_code() == code
            peer.send(frame(BINARY, b"much later") + frame(TEXT, b"much later") + frame(CLOSE))
            await peer.eof()
            await peer.close()
            await until(lambda: ws.closed)
            assert ws.messages == (delivered or [])
            assert ws.closed[0][0] == code
            assert ws.closed_here

    drive(main)


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


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(BINARY, b"x", rsv=4), 1002),
        (frame(TEXT, b"x", rsv=1), 1002),
        (frame(PING, b"x", rsv=2), 1002),
        (frame(BINARY, b"x", masked=False), 1002),
        (frame(3, b"x"), 1002),
        (frame(11, b"x"), 1002),
        (frame(PING, b"x", fin=False), 1002),
        (frame(PING, bytes(126)), 1002),
        (frame(CONTINUATION, b"x"), 1002),
        (frame(CONTINUATION, b"x", fin=False), 1002),
        (frame(BINARY, b"x", fin=False) + frame(BINARY, b"y"), 1002),
        (frame(BINARY, b"x", fin=False) + frame(TEXT, b"y", fin=False), 1002),
        (frame(TEXT, b"\xff"), 1007),
        (frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"x"), 1007),
        (frame(BINARY, bytes(MAX_FRAME + 1)), 1009),
        (frame(BINARY, bytes(100_000), fin=False) + frame(CONTINUATION, bytes(40_000)), 1009),
        (b"\x82\xff" + (2**62).to_bytes(8) + b"\1\2\3\4" + bytes(200_000), 1009),
    ],
)
def test_protocol_error_closes_and_ends_delivery(sent: bytes, code: int) -> None:
    expect_close(sent, code)


def test_peer_of_a_too_long_message_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 60)

    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(BINARY, bytes(3_000_000)))
            assert await peer.close_code() == 1009
            assert await peer.reader.read() == b""  # the end of the stream, not a reset
            await peer.close()
            await until(lambda: ws.closed)

    drive(main)


def test_parse_error_right_behind_a_good_message() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(BINARY, b"good") + frame(3, b"bad") + frame(BINARY, b"after"))
            assert await peer.close_code() == 1002
            await until(lambda: ws.closed)
            assert ws.closed == [(1002, "protocol error")]
            assert b"after" not in ws.messages

    drive(main)


def test_limit_before_and_after_the_join() -> None:
    expect_close(frame(BINARY, bytes(EARLY_LIMIT + 1)), 4003, joined=False)
    expect_close(frame(TEXT, bytes(5000), fin=False) + frame(CONTINUATION, bytes(5000)), 4003, joined=False)

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


def test_ping_flood() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(PING, b"x") * 200)
            assert await peer.close_code() == 1008
            await until(lambda: ws.closed)

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


def test_peer_closes() -> None:
    async def main() -> None:
        for payload, code, reason, echo in (
            (b"\x03\xe8bye", 1000, "bye", 1000),
            (b"\x0f\xa4" + b"x" * 123, 4004, "x" * 123, 4004),
            (b"", 1005, "", 1000),
            (b"\x03\xee", 1006, "", 1002),
        ):
            ws = Recorder()
            async with raw(ws) as peer:
                peer.send(frame(CLOSE, payload) + frame(BINARY, b"after") + frame(CLOSE, payload))
                assert await peer.close_code() == echo
                await peer.eof()
                await until(lambda: ws.closed)  # noqa: B023
                assert ws.closed == [(code, reason)]
                assert ws.messages == []
                assert ws.closing
                assert not ws.closed_here

    drive(main)


@pytest.mark.parametrize("payload", [b"\x03", b"\x00\x00\xff", b"\x03\xe7", b"\x03\xe8\xff"])
def test_malformed_close(payload: bytes) -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.send(frame(CLOSE, payload))
            assert await peer.close_code() in (1002, 1007)
            await until(lambda: ws.closed)

    drive(main)


def test_connection_lost() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.writer.transport.abort()
            await until(lambda: ws.closed)
            assert ws.closed == [(None, "")]
            assert ws.closing
            ws.send_binary(b"dropped")
            ws.send_text("dropped")
            ws.ping()
            ws.close(1000)
            ws.abort()

    drive(main)


def test_close_by_us() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            ws.send_binary(b"last")
            ws.close(4004, "réplaced" + "x" * 200)
            ws.close(1000, "again")
            ws.send_binary(b"after")
            assert await peer.frame() == (BINARY, b"last")
            opcode, payload = await peer.frame()
            assert (opcode, payload[:10]) == (CLOSE, b"\x0f\xa4r?placed")
            assert len(payload) == 125
            peer.send(frame(BINARY, b"late") + frame(CLOSE, payload))
            await peer.eof()
            await until(lambda: ws.closed)
            assert ws.closed[0][0] == 4004
            assert ws.messages == []

    drive(main)


@pytest.mark.parametrize("start", ["close", "too long", "parse error", "end of stream"])
def test_closing_is_over_in_time(start: str) -> None:
    """Whatever starts it, and although the client reads nothing and keeps sending."""

    async def main() -> None:
        ws = Recorder()
        async with raw(ws) as peer:
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not ws.paused:
                ws.send_binary(bytes(60_000))
            match start:
                case "close":
                    ws.close(4005)
                case "too long":
                    peer.send(frame(BINARY, bytes(MAX_FRAME + 1)))
                case "parse error":
                    peer.send(frame(3))
                case "end of stream":
                    peer.writer.write_eof()
            await until(lambda: ws.closing)
            begun = time.monotonic()
            while not ws.closed:
                if start != "end of stream":
                    peer.send(frame(BINARY, bytes(1000)))
                await asyncio.sleep(0.005)
            assert time.monotonic() - begun < 1.5
            assert ws.messages == []

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


class Buggy(Recorder):
    def __init__(self, bug: str) -> None:
        super().__init__()
        self.bug = bug

    def _fail(self, hook: str) -> None:
        if hook == self.bug:
            raise RuntimeError(f"bug in {hook}")

    def on_open(self) -> None:
        super().on_open()
        self._fail("on_open")

    def on_binary(self, data: memoryview) -> None:
        self._fail("on_binary")

    def on_text(self, text: str) -> None:
        self._fail("on_text")

    def on_pong(self, payload: bytes) -> None:
        self._fail("on_pong")

    def pause_writing(self) -> None:
        self._fail("pause_writing")


@pytest.mark.parametrize("bug", ["on_open", "on_binary", "on_text", "on_pong", "pause_writing"])
def test_our_bug_is_reported_once_and_closes_only_this_connection(bug: str) -> None:
    async def main() -> None:
        buggy, other = Buggy(bug), Recorder()
        sockets = [buggy, other]
        async with serving(lambda request: sockets.pop(0)) as server:
            first = await RawPeer.upgraded(server.port)
            second = await RawPeer.upgraded(server.port)
            if bug == "pause_writing":
                while not buggy.closing:
                    buggy.send_binary(bytes(60_000))
            else:
                first.send(frame(BINARY) * 3 + frame(TEXT) * 3 + frame(PONG) * 3)
            assert await first.close_code() == 1011
            second.send(frame(BINARY, b"fine"))
            await until(lambda: other.messages == [b"fine"])
            await first.close()
            await second.close()
            await until(lambda: buggy.closed)
            assert buggy.closed[0][0] == 1011

    assert f"bug in {bug}" in drive(main, errors=1)[0]


def test_bug_in_on_closed_is_reported() -> None:
    class Bad(WebSocket):
        def on_closed(self, code: int | None, reason: str) -> None:
            raise RuntimeError("bug in on_closed")

    async def main() -> None:
        async with raw(Bad()):
            pass

    assert "bug in on_closed" in drive(main, errors=1)[0]


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


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(BINARY, b"x"), 1002),  # masked by a server
        (frame(3, b"x", masked=False), 1002),
        (frame(BINARY, b"x", rsv=4, masked=False), 1002),
        (frame(CONTINUATION, b"x", masked=False), 1002),
        (frame(TEXT, b"\xff", masked=False), 1007),
    ],
)
def test_server_that_breaks_the_protocol(sent: bytes, code: int) -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw_server(ws) as peer:
            peer.send(sent + frame(BINARY, b"after", masked=False))
            assert await peer.close_code() == code
            await peer.close()
            await until(lambda: ws.closed)
            assert ws.messages == []

    drive(main)


def test_client_waits_for_the_server_to_end_the_connection() -> None:
    async def main() -> None:
        ws = Recorder()
        async with raw_server(ws) as peer:
            peer.send(frame(CLOSE, b"\x03\xf4restart", masked=False))
            assert await peer.close_code() == 1012
            await until(lambda: ws.closed)  # the server never ends it
            assert ws.closed == [(1012, "restart")]

    drive(main)
