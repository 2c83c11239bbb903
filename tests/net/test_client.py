"""Dialling: what is sent, and every failure in words."""

from __future__ import annotations

import asyncio
import contextlib
import re
import socket

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websockets_serve
from websockets.typing import Subprotocol

from shadowmesh.errors import LocalProtocolError
from shadowmesh.net import client
from shadowmesh.net.client import NOT_A_RELAY, ConnectFailed, connect
from shadowmesh.net.failure import BEHIND_PROXY
from shadowmesh.net.server import serve
from shadowmesh.testing.websocket import RawPeer, Recorder, accepting, drive, until
from shadowmesh.wire.frame import MAX_FRAME

LOGIN = "the login page of this network, as hotels have one? Then open a browser and log in"


def failure(
    answer: bytes | None, *, end: bool = True, subprotocol: str | None = None, timeout: float = 5
) -> ConnectFailed:
    """How `connect` fails when the server answers its request so; None: not at all."""
    failures: list[ConnectFailed] = []

    async def main() -> None:
        peers: list[RawPeer] = []

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peers.append(RawPeer(reader, writer))
            await peers[0].head()
            if answer is not None:
                peers[0].send(answer)
                if end:
                    await peers[0].close()

        async with accepting(accept) as port:
            url = f"ws://127.0.0.1:{port}/relay"
            ws = Recorder()
            with pytest.raises(ConnectFailed) as caught:
                await connect(url, ws, max_frame=MAX_FRAME, subprotocol=subprotocol, timeout=timeout)
            failures.append(caught.value)
            await peers[0].eof()  # the connection is cut on our side too
            assert ws.opened == 0
            assert ws.closed == []

    drive(main)
    return failures[0]


def test_request_and_subprotocol() -> None:
    async def main() -> None:
        async def handler(server: ServerConnection) -> None:
            assert server.request is not None
            await server.send(server.request.path)
            await server.send(server.request.headers["Authorization"] + server.request.headers["Host"])
            await server.wait_closed()

        subprotocols = [Subprotocol("shadowmesh.v1")]
        async with websockets_serve(handler, "127.0.0.1", 0, subprotocols=subprotocols) as server:
            port = server.sockets[0].getsockname()[1]
            ws = Recorder()
            await connect(
                f"ws://relay.example:{port}/relay?peer_id=x",
                ws,
                max_frame=MAX_FRAME,
                subprotocol="shadowmesh.v1",
                headers={"Authorization": "Bearer y"},
                address="127.0.0.1",
            )
            assert ws.opened == 1
            assert ws.remote == ("127.0.0.1", port)
            await until(lambda: ws.messages == ["/relay?peer_id=x", f"Bearer yrelay.example:{port}"])
            ws.close()
            await until(lambda: ws.closed == [(1000, "")])

        async with websockets_serve(handler, "127.0.0.1", 0) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/relay"
            with pytest.raises(ConnectFailed, match="it does not speak shadowmesh"):
                await connect(url, Recorder(), max_frame=MAX_FRAME, subprotocol="shadowmesh.v1")

    drive(main)


@pytest.mark.parametrize("url", ["http://relay/", "ws:///relay", "relay:9545"])
def test_urls_and_headers_that_are_our_bug(url: str) -> None:
    async def main() -> None:
        with pytest.raises(LocalProtocolError):
            await connect(url, Recorder(), max_frame=MAX_FRAME)
        with pytest.raises(LocalProtocolError):
            await connect("ws://relay/", Recorder(), max_frame=MAX_FRAME, headers={"X": "a\r\nY: b"})

    drive(main)


