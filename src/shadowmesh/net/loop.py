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
