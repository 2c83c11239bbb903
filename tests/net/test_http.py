from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from contextlib import ExitStack

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from shadowmesh.errors import StartError
from shadowmesh.net import http as http_module
from shadowmesh.net.http import MAX_CONNECTIONS, HttpServer, serve_http
from shadowmesh.net.listen import listen


async def hello(_: Request) -> Response:
    return PlainTextResponse("hello")


async def large(_: Request) -> Response:
    return PlainTextResponse("x" * 50_000_000)


async def fail(_: Request) -> Response:
    raise ValueError


APP = Starlette(routes=[Route("/hello", hello), Route("/large", large), Route("/fail", fail)])


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


def test_requests_are_bounded_in_size() -> None:
    async def scenario(server: HttpServer) -> None:
        request = b"GET /hello HTTP/1.1\r\nHost: x\r\nX: " + b"x" * 100_000
        assert (await answer(server.port, request)).startswith(b"HTTP/1.1 400 ")

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
