"""Logging for every program: structlog on stderr, one line per event, nothing per packet.

`auto` writes readable lines (`time level event key=value`), coloured only on a terminal; `json` writes one
JSON object per line. What libraries say through the standard library's `logging` comes out in the same
form. Exceptions are logged without the values of local variables, which may be keys.

A log that nobody reads, a full disk or a broken pipe costs lines, never the program: a thread writes them,
what it has no room for is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import queue
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

Style = Literal["auto", "console", "json"]

_JSON = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
_QUIET_LIBRARIES = ("asyncio", "picows", "uvicorn")
_SSL_NOISE = "SSL handshake failed"  # aiofastnet's words for what `net.client` says better
MAX_WAITING = 10_000  # lines
LAST_WORDS = 0.5  # seconds that the end of the program waits for the log


def configure(level: str = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
    """Send all logging of `level` (debug, info, warning, error) and above to `stream` (default: stderr)."""
    out = stream if stream is not None else Lines(sys.stderr)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_JSON if style == "json" else [_console(style, stream or sys.stderr)]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, out)),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=threshold, force=True)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that names the part of the program it speaks for."""
    return cast(FilteringBoundLogger, structlog.get_logger(logger_name=name))


class Lines:
    """A stream for log lines that neither blocks nor fails. lost: how many lines did not get through."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._waiting: queue.Queue[str] = queue.Queue(MAX_WAITING)
        self.lost = 0
        threading.Thread(target=self._write, name="log", daemon=True).start()
        atexit.register(self.drain)

    def write(self, line: str) -> None:
        """Queue a line, or lose it."""
        try:
            self._waiting.put_nowait(line)
        except queue.Full:
            self.lost += 1

    def flush(self) -> None:
        """Nothing to do: each line is written at once."""

    def drain(self) -> None:
        """Wait a moment until all that was said is written."""
        deadline = time.monotonic() + LAST_WORDS
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            try:
                self._stream.write(line)
                self._stream.flush()
            except (OSError, ValueError):
                self.lost += 1
            self._waiting.task_done()


def _console(style: Style, out: TextIO) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=style == "auto" and out.isatty(),
        pad_event_to=0,
        pad_level=False,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


class _ToStructlog(logging.Handler):
    """Passes records of the standard library's logging on."""

    def emit(self, record: logging.LogRecord) -> None:
        if record.getMessage().startswith(_SSL_NOISE):
            return
        event: MutableMapping[str, Any] = {"logger_name": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, record.getMessage(), **event)
