"""Logging for every program: structlog on stderr, one line per event, nothing per packet.

`auto` writes readable lines (`time level event key=value`), coloured only on a terminal; `json` writes one
JSON object per line. What libraries say through the standard library's `logging` comes out in the same
form. Exceptions are logged without the values of local variables, which may be keys.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

import structlog
from structlog.typing import FilteringBoundLogger

Style = Literal["auto", "console", "json"]

_JSON = (structlog.processors.format_exc_info, structlog.processors.JSONRenderer())
_QUIET_LIBRARIES = ("asyncio", "picows", "uvicorn")


def configure(level: str = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
    """Send all logging of `level` (debug, info, warning, error) and above to `stream` (default: stderr)."""
    out = stream if stream is not None else sys.stderr
    threshold = logging.getLevelNamesMapping()[level.upper()]
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *(_JSON if style == "json" else [_console(out, style)]),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.PrintLoggerFactory(out),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=threshold, force=True)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that names the part of the program it speaks for."""
    return cast(FilteringBoundLogger, structlog.get_logger(logger_name=name))


def _console(out: TextIO, style: Style) -> structlog.dev.ConsoleRenderer:
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
        event: MutableMapping[str, Any] = {"logger_name": record.name}
        if record.exc_info:
            event["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, record.getMessage(), **event)