@pytest.mark.parametrize(
    ("answer", "status", "retry_after", "words"),
    [
        (
            b"HTTP/1.1 503 x\r\nRetry-After: 7\r\n\r\nfull\nmore",
            503,
            7.0,
            "HTTP 503 Service Unavailable: full",
        ),
        (b"HTTP/1.1 503 x\r\nRetry-After: 99999999\r\n\r\n", 503, 3600.0, "HTTP 503 Service Unavailable"),
        (b"HTTP/1.1 503 x\r\nRetry-After: Fri, 31 Dec\r\n\r\n", 503, None, "HTTP 503 Service Unavailable"),
        (b"HTTP/1.1 401 x\r\n\r\n", 401, None, "HTTP 401 Unauthorized"),
        (
            b"HTTP/1.1 302 x\r\nLocation: http://login.hotel/?token=1\r\n\r\n",
            302,
            None,
            f"a web page answers instead of the relay (HTTP 302 Found to http://login.hotel): {LOGIN}",
        ),
        (
            b"HTTP/1.1 511 x\r\n\r\n<html>",
            511,
            None,
            f"a web page answers instead of the relay (HTTP 511 Network Authentication Required): {LOGIN}",
        ),
        (
            b"HTTP/1.1 301 x\r\nLocation: http://[\r\n\r\n",
            301,
            None,
            f"a web page answers instead of the relay (HTTP 301 Moved Permanently): {LOGIN}",
        ),
        (
            b"HTTP/1.1 301 x\r\nLocation: https://127.0.0.1/relay\r\n\r\n",
            301,
            None,
            "HTTP 301 Moved Permanently: the server wants TLS; is it wss:// in relay.server?",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n<html>",
            200,
            None,
            f"{NOT_A_RELAY} but a web page (HTTP 200): {LOGIN}; a relay's own port is 9545",
        ),
        (b"HTTP/1.1 200 OK\r\n\r\nhi", 200, None, f"{NOT_A_RELAY} (HTTP 200); a relay's own port is 9545"),
        (
            b"HTTP/1.1 404 x\r\n\r\nNot Found",
            404,
            None,
            f"{NOT_A_RELAY} (HTTP 404); a relay's own port is 9545",
        ),
        (
            b"HTTP/1.1 404 x\r\n\r\nclients connect to /relay",
            404,
            None,
            "HTTP 404 Not Found: clients connect to /relay",
        ),
        (b"HTTP/1.1 521 down\r\n\r\n\x1b[31mred", 521, None, "HTTP 521: ?[31mred"),
        (
            b"HTTP/1.1 504 x\r\nContent-Type: text/html\r\n\r\n<html>",
            504,
            None,
            f"HTTP 504 Gateway Timeout: {BEHIND_PROXY}",
        ),
        (b"HTTP/1.0 502 x\r\n\r\n", 502, None, f"HTTP 502 Bad Gateway: {BEHIND_PROXY}"),
        (b"HTTP/1.1 101 x\r\n\r\n", None, None, NOT_A_RELAY),
        (b"HTTP/1.1 101 x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n", None, None, NOT_A_RELAY),
        (b"SSH-2.0-x\r\n\r\n", None, None, NOT_A_RELAY),
        (b"\r\n\r\n", None, None, NOT_A_RELAY),
        (b"x" * 20_000, None, None, NOT_A_RELAY),
    ],
)
def test_http_answers(answer: bytes, status: int | None, retry_after: float | None, words: str) -> None:
    failed = failure(answer, end=False)
    assert (failed.status, failed.retry_after, str(failed)) == (status, retry_after, words)


def test_extension_nobody_asked_for() -> None:
    async def main() -> None:
        async def handler(server: ServerConnection) -> None:
            await server.wait_closed()

        def add(server: ServerConnection, request: object, response: object) -> None:
            response.headers["Sec-WebSocket-Extensions"] = "x"  # type: ignore[attr-defined]

        async with websockets_serve(handler, "127.0.0.1", 0, process_response=add) as server:
            port = server.sockets[0].getsockname()[1]
            with pytest.raises(ConnectFailed, match="extension"):
                await connect(f"ws://127.0.0.1:{port}/", Recorder(), max_frame=MAX_FRAME)

    drive(main)


def test_connection_that_ends_during_the_handshake() -> None:
    assert "closed the connection without an answer" in str(failure(b"HTTP/1.1 101"))
    assert "closed the connection without an answer" in str(failure(b""))


def test_server_that_does_not_answer() -> None:
    assert "does not answer in time" in str(failure(None, timeout=0.05))


def test_server_without_tls() -> None:
    async def main() -> None:
        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            await RawPeer(reader, writer).close()

        async with accepting(accept) as port:
            url = f"wss://127.0.0.1:{port}/relay"
            with pytest.raises(ConnectFailed, match=r"TLS with .* fails"):
                await connect(url, Recorder(), max_frame=MAX_FRAME)

    drive(main)


