"""The relay as a program: its start and end, signals, reloads, and what systemd hears of them."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import resource
import signal
import sys
from typing import TYPE_CHECKING, cast

from shadowmesh import __version__, lean, onefile
from shadowmesh.config.loader import DEFAULT_RELAY_PATH, load_relay_config
from shadowmesh.config.reload import changed, merged, needs_restart
from shadowmesh.config.values import LEVELS
from shadowmesh.net.loop import run_loop
from shadowmesh.observe.logging import Style, configure, drain, get_logger, log_not_reloaded
from shadowmesh.observe.systemd import Notifier
from shadowmesh.relay.app import Relay, last_day, start
from shadowmesh.relay.heap import keep_heap

if TYPE_CHECKING:
    from shadowmesh.config.loader import Loaded
    from shadowmesh.config.relay import RelayConfig

FILES_BESIDE_CLIENTS = 1280
"""Open files that the relay needs besides one for each client: for connections that have not asked for
anything yet, for the HTTP ports, and its own."""
STATUS_SECONDS = 3.0
"""How often systemd's status line is brought up to date."""
LAST_WORDS = 0.1
"""Seconds that an end by a second signal waits for the log."""

log = get_logger("relay")


def run(loaded: Loaded[RelayConfig], file: str | None) -> None:
    """Run a relay until SIGTERM or SIGINT; a second one ends it at once. `file` is that of the command line.

    Raises StartError; after a bug that has been logged, it ends with status 1.
    """
    faulthandler.enable()  # systemd's watchdog ends a hanging program with SIGABRT: say where it hung
    program = _Program(loaded, file)
    run_loop(program.run())
    if program.failed:
        sys.exit(1)


class _Program:
    """One run of the program."""

    def __init__(self, loaded: Loaded[RelayConfig], file: str | None) -> None:
        self.failed = False
        self._config = loaded.config
        self._source = loaded.source
        # A file once read is missed when it is gone; without one, each reload looks whether there is one now.
        self._file = file or (DEFAULT_RELAY_PATH if loaded.source == DEFAULT_RELAY_PATH else None)
        self._notifier = Notifier()
        self._refused = False  # the latest reload
        self._stop = asyncio.Event()
        self._hangup = asyncio.Event()
        self._relay: Relay

    async def run(self) -> None:
        """From the start to the end of the event loop."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal, number)
        loop.add_signal_handler(signal.SIGHUP, self._hangup.set)
        files = _raise_file_limit()
        self._relay = await start(self._config)
        self._say_ready()
        self._check_files(files)
        self._notifier.ready(self._status())
        lean.started()
        keep_heap()
        reloading = asyncio.create_task(self._reload_on_hangup(files), name="reload")
        telling = asyncio.create_task(self._tell_status(), name="status")
        feeding = asyncio.create_task(self._notifier.feed_watchdog(), name="watchdog")
        for task in (*self._relay.tasks, reloading, telling, feeding):
            task.add_done_callback(self._on_task_done)

        await self._stop.wait()
        reloading.cancel()
        self._notifier.stopping(self._status())
        log.info("relay is stopping", connections=self._relay.server.admission.joined)
        await self._relay.stop()
        log.info("relay has stopped")

    def _on_signal(self, number: int) -> None:
        if onefile.echo():
            return
        if self._stop.is_set():
            log.warning("a second signal ends the relay at once", signal=signal.Signals(number).name)
            drain(LAST_WORDS)
            os._exit(128 + number)
        self._stop.set()

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            log.critical("an internal error ends the relay", part=task.get_name(), exc_info=error)
            self.failed = True
            self._stop.set()

    # What is said

    def _say_ready(self) -> None:
        config, relay = self._config, self._relay
        certificate = relay.server.certificate
        log.info(
            "relay is ready",
            version=__version__,
            region=config.region,
            server_name=config.server_name,
            relay_port=_place(config.bind_address, relay.listener.port),
            health_port=_place(config.health_bind, relay.health.port),
            metrics_port=_place(config.metrics_bind, relay.metrics.port) if relay.metrics else "off",
            tls="on" if certificate else "off",
            **({"certificate_valid_until": last_day(certificate)} if certificate else {}),
            auth=config.auth.mode,
            **({"keys": len(relay.keys.keys)} if relay.keys else {}),
            origins=", ".join(config.allowed_origins) or "none",
            trusted_proxies=", ".join(map(str, config.trusted_proxies)) or "none",
            max_connections=config.max_connections,
            connection_timeout=config.connection_timeout,
            silent_after=relay.server.timing.dead,
            queue_size=config.queue_size,
            drain_window=config.drain_window,
            processes=1,
            config=self._source,
        )
        if config.without_effect:
            log.info("settings that have no effect in this version", keys=", ".join(config.without_effect))

    def _check_files(self, allowed: int) -> None:
        admission = self._relay.server.admission
        needed = admission.max_connections + admission.max_unjoined + FILES_BESIDE_CLIENTS
        if allowed < needed:
            log.warning(
                "too few open files for max_connections; raise LimitNOFILE of the service",
                allowed=allowed,
                needed=needed,
            )

    def _status(self) -> str:
        admission = self._relay.server.admission
        share = f"{admission.joined} of {admission.max_connections} connections"
        if self._stop.is_set():
            return f"Stopping: {len(self._relay.server.connections)} connections left"
        refused = "; the last reload was refused, see the log" if self._refused else ""
        return f"Serving {share} ({admission.utilization_percent:.1f} %){refused}"

    async def _tell_status(self) -> None:
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            self._notifier.status(self._status())

    # Reload

    async def _reload_on_hangup(self, files: int) -> None:
        while True:
            await self._hangup.wait()
            self._hangup.clear()
            self._notifier.reloading()
            self._refused = True
            try:
                await self._reload()
                self._refused = False
                self._check_files(files)
            except Exception as error:  # a bug in a reload costs the reload, not the clients
                log_not_reloaded(log, error)
            self._notifier.ready(self._status())

    async def _reload(self) -> None:
        old, loaded = self._config, load_relay_config(self._file)
        config = merged(old, loaded.config)
        await self._relay.reconfigure(config)
        self._config, self._source = config, loaded.source
        if loaded.source == DEFAULT_RELAY_PATH:
            self._file = DEFAULT_RELAY_PATH
        style = cast(Style, config.log_format)
        # Whoever asks for a quieter log still hears in it that the reload is done.
        configure(min(old.log_level, config.log_level, key=LEVELS.index), style)
        for warning in loaded.cautions(config):
            log.warning(warning)
        for refusal in needs_restart(old, loaded.config):
            log.warning(refusal)
        log.info(
            "configuration reloaded",
            changed=", ".join(changed(old, loaded.config)) or "nothing",
            config=loaded.source,
        )
        configure(config.log_level, style)


def _place(host: str | None, port: int) -> str:
    """Where it listens; `*` stands for all interfaces."""
    return f"{'*' if host is None else f'[{host}]' if ':' in host else host}:{port}"


def _raise_file_limit() -> int:
    """Allow as many open files as the system lets us; return how many that is."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
