"""Handshakes that fail are counted by a word of ours, and one line a minute says so; none of the client's."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from pathlib import Path

import pytest

from shadowmesh.net import server as server_module
from shadowmesh.net.client import ConnectFailed, connect
from shadowmesh.net.server import Server
from shadowmesh.net.tls import FAILURES, failure
from shadowmesh.ratelimit import TokenBucket
from shadowmesh.testing.certificates import Paths
from shadowmesh.testing.relay_program import RelayProgram
from shadowmesh.testing.websocket import Drive, Lines, RawPeer, Recorder, accept_all, reset, serving, until

Attempt = Callable[[int, Paths], None]


def shake(port: int, client: ssl.SSLContext) -> None:
    with socket.create_connection(("127.0.0.1", port)) as plain, pytest.raises(OSError) as failed:
        client.wrap_socket(plain, server_hostname="127.0.0.1").close()
    alerts.append(getattr(failed.value, "reason", None))


alerts: list[str | None] = []
"""What the server said to each of these clients, if it was an alert."""


def say(port: int, data: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port)) as peer:
        peer.sendall(data)
        try:
            while peer.recv(4096):
                pass
        except ConnectionError:
            pass


def old_version(port: int, files: Paths) -> None:
    client = ssl.create_default_context(cafile=files.ca)
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        client.minimum_version = client.maximum_version = ssl.TLSVersion.TLSv1_1
    client.set_ciphers("ALL:@SECLEVEL=0")
    shake(port, client)


def old_cipher(port: int, files: Paths) -> None:
    client = ssl.create_default_context(cafile=files.ca)
    client.maximum_version = ssl.TLSVersion.TLSv1_2
    client.set_ciphers("ECDHE-ECDSA-AES128-SHA")
    shake(port, client)


def no_trust(port: int, files: Paths) -> None:
    shake(port, ssl.create_default_context())


def broken_off(port: int, files: Paths) -> None:
    peer = socket.create_connection(("127.0.0.1", port))
    peer.sendall(b"\x16\x03\x01\x02\x00")
    reset(peer)


ATTEMPTS: dict[str, Attempt] = {
    "not_tls": lambda port, files: say(port, b"GET / HTTP/1.1\r\nHost: secret\r\n\r\n"),
    "version": old_version,
    "cipher": old_cipher,
    "alert": no_trust,
    "malformed": lambda port, files: say(port, b"\x16" * 5000),
    "broken_off": broken_off,
    "too_slow": lambda port, files: say(port, b"\x16\x03\x01\x02\x00"),
    "tls_off": lambda port, files: say(port, b"\x16\x03\x01\x02\x00"),
}


def counted(server: Server) -> dict[str, int]:
    return {reason: count for reason, count in server.tls_failed.items() if count}


def test_every_reason_is_tried_here() -> None:
    assert {*ATTEMPTS} == {*FAILURES}


@pytest.mark.parametrize("reason", FAILURES)
def test_why(
    run: Drive, files: Paths, server_tls: ssl.SSLContext, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr(server_module, "UPGRADE_SECONDS", 0.2)
    log = Lines()

    async def main() -> None:
        async with serving(accept_all, None if reason == "tls_off" else server_tls) as server:
            server.log = log
            await asyncio.to_thread(ATTEMPTS[reason], server.port, files)
            await until(lambda: server.tls_failed.total())
            assert counted(server) == {reason: 1}
            assert log.lines == [("info", "TLS handshake failed", {"why": reason, "unlogged_before": 0})]

    run(main)


@pytest.mark.parametrize(
    ("attempt", "alert"),
    [(old_version, "TLSV1_ALERT_PROTOCOL_VERSION"), (old_cipher, "SSLV3_ALERT_HANDSHAKE_FAILURE")],
)
def test_the_client_hears_why(
    run: Drive, files: Paths, server_tls: ssl.SSLContext, attempt: Attempt, alert: str
) -> None:
    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            await asyncio.to_thread(attempt, server.port, files)
            assert alerts.pop() == alert

    run(main)


def test_a_client_that_does_not_hear_it_is_one_failure_too(run: Drive, server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            peer = await RawPeer.dial(server.port)
            await until(lambda: server._pending)
            next(iter(server._pending)).connection.shutdown(socket.SHUT_WR)  # so that the alert cannot go
            peer.send(b"\x16" * 5000)
            await until(lambda: server.tls_failed.total())
            assert counted(server) == {"malformed": 1}
            await peer.close()

    run(main)


def test_our_client_says_why_it_does_not_go_on(run: Drive, server_tls: ssl.SSLContext) -> None:
    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            with pytest.raises(ConnectFailed, match="is not valid"):
                await connect(f"wss://127.0.0.1:{server.port}", Recorder(), max_frame=131072)
            await until(lambda: server.tls_failed.total())
            assert counted(server) == {"alert": 1}

    run(main)


def test_one_line_a_minute_and_the_others_counted(
    server_tls: ssl.SSLContext, run: Drive, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Lines()

    async def main() -> None:
        async with serving(accept_all, server_tls) as server:
            server.log = log
            for number in range(20):
                peer = await RawPeer.dial(server.port)
                peer.send(b"x")
                await peer.eof()
                await peer.close()
                assert server.tls_failed["not_tls"] == number + 1
            assert len(log.lines) == 1
            server._tls_line = TokenBucket(1, 1)  # a minute later
            say_one = await RawPeer.dial(server.port)
            say_one.send(b"x")
            await say_one.eof()
            await say_one.close()
            assert log.lines[1:] == [
                ("info", "TLS handshake failed", {"why": "not_tls", "unlogged_before": 19})
            ]

    run(main)


def test_no_word_of_the_client_is_a_reason() -> None:
    for error in (
        ssl.SSLError(1, "secret"),
        ssl.SSLEOFError(8, "secret"),
        OSError("secret"),
        TimeoutError("secret"),
        None,
    ):
        assert failure(error) in FAILURES


def test_the_relay_shows_both(tmp_path: Path, files: Paths) -> None:
    settings = {"tls": {"cert_file": str(files.cert), "key_file": str(files.key)}}
    with RelayProgram(tmp_path, settings) as relay:
        relay.ready()
        for _ in range(3):
            say(relay.relay_port, b"\x16" * 5000)
        metrics = relay.get("/metrics", relay.metrics_port).text
        assert 'shadowmesh_relay_tls_failed_total{reason="malformed",region="us-east-1"} 3.0' in metrics
        assert 'shadowmesh_relay_tls_failed_total{reason="version",region="us-east-1"} 0.0' in metrics
        assert (
            relay.text().count("[info] TLS handshake failed [relay] why=malformed unlogged_before=0\n") == 1
        )
        assert relay.text().count("TLS handshake failed") == 1
