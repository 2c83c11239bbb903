"""`shadowmesh-relay`: reads the configuration and runs the relay."""

from __future__ import annotations

import sys
from typing import cast

from shadowmesh.cli.arguments import configuration_file
from shadowmesh.errors import ConfigError, StartError


def main(argv: list[str] | None = None) -> None:
    """Exit status: 0 after SIGTERM or SIGINT, 1 if it cannot start, 2 for a wrong configuration."""
    file = configuration_file(
        "shadowmesh-relay",
        "Pass sealed frames on between the members of a ShadowMesh network.",
        "configuration (default: /etc/shadowmesh/relay-config.yaml; if missing, built-in values)",
        argv,
        required=False,
    )

    # Only now what takes time to import: --help and --version answer at once.
    from shadowmesh.config import load_relay_config

    try:
        loaded = load_relay_config(file)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

    from shadowmesh.observe.logging import Style, configure, get_logger

    configure(loaded.config.log_level, cast(Style, loaded.config.log_format))
    for warning in loaded.warnings:
        get_logger("config").warning(warning)

    from shadowmesh.relay.program import run

    try:
        run(loaded, file)
    except StartError as error:
        print(f"shadowmesh-relay: {error}", file=sys.stderr)
        sys.exit(1)
