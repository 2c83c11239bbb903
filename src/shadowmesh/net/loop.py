"""The event loop of the programs: uvloop, where there is one, takes a fifth off a small packet's time."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from aiofastnet.ssl_transport import SSLTransport_Socket  # type: ignore[import-not-found]

new_loop: Callable[[], asyncio.AbstractEventLoop] | None
"""Makes the event loop of the programs; None: asyncio's own."""
try:
    import uvloop
except ImportError:  # Windows
    new_loop = None
else:
    new_loop = uvloop.new_event_loop

if sys.platform == "linux" and new_loop is not None:
    import os
    import select
    from stat import S_ISSOCK

    class Loop(uvloop.Loop):
        """uvloop that goes on listening to a socket with an error.

        libuv calls the reader of such a socket once more and never again. A connection that is reset with
        data unread would then live on, as nobody reads as far as its end: until it is too silent, or for
        ever. So a second epoll, which asks for nothing and is told of errors and hang-ups only, shows those
        whose reader has to be added anew. That costs nothing per read.
        """

        def __init__(self) -> None:
            super().__init__()
            # By number: what add_reader got.
            self._readers: dict[int, tuple[Any, Callable[..., Any], tuple[Any, ...]]] = {}
            self._errors = select.epoll()
            super().add_reader(self._errors.fileno(), self._on_errors)

        def add_reader(self, fd: Any, callback: Callable[..., Any], *args: Any) -> None:  # type: ignore[override]
            """See asyncio."""
            super().add_reader(fd, callback, *args)
            number = fd if isinstance(fd, int) else fd.fileno()
            if S_ISSOCK(os.fstat(number).st_mode):
                self._readers[number] = fd, callback, args
                with suppress(FileExistsError):
                    self._errors.register(number, 0)

        def remove_reader(self, fd: Any) -> Any:
            """See asyncio."""
            number = fd if isinstance(fd, int) else fd.fileno()
            if self._readers.pop(number, None) is not None:
                with suppress(OSError):  # closed already
                    self._errors.unregister(number)
            return super().remove_reader(fd)

        def close(self) -> None:
            """See asyncio."""
            super().close()
            self._errors.close()

        def _on_errors(self) -> None:
            for number, _ in self._errors.poll(0):
                # Later, for the reader is yet to be called in this turn.
                self.call_soon(self._listen_again, number)

        def _listen_again(self, number: int) -> None:
            reader = self._readers.get(number)
            if reader is not None:
                super().remove_reader(reader[0])
                super().add_reader(reader[0], reader[1], *reader[2])

    new_loop = Loop


def run_loop(main: Coroutine[Any, Any, None]) -> None:
    """Run a program's coroutine to its end, as asyncio.run does.

    The loop is made for it alone: pyroute2, which needs asyncio's own, is used before.
    """
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main)


class TlsLoop:
    """The running loop as a TLS transport of aiofastnet shall see it, which leaves some things to be desired.

    - A handshake that breaks off is reported to the exception handler: every OSError is left out there, but
      this one comes as a class and not as an instance. Anybody can break one off, and whoever waits for the
      handshake gets the exception anyway.
    - Its write limits see only what is not encrypted yet. That the kernel takes no more shows in the wish to
      hear of a writable socket, and that it has taken everything in the end of that wish: `full`, `drained`.
    - The alert that says why a handshake fails is never sent: it closes with OpenSSL's last words unread. The
      first thing it does then is to listen no more, and the socket is still open.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, full: Callable[[], None], drained: Callable[[], None]
    ) -> None:
        self._loop = loop
        self._full = full
        self._drained = drained
        self._transport: Any = None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loop, name)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if context["message"] != "SSL handshake failed":
            self._loop.call_exception_handler(context)

    def add_reader(self, fd: int, callback: Callable[[], None]) -> None:
        owner = getattr(callback, "__self__", None)
        self._transport = owner if isinstance(owner, SSLTransport_Socket) else None
        self._loop.add_reader(fd, callback)

    def remove_reader(self, fd: int) -> None:
        transport, self._transport = self._transport, None  # a write that fails leads here again
        if transport is not None and transport.get_extra_info("cipher") is None:
            transport._write_ready()
            self._loop.remove_writer(fd)  # what does not fit now is not waited for
        self._loop.remove_reader(fd)

    def add_writer(self, fd: int, callback: Callable[[], None]) -> None:
        self._loop.add_writer(fd, callback)
        self._full()

    def remove_writer(self, fd: int) -> None:
        self._loop.remove_writer(fd)
        self._drained()
