"""`shadowmesh-relay`: reads the configuration and runs the relay."""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import cast

from shadowmesh.cli.arguments import configuration_file, end_with_mistakes
from shadowmesh.errors import ConfigError, StartError

PROGRAM = (
    "shadowmesh-relay",
    "Pass sealed frames on between the members of a ShadowMesh network.",
    "configuration (default: /etc/shadowmesh/relay-config.yaml; if missing, built-in values)",
)


def main(argv: list[str] | None = None) -> None:
    """Exit status: 0 after SIGTERM or SIGINT, 1 if it cannot start, 2 for a wrong configuration.

    A SIGINT before it has started: 130.
    """
    _heed_early_signals()
    file = configuration_file(*PROGRAM, argv, required=False)

    gc.disable()  # until `lean.started`
    # Only now what takes time to import: --help and --version answer at once.
    from shadowmesh.config import load_relay_config

    try:
        loaded = load_relay_config(file)
    except ConfigError as error:
        end_with_mistakes(error, "relay")

    from shadowmesh.observe.logging import Style, configure, get_logger

    log = get_logger("relay")
    configure(loaded.config.log_level, cast(Style, loaded.config.log_format))
    for warning in loaded.warnings:
        get_logger("config").warning(warning)

    from shadowmesh.relay.program import run

    try:
        run(loaded, file)
    except StartError as error:
        log.error("relay cannot start", why=str(error))
        sys.exit(1)


def _heed_early_signals() -> None:
    """Until the event loop takes over: a reload has nothing to reload yet, an end needs no traceback."""
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # An exception could come out in any place, even where it is only shown and forgotten.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    signal.signal(signal.SIGINT, lambda *_: os._exit(128 + signal.SIGINT))
