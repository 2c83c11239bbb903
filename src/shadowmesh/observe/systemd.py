"""What systemd wants to hear from a service of Type=notify: sd_notify(3), in the words of its man page.

Outside systemd, that is without $NOTIFY_SOCKET, everything here does nothing. A systemd too busy to read does
not make the event loop wait: a state is sent again until it is taken, other messages are lost.
"""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections import deque
from collections.abc import Mapping

from shadowmesh import onefile

RETRY_SECONDS = 0.1
"""Until a state that a busy systemd has not taken is sent again."""
MAX_LATE = 8
"""States that may wait for it; the oldest goes when there are more."""


class Notifier:
    """Sends states of this process to the systemd that started it."""

    def __init__(self, environment: Mapping[str, str] = os.environ) -> None:
        name = environment.get("NOTIFY_SOCKET", "")
        self._address = "\0" + name[1:] if name.startswith("@") else name
        self._status = ""
        self._late: deque[str] = deque(maxlen=MAX_LATE)
        """States that wait to be sent again."""
        self.watchdog = _watchdog(environment) if name else None
        """Seconds within which systemd wants a sign of life, over and over; None if it does not."""

    def ready(self, status: str) -> None:
        """The start, or a reload, is done."""
        self._status = status
        self._tell(f"READY=1\nSTATUS={status}")

    def reloading(self) -> None:
        """A reload begins; `ready` must follow."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self, status: str) -> None:
        """The end has begun."""
        self._status = status
        self._tell(f"STOPPING=1\nSTATUS={status}")

    def status(self, text: str) -> None:
        """One line for people, shown by `systemctl status`; sent only when it is another one."""
        if text != self._status and not self._late and self._send(f"STATUS={text}"):
            self._status = text

    async def feed_watchdog(self) -> None:
        """Give signs of life from the event loop, twice as often as asked for, until cancelled.

        An event loop that hangs gives none: then systemd ends the process and starts it anew.
        """
        while self.watchdog is not None:
            self._send("WATCHDOG=1")
            await asyncio.sleep(self.watchdog / 2)

    def _tell(self, state: str) -> None:
        """Send a state: in order, and by the running loop again and again if systemd is too busy."""
        waiting = bool(self._late)
        self._late.append(state)
        if not waiting:
            self._tell_late()

    def _tell_late(self) -> None:
        while self._late and self._send(self._late[0]):
            self._late.popleft()
        if self._late:
            asyncio.get_running_loop().call_later(RETRY_SECONDS, self._tell_late)

    def _send(self, message: str) -> bool:
        """Whether systemd has it, or nobody is there to take it."""
        if not self._address:
            return True
        # A socket for each message: systemd may have made its own anew in between.
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.setblocking(False)
            try:
                sender.sendto(message.encode(), self._address)
            except BlockingIOError:
                return False
            except OSError:
                pass  # nobody there to tell, and nothing to do about it
        return True


def _watchdog(environment: Mapping[str, str]) -> float | None:
    if environment.get("WATCHDOG_PID") not in (None, str(os.getpid()), str(onefile.bootloader)):
        return None
    usec = environment.get("WATCHDOG_USEC", "")
    return int(usec) / 1e6 if usec.isdecimal() and usec.isascii() and int(usec) > 0 else None
