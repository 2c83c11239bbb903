"""TLS of the relay's port: who gets in, who fails without being heard of, back-pressure and the end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import ssl
import struct
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from shadowmesh.net import server as server_module
from shadowmesh.net import websocket
from shadowmesh.net.client import ConnectFailed, connect
from shadowmesh.net.server import Request
from shadowmesh.net.tls import Certificate
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.certificates import Paths, make_certificate
from shadowmesh.testing.websocket import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    UPGRADE,
    Drive,
    Echo,
    RawPeer,
    Recorder,
    accept_all,
    drive,
    frame,
    serving,
    until,
)
from shadowmesh.wire.frame import MAX_FRAME


@pytest.fixture(autouse=True)
def nothing_is_logged(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    yield
    assert [each for each in caplog.records if each.levelno >= logging.INFO] == []


def certificate(paths: Paths) -> Certificate:
    return Certificate(str(paths.cert), str(paths.key))


# Who gets in


def test_messages_both_ways(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Drive) -> None:
    async def main() -> None:
        async with serving(lambda request: Echo(), server_tls) as server:
            ws = Recorder()
            await connect(f"wss://127.0.0.1:{server.port}/relay", ws, max_frame=MAX_FRAME, ssl=client_tls)
            sizes = (1, 125, 8192, 8193, 16384, 65536, MAX_FRAME) * 3
            for size in sizes:
                ws.send_binary(os.urandom(1) * size)
            await until(lambda: len(ws.messages) == len(sizes))
            assert [len(each) for each in ws.messages] == list(sizes)
            assert ws.remote == ("127.0.0.1", server.port)
            ws.close(1000, "done")
            await until(lambda: not server.connections)
            await until(lambda: ws.closed == [(1000, "done")])
            assert (server.accepted, server.tls_failed.total()) == (1, 0)

    run(main)


@pytest.mark.parametrize(
    ("version", "ciphers", "cipher"),
    [
        (ssl.TLSVersion.TLSv1_2, "AES128-SHA:ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-GCM-SHA256", "GCM"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE+CHACHA20:ECDHE+AESGCM", "ECDHE-ECDSA-CHACHA20-POLY1305"),
        (ssl.TLSVersion.TLSv1_3, None, "TLS_"),
        (ssl.TLSVersion.TLSv1_2, "ECDHE-ECDSA-AES128-SHA:ECDHE-ECDSA-AES128-SHA256", None),
        (ssl.TLSVersion.TLSv1_1, "ALL:@SECLEVEL=0", None),
    ],
)
def test_what_is_spoken(
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    version: ssl.TLSVersion,
    ciphers: str | None,
    cipher: str | None,
) -> None:
    async def main() -> None:
        old = version < ssl.TLSVersion.TLSv1_2
        with pytest.warns(DeprecationWarning, match="TLSv1_1") if old else contextlib.nullcontext():
            client_tls.minimum_version = client_tls.maximum_version = version
        client_tls.set_alpn_protocols(["h2", "http/1.1"])
        if ciphers:
            client_tls.set_ciphers(ciphers)
        async with serving(accept_all, server_tls) as server:
            if cipher is None:
                with pytest.raises(OSError):
                    await RawPeer.dial(server.port, client_tls)
                await until(lambda: server.tls_failed.total() == 1)
                return
            peer = await RawPeer.upgraded(server.port, ssl=client_tls)
            spoken = peer.writer.get_extra_info("ssl_object")
            assert spoken.version() == version.name.replace("TLSv1_", "TLSv1.")
            assert cipher in spoken.cipher()[0]
            assert spoken.selected_alpn_protocol() == "http/1.1"
            assert not (version == ssl.TLSVersion.TLSv1_3 and spoken.session and spoken.session.has_ticket)
            await peer.close()

    drive(main)


def test_settings_change_while_it_runs(
    files: Paths, client_tls: ssl.SSLContext, tmp_path: Path, run: Drive
) -> None:
    """A renewed certificate, TLS off and on again: new connections have it, old ones go on."""

    async def main() -> None:
        ours: list[Recorder] = []

        def upgrade(request: Request) -> WebSocket:
            ours.append(Recorder())
            return ours[-1]

        paths = Paths(*(tmp_path / each.name for each in files))
        for name in ("ca.pem", "ca-key.pem"):
            (tmp_path / name).write_bytes((files.ca.parent / name).read_bytes())
        make_certificate(tmp_path, ["127.0.0.1"])
        renewed = certificate(paths)
        async with serving(upgrade, renewed.context) as server:
            peers = [await RawPeer.upgraded(server.port, ssl=client_tls)]
            make_certificate(tmp_path, ["127.0.0.1"])
            renewed.reload()
            server.ssl = renewed.context
            peers.append(await RawPeer.upgraded(server.port, ssl=client_tls))
            server.ssl = None
            peers.append(await RawPeer.upgraded(server.port))
            server.ssl = renewed.context
            peers.append(await RawPeer.upgraded(server.port, ssl=client_tls))
            seen = [peer.writer.get_extra_info("ssl_object") for peer in peers]
            serials = [each and each.getpeercert()["serialNumber"] for each in seen]
            assert serials[0] != serials[1] == serials[3]
            assert serials[2] is None
            for peer in peers:
                peer.send(frame(BINARY, b"still here"))
            await until(lambda: all(ws.messages for ws in ours) and len(ours) == 4)
            for peer in peers:
                await peer.close()

    run(main)


# Who fails


def hello(context: ssl.SSLContext) -> bytes:
    """The first bytes of a TLS client."""
    outgoing = ssl.MemoryBIO()
    client = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="127.0.0.1")
    with pytest.raises(ssl.SSLWantReadError):
        client.do_handshake()
    return outgoing.read()


GARBAGE = [
    b"\x16",
    b"\x16" * 5000,
    b"\x16\x03\x01\x40\x00" + bytes(16384),
    b"\x16\x03\x01\xff\xff" + bytes(100_000),
    b"\x16\x03\x01\x00\x05\x01\xff\xff\xff\xff",
    b"\x16\x03\x03\x00\x00" * 100,
]


def test_failures_are_quiet_and_harm_nobody(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    monkeypatch.setattr(server_module, "UPGRADE_SECONDS", 0.5)

    async def main() -> None:
        async with serving(lambda request: Echo(), server_tls) as server:
            good = Recorder()
            url = f"wss://127.0.0.1:{server.port}/relay"
            await connect(url, good, max_frame=MAX_FRAME, ssl=client_tls)
            begun = time.monotonic()
            starts = [*GARBAGE, hello(client_tls), hello(client_tls)[:50], hello(client_tls) + b"\x17garbage"]
            peers = [await RawPeer.dial(server.port) for _ in starts]
            for peer, start in zip(peers, starts, strict=True):
                peer.send(start)
            for peer in peers[-3:]:  # in the midst of it: the end of the stream, and a reset
                await asyncio.sleep(0.02)
                peer.writer.write_eof()
            reset = await RawPeer.dial(server.port)
            reset.send(hello(client_tls))
            await reset.reader.readexactly(100)
            linger = struct.pack("ii", 1, 0)
            reset.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
            reset.writer.transport.abort()
            with pytest.raises(ConnectFailed, match=r"certificate of 127\.0\.0\.1:.* is not valid"):
                await connect(url, Recorder(), max_frame=MAX_FRAME)
            for peer in peers:
                await peer.eof()
                await peer.close()
            await until(lambda: server._alive == 1)
            assert time.monotonic() - begun < 2
            assert server.tls_failed.total() == len(starts) + 2
            good.send_binary(b"still here")
            await until(lambda: good.messages == [b"still here"])
            good.abort()

    run(main)


def test_the_client_writes_no_keys_for_wireshark(
    server_tls: ssl.SSLContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With aiofastnet that would not only show the traffic's keys, but crash the process."""
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))

    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            with pytest.raises(ConnectFailed, match="is not valid"):
                await connect(f"wss://127.0.0.1:{server.port}/", Recorder(), max_frame=MAX_FRAME)

    drive(main)
    assert not (tmp_path / "keys").exists()


