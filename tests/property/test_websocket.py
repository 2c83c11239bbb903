"""Invariant: bytes mean the same whole and byte at a time, and whatever they are, nothing breaks on our side.

A request is upgraded, or answered by an HTTP status, or waited for; behind the upgrade the same messages come
out and the same close code; a protocol error (1002) may take precedence over what came right before it. Over
real sockets; no exception reaches the event loop.
"""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shadowmesh.net.server import Reject, Request
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.websocket import UPGRADE, RawPeer, Recorder, drive, frame, serving, until

GOOD = UPGRADE.format(path="/relay?peer_id=x", more="")
LINES = GOOD.split("\r\n")[:-2]
odd_lines = st.sampled_from(
    [
        "GET /relay HTTP/1.0",
        "POST /relay HTTP/1.1",
        "GET relay HTTP/1.1",
        "GET  HTTP/1.1",
        "GET /%00%ff?peer_id=%zz HTTP/1.1",
        "Upgrade: h2c",
        "Upgrade",
        ": x",
        "Sec-WebSocket-Version: 8",
        "Sec-WebSocket-Key: AAAA",
        "Sec-WebSocket-Protocol: ,,shadowmesh.v1,",
        "Content-Length: 5",
        "Content-Length: -1",
        "Transfer-Encoding: chunked",
        "Host: a\0b",
        "X: " + "y" * 3000,
        " folded",
        "\x80\xff: \xe4",
    ]
)
requests = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(LINES) | odd_lines, max_size=9).map(
        lambda lines: "\r\n".join([*lines, "", ""]).encode("latin-1")
    ),
    st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)).map(
        lambda change: GOOD.encode()[: change[0]] + bytes((change[1],)) + GOOD.encode()[change[0] + 1 :]
    ),
)
payloads = st.binary(max_size=20) | st.sampled_from(
    [b"text", b"\xff\xfe", bytes(125), bytes(126), bytes(9000)]
)
frames = st.builds(
    lambda opcode, payload, fin, rsv, masked: frame(opcode, payload, fin=fin, rsv=rsv, masked=masked),
    st.sampled_from([0, 1, 1, 2, 2, 2, 8, 9, 10, 3, 11]),
    payloads,
    st.sampled_from([True, True, True, False]),
    st.sampled_from([0, 0, 0, 0, 0, 4]),
    st.sampled_from([True, True, True, True, False]),
)
streams = st.lists(frames | st.binary(max_size=12), max_size=6).map(b"".join)


async def send(peer: RawPeer, data: bytes, *, whole: bool) -> None:
    """All at once, or so that each byte arrives by itself: the other side of the loop reads in between."""
    if whole or len(data) > 2000:
        peer.send(data)
        return
    for at in range(len(data)):
        if peer.reader.at_eof() or peer.reader.exception():
            break
        peer.send(data[at : at + 1])
        await asyncio.sleep(0)


async def meaning(data: bytes, *, whole: bool) -> str:
    """The status line of the answer to a request, or nothing while more is waited for."""
    async with serving(
        lambda request: Reject(404, "no") if request.path != "/relay" else Recorder()
    ) as server:
        peer = await RawPeer.dial(server.port)
        await send(peer, data, whole=whole)
        with suppress(OSError):
            peer.writer.write_eof()
        answer = b""
        with suppress(ConnectionError):
            async with asyncio.timeout(3.0):
                answer = await peer.reader.read(65536)
        await peer.close()
        return answer.split(b"\r\n")[0].decode()


async def heard(data: bytes, *, whole: bool) -> tuple[list[bytes | str], int | None]:
    """The messages that came out behind an upgrade, and the close code; None without a close frame."""
    recorder = Recorder()

    def upgrade(request: Request) -> WebSocket:
        return recorder

    async with serving(upgrade) as server:
        peer = await RawPeer.upgraded(server.port)
        await send(peer, data, whole=whole)
        with suppress(OSError):
            peer.writer.write_eof()
        await peer.eof()
        await peer.close()
        await until(lambda: recorder.closed)
        ((code, _),) = recorder.closed
        return recorder.messages, code


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(requests)
def test_requests(data: bytes) -> None:
    answers: list[str] = []

    async def main() -> None:
        answers.append(await meaning(data, whole=True))
        answers.append(await meaning(data, whole=False))

    drive(main)
    assert answers[0] == answers[1]
    assert not answers[0] or re.match(r"HTTP/1\.1 (101|400|404|405|426|431)\b", answers[0]), answers


@settings(max_examples=30, suppress_health_check=[HealthCheck.too_slow])
@given(streams)
def test_frames(data: bytes) -> None:
    outcomes: list[tuple[list[bytes | str], int | None]] = []

    async def main() -> None:
        outcomes.append(await heard(data, whole=True))
        outcomes.append(await heard(data, whole=False))

    drive(main)
    (whole, code), (apart, same) = outcomes
    # A whole read is parsed before any of it is acted on.
    assert code == same or (code == 1002 and same is not None)
    assert whole == apart[: len(whole)]
    assert len(apart) - len(whole) <= (code == 1002)
