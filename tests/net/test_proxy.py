"""Through a proxy to the relay: one that does as it is told, the real ones, and every failure in words."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shadowmesh.config.proxy import ProxyUrl, proxy_url
from shadowmesh.net.client import ConnectFailed, connect
from shadowmesh.net.loop import new_loop
from shadowmesh.net.server import Reject, Request
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.proxy import TestProxy, proxying
from shadowmesh.testing.websocket import Recorder, drive, serving, until
from shadowmesh.wire.frame import MAX_FRAME


class Echo(Recorder):
    def on_binary(self, data: memoryview) -> None:
        self.send_binary(bytes(data))


def echo(request: Request) -> WebSocket | Reject:
    return Echo()


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, str]:
    """A server's TLS for relay.example, and the file of its CA."""
    paths = make_certificate(tmp_path_factory.mktemp("tls"), ["relay.example"])
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(paths.cert, paths.key)
    return context, str(paths.ca)


def url_of(scheme: str, proxy: TestProxy, credentials: str = "") -> ProxyUrl:
    return proxy_url(f"{scheme}://{credentials}127.0.0.1:{proxy.port}")


async def talk(url: str, proxy: ProxyUrl, ca_file: str | None = None) -> None:
    """Connect, send 100 kB there and back, close."""
    ws = Recorder()
    await connect(url, ws, max_frame=MAX_FRAME, proxy=proxy, ca_file=ca_file)
    ws.send_binary(bytes(100_000))
    await until(lambda: ws.messages == [bytes(100_000)])
    ws.close()
    await until(lambda: ws.closed)


async def refusal(proxy: ProxyUrl, url: str = "ws://relay.example:9545/relay", timeout: float = 5) -> str:
    with pytest.raises(ConnectFailed) as caught:
        await connect(url, Recorder(), max_frame=MAX_FRAME, proxy=proxy, timeout=timeout)
    assert "sesame" not in str(caught.value)
    assert caught.value.status in (None, 407)
    return str(caught.value) + (" [407]" if caught.value.status else "")


@pytest.mark.parametrize("loop", [None, new_loop])
@pytest.mark.parametrize("scheme", ["http", "socks5"])
@pytest.mark.parametrize("credentials", [None, ("user", "säme:x")])
def test_through(
    scheme: str, credentials: tuple[str, str] | None, loop: None, certificate: tuple[ssl.SSLContext, str]
) -> None:
    """The proxy looks the name up, gets IPs as IPs; TLS is with the relay, whose name the certificate has."""
    context, ca = certificate

    async def main() -> None:
        async with proxying() as proxy, serving(echo) as plain, serving(echo, context) as secure:
            proxy.credentials = credentials
            proxy.hosts["relay.example"] = "127.0.0.1"
            way = url_of(scheme, proxy, "user:s%C3%A4me:x@" if credentials else "")
            await talk(f"ws://relay.example:{plain.port}/relay", way)
            await talk(f"wss://relay.example:{secure.port}/relay", way, ca)
            await talk(f"ws://127.0.0.1:{plain.port}/relay", way)
            if scheme == "http":
                assert proxy.asked == [
                    f"CONNECT relay.example:{plain.port}",
                    f"CONNECT relay.example:{secure.port}",
                    f"CONNECT 127.0.0.1:{plain.port}",
                ]
                assert f"\r\nHost: relay.example:{plain.port}\r\n" in proxy.heads[0]
            else:
                assert proxy.asked == [
                    f"SOCKS5 relay.example:{plain.port} 3",
                    f"SOCKS5 relay.example:{secure.port} 3",
                    f"SOCKS5 127.0.0.1:{plain.port} 1",
                ]
            with pytest.raises(
                ConnectFailed, match=rf"127\.0\.0\.1:\d+ \(through the proxy {scheme}://.*IP addr"
            ):
                await talk(f"wss://127.0.0.1:{secure.port}/relay", way, ca)
            await until(lambda: not proxy.connections)

    drive(main, new_loop=loop)


def test_ipv6_is_asked_for_as_such() -> None:
    async def main() -> None:
        async with proxying() as proxy, serving(echo) as server:
            proxy.hosts["fd00::9"] = "127.0.0.1"
            for scheme in ("http", "socks5"):
                await talk(f"ws://[fd00::9]:{server.port}/relay", url_of(scheme, proxy))
            assert proxy.asked == [f"CONNECT [fd00::9]:{server.port}", f"SOCKS5 fd00::9:{server.port} 4"]

    drive(main)


