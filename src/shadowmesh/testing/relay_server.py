"""A real relay inside the test's event loop, on a free loopback port and without its HTTP ports."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from ssl import SSLContext
from time import monotonic
from typing import Any, TypeVar, cast

from shadowmesh.config import RelayConfig
from shadowmesh.net.server import serve
from shadowmesh.relay.counters import Counters
from shadowmesh.relay.server import Server
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_client import PATIENCE, RelayClient
from shadowmesh.wire.frame import MAX_FRAME

T = TypeVar("T")

QUICK = Timing(tick=0.01)
"""The protocol's timers, looked at often."""


def at_once(work: Coroutine[Any, Any, T]) -> T:
    """The result of what does not have to wait, as a change of configuration with few connections."""
    try:
        work.send(None)
    except StopIteration as done:
        return cast(T, done.value)
    raise AssertionError("it waits")


class TestRelay:
    """A relay, with what tests ask of it."""

    __test__ = False

    def __init__(self, server: Server, port: int, settings: dict[str, Any]) -> None:
        self.server = server
        self.port = port
        self._settings = settings
        self.url = f"ws://127.0.0.1:{port}/relay?peer_id=test"

    @property
    def counters(self) -> Counters:
        """What the relay has counted."""
        return self.server.counters

    def client(self, **options: Any) -> RelayClient:
        """A client that is not connected yet; see RelayClient."""
        return RelayClient(self.url, **options)

    def reconfigure(self, **changes: Any) -> int:
        """Let the settings of the start hold, but for `changes`; returns how many clients had to go."""
        return at_once(self.server.reconfigure(RelayConfig(**(self._settings | changes))))

    def check_account(self) -> None:
        """Frames received = relayed + dropped + queued."""
        c = self.counters
        assert c.frames_in == c.frames_out + c.drops.total() + self.server.memory.frames

    async def until(self, condition: Callable[[], object], what: str) -> None:
        """Wait until `condition` is true."""
        deadline = monotonic() + PATIENCE
        while not condition():
            assert monotonic() < deadline, f"{what} did not happen"
            await asyncio.sleep(0.005)


@asynccontextmanager
async def running_relay(
    timing: Timing = QUICK,
    ssl: SSLContext | None = None,
    *,
    address: str = "127.0.0.1",
    port: int = 0,
    **settings: Any,
) -> AsyncIterator[TestRelay]:
    """Run a relay with the guide's settings but for `settings`; its account must add up at the end."""
    server = Server(RelayConfig(**settings), timing)
    server.listener = listener = await serve(address, port, server.upgrade, max_frame=MAX_FRAME, ssl=ssl)
    watch = asyncio.create_task(server.watch())
    relay = TestRelay(server, listener.port, settings)
    try:
        yield relay
        relay.check_account()
    finally:
        listener.close()
        await server.drain(flush=0)
        await listener.wait_closed()
        watch.cancel()


def named(run: Callable[[], None], test: Any) -> Callable[[], None]:
    """`run` by the name of `test`, for pytest."""
    run.__name__ = run.__qualname__ = test.__name__
    run.__module__, run.__doc__ = test.__module__, test.__doc__
    return run


def with_relay(
    timing: Timing = QUICK, **settings: Any
) -> Callable[[Callable[[TestRelay], Awaitable[None]]], Callable[[], None]]:
    """Decorator: run an async test against a relay of its own."""

    def decorate(test: Callable[[TestRelay], Awaitable[None]]) -> Callable[[], None]:
        async def scenario() -> None:
            async with asyncio.timeout(20), running_relay(timing, **settings) as relay:
                await test(relay)

        return named(lambda: asyncio.run(scenario()), test)

    return decorate
