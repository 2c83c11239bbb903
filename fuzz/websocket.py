"""After the upgrade the same messages, pongs and close code come out as a slow reading of RFC 6455 has them.

In whatever pieces the bytes arrive; only a protocol error (1002) may come before what was read together with
it. No exception is allowed. After the end of the stream, or a close, the connection is gone in two seconds.
"""

from __future__ import annotations

from fuzz.kit import Frozen, Loop, Port, pieces
from shadowmesh.testing.websocket import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    UPGRADE,
    Recorder,
    frame,
)

MAX_SIZE = 20_000
MAX_FRAME = 9000
"""Smaller than the relay's, so that inputs reach it."""
EARLY_LIMIT, PING_BURST, CLOSE_SECONDS = 8192, 100, 2.0  # of the protocol page
FROZEN = Frozen()
REQUEST = UPGRADE.format(path="/relay", more="").encode()
RESPONSE_END = b"\r\n\r\n"
WORDS = [frame(kind, payload) for kind in (TEXT, BINARY, PING, CLOSE) for payload in (b"", b"\x03\xe8")]
WORDS += [frame(kind, b"ab", fin=fin) for kind in (CONTINUATION, BINARY) for fin in (False, True)]

# RFC 6455 section 7.4 and, which picows lets through to us and we answer by 1002, 0 and 1006.
ALLOWED = {0, 1006, 1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014}

Outcome = tuple[list[bytes | str], list[bytes], int | None]
"""Messages, payloads of the pongs that we send, code of the first close frame."""


def one(data: bytes) -> object:
    """The first byte says whether large messages are allowed, the rest is the stream. Returns the outcome."""
    joined, stream = bool(data[:1] and data[0] & 1), data[1:]
    expected = Reader(stream, joined).outcome()
    with FROZEN as loop:
        whole = heard(loop, [stream], joined)
    with FROZEN as loop:
        apart = heard(loop, pieces(stream), joined)
    for messages, pongs, code in (whole, apart):
        assert code == expected[2] or (code == 1002 and expected[2] is not None), (code, expected[2])
        early = code == 1002
        assert messages == expected[0] or (early and messages == expected[0][: len(messages)])
        assert pongs == expected[1] or (early and pongs == expected[1][: len(pongs)])
    return expected


def heard(loop: Loop, way: list[bytes], joined: bool) -> Outcome:
    """What comes out of the real protocol object."""
    recorder = Recorder(joined=joined)
    port = Port(loop, lambda request: recorder, MAX_FRAME)
    wire = port.dial()
    wire.feed([REQUEST])
    del wire.sent[: wire.sent.index(RESPONSE_END) + len(RESPONSE_END)]
    wire.feed(way, end=True)
    loop.run(CLOSE_SECONDS)
    assert wire.lost
    assert not loop.errors, loop.errors
    assert recorder.opened == len(recorder.closed) == 1
    port.end()
    ((code, _),) = recorder.closed
    pongs, closes = said(bytes(wire.sent))
    # One close frame at most, with the code that we know of, or its echo.
    assert len(closes) <= 1
    assert not recorder.closed_here or closes == [code] or (closes, code) == ([1007], 1002)
    return recorder.messages, pongs, code


def said(sent: bytes) -> tuple[list[bytes], list[int]]:
    """Payloads of the pongs and codes of the close frames that we sent; there is nothing else."""
    pongs, closes = [], []
    while sent:
        kind, size = sent[0], sent[1]
        payload, sent = sent[2 : 2 + size], sent[2 + size :]
        assert kind in (0x80 | PONG, 0x80 | CLOSE)
        assert len(payload) == size <= 125
        if kind == 0x80 | PONG:
            pongs.append(payload)
        else:
            closes.append(int.from_bytes(payload[:2]))
    return pongs, closes


class Closed(Exception):
    """Nothing more is read."""

    def __init__(self, code: int | None) -> None:
        self.code = code


