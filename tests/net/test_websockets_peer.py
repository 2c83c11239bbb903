"""The `websockets` package, which shares no code with picows, as the other side of our two sides."""

from __future__ import annotations

import asyncio
import os

import pytest
import websockets
from websockets.asyncio.client import connect as websockets_connect
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as websockets_serve

from shadowmesh.net.client import connect
from shadowmesh.net.server import Request
from shadowmesh.testing.websocket import Recorder, drive, serving, until
from shadowmesh.wire.frame import MAX_FRAME


def test_websockets_client() -> None:
    async def main() -> None:
        class Echo(Recorder):
            def on_binary(self, data: memoryview) -> None:
                self.send_binary(data)

            def on_text(self, text: str) -> None:
                self.send_text(text)

        ours: list[Echo] = []

        def make(request: Request) -> Echo:
            ours.append(Echo())
            return ours[-1]

        async with serving(make) as server:
            url = f"ws://127.0.0.1:{server.port}/relay?peer_id=test"
            async with websockets_connect(url, compression=None, max_size=None) as client:
                for size in (0, 1, 125, 126, 8193, 65536, MAX_FRAME):
                    data = os.urandom(size)
                    await client.send(data)
                    assert await client.recv() == data
                await client.send("grüße")
                assert await client.recv() == "grüße"
                await client.send([b"in", b"", b"pieces"])
                assert await client.recv() == b"inpieces"
                assert await (await client.ping()) >= 0
                ours[0].ping()
                await until(lambda: ours[0].rtt is not None)
                await client.close(4999, "done")
            await until(lambda: ours[0].closed == [(4999, "done")])

            async with websockets_connect(url) as client:
                ours[1].close(4003, "in words")
                with pytest.raises(websockets.ConnectionClosedError) as caught:
                    await client.recv()
                assert caught.value.rcvd is not None
                assert (caught.value.rcvd.code, caught.value.rcvd.reason) == (4003, "in words")

            client = await websockets_connect(url, compression=None)
            with pytest.raises(websockets.ConnectionClosedError) as caught:
                await asyncio.gather(client.send(bytes(1_000_000)), client.recv())
            assert caught.value.rcvd is not None
            assert caught.value.rcvd.code == 1009
            await until(lambda: ours[2].closed == [(1009, "message too long")])

    drive(main)


def test_websockets_server() -> None:
    async def main() -> None:
        async def handler(server: ServerConnection) -> None:
            async for message in server:
                if message == "pieces":
                    await server.send(["in ", "pieces"])
                elif message == "close":
                    await server.close(4004, "replaced")
                else:
                    await server.send(message)

        async with websockets_serve(handler, "127.0.0.1", 0, compression=None, ping_interval=0.01) as server:
            url = f"ws://127.0.0.1:{server.sockets[0].getsockname()[1]}/relay"
            ws = Recorder()
            await connect(url, ws, max_frame=MAX_FRAME)
            for size in (0, 1, 125, 126, 8193, 65536, MAX_FRAME):
                ws.send_binary(bytes(size))
                await until(lambda: bytes(size) in ws.messages[-1:])  # noqa: B023
            ws.send_text("pieces")
            await until(lambda: ws.messages[-1] == "in pieces")
            ws.ping()
            await until(lambda: ws.rtt is not None)
            ws.send_text("close")
            await until(lambda: ws.closed == [(4004, "replaced")])

            ws = Recorder()
            await connect(url, ws, max_frame=MAX_FRAME)
            ws.close(1000, "bye")
            await until(lambda: ws.closed == [(1000, "bye")])

    drive(main)