P = "the proxy http://127.0.0.1:PORT"
NO_HTTP = f"{P} is no HTTP proxy: is it the right port, or socks5://?"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b'HTTP/1.1 407 x\r\nProxy-Authenticate: Basic realm="x"\r\n\r\n',
            f"{P} refuses (HTTP 407 Proxy Authentication Required): it asks for a user name and password: "
            "write http://USER:PASSWORD@... in relay.proxy [407]",
        ),
        (
            b"HTTP/1.1 407 x\r\nProxy-Authenticate: Negotiate\r\nProxy-Authenticate: NTLM\r\n\r\n",
            f"{P} refuses (HTTP 407 Proxy Authentication Required): it asks for negotiate, ntlm "
            "authentication, which is not built: only Basic is [407]",
        ),
        (
            b"HTTP/1.0 403 Forbidden\r\n\r\n<html>",
            f"{P} refuses (HTTP 403 Forbidden): it does not allow the way to relay.example:9545; "
            "many proxies allow port 443 only: a relay at wss://HOST would do",
        ),
        (
            b"HTTP/1.1 502 x\r\n\r\n",
            f"{P} refuses (HTTP 502 Bad Gateway): it does not reach relay.example:9545: is the relay "
            "running, and is the address right?",
        ),
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://login/\r\n\r\n",
            f"{P} refuses (HTTP 302 Found): a web page answers instead: a login page of this network? "
            "Then open a browser and log in",
        ),
        (b"HTTP/1.1 400 x\r\n\r\n", f"{P} refuses (HTTP 400 Bad Request): is it a proxy at all?"),
        (
            b"HTTP/1.1 429 x\r\n\r\ntoo \x1b many\n",
            f"{P} refuses (HTTP 429 Too Many Requests): too ? many",
        ),
        (b"HTTP/1.1 599 x\r\n\r\n<html>", f"{P} refuses (HTTP 599): its own log may say why"),
        (
            b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>Log in",
            f"{P} answers with a web page instead of a tunnel: is it an HTTP proxy, or a network's "
            "login page?",
        ),
        (
            b"HTTP/1.1 200 OK\r\n\r\n\0",
            f"{P} answers with bytes nobody asked for: is it an HTTP proxy, or a network's login page?",
        ),
        (b"HTTP/1.1 xyz\r\n\r\n", NO_HTTP),
        (b"SSH-2.0-x\r\n", NO_HTTP),
        (b"\5\xff", NO_HTTP),
        (b"HTTP/1.1 200 " + b"x" * 20_000, f"{P} answers with a header of more than 16384 bytes"),
        (b"HTTP/1.1 200", f"{P} closed the connection without an answer"),
        (b"", f"{P} closed the connection without an answer"),
    ],
)
def test_answers_of_an_http_proxy(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with proxying() as proxy:
            proxy.answer = answer
            said = await refusal(url_of("http", proxy))
            assert said == words.replace("PORT", str(proxy.port))
            await until(lambda: not proxy.connections)

    drive(main)


S = "the proxy socks5://127.0.0.1:PORT"


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (
            b"\5\xff",
            f"{S} asks for a user name and password: write socks5://USER:PASSWORD@... in relay.proxy [407]",
        ),
        (b"HTTP/1.1 400 x\r\n\r\n", f"{S} is no SOCKS5 proxy: is it the right port, or http://?"),
        (b"\5\0\5\1", f"{S} closed the connection without an answer"),
        (b"\5\0\5\2\0\1" + bytes(6), f"{S} does not reach relay.example:9545: its rules do not allow it"),
        (b"\5\0\5\6\0\1" + bytes(6), f"{S} does not reach relay.example:9545: it takes too long"),
        (b"\5\0\5\x63\0\1" + bytes(6), f"{S} does not reach relay.example:9545: error 99"),
        (b"\5\0\5\0\0\7" + bytes(6), f"{S} answers what is not SOCKS5"),
        (b"\5\0\4\0\0\1" + bytes(6), f"{S} answers what is not SOCKS5"),
    ],
)
def test_answers_of_a_socks5_proxy(answer: bytes, words: str) -> None:
    async def main() -> None:
        async with proxying() as proxy:
            proxy.answer = answer
            said = await refusal(url_of("socks5", proxy))
            assert said == words.replace("PORT", str(proxy.port))

    drive(main)


