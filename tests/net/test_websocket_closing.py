"""How a connection ends: by mistakes of the peer, bugs of ours, in order, and always in time."""

from __future__ import annotations

import asyncio
import time

import pytest

from shadowmesh.net import websocket
from shadowmesh.net.websocket import EARLY_LIMIT, WebSocket
from shadowmesh.testing.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    Drive,
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


@pytest.mark.parametrize(
    "sent",
    [
        frame(BINARY, bytes(EARLY_LIMIT + 1)),
        frame(TEXT, bytes(5000), fin=False) + frame(CONTINUATION, bytes(5000)),
    ],
)
def test_too_long_before_the_join(sent: bytes) -> None:
    expect_close(sent, 4003, joined=False)


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


def test_connection_lost(run: Drive) -> None:
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

    run(main)


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
def test_closing_is_over_in_time(start: str, run: Drive) -> None:
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

    run(main)


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
