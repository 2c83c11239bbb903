from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shadowmesh.errors import StartError
from shadowmesh.net import http as http_module
from shadowmesh.net.http import MAX_CONNECTIONS, MAX_HEADER_BYTES, HttpServer, serve_http
from shadowmesh.net.listen import listen
from shadowmesh.testing.websocket import until


async def hello(_: Request) -> Response:
    return PlainTextResponse("hello")


async def large(_: Request) -> Response:
    return PlainTextResponse("x" * 50_000_000)


async def fail(_: Request) -> Response:
    raise ValueError


async def take(request: Request) -> Response:
    with suppress(ClientDisconnect):
        await request.body()
    return PlainTextResponse("taken")


ROUTES = {"/hello": hello, "/large": large, "/fail": fail}
APP = Starlette(
    routes=[Route("/take", take, methods=["POST"]), *(Route(path, each) for path, each in ROUTES.items())]
)


def play(scenario: Callable[[HttpServer], Awaitable[None]], host: str | None = "127.0.0.1") -> None:
    async def run() -> None:
        server = await serve_http(APP, host, 0, "health_port")
        try:
            async with asyncio.timeout(10):
                await scenario(server)
        finally:
            await server.close()

    asyncio.run(run())


async def answer(port: int, request: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(request)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def test_serves_both_families_on_one_port_and_closes_after_each_answer() -> None:
    async def scenario(server: HttpServer) -> None:
        hosts = ["127.0.0.1"] + (["[::1]"] if socket.has_dualstack_ipv6() else [])
        async with httpx.AsyncClient(trust_env=False) as client:
            for host in hosts:
                response = await client.get(f"http://{host}:{server.port}/hello")
                assert (response.status_code, response.text) == (200, "hello")
                assert response.headers["connection"] == "close"
                assert "server" not in response.headers

    play(scenario, None)


def test_the_port_is_free_after_close() -> None:
    async def run() -> None:
        server = await serve_http(APP, "127.0.0.1", 0, "health_port")
        await server.close()
        listen("127.0.0.1", server.port, "health_port").close()

    asyncio.run(run())


def test_a_taken_port_is_a_start_error_in_words() -> None:
    async def scenario(server: HttpServer) -> None:
        with pytest.raises(StartError, match=f"health_port {server.port} .*another program has this port"):
            await serve_http(APP, "127.0.0.1", server.port, "health_port")

    play(scenario)


def test_an_address_that_is_not_here_is_a_start_error_in_words() -> None:
    with pytest.raises(StartError, match=r"metrics_port 9090 on 192\.0\.2\.1: this host has no such address"):
        listen("192.0.2.1", 9090, "metrics_port")


def test_wrong_methods_and_paths() -> None:
    async def scenario(server: HttpServer) -> None:
        async with httpx.AsyncClient(trust_env=False, base_url=f"http://127.0.0.1:{server.port}") as client:
            assert (await client.post("/hello", content=b"x" * 100_000)).status_code == 405
            assert (await client.get("/other")).status_code == 404
            assert (await client.head("/hello")).text == ""

    play(scenario)


def test_a_failing_handler_answers_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(server: HttpServer) -> None:
        async with httpx.AsyncClient(trust_env=False) as client:
            response = await client.get(f"http://127.0.0.1:{server.port}/fail")
        assert (response.status_code, response.text) == (500, "Internal Server Error")

    play(scenario)


async def answer_to_pieces(port: int, request: bytes, size: int) -> bytes:
    """The answer to a request of which each piece is read on its own."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for i in range(0, len(request), size):
        writer.write(request[i : i + size])
        await asyncio.sleep(0.002)
    try:
        return await reader.read()
    finally:
        writer.close()
        await writer.wait_closed()


def head(size: int, end: bytes = b"\r\n\r\n") -> bytes:
    start = b"GET /hello HTTP/1.1\r\nHost: x\r\nX: "
    return start + b"x" * (size - len(start) - len(end)) + end


@pytest.mark.parametrize("end", [b"\r\n\r\n", b"\n\n"])
@pytest.mark.parametrize("over", [0, 1, 60_000])
def test_the_head_of_a_request_is_bounded_in_one_read_and_in_several(over: int, end: bytes) -> None:
    async def scenario(server: HttpServer) -> None:
        request = head(MAX_HEADER_BYTES + over, end)
        answers = [await answer(server.port, request)]
        for size in (MAX_HEADER_BYTES - 1, MAX_HEADER_BYTES - 3, 7001):
            answers.append(await answer_to_pieces(server.port, request, size))
        for got in answers:
            if not over:
                assert got.startswith(b"HTTP/1.1 200 ")
            else:
                assert got.startswith(b"HTTP/1.1 431 ")
                assert got.endswith(
                    b'\r\n\r\n{"error": "the head of the request has more than 16384 bytes"}\n'
                )

    play(scenario)


def test_the_body_is_not_of_the_head() -> None:
    async def scenario(server: HttpServer) -> None:
        start = b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 60000\r\n\r\n"
        request = start + b"x" * 60_000
        assert (await answer(server.port, request)).startswith(b"HTTP/1.1 405 ")
        for size in range(len(start) - 4, len(start) + 1):  # its end may be in two reads
            _, writer = pair = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request[:size])
            await asyncio.sleep(0.02)
            writer.write(request[size:])
            assert (await pair[0].readline()).startswith(b"HTTP/1.1 405 ")
            writer.transport.abort()

    play(scenario)


def test_one_who_sends_on_after_the_refusal_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "REQUEST_SECONDS", 0.2)

    async def scenario(server: HttpServer) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", server.port)

        async def send_on() -> None:
            while True:
                writer.write(b"x" * 10_000)
                await writer.drain()
                await asyncio.sleep(0.01)

        with pytest.raises(ConnectionError):
            await send_on()
        writer.close()

    play(scenario)


@pytest.mark.parametrize(
    "request_bytes",
    [b"", b"GET /hello HT", b"POST /hello HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\nx"],
)
def test_requests_are_bounded_in_time(request_bytes: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "REQUEST_SECONDS", 0.05)

    async def scenario(server: HttpServer) -> None:
        try:
            got = await answer(server.port, request_bytes)
        except ConnectionResetError:
            return
        assert got == b"" or got.startswith(b"HTTP/1.1 405 ")

    play(scenario)


async def half_a_body(stack: ExitStack, port: int) -> socket.socket:
    """A connection whose request is being handled while half of its body is missing."""
    head = b"POST /take HTTP/1.1\r\nHost: x\r\nContent-Length: 8\r\nExpect: 100-continue\r\n\r\n"
    peer, loop = connected(stack, port, request=head), asyncio.get_running_loop()
    assert (await loop.sock_recv(peer, 100)).startswith(b"HTTP/1.1 100 ")
    peer.sendall(b"half")
    return peer


def test_a_body_is_of_the_request_that_is_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "REQUEST_SECONDS", 0.2)

    async def scenario(server: HttpServer) -> None:
        with ExitStack() as stack:
            peer = await half_a_body(stack, server.port)
            with suppress(ConnectionResetError):
                assert await asyncio.get_running_loop().sock_recv(peer, 100) == b""

    play(scenario)


def test_who_has_sent_half_a_body_goes_before_one_who_is_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_CONNECTIONS", 2)

    async def scenario(server: HttpServer) -> None:
        with ExitStack() as stack:
            answered = connected(stack, server.port, request=REQUEST.replace(b"/hello", b"/large"))
            await asyncio.get_running_loop().sock_recv(answered, 1)
            half = await half_a_body(stack, server.port)
            assert (await answer(server.port, REQUEST)).startswith(b"HTTP/1.1 200 ")
            assert await are_open(answered, half) == [True, False]

    play(scenario)


@pytest.mark.parametrize(("path", "seconds", "rate"), [("", 10, 50), ("/large", 70, 200)])
def test_a_request_has_ten_seconds_and_its_answer_another_minute(path: str, seconds: int, rate: int) -> None:
    """By a clock that runs `rate` times as fast."""

    async def scenario(server: HttpServer) -> None:
        loop = asyncio.get_running_loop()
        call_later = loop.call_later

        def sooner(delay: float, *rest: Any, **more: Any) -> asyncio.TimerHandle:
            return call_later(delay / rate, *rest, **more)

        loop.call_later = sooner  # type: ignore[method-assign, assignment]
        with ExitStack() as stack:
            began = loop.time()
            connected(stack, server.port, request=REQUEST.replace(b"/hello", path.encode()) if path else b"")
            await until(lambda: server._server.server_state.connections)
            await until(lambda: not server._server.server_state.connections)
            assert 0.99 * seconds < (loop.time() - began) * rate < 6 * seconds

    play(scenario)


def test_answers_are_bounded_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever does not take one keeps neither its memory nor a place for ever."""
    monkeypatch.setattr(http_module, "REQUEST_SECONDS", 0.05)
    monkeypatch.setattr(http_module, "ANSWER_SECONDS", 0.1)

    async def scenario(server: HttpServer) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port, limit=1000)
        writer.write(REQUEST.replace(b"/hello", b"/large"))
        await asyncio.sleep(0.3)
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(50_000_000)
        writer.close()

    play(scenario)