@pytest.mark.parametrize("scheme", ["http", "socks5"])
def test_what_else_goes_wrong(scheme: str, certificate: tuple[ssl.SSLContext, str]) -> None:
    async def main() -> None:
        async with proxying() as proxy, serving(echo) as server, serving(echo, certificate[0]) as secure:
            way, wrong = url_of(scheme, proxy), url_of(scheme, proxy, "u:sesame@")
            proxy.credentials = ("u", "other")
            said = await refusal(wrong)
            assert "does not accept the user name and password in relay.proxy [407]" in said
            proxy.credentials = None
            through = f"relay.example:{server.port} (through the proxy {scheme}://127.0.0.1:{proxy.port})"
            proxy.hosts["relay.example"] = "127.0.0.1"
            said = await refusal(way, f"wss://relay.example:{server.port}/relay")
            assert said.startswith((f"{through} breaks off TLS", f"TLS with {through} fails"))
            said = await refusal(way, f"wss://relay.example:{secure.port}/relay")
            assert (
                f"(through the proxy {scheme}://127.0.0.1:{proxy.port}) is not valid: unable to get" in said
            )
            assert "somebody in between reads TLS: a company's proxy" in said
            proxy.silent = True
            said = await refusal(way, timeout=0.1)
            assert said.startswith(
                f"the proxy {scheme}://127.0.0.1:{proxy.port} does not open the way to relay"
            )
            await until(lambda: not proxy.connections)
        with socket.socket() as unused:
            unused.bind(("127.0.0.1", 0))
            nobody = proxy_url(f"{scheme}://u:sesame@127.0.0.1:{unused.getsockname()[1]}", "ALL_PROXY")
            said = await refusal(nobody)
            assert said.startswith(f"the proxy {scheme}://127.0.0.1:")
            assert said.endswith("refuses connections: is it running, and is its address right in ALL_PROXY?")
        said = await refusal(proxy_url(f"{scheme}://nowhere.invalid:1"))
        assert "cannot find the address of nowhere.invalid, the proxy in relay.proxy" in said

    drive(main)


def test_cancelled_at_any_moment_leaves_no_connection() -> None:
    async def main() -> None:
        async with proxying() as proxy, serving(echo) as server:
            for steps in range(40):
                url = f"ws://127.0.0.1:{server.port}/relay"
                way = url_of(("http", "socks5")[steps % 2], proxy)
                ws = Recorder()
                task = asyncio.create_task(connect(url, ws, max_frame=MAX_FRAME, proxy=way))
                for _ in range(steps):
                    await asyncio.sleep(0)
                if task.done():
                    ws.abort()
                    continue
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await asyncio.sleep(0.02)
            await until(lambda: not proxy.connections and not server.connections)

    drive(main)


# --- real ones


@contextmanager
def program(command: list[str], port: int) -> Iterator[None]:
    """A proxy that runs until the end of the block."""
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            for _ in range(500):
                with socket.socket() as probe:
                    if probe.connect_ex(("127.0.0.1", port)) == 0:
                        break
                assert process.poll() is None
                try:
                    process.wait(0.01)
                except subprocess.TimeoutExpired:
                    pass
            yield
        finally:
            process.terminate()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.mark.skipif(not shutil.which("tinyproxy"), reason="tinyproxy is not installed: scripts/setup test")
def test_tinyproxy(tmp_path: Path, certificate: tuple[ssl.SSLContext, str]) -> None:
    context, ca = certificate
    port = free_port()
    file = tmp_path / "tinyproxy.conf"
    file.write_text(
        f"Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 20\nBasicAuth user sesame\nAllow 127.0.0.1\n"
    )

    async def main() -> None:
        async with serving(echo) as plain, serving(echo, context) as secure:
            way = proxy_url(f"http://user:sesame@127.0.0.1:{port}")
            await talk(f"ws://localhost:{plain.port}/relay", way)
            with pytest.raises(ConnectFailed, match="hostname mismatch"):
                await talk(f"wss://localhost:{secure.port}/relay", way, ca)
            said = await refusal(proxy_url(f"http://127.0.0.1:{port}"))
            assert "it asks for a user name and password" in said
            said = await refusal(proxy_url(f"http://user:sesame2@127.0.0.1:{port}"))
            assert "it does not accept the user name and password in relay.proxy [407]" in said
            said = await refusal(way, f"ws://127.0.0.1:{free_port()}/relay")
            assert "it does not reach 127.0.0.1:" in said

    with program(["tinyproxy", "-d", "-c", str(file)], port):
        drive(main)


@pytest.mark.skipif(not shutil.which("microsocks"), reason="microsocks is not installed: scripts/setup test")
def test_microsocks(certificate: tuple[ssl.SSLContext, str]) -> None:
    context, ca = certificate
    port = free_port()

    async def main() -> None:
        async with serving(echo) as plain, serving(echo, context) as secure:
            way = proxy_url(f"socks5://user:sesame@127.0.0.1:{port}")
            await talk(f"ws://localhost:{plain.port}/relay", way)
            await talk(f"ws://127.0.0.1:{plain.port}/relay", way)
            with pytest.raises(ConnectFailed, match="hostname mismatch"):
                await talk(f"wss://localhost:{secure.port}/relay", way, ca)
            assert "asks for a user name" in await refusal(proxy_url(f"socks5://127.0.0.1:{port}"))
            said = await refusal(proxy_url(f"socks5://user:sesame2@127.0.0.1:{port}"))
            assert "does not accept the user name and password" in said
            said = await refusal(way, f"ws://127.0.0.1:{free_port()}/relay")
            assert "the connection is refused: is the relay running" in said

    with program(["microsocks", "-i", "127.0.0.1", "-p", str(port), "-u", "user", "-P", "sesame"], port):
        drive(main)
