"""`shadowmesh-relay` as a real process, and the systemd that listens to it."""

from __future__ import annotations

import os
import random
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from copy import copy
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

from shadowmesh.testing.guide import RELAY_CONFIG, merged
from shadowmesh.testing.program import Program, wait_for

START = "from shadowmesh.cli.relay import main; main()"


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody uses just now.

    Below those of outgoing connections, one of which could take a port before the program has it.
    """
    ports: set[int] = set()
    while len(ports) < count:
        port = random.randrange(20000, 32000)
        with suppress(OSError), socket.create_server(("", port)):
            ports.add(port)
    return list(ports)


class RelayProgram(Program):
    """The program with the guide's file, but for ports and `settings`; a context manager that kills it.

    before: Python that runs in its process first, for shorter intervals. environment: added to ours.
    """

    def __init__(
        self,
        directory: Path,
        settings: Mapping[str, Any] | None = None,
        *,
        option: str = "-config",
        before: str = "",
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.relay_port, self.health_port, self.metrics_port = free_ports(3)
        self.config = directory / "relay-config.yaml"
        self._ports = {
            "relay_port": self.relay_port,
            "health_port": self.health_port,
            "metrics_port": self.metrics_port,
        }
        self.configure(settings or {})
        self._argv = [sys.executable, "-c", f"{before}\n{START}", option, str(self.config)]
        self._environment = {**os.environ, **(environment or {})}
        self._start()

    def _start(self) -> None:
        log = self.config.with_name(f"relay-{secrets.token_hex(4)}.log")
        with log.open("wb") as output:
            process = subprocess.Popen(self._argv, stderr=output, env=self._environment)
        super().__init__("relay", process, log)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def again(self) -> Self:
        """Start it anew, on the same ports, after it has ended."""
        second = copy(self)
        second._start()
        return second

    @property
    def url(self) -> str:
        """Where clients connect."""
        return f"ws://127.0.0.1:{self.relay_port}/relay?peer_id=test"

    def configure(self, settings: Mapping[str, Any]) -> None:
        """Write the guide's file with this program's ports and with `settings`, which may move the ports."""
        self.config.write_text(merged(RELAY_CONFIG, {**self._ports, **settings}))

    def ready(self) -> Self:
        """Wait until it serves."""
        self.wait_for_text("relay is ready")
        return self

    def hang_up(self) -> str:
        """SIGHUP; what it said from then until the reload was done or refused."""
        before = len(self.text())
        self.signal(signal.SIGHUP)
        self.wait_for(
            lambda: any(
                line in self.text()[before:]
                for line in ("configuration reloaded", "configuration not reloaded")
            ),
            "end of the reload",
        )
        return self.text()[before:]

    def get(self, path: str, port: int | None = None) -> httpx.Response:
        """Ask the health port, or another one, over HTTP."""
        return httpx.get(f"http://127.0.0.1:{port or self.health_port}{path}", trust_env=False)

    def metric(self, name: str) -> float:
        """A metric with the label `region` alone."""
        text = self.get("/metrics", self.metrics_port).text
        line = next(line for line in text.splitlines() if line.startswith(f"shadowmesh_relay_{name}{{"))
        return float(line.rpartition(" ")[2])


class NotifySocket:
    """What systemd's socket receives from one service. name: for $NOTIFY_SOCKET, a path or `@abstract`."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.messages: list[str] = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + name[1:] if name.startswith("@") else name)
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    def poll(self) -> list[str]:
        """All messages until now."""
        try:
            while True:
                self.messages.append(self._socket.recv(4096).decode())
        except BlockingIOError:
            return self.messages

    def expect(self, start: str, timeout: float = 10.0) -> str:
        """Wait for a message that begins so; it and all before it are forgotten."""

        def found() -> str | None:
            for i, message in enumerate(self.poll()):
                if message.startswith(start):
                    del self.messages[: i + 1]
                    return message
            return None

        return wait_for(found, f"message {start}", timeout)
