"""The accept path: upgrade requests good and bad, limits before the upgrade, errors of accept, TLS."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import struct
import sys
from collections.abc import Callable

import pytest

from shadowmesh.errors import StartError
from shadowmesh.net import server as server_module
from shadowmesh.net import websocket
from shadowmesh.net.client import connect
from shadowmesh.net.server import Reject, Request, serve
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.websocket import (
    BINARY,
    UPGRADE,
    Drive,
    Lines,
    RawPeer,
    Recorder,
    accept_all,
    drive,
    frame,
    serving,
    until,
)

Upgrade = Callable[[Request], WebSocket | Reject]


def answer(request: str, upgrade: Upgrade = accept_all, *, errors: int = 0) -> str:
    """All that the server answers to `request` until it ends the connection."""
    text = ""

    async def main() -> None:
        nonlocal text
        async with serving(upgrade) as server:
            peer = await RawPeer.dial(server.port)
            peer.send(request.encode())
            with contextlib.suppress(ConnectionError):
                text = (await peer.reader.read()).decode()
            await peer.close()

    drive(main, errors=errors)
    return text


def upgrade_request(**changes: str | None) -> str:
    fields: dict[str, str | None] = {
        "Host": "relay",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    fields.update({name.replace("_", "-"): value for name, value in changes.items()})
    lines = [f"{name}: {value}\r\n" for name, value in fields.items() if value is not None]
    return "GET /relay HTTP/1.1\r\n" + "".join(lines) + "\r\n"


def test_request_as_the_handler_sees_it() -> None:
    async def main() -> None:
        seen: list[Request] = []

        def upgrade(request: Request) -> WebSocket:
            seen.append(request)
            ws = Recorder()
            ws.subprotocol = request.subprotocols[-1]
            return ws

        async with serving(upgrade) as server:
            peer = await RawPeer.dial(server.port)
            more = "Authorization: Bearer x\r\nSec-WebSocket-Protocol: other, shadowmesh.v1\r\n"
            peer.send(UPGRADE.format(path="/relay?peer_id=a%20b&shard=2c&empty=", more=more).encode())
            head = await peer.head()
            assert "Sec-WebSocket-Protocol: shadowmesh.v1\r\n" in head
            assert "Sec-WebSocket-Accept: " in head
            (request,) = seen
            assert request.path == "/relay"
            assert request.query == {"peer_id": "a b", "shard": "2c", "empty": ""}
            assert request.headers["authorization"] == "Bearer x"
            assert request.remote == peer.writer.get_extra_info("sockname")
            assert request.subprotocols == ("other", "shadowmesh.v1")
            assert len(server.connections) == 1
            await peer.close()
            await until(lambda: not server.connections)

    drive(main)


@pytest.mark.skipif(not hasattr(socket, "TCP_NOTSENT_LOWAT"), reason="this system has no such bound")
def test_little_waits_unsent_in_the_kernel_from_the_start() -> None:
    """Before anything of a connection's rate is known."""
    opened = Recorder()

    async def main() -> None:
        async with serving(lambda request: opened) as server:
            peer = await RawPeer.upgraded(server.port)
            unsent = opened.tcp_socket().getsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT)
            assert unsent == server_module.UNSENT_BYTES <= 256 * 1024
            await peer.close()

    drive(main)


@pytest.mark.parametrize(
    ("request_text", "status", "header"),
    [
        ("GET / HTTP/1.1\r\nHost: relay\r\n\r\n", 426, "Upgrade: websocket"),
        (upgrade_request(Host=None), 400, ""),
        (upgrade_request(Host="relay\r\nhost: other"), 400, ""),
        (upgrade_request(Upgrade=None), 426, "Upgrade: websocket"),
        (upgrade_request(Upgrade="h2c"), 426, "Upgrade: websocket"),
        (upgrade_request(Connection="close"), 426, "Upgrade: websocket"),
        (upgrade_request(Connection="xupgrade"), 426, "Upgrade: websocket"),
        (upgrade_request(Sec_WebSocket_Version="8"), 426, "Sec-WebSocket-Version: 13"),
        (upgrade_request(Sec_WebSocket_Version=None), 426, "Sec-WebSocket-Version: 13"),
        (upgrade_request(Sec_WebSocket_Key=None), 400, ""),
        (upgrade_request(Sec_WebSocket_Key="AAAA"), 400, ""),
        (upgrade_request(Sec_WebSocket_Key="secret words"), 400, ""),
        ("POST / HTTP/1.1\r\n\r\n", 400, ""),
        ("GET / HTTP/1.0\r\n\r\n", 400, ""),
        ("nonsense\r\n\r\n", 400, ""),
        ("GET / HTTP/1.1\r\nno colon\r\n\r\n", 400, ""),
        ("GET / HTTP/1.1\r\nContent-Length: 5\r\n\r\n", 400, ""),
        (upgrade_request(Cookie="x" * 9000), 431, ""),
        ("x" * 100_000, 431, ""),
    ],
)
def test_what_is_no_good_upgrade_request(request_text: str, status: int, header: str) -> None:
    def upgrade(request: Request) -> WebSocket:
        raise AssertionError("the handler must not see it")

    text = answer(request_text, upgrade)
    assert text.startswith(f"HTTP/1.1 {status} ")
    assert header in text
    assert "Connection: close" in text
    assert "secret" not in text


