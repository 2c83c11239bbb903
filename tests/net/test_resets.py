"""Connections reset at every stage, with data unread: each ends at once, leaves nothing, and harms no other.

uvloop by itself says no more of a socket with an error than once.
"""

from __future__ import annotations

import asyncio
import os
import socket
from pathlib import Path
from ssl import SSLContext

import pytest

from shadowmesh.net import READ_PER_TURN, protocol
from shadowmesh.net.client import ConnectFailed, connect
from shadowmesh.net.server import Server
from shadowmesh.testing.certificates import Paths
from shadowmesh.testing.relay_program import RelayProgram
from shadowmesh.testing.websocket import (
    BINARY,
    UPGRADE,
    Drive,
    RawPeer,
    Recorder,
    accept_all,
    frame,
    raw_server,
    reset,
    serving,
    until,
)

REQUEST = UPGRADE.format(path="/relay?peer_id=test", more="").encode()


def dial(port: int) -> socket.socket:
    peer = socket.create_connection(("127.0.0.1", port))
    peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # what waits is not sent before a reset
    return peer


def upgraded(port: int, tls: SSLContext | None) -> socket.socket:
    """A blocking connection, which can be made to send and to be reset in one turn of the event loop."""
    peer = dial(port)
    if tls is not None:
        peer = tls.wrap_socket(peer, server_hostname="127.0.0.1")
    try:
        peer.sendall(REQUEST)
        assert peer.recv(4096).startswith(b"HTTP/1.1 101")
    except BaseException:
        peer.close()
        raise
    return peer


async def upgrades(port: int, count: int = 10) -> None:
    """So many at once, which have all the file descriptors that were used before, get an answer."""
    for peer in await asyncio.gather(*(RawPeer.upgraded(port) for _ in range(count))):
        await peer.close()


async def all_ended(listening: Server) -> None:
    await until(lambda: not listening._alive, 1.0)


def test_a_reset_right_after_the_first_byte(run: Drive) -> None:
    async def scenario() -> None:
        async with serving(accept_all) as listening:
            for _ in range(10):
                peer = dial(listening.port)
                peer.send(b"G")
                reset(peer)
                await asyncio.sleep(0.002)
            await upgrades(listening.port)
            await all_ended(listening)

    run(scenario)


def test_a_reset_amid_the_request(run: Drive) -> None:
    async def scenario() -> None:
        async with serving(accept_all) as listening:
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


def test_a_reset_amid_the_handshake(run: Drive, server_tls: SSLContext) -> None:
    async def scenario() -> None:
        async with serving(accept_all, server_tls) as listening:
            for hello in (
                b"\x16",
                b"\x16\x03\x01\x02\x00",
                b"\x16\x03\x01\x02\x00xx",
                b"\x16\x03\x01\x00\x05hello",
            ):
                for _ in range(5):
                    peer = dial(listening.port)
                    peer.send(hello)
                    reset(peer)
                    await asyncio.sleep(0.002)
            await all_ended(listening)
            assert listening.tls_failed.total() == 20

    run(scenario)


@pytest.mark.parametrize("secure", [False, True])
@pytest.mark.parametrize("messages", [0, 1, 140])
def test_a_reset_after_data(
    run: Drive, server_tls: SSLContext, client_tls: SSLContext, secure: bool, messages: int
) -> None:
    """What came before it is delivered, however many turns that takes, and then the connection is over."""
    assert 2 * READ_PER_TURN < 140 * 1000
    ws = Recorder()

    async def scenario() -> None:
        async with serving(lambda request: ws, server_tls if secure else None) as listening:
            peer = await asyncio.to_thread(upgraded, listening.port, client_tls if secure else None)
            await until(lambda: ws.opened)
            # So that the window takes all of what follows at once.
            ws.tcp_socket().setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
            await asyncio.to_thread(peer.sendall, frame(BINARY, bytes(1000)) * 1000)
            await until(lambda: len(ws.messages) == 1000)
            peer.sendall(frame(BINARY, bytes(1000)) * messages)
            reset(peer)
            await until(lambda: ws.closed, 1.0)
            assert ws.closed == [(None, "")]
            assert len(ws.messages) == 1000 + messages
            await all_ended(listening)

    run(scenario)


