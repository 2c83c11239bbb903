"""Kinds of connections for what only some of them do: those whose frames are logged, those with a rate.

A connection changes its class when what is wanted of it changes (`kind`), so that all others pay nothing.
"""

from __future__ import annotations

from asyncio import get_running_loop
from fcntl import ioctl
from termios import FIONREAD
from time import monotonic

from shadowmesh.relay.connection import Connection
from shadowmesh.relay.log import shown
from shadowmesh.wire.frame import HEADER_SIZE, MIN_FRAME

PAUSED_PING = 1.0
"""Seconds between pings to a client that is not read from: it gets no other answer, and must not think that
the relay is gone."""


class Logged(Connection):
    """A client of a relay that logs frames (headers only) or routing. Both logs are at a bounded rate."""

    __slots__ = ()

    def on_binary(self, frame: memoryview) -> None:
        """Log who sends how much to whom."""
        log = self._server.frame_log
        if log is not None and self.member is not None and len(frame) >= MIN_FRAME and log.ready():
            header = bytes(frame[:HEADER_SIZE])
            log.info(
                "data frame",
                network=self._server.names(self)["network"],
                source=shown([header[17:]]),
                destination=shown([header[1:17]]),
                size=len(frame),
            )
        super().on_binary(frame)

    def lose(self, reason: str, destination: bytes = b"", frames: int = 1) -> None:
        """Log why."""
        super().lose(reason, destination, frames)
        log = self._server.routing_log
        if log is not None and self.member is not None:
            log.drop(self._server.names(self), reason, destination, frames)


class Paced(Connection):
    """A joined client whose device, network or API key has a rate.

    Beyond it the client is not read from until the debt is paid: TCP slows it down, and nothing is lost.
    """

    __slots__ = ()

    def on_binary(self, frame: memoryview) -> None:
        """Pass it on; what is read in this turn is paid for when the turn is over."""
        pacing = self._pacing
        if pacing is not None and pacing.due is None:
            # Not here: a TLS transport paused in the middle of a read forgets what it has decrypted.
            pacing.due = get_running_loop().call_soon(self.guard, self._pay)
        super().on_binary(frame)

    def _pay(self) -> None:
        pacing = self._pacing
        if pacing is not None and not self.closing:
            pacing.due = None
            pacing.pay(self.bytes_in, monotonic())

    def hold(self) -> None:
        """Be read from no more."""
        if not self.closing:
            self.guard(self.pause_reading)

    def go_on(self) -> None:
        """Be read from again."""
        self.heard_at = monotonic()
        self.guard(self.resume_reading)

    def has_input(self) -> bool:
        """Whether bytes wait in the kernel."""
        return not self.closing and any(ioctl(self.tcp_socket().fileno(), FIONREAD, bytes(4)))

    def check(self, now: float) -> None:
        """Take nobody for silent or slow whom we do not listen to."""
        pacing, member = self._pacing, self.member
        if pacing is not None and pacing.paused and member is not None:
            member.heard_at = self._unfinished_at = now
            if now - self.heard_at >= min(PAUSED_PING, self._server.timing.keepalive):
                self.heard_at = now
                self.ping()
        super().check(now)


class PacedLogged(Paced, Logged):
    """Both."""

    __slots__ = ()


_KINDS: dict[tuple[bool, bool], type[Connection]] = {
    (False, False): Connection,
    (True, False): Logged,
    (False, True): Paced,
    (True, True): PacedLogged,
}


def kind(*, logged: bool, paced: bool) -> type[Connection]:
    """The class for a connection that does not drain."""
    return _KINDS[logged, paced]