@pytest.mark.parametrize("connection", ["Upgrade", "upgrade", "keep-alive, Upgrade", "Upgrade,keep-alive"])
def test_connection_header_of_browsers_and_proxies(connection: str) -> None:
    async def main() -> None:
        async with serving(accept_all) as server:
            peer = await RawPeer.dial(server.port)
            peer.send(upgrade_request(Connection=connection, Upgrade="WebSocket").encode())
            assert (await peer.head()).startswith("HTTP/1.1 101")
            await peer.close()

    drive(main)


def test_reject() -> None:
    text = answer(upgrade_request(), lambda request: Reject(503, "full", {"Retry-After": "7"}))
    assert text.startswith("HTTP/1.1 503 Service Unavailable\r\n")
    assert "Retry-After: 7\r\n" in text
    assert text.endswith("\r\n\r\nfull\n")


def test_bug_in_the_upgrade_handler() -> None:
    def upgrade(request: Request) -> WebSocket:
        raise RuntimeError("secret words")

    text = answer(upgrade_request(), upgrade, errors=1)
    assert text.startswith("HTTP/1.1 500 ")
    assert "secret" not in text


def test_upgrade_deadline(monkeypatch: pytest.MonkeyPatch, run: Drive) -> None:
    monkeypatch.setattr(server_module, "UPGRADE_SECONDS", 0.05)

    async def main() -> None:
        async with serving(accept_all) as server:
            silent, slow = await RawPeer.dial(server.port), await RawPeer.dial(server.port)
            slow.send(b"GET / HTTP/1.1\r\n")
            await silent.eof()
            await slow.eof()
            await silent.close()
            await slow.close()

    run(main)


def test_too_long_request_does_not_live_on(monkeypatch: pytest.MonkeyPatch, run: Drive) -> None:
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.1)

    async def main() -> None:
        async with serving(accept_all) as server:
            peer = await RawPeer.dial(server.port)
            peer.send(b"x" * 20_000)
            assert (await peer.head()).startswith("HTTP/1.1 431")
            await until(lambda: not server._alive)
            await peer.close()

    run(main)


def test_connections_without_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch, run: Drive) -> None:
    monkeypatch.setattr(server_module, "MAX_PENDING", 3)

    async def main() -> None:
        async with serving(accept_all) as server:
            joined = await RawPeer.upgraded(server.port)
            peers = [await RawPeer.dial(server.port) for _ in range(5)]
            await peers[0].eof()
            await peers[1].eof()
            assert server.pending_refused == 2
            peers[4].send(upgrade_request().encode())
            assert (await peers[4].head()).startswith("HTTP/1.1 101")
            assert len(server.connections) == 2
            for peer in (joined, *peers):
                await peer.close()

    run(main)


def test_connections_without_a_request_are_bounded_per_source(
    monkeypatch: pytest.MonkeyPatch, run: Drive
) -> None:
    monkeypatch.setattr(server_module, "MAX_PENDING_PER_SOURCE", 2)

    async def main() -> None:
        async with serving(accept_all) as server:
            peers = [await RawPeer.dial(server.port) for _ in range(3)]  # loopback is excepted
            await until(lambda: server.accepted == len(server._pending) == 3)
            for peer in peers:
                await peer.close()
            await until(lambda: not server._pending_from)

            monkeypatch.setattr(server_module, "_is_loopback", lambda host: False)
            peers = [await RawPeer.dial(server.port) for _ in range(3)]
            await peers[2].eof()
            assert server.pending_refused == 1
            server.trusted = lambda host: host == "127.0.0.1"
            proxied = await RawPeer.upgraded(server.port)
            assert server.pending_refused == 1
            assert server.accepted == 7
            for peer in (proxied, *peers):
                await peer.close()
            await until(lambda: not server._pending_from)

    run(main)


def test_who_is_not_admitted_is_closed_at_once_and_nobody_else() -> None:
    async def main() -> None:
        async with serving(accept_all) as server:
            asked: list[str] = []
            server.admits = lambda ip: not asked.append(ip) and len(asked) != 2  # type: ignore[func-returns-value]
            first = await RawPeer.upgraded(server.port)
            second = await RawPeer.dial(server.port)
            await second.eof()
            third = await RawPeer.upgraded(server.port)
            assert asked == ["127.0.0.1"] * 3
            assert (server.accepted, len(server.connections), len(server._pending)) == (3, 2, 0)
            for peer in (first, second, third):
                await peer.close()

    drive(main)


