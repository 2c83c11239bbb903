from __future__ import annotations

import asyncio
import gc
import socket
import warnings
from collections.abc import Callable
from contextlib import suppress

import pytest

from shadowmesh.net.loop import new_loop
from shadowmesh.testing.websocket import accepting, drive


@pytest.mark.parametrize("loop", [asyncio.SelectorEventLoop, new_loop], ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("turns", range(9))
def test_nothing_is_left_of_a_connection_of_the_last_moment(
    turns: int, loop: Callable[[], asyncio.AbstractEventLoop] | None
) -> None:
    """Whatever was done of it when the server ends: not seen yet, being accepted, or with its handler."""
    if loop is None:
        pytest.skip("no uvloop here")
    began = ended = 0

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal began, ended
        began += 1
        assert await reader.read() == b""
        ended += 1

    async def main() -> None:
        async with accepting(handler) as port:
            client = socket.create_connection(("127.0.0.1", port))
            for _ in range(turns):
                await asyncio.sleep(0)
        client.settimeout(1)
        with client, suppress(ConnectionResetError):
            assert client.recv(1) == b""

    gc.collect()
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always", ResourceWarning)
        drive(main, new_loop=loop)
        gc.collect()
    assert not warned
    assert began == ended
    assert began or turns < 8


def test_an_error_of_a_handler_is_raised_unless_the_connection_had_ended() -> None:
    answered = asyncio.Event()

    async def handler(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readexactly(1) == b"a"
        finally:
            answered.set()

    async def sent(data: bytes) -> None:
        answered.clear()
        async with accepting(handler) as port:
            with socket.create_connection(("127.0.0.1", port)) as client:
                client.send(data)
            await answered.wait()

    async def main() -> None:
        await sent(b"")
        await sent(b"a")
        with pytest.raises(AssertionError):
            await sent(b"b")

    drive(main)