def test_addresses_are_tried_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first is refused, the second does not answer, the third is right, the fourth is never needed."""

    async def main() -> None:
        server = await serve("127.0.0.1", 0, lambda request: Recorder(), max_frame=MAX_FRAME)
        loop = asyncio.get_running_loop()
        stream = (socket.SOCK_STREAM, socket.IPPROTO_TCP, "")
        found = [
            (socket.AF_INET6, *stream, ("::1", server.port)),
            (socket.AF_INET6, *stream, ("::1", server.port)),
            (socket.AF_INET, *stream, ("127.0.0.9", server.port)),
            (socket.AF_INET, *stream, ("127.0.0.1", server.port)),
        ]
        tried: list[str] = []

        def lookup(*args: object, **kwargs: object) -> object:
            return found

        real = loop.sock_connect

        async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
            tried.append(address[0])
            if address[0] == "127.0.0.9":
                await asyncio.sleep(60)
            await real(sock, address)

        monkeypatch.setattr(client, "_NEXT_ADDRESS_SECONDS", 0.01)
        monkeypatch.setattr(socket, "getaddrinfo", lookup)
        monkeypatch.setattr(loop, "sock_connect", sock_connect)
        ws = Recorder()
        await connect(f"ws://relay.example:{server.port}/relay", ws, max_frame=MAX_FRAME)
        assert tried == ["::1", "127.0.0.9", "::1", "127.0.0.1"]
        ws.close()
        await until(lambda: ws.closed)
        server.close()
        await server.wait_closed()

    drive(main)


def test_refused_and_unknown_names(monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets this port
            port = unused.getsockname()[1]
            for host in ("127.0.0.1", "localhost", "[::ffff:127.0.0.1]"):
                with pytest.raises(ConnectFailed, match=re.escape(f"{host}:{port} refuses connections")):
                    await connect(f"ws://{host}:{port}/relay", Recorder(), max_frame=MAX_FRAME)

        def unknown(*args: object, **kwargs: object) -> None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socket, "getaddrinfo", unknown)
        with pytest.raises(ConnectFailed, match=r"cannot find the address of nowhere\.invalid: Name or"):
            await connect("ws://nowhere.invalid:9545/relay", Recorder(), max_frame=MAX_FRAME)

    drive(main)


def test_cancelled_at_any_moment_leaves_no_connection() -> None:
    async def main() -> None:
        requests = connections = 0

        async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests, connections
            connections += 1
            peer = RawPeer(reader, writer)
            with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
                await peer.head()
                requests += 1
            await peer.eof()
            await peer.close()
            connections -= 1

        async with accepting(accept) as port:
            url = f"ws://127.0.0.1:{port}/relay"
            for steps in range(16):
                task = asyncio.create_task(connect(url, Recorder(), max_frame=MAX_FRAME))
                for _ in range(steps):
                    await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            seen = requests
            task = asyncio.create_task(connect(url, Recorder(), max_frame=MAX_FRAME))
            await until(lambda: requests > seen)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await asyncio.sleep(0.02)  # for those that are still in the backlog
            await until(lambda: not connections)

    drive(main)


class BlackHole:
    """What `loop.sock_connect` meets: nothing, until the way is back; sockets opened before stay lost."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, back: float) -> None:
        loop = asyncio.get_running_loop()
        self.began = loop.time()
        self.sockets: dict[socket.socket, float] = {}
        self.most = 0
        real = loop.sock_connect

        async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
            self.sockets[sock] = at = loop.time() - self.began
            self.most = max(self.most, len(self.sockets))
            try:
                if at < back:
                    await asyncio.sleep(60)
                await real(sock, address)
            finally:
                del self.sockets[sock]

        monkeypatch.setattr(loop, "sock_connect", sock_connect)


def test_a_further_socket_finds_the_way_that_is_back(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without waiting for TCP, and with three sockets at most, of which the first is kept."""
    monkeypatch.setattr(client, "_AGAIN_SECONDS", 0.05)

    async def main() -> None:
        server = await serve("127.0.0.1", 0, lambda request: Recorder(), max_frame=MAX_FRAME)
        hole = BlackHole(monkeypatch, back=0.32)
        ws = Recorder()
        await connect(f"ws://127.0.0.1:{server.port}/relay", ws, max_frame=MAX_FRAME)
        assert 0.32 <= asyncio.get_running_loop().time() - hole.began < 0.6
        assert hole.most == 3
        await until(lambda: not hole.sockets)
        ws.close()
        await until(lambda: ws.closed)
        server.close()
        await server.wait_closed()

    drive(main)


def test_a_way_that_takes_long_is_not_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first socket wins although three more were opened since; whoever refuses is believed at once."""
    monkeypatch.setattr(client, "_AGAIN_SECONDS", 0.05)

    async def main() -> None:
        server = await serve("127.0.0.1", 0, lambda request: Recorder(), max_frame=MAX_FRAME)
        loop = asyncio.get_running_loop()
        real, opened = loop.sock_connect, 0

        async def sock_connect(sock: socket.socket, address: tuple[str, int]) -> None:
            nonlocal opened
            opened += 1
            await asyncio.sleep(0.3 if opened == 1 else 60)
            await real(sock, address)

        monkeypatch.setattr(loop, "sock_connect", sock_connect)
        ws = Recorder()
        await connect(f"ws://127.0.0.1:{server.port}/relay", ws, max_frame=MAX_FRAME)
        assert opened >= 4
        ws.close()
        await until(lambda: ws.closed)
        server.close()
        await server.wait_closed()
        opened = 0
        with pytest.raises(ConnectFailed, match="refuses connections"):
            await connect(f"ws://127.0.0.1:{server.port}/relay", Recorder(), max_frame=MAX_FRAME)

    drive(main)
