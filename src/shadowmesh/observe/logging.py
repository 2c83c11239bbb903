"""Logging for every program: structlog on stderr, one line per event, nothing per packet.

`auto` writes readable lines (`time level event key=value`), coloured only on a terminal; where stderr is the
journal, which has times of its own, without the time. `console` is the same in every place and `json` one
JSON object per line. Lines for the journal begin with their priority, `<6>` (sd-daemon(3)). What libraries
say through the standard library's `logging` comes out in the same form, and at a bounded rate, for a peer may
be the cause of it. Exceptions are logged without the values of local variables, which may be keys.

A log that nobody reads, a full disk or a broken pipe costs lines, never the program: a thread writes them,
what it has no room for is dropped and counted.
"""

from __future__ import annotations

import atexit
import logging
import os
import queue
import sys
import threading
import time
from collections.abc import MutableMapping
from typing import Any, Literal, TextIO, cast

from shadowmesh import lean
from shadowmesh.errors import ConfigError, StartError, TunError
from shadowmesh.ratelimit import TokenBucket

with lean.without("rich"):  # it would show exceptions with the values of local variables
    import structlog
    from structlog.typing import EventDict, FilteringBoundLogger, Processor, WrappedLogger

Style = Literal["auto", "console", "json"]

_QUIET_LIBRARIES = ("asyncio", "picows", "uvicorn")
_SSL_NOISE = "SSL handshake failed"  # aiofastnet's words for what `net.client` says better
_PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3, "critical": 2}
LIBRARY_RATE, LIBRARY_BURST = 1.0, 30.0
"""Lines per second of each library's logger, and how many of them at once."""
MAX_WAITING = 10_000  # lines
LAST_WORDS = 0.5  # seconds that the end of the program waits for the log

_stderr: Lines | None = None


def configure(level: str = "info", style: Style = "auto", stream: TextIO | None = None) -> None:
    """Send all logging of `level` (debug, info, warning, error) and above to `stream` (default: stderr).

    May be called again at any time; loggers that exist follow.
    """
    out = stream or sys.stderr
    journal = _is_journal(out)
    threshold = logging.getLevelNamesMapping()[level.upper()]
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    renderers: list[Processor] = (
        [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
        if style == "json"
        else [_printable, _console(colours=style == "auto" and out.isatty())]
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            *([] if journal and style == "auto" else [stamp]),
            *([_for_journal(renderers)] if journal else renderers),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(threshold),
        logger_factory=structlog.WriteLoggerFactory(cast(TextIO, stream or _lines())),
        cache_logger_on_first_use=False,
    )
    logging.basicConfig(handlers=[_ToStructlog()], level=threshold, force=True)
    for name in _QUIET_LIBRARIES:
        logging.getLogger(name).setLevel(max(threshold, logging.WARNING))


def log_not_reloaded(log: FilteringBoundLogger, error: Exception) -> None:
    """Say what kept a program from a reload; to be called where `error` is handled."""
    match error:
        case ConfigError():
            for problem in error.problems:
                log.error(problem)
            log.error("configuration not reloaded", problems=len(error.problems))
        case StartError() | TunError():
            log.error("configuration not reloaded", why=str(error))
        case _:
            log.exception("configuration not reloaded")


def get_logger(name: str) -> FilteringBoundLogger:
    """A logger that names the part of the program it speaks for."""
    return cast(FilteringBoundLogger, structlog.get_logger(logger_name=name))


def drain(seconds: float) -> None:
    """Wait at most so long until all lines are written: for an end that atexit does not hear of."""
    if _stderr is not None:
        _stderr.drain(seconds)


class Lines:
    """A stream for log lines that neither blocks nor fails. lost: how many lines did not get through."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
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

    def drain(self, seconds: float = LAST_WORDS) -> None:
        """Wait a moment until all that was said is written."""
        deadline = time.monotonic() + seconds
        while self._waiting.unfinished_tasks and time.monotonic() < deadline:
            time.sleep(0.005)

    def _put(self, line: str) -> None:
        try:
            file = self.stream.fileno()
        except (OSError, ValueError, AttributeError):  # no file
            self.stream.write(line)
            self.stream.flush()
            return
        # Past the buffer of Python, which would try again at the end of the program, and hang or fail then.
        data = line.encode(errors="backslashreplace")
        while data:
            data = data[os.write(file, data) :]

    def _write(self) -> None:
        while True:
            line = self._waiting.get()
            try:
                self._put(line)
            except (OSError, ValueError):
                self.lost += 1
            self._waiting.task_done()


def _lines() -> Lines:
    """The one writer of stderr, which a second `configure` goes on using."""
    global _stderr
    if _stderr is None or _stderr.stream is not sys.stderr:
        _stderr = Lines(sys.stderr)
    return _stderr


def _is_journal(out: TextIO) -> bool:
    """Whether systemd has connected `out` to the journal: $JOURNAL_STREAM names its device and inode."""
    try:
        status = os.fstat(out.fileno())
    except (OSError, ValueError):  # closed, or no file
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"


def _console(*, colours: bool) -> structlog.dev.ConsoleRenderer:
    return structlog.dev.ConsoleRenderer(
        colors=colours,
        pad_event_to=0,
        pad_level=False,
        sort_keys=False,
        exception_formatter=structlog.dev.plain_traceback,
    )


def _printable(_: WrappedLogger, __: str, event: EventDict) -> EventDict:
    """Leave nothing in a line that ends it early or that a terminal obeys."""
    for key, value in event.items():
        if isinstance(value, str) and not value.isprintable():
            event[key] = value.encode("unicode_escape").decode()
    return event


def _for_journal(renderers: list[Processor]) -> Processor:
    """Put its priority before each line of an entry; the journal takes each line as an entry of its own."""

    def render(logger: WrappedLogger, method: str, event: EventDict) -> str:
        prefix = f"<{_PRIORITIES[event['level']]}>"
        rendered: Any = event
        for renderer in renderers:
            rendered = renderer(logger, method, rendered)
        return prefix + str(rendered).replace("\n", "\n" + prefix)

    return render


class _ToStructlog(logging.Handler):
    """Passes records of the standard library's logging on, so many of each logger."""

    def __init__(self) -> None:
        super().__init__()
        self._rates: dict[str, TokenBucket] = {}
        self._unlogged = 0

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith(_SSL_NOISE):
            return
        rate = self._rates.setdefault(record.name, TokenBucket(LIBRARY_RATE, LIBRARY_BURST))
        if not rate.take(time.monotonic()):
            self._unlogged += 1
            return
        event: MutableMapping[str, Any] = {"logger_name": record.name}
        if self._unlogged:
            event["unlogged_before"], self._unlogged = self._unlogged, 0
        if record.exc_info:
            event["exc_info"] = record.exc_info
        structlog.get_logger().log(record.levelno, "; ".join(message.splitlines()), **event)