REQUEST = b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n"


def connected(stack: ExitStack, port: int, source: str = "127.0.0.1", request: bytes = b"") -> socket.socket:
    peer = stack.enter_context(socket.create_connection(("127.0.0.1", port), 5, (source, 0)))
    peer.sendall(request)
    peer.setblocking(False)
    return peer


async def are_open(*peers: socket.socket) -> list[bool]:
    """Whether the server has left each connection open."""

    async def is_open(peer: socket.socket) -> bool:
        try:
            async with asyncio.timeout(0.1):
                return await asyncio.get_running_loop().sock_recv(peer, 1) != b""
        except (TimeoutError, ConnectionResetError) as error:
            return isinstance(error, TimeoutError)

    return await asyncio.gather(*map(is_open, peers))


@pytest.mark.parametrize("part", [b"", b"GET /hello HT"])
def test_those_who_ask_nothing_keep_nobody_out(part: bytes) -> None:
    """As many connections as there may be, and more: who asks is answered."""

    async def scenario(server: HttpServer) -> None:
        with ExitStack() as stack:
            for _ in range(MAX_CONNECTIONS + 10):
                connected(stack, server.port, request=part)
            assert (await answer(server.port, REQUEST)).startswith(b"HTTP/1.1 200 ")

    play(scenario)


def test_one_too_many_costs_the_oldest_of_the_source_that_has_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_CONNECTIONS", 3)

    async def scenario(server: HttpServer) -> None:
        with ExitStack() as stack:
            first = connected(stack, server.port, "127.0.0.2")
            crowd = [connected(stack, server.port, "127.0.0.3") for _ in range(4)]
            assert await are_open(first, *crowd) == [True, False, False, True, True]
            last = [connected(stack, server.port, f"127.0.0.{n}") for n in (4, 5)]
            assert await are_open(first, *crowd[2:], *last) == [False, False, True, True, True]

    play(scenario)


def test_one_who_does_not_take_the_answer_keeps_nobody_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_module, "MAX_CONNECTIONS", 1)

    async def scenario(server: HttpServer) -> None:
        with ExitStack() as stack:
            slow = connected(stack, server.port, request=REQUEST.replace(b"/hello", b"/large"))
            await asyncio.get_running_loop().sock_recv(slow, 1)
            assert (await answer(server.port, REQUEST)).startswith(b"HTTP/1.1 200 ")

    play(scenario)
