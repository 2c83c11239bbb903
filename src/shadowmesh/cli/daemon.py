"""`shadowmesh-daemon FILE`: the client."""

from __future__ import annotations

import argparse
import sys

from shadowmesh import __version__
from shadowmesh.errors import ConfigError, StartError, TunError


def main(argv: list[str] | None = None) -> None:
    """Run the daemon. Exit status 2 for a configuration that cannot be used, 1 for what stops a start."""
    parser = argparse.ArgumentParser(
        prog="shadowmesh-daemon", description="Join this machine to a ShadowMesh network."
    )
    parser.add_argument(
        "config", metavar="FILE", help="configuration, e.g. /etc/shadowmesh/client-config.yaml"
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    arguments = parser.parse_args(argv)

    from shadowmesh.config.loader import load_client_config

    try:
        loaded = load_client_config(arguments.config)
    except ConfigError as error:
        print(error, file=sys.stderr)
        sys.exit(2)

    from shadowmesh.daemon.app import run
    from shadowmesh.observe.logging import configure, get_logger

    configure(loaded.config.daemon.log_level)
    for warning in loaded.warnings:
        get_logger("config").warning(warning)
    try:
        run(loaded.config)
    except (StartError, TunError) as error:
        print(f"shadowmesh-daemon: {error}", file=sys.stderr)
        sys.exit(1)


if __name__ == "__main__":
    main()
