"""The event loop of the programs: uvloop, where there is one, takes a fifth off a small packet's time."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

_new_loop: Callable[[], asyncio.AbstractEventLoop] | None
try:
    from uvloop import new_event_loop as _new_loop
except ImportError:  # Windows
    _new_loop = None


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a program's coroutine to its end, as asyncio.run does.

    The loop is made for it alone: pyroute2, which needs asyncio's own, is used before.
    """
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        runner.run(main)


class TlsLoop:
    """The running loop as a TLS transport of aiofastnet shall see it, which leaves two things to be desired.

    - A handshake that breaks off is reported to the exception handler: every OSError is left out there, but
      this one comes as a class and not as an instance. Anybody can break one off, and whoever waits for the
      handshake gets the exception anyway.
    - Its write limits see only what is not encrypted yet. That the kernel takes no more shows in the wish to
      hear of a writable socket, and that it has taken everything in the end of that wish: `full`, `drained`.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, full: Callable[[], None], drained: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._full = full
        self._drained = drained

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if context["message"] != "SSL handshake failed":
            self._loop.call_exception_handler(context)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self._loop.add_writer(fd, callback)
        self._full()

    def remove_writer(self, fd: int) -> None:
        self._loop.remove_writer(fd)
        self._drained()