def test_a_reset_of_a_connection_that_is_paused(run: Drive) -> None:
    ws = Recorder()

    async def scenario() -> None:
        async with serving(lambda request: ws) as listening:
            peer = await asyncio.to_thread(upgraded, listening.port, None)
            await until(lambda: ws.opened)
            ws.pause_reading()
            peer.sendall(frame(BINARY, bytes(1000)) * 50)
            reset(peer)
            await asyncio.sleep(0.05)
            assert not ws.closed
            ws.resume_reading()
            await until(lambda: ws.closed, 1.0)
            assert len(ws.messages) == 50

    run(scenario)


def test_a_relay_that_resets_is_left_by_its_client(run: Drive) -> None:
    ws = Recorder()

    async def scenario() -> None:
        async with raw_server(ws) as peer:
            of_peer = socket.socket(fileno=os.dup(peer.writer.get_extra_info("socket").fileno()))
            peer.writer.close()  # the copy alone is left
            await peer.writer.wait_closed()
            of_peer.sendall(frame(BINARY, b"last", masked=False))
            reset(of_peer)
            await until(lambda: ws.closed, 1.0)
            assert ws.messages == [b"last"]

    run(scenario)


def test_a_relay_that_resets_at_once_is_not_waited_for(run: Drive, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(address: object) -> tuple[str, int]:
        raise ConnectionResetError

    monkeypatch.setattr(protocol, "host_port", gone)

    async def scenario() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            url = f"ws://127.0.0.1:{listener.getsockname()[1]}/relay"
            async with asyncio.timeout(2):
                with pytest.raises(ConnectFailed, match="closed the connection without an answer"):
                    await connect(url, Recorder(), max_frame=131072)

    run(scenario)


def files_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/fd"))


@pytest.mark.parametrize("start", [b"\x16", b"\x16\x03\x01\x02\x00xx", b"\x16\x03\x01\x00\x05hello"])
def test_the_program_loses_no_file_descriptor(files: Paths, tmp_path: Path, start: bytes) -> None:
    """With TLS, in which 100 connections that begin like it are reset: gone long before any deadline."""
    with RelayProgram(tmp_path, {"tls": {"cert_file": str(files.cert), "key_file": str(files.key)}}) as relay:
        relay.ready()
        before = files_of(relay.pid)
        for _ in range(100):
            peer = dial(relay.relay_port)
            peer.sendall(start)
            reset(peer)
        relay.wait_for(lambda: files_of(relay.pid) <= before, "end of all connections", 2.0)


BUG = """
from itertools import count
from shadowmesh.net import protocol, server
real, calls = protocol.host_port, count()
def host_port(address):
    if next(calls) < 10:
        raise RuntimeError("injected")
    return real(address)
protocol.host_port = host_port
"""


@pytest.mark.parametrize("secure", [False, True])
def test_a_bug_at_the_start_ends_that_connection_only(
    files: Paths, client_tls: SSLContext, tmp_path: Path, secure: bool
) -> None:
    """And not the process, by bytes for a parser that has no transport."""
    settings = {"tls": {"cert_file": str(files.cert), "key_file": str(files.key)}} if secure else {}
    with RelayProgram(tmp_path, settings, before=BUG) as relay:
        relay.ready()
        before = files_of(relay.pid)
        tls = client_tls if secure else None
        for _ in range(10):
            with pytest.raises((OSError, AssertionError)):  # it is reset, or ends without an answer
                upgraded(relay.relay_port, tls)
        relay.wait_for(lambda: files_of(relay.pid) <= before, "end of all connections", 2.0)
        upgraded(relay.relay_port, tls).close()
        assert relay.text().count("RuntimeError: injected") > 0


def test_an_exception_at_the_door_ends_that_connection_only(
    run: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with serving(accept_all) as listening:

            def broken(ip: str) -> bool:
                listening.admits = lambda ip: True
                raise RuntimeError("injected")

            listening.admits = broken
            first, second = await RawPeer.dial(listening.port), await RawPeer.dial(listening.port)
            await first.eof()
            second.send(REQUEST)
            assert (await second.head()).startswith("HTTP/1.1 101")
            await first.close()
            await second.close()
            await all_ended(listening)

    assert "cannot admit a connection" in run(scenario, errors=1)[0]