class Reader:
    """RFC 6455, byte after byte, with our limits."""

    def __init__(self, stream: bytes, joined: bool) -> None:
        self._stream = stream
        self._at = 0
        self._joined = joined
        self._limit = MAX_FRAME if joined else EARLY_LIMIT
        self._messages: list[bytes | str] = []
        self._pongs: list[bytes] = []
        self._parts: bytes | None = None
        self._kind = BINARY
        self._controls = 0

    def outcome(self) -> Outcome:
        try:
            while True:
                self._frame()
        except Closed as end:
            return self._messages, self._pongs, end.code

    def _take(self, size: int) -> bytes:
        if self._at + size > len(self._stream):
            raise Closed(None)
        self._at += size
        return self._stream[self._at - size : self._at]

    def _need(self, condition: bool, code: int = 1002) -> None:
        if not condition:
            raise Closed(code)

    def _frame(self) -> None:
        first, second = self._take(2)
        kind, final, reserved = first & 15, bool(first & 0x80), bool(first & 0x70)
        size = second & 127
        self._need(kind in (CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG))
        self._need(bool(second & 0x80))
        self._need(kind < CLOSE or (final and size <= 125))
        if size >= 126:
            least, width = (126, 2) if size == 126 else (65536, 8)
            size = int.from_bytes(self._take(width))
            self._need(least <= size < 2**63)
        mask = self._take(4)
        room = self._limit + (4 if self._limit < 126 else 8 if self._limit < 65536 else 14) - self._head(size)
        if size > room:
            self._take(room)
            raise Closed(self._too_long)
        payload = bytes(byte ^ mask[i & 3] for i, byte in enumerate(self._take(size)))
        if kind == CLOSE:
            self._close(payload)
        self._need(not reserved)
        if kind in (PING, PONG):
            self._control(kind, payload)
        else:
            self._data(kind, final, payload)

    @staticmethod
    def _head(size: int) -> int:
        """Bytes of a masked frame's header."""
        return 6 if size < 126 else 8 if size < 65536 else 14

    @property
    def _too_long(self) -> int:
        return 1009 if self._joined else 4003

    def _close(self, payload: bytes) -> None:
        code = int.from_bytes(payload[:2])
        self._need(len(payload) != 1)
        self._need(not payload or code >= 3000 or code in ALLOWED)
        try:
            payload[2:].decode()
        except UnicodeDecodeError:
            raise Closed(1002) from None
        raise Closed(code if payload else 1005)

    def _control(self, kind: int, payload: bytes) -> None:
        self._controls += 1
        self._need(self._controls <= PING_BURST, 1008)
        if kind == PING:
            self._pongs.append(payload)

    def _data(self, kind: int, final: bool, payload: bytes) -> None:
        self._need((kind == CONTINUATION) == (self._parts is not None))
        if self._parts is None:
            self._parts, self._kind = b"", kind
        self._parts += payload
        self._need(len(self._parts) <= self._limit, self._too_long)
        if final:
            message, self._parts = self._parts, None
            if self._kind == BINARY:
                self._messages.append(message)
                return
            try:
                self._messages.append(message.decode())
            except UnicodeDecodeError:
                raise Closed(1007) from None


def seeds() -> dict[str, bytes]:
    """Streams of a client: good, fragmented, and with what is wrong in one way each."""
    short = {
        "binary": frame(BINARY, b"data"),
        "text": frame(TEXT, "naïve".encode()),
        "empty": frame(BINARY) + frame(TEXT),
        "fragments": frame(BINARY, b"a", fin=False) + frame(PING, b"p") + frame(CONTINUATION, b"b"),
        "many fragments": frame(TEXT, b"a", fin=False)
        + frame(CONTINUATION, fin=False) * 40
        + frame(CONTINUATION),
        "a character in two fragments": frame(TEXT, b"\xc3", fin=False) + frame(CONTINUATION, b"\xa4"),
        "text is not UTF-8": frame(TEXT, b"\xed\xa0\x80"),
        "ping": frame(PING, b"x" * 125) + frame(PONG, bytes(8)),
        "many pings": frame(PING) * (PING_BURST + 1),
        "close": frame(CLOSE, b"\x03\xe8bye") + frame(BINARY, b"late"),
        "close without a code": frame(CLOSE),
        "close of one byte": frame(CLOSE, b"\x03"),
        "close with a code of nobody": frame(CLOSE, b"\x03\xed"),
        "close in words that are not UTF-8": frame(CLOSE, b"\x0f\xa0\xff"),
        "not masked": frame(BINARY, b"data", masked=False),
        "compressed": frame(BINARY, b"data", rsv=4),
        "unknown opcode": frame(3),
        "unknown control opcode": frame(11),
        "fragmented ping": frame(PING, fin=False),
        "long ping": frame(PING, bytes(126)),
        "a message within a message": frame(BINARY, b"a", fin=False) + frame(BINARY, b"b"),
        "nothing to continue": frame(CONTINUATION, b"a"),
        "16 bits for a short length": b"\x82\xfe\0\x02\0\0\0\0ab",
        "64 bits for a short length": b"\x82\xff" + bytes(7) + b"\x02\0\0\0\0ab",
        "a negative length": b"\x82\xff" + b"\xff" * 8 + bytes(4),
        "half a frame": frame(BINARY, b"data")[:-1],
        "a join": frame(TEXT, b'{"type":"join"}'),
    }
    long = {
        "longer than early ones": frame(BINARY, bytes(EARLY_LIMIT + 1)),
        "the longest": frame(BINARY, bytes(MAX_FRAME)),
        "a byte too long": frame(BINARY, bytes(MAX_FRAME + 1)),
        "too long in fragments": frame(BINARY, bytes(MAX_FRAME), fin=False) + frame(CONTINUATION, b"x"),
    }
    found = {f"early, {name}": b"\0" + stream for name, stream in short.items()}
    found |= {f"joined, {name}": b"\1" + stream for name, stream in (short | long).items()}
    return found | {"early, a byte too long": b"\0" + frame(BINARY, bytes(EARLY_LIMIT + 1))}