def test_what_counts_as_one_source_before_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "MAX_PENDING_PER_SOURCE", 2)
    monkeypatch.setattr(server_module, "_is_loopback", lambda host: False)

    async def main() -> None:
        async with serving(accept_all) as server:
            server.source_of = lambda ip: "all"
            peers = [await RawPeer.dial(server.port, source=f"127.0.0.{number}") for number in (1, 2, 3)]
            await peers[2].eof()
            assert server.pending_refused == 1
            for peer in peers:
                await peer.close()

    drive(main)


def lowest_free() -> int:
    number = os.dup(0)
    os.close(number)
    return number


def test_out_of_file_descriptors(run: Drive) -> None:
    async def main() -> None:
        async with serving(accept_all) as server:
            client = socket.create_connection(("127.0.0.1", server.port))
            limits = resource.getrlimit(resource.RLIMIT_NOFILE)
            # The connection waits in the backlog; accepting it needs a descriptor that must not exist now.
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free(), limits[1]))
            try:
                await asyncio.sleep(1.5 * server_module.ACCEPT_PAUSE)
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, limits)
            assert 1 <= server.accept_errors <= 2
            await until(lambda: server._alive == 1)
            client.close()

    run(main)


def test_file_descriptors_are_left_to_others(monkeypatch: pytest.MonkeyPatch, run: Drive) -> None:
    """Below the bound a connection comes in; at it, it is closed at once, and one line a minute says so."""
    log = Lines()

    def bound_at(number: int) -> None:
        monkeypatch.setattr(server_module, "_file_limit", lambda: (number, number + 32))

    async def main() -> None:
        async with serving(accept_all) as server:
            server.log = log
            for number in range(3):
                client = socket.create_connection(("127.0.0.1", server.port))
                bound_at(lowest_free())  # accept() will get it
                server._file_bound = 0
                await until(lambda: server.accept_errors == number + 1)  # noqa: B023
                assert client.recv(1) == b""
                client.close()
            assert server.accepted == 0
            event = "file descriptors run out, newcomers are refused; raise LimitNOFILE of the service"
            assert [line[:2] for line in log.lines] == [("warning", event)]
            assert log.lines[0][2]["allowed"] == log.lines[0][2]["open"] + 32
            client = socket.create_connection(("127.0.0.1", server.port))
            bound_at(lowest_free() + 1)
            await until(lambda: server.accepted)
            client.close()

    run(main)


@pytest.mark.parametrize(
    ("soft", "bound"), [(65536, 65504), (128, 96), (80, 60), (resource.RLIM_INFINITY, sys.maxsize)]
)
def test_how_many_file_descriptors_are_left(monkeypatch: pytest.MonkeyPatch, soft: int, bound: int) -> None:
    monkeypatch.setattr(server_module, "getrlimit", lambda what: (soft, soft))
    assert server_module._file_limit()[0] == bound


def test_port_taken() -> None:
    async def main() -> None:
        async with serving(accept_all) as server:
            with pytest.raises(StartError, match=f"relay_port {server.port} on 127.0.0.1: "):
                await serve("127.0.0.1", server.port, accept_all, max_frame=131072)

    drive(main)


def test_all_interfaces_show_ipv4_addresses_as_such() -> None:
    async def main() -> None:
        server = await serve(None, 0, accept_all, max_frame=131072)
        for host in ["127.0.0.1", "::1"] if socket.has_dualstack_ipv6() else ["127.0.0.1"]:
            ws = Recorder()
            await connect(
                f"ws://{f'[{host}]' if ':' in host else host}:{server.port}/relay", ws, max_frame=131072
            )
            assert ws.remote == (host, server.port)
            (theirs,) = server.connections
            assert theirs.remote == ws.local
            ws.close()
            await until(lambda: not server.connections)
        server.close()
        await server.wait_closed()

    drive(main)


def test_connection_reset_before_it_is_accepted() -> None:
    async def main() -> None:
        async with serving(accept_all) as server:
            client = socket.create_connection(("127.0.0.1", server.port))
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            client.close()
            peer = await RawPeer.upgraded(server.port)
            await until(lambda: server._alive == 1)
            await peer.close()

    drive(main)


def test_close_keeps_open_connections() -> None:
    async def main() -> None:
        ws = Recorder()
        server = await serve("127.0.0.1", 0, lambda request: ws, max_frame=131072)
        peer, pending = await RawPeer.upgraded(server.port), await RawPeer.dial(server.port)
        await until(lambda: server._alive == 2)
        server.close()
        server.close()
        await pending.eof()
        with pytest.raises(OSError):
            await RawPeer.dial(server.port)
        peer.send(frame(BINARY, b"still here"))
        await until(lambda: ws.messages)
        await peer.close()
        await pending.close()
        await server.wait_closed()

    drive(main)


def test_loop_that_ends_with_connections_leaves_nothing_behind(run: Drive) -> None:
    async def main() -> None:
        server = await serve("127.0.0.1", 0, accept_all, max_frame=131072)
        clients = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(3)]
        await until(lambda: server._alive == 3)
        server.close()
        for client in clients:
            client.close()
        await server.wait_closed()

    run(main)