def test_silence_is_no_failure(
    server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    """A health check that only connects, and one that does not go away."""
    monkeypatch.setattr(server_module, "UPGRADE_SECONDS", 0.1)

    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            gone, silent = await RawPeer.dial(server.port), await RawPeer.dial(server.port)
            await gone.close()
            await silent.eof()
            await silent.close()
            await until(lambda: not server._alive)
            assert (server.accepted, server.tls_failed.total(), server.pending_refused) == (2, 0, 0)

    run(main)


def test_the_wrong_one_of_tls_and_plain_is_answered_at_once(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Drive
) -> None:
    async def main() -> None:
        async with asyncio.timeout(2), serving(accept_all, server_tls) as server:
            peer = await RawPeer.dial(server.port)
            peer.send(UPGRADE.format(path="/relay", more="").encode())
            assert (await peer.head()).startswith("HTTP/1.1 400 Bad Request\r\n")
            assert await peer.reader.read() == b"This port speaks TLS: wss:// or https://\n"
            await peer.close()
            url = f"//127.0.0.1:{server.port}/relay"
            with pytest.raises(ConnectFailed, match="HTTP 400 Bad Request: This port speaks TLS: wss://"):
                await connect(f"ws:{url}", Recorder(), max_frame=MAX_FRAME)
            assert server.tls_failed.total() == 2
            server.ssl = None
            with pytest.raises(ConnectFailed, match=r"breaks off TLS: does it speak TLS, or is it ws://\?"):
                await connect(f"wss:{url}", Recorder(), max_frame=MAX_FRAME, ssl=client_tls)
            assert server.tls_failed.total() == 3

    run(main)


def test_request_deadline_and_answers_within_tls(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    monkeypatch.setattr(server_module, "UPGRADE_SECONDS", 0.2)

    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            silent = await RawPeer.dial(server.port, client_tls)
            plain = await RawPeer.dial(server.port, client_tls)
            plain.send(b"GET / HTTP/1.1\r\nHost: relay\r\n\r\n")
            assert (await plain.head()).startswith("HTTP/1.1 426")
            long = await RawPeer.dial(server.port, client_tls)
            long.send(b"x" * 20_000)
            assert (await long.head()).startswith("HTTP/1.1 431")
            for peer in (plain, long, silent):
                await peer.eof()
                await peer.close()
            await until(lambda: not server._alive)
            assert server.tls_failed.total() == 0

    run(main)


def test_handshakes_take_turns(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    """Of a crowd that comes at once only a few handshakes begin in one turn of the loop."""
    monkeypatch.setattr(server_module, "HANDSHAKES_PER_TURN", 2)
    begun: list[int] = []

    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            turn = 0

            async def count_turns() -> None:
                nonlocal turn
                while True:
                    await asyncio.sleep(0)
                    turn += 1

            start = server._start

            def counted(*args: Any) -> None:
                begun.append(turn)
                start(*args)

            monkeypatch.setattr(server, "_start", counted)
            counting = asyncio.create_task(count_turns())
            first = hello(client_tls)
            clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(20)]
            for client in clients:
                client.sendall(first)
            await until(lambda: len(begun) == 20)
            # Two, and one more, for the loop may run the counter before or after us.
            assert max(begun.count(each) for each in begun) <= 4
            assert len(set(begun)) >= 7
            server.ssl = None  # for those that are not begun yet, too
            for client in clients:
                client.close()
            counting.cancel()
            await until(lambda: not server._alive)

    run(main)


def test_close_drops_handshakes(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Drive) -> None:
    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            silent, slow, ready = [await RawPeer.dial(server.port) for _ in range(3)]
            slow.send(hello(client_tls)[:100])
            ready.send(hello(client_tls))
            await ready.reader.readexactly(10)
            server.close()
            for peer in (silent, slow, ready):
                await peer.eof()
                await peer.close()
            await server.wait_closed()

    run(main)


# Back-pressure and the end


def test_backpressure(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Drive) -> None:
    async def main() -> None:
        ws = Recorder()
        async with serving(lambda request: ws, server_tls) as server:
            peer = await RawPeer.upgraded(server.port, ssl=client_tls)
            ws.set_write_limits(100_000, 50_000)
            assert ws.write_buffer_size() == 0
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            sent = 0
            while not ws.paused:
                ws.send_binary(bytes(60_000))
                sent += 60_000
            assert 100_000 < ws.write_buffer_size() < 100_000 + 60_000 + 2 * 16_448
            delivered = ws.delivered()
            if delivered is not None:
                acked, given = delivered
                assert acked < given
                assert sent < given < 1.01 * sent + 10_000
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            reading = asyncio.create_task(peer.eof())
            await until(lambda: not ws.paused)
            await until(lambda: ws.write_buffer_size() == 0)
            if delivered is not None:
                await until(lambda: (both := ws.delivered()) and both[0] == both[1] > sent)
            ws.abort()
            await reading
            await until(lambda: ws.closed)
            await peer.close()

    run(main)


def test_what_the_kernel_takes_is_known_exactly(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Drive
) -> None:
    class Exact(Recorder):
        """Writes down how much waits whenever the hooks are called, and sends on in `resume_writing`."""

        def __init__(self) -> None:
            super().__init__()
            self.waiting: list[int] = []
            self.more = 3

        def on_open(self) -> None:
            self.set_write_limits(0, 0)

        def pause_writing(self) -> None:
            assert not self.paused
            super().pause_writing()
            self.waiting.append(self.write_buffer_size())

        def resume_writing(self) -> None:
            assert self.paused
            super().resume_writing()
            assert self.write_buffer_size() == 0
            while self.more and not self.paused:
                self.send_binary(bytes(1000))
            self.more = max(self.more - 1, 0)

    async def main() -> None:
        ws = Exact()
        async with serving(lambda request: ws, server_tls) as server:
            peer = await RawPeer.upgraded(server.port, ssl=client_tls)
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not ws.write_buffer_size():
                assert not ws.paused
                ws.send_binary(bytes(1000))
            assert ws.paused
            ws.send_binary(bytes(MAX_FRAME))  # fills OpenSSL's buffer; the rest waits before it
            assert MAX_FRAME < ws.write_buffer_size() < MAX_FRAME + 2 * 16_448
            peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
            reading = asyncio.create_task(peer.eof())
            await until(lambda: not ws.more and not ws.paused)
            assert len(ws.waiting) == 4
            assert all(0 < each < 1100 for each in ws.waiting)
            ws.abort()
            await reading
            await peer.close()
            await until(lambda: ws.closed)
            assert not ws.paused

    run(main)


def test_no_hook_after_the_end(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    """A connection that is cut while it is full is not told to send on."""

    async def main() -> None:
        ws = Recorder()
        async with serving(lambda request: ws, server_tls) as server:
            peer = await RawPeer.upgraded(server.port, ssl=client_tls)
            ws.set_write_limits(0, 0)
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not ws.paused:
                ws.send_binary(bytes(60_000))
            ws.abort()
            await until(lambda: ws.closed)
            assert ws.paused
            peer.writer.transport.abort()
            await peer.close()

    run(main)


@pytest.mark.parametrize("start", ["close", "too long", "parse error"])
def test_closing_is_over_in_time(
    server_tls: ssl.SSLContext,
    client_tls: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    run: Drive,
    start: str,
) -> None:
    """Although the client reads nothing and keeps sending."""
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)

    async def main() -> None:
        ws = Recorder()
        async with serving(lambda request: ws, server_tls) as server:
            peer = await RawPeer.upgraded(server.port, ssl=client_tls)
            peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
            while not ws.paused:
                ws.send_binary(bytes(60_000))
            if start == "close":
                ws.close(4005)
            else:
                peer.send(frame(BINARY, bytes(MAX_FRAME + 1)) if start == "too long" else frame(3))
            await until(lambda: ws.closing)
            begun = time.monotonic()
            while not ws.closed:
                peer.send(frame(BINARY, bytes(1000)))
                await asyncio.sleep(0.005)
            assert time.monotonic() - begun < 1.5
            assert ws.messages == []
            peer.writer.transport.abort()
            await peer.close()

    run(main)


def test_peer_of_a_too_long_message_is_told_at_once(
    server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 60)

    async def main() -> None:
        ws = Recorder()
        async with serving(lambda request: ws, server_tls) as server:
            peer = await RawPeer.upgraded(server.port, ssl=client_tls)
            peer.send(frame(BINARY, bytes(3_000_000)))
            assert await peer.close_code() == 1009
            assert await peer.reader.read() == b""  # the end of the stream, not a reset
            await peer.close()
            await until(lambda: ws.closed)

    run(main)


def test_peer_closes(server_tls: ssl.SSLContext, client_tls: ssl.SSLContext, run: Drive) -> None:
    async def main() -> None:
        async with serving(lambda request: ours.pop(), server_tls) as server:
            for goodbye, code in ((frame(CLOSE, b"\x03\xe8bye"), 1000), (b"", None)):
                ws = Recorder()
                ours = [ws]
                peer = await RawPeer.upgraded(server.port, ssl=client_tls)
                peer.send(frame(PING, b"x"))
                assert await peer.frame() == (PONG, b"x")
                if goodbye:
                    peer.send(goodbye)
                    assert await peer.close_code() == code
                    await peer.eof()
                else:
                    peer.writer.transport.abort()
                await until(lambda: ws.closed)  # noqa: B023
                assert ws.closed[0][0] == code
                await peer.close()

    run(main)
