"""`shadowmesh-daemon FILE`: the client."""

from __future__ import annotations

import gc
import sys

from shadowmesh.cli.arguments import configuration_file, end_with_mistakes
from shadowmesh.errors import ConfigError, StartError, TunError

PROGRAM = (
    "shadowmesh-daemon",
    "Join this machine to a ShadowMesh network.",
    "configuration, such as /etc/shadowmesh/client-config.yaml",
)


def main(argv: list[str] | None = None) -> None:
    """Run the daemon. Exit status 2 for a configuration that cannot be used, 1 for what stops a start."""
    file = configuration_file(*PROGRAM, argv, required=True)
    assert file is not None
    gc.disable()  # until `lean.started`

    from shadowmesh.config.loader import load_client_config

    try:
        loaded = load_client_config(file)
    except ConfigError as error:
        end_with_mistakes(error, "daemon")

    from shadowmesh.daemon.app import run
    from shadowmesh.observe.logging import configure, get_logger

    configure(loaded.config.daemon.log_level)
    for warning in loaded.warnings:
        get_logger("config").warning(warning)
    try:
        run(loaded.config, file)
    except (StartError, TunError) as error:
        get_logger("daemon").error("daemon cannot start", why=str(error))
        sys.exit(1)


if __name__ == "__main__":
    main()
