"""`shadowmesh`, the operator's command.

Each command imports what it needs when it runs, so that help, completion and `keygen` answer at once.
"""

from __future__ import annotations

import importlib
import os
import secrets
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click

from shadowmesh import __version__
from shadowmesh.errors import ConfigError, ShadowMeshError, StartError

if TYPE_CHECKING:
    from shadowmesh.config import Tls

# command -> module that has it under the same name
_ELSEWHERE = {
    # It starts Python, which a packaged program has none of.
    **({} if hasattr(sys, "frozen") else {"demo": "shadowmesh.cli.demo"}),
    "relay-keys": "shadowmesh.cli.relay_keys",
    **{name: f"shadowmesh.cli.{name}" for name in ("completion", "init", "invite", "join")},
    **dict.fromkeys(
        ("status", "peers", "ping", "watch", "up", "down", "trust", "reload"), "shadowmesh.cli.status"
    ),
}


class _Commands(click.Group):
    """Loads the large commands only when they are asked for, and turns our errors into an exit status."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted({*super().list_commands(ctx), *_ELSEWHERE})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in _ELSEWHERE:
            return super().get_command(ctx, cmd_name)
        module = importlib.import_module(_ELSEWHERE[cmd_name])
        command: click.Command = getattr(module, cmd_name.replace("-", "_"))
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if not ctx.resilient_parsing and args[0] not in (names := self.list_commands(ctx)):
            from difflib import get_close_matches

            if near := get_close_matches(args[0], names, 1):
                ctx.fail(f"No such command '{args[0]}'. Did you mean {near[0]}?")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except ConfigError as error:
            click.echo(str(error), err=True)
            ctx.exit(2)
        except ShadowMeshError as error:
            click.echo(f"shadowmesh: {error}", err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="shadowmesh %(version)s")
def cli() -> None:
    """An encrypted overlay network that works wherever a WebSocket does."""


@cli.command()
def keygen() -> None:
    """Print a new network key.

    64 hex digits for encryption.key, the same on every device of the network.
    """
    click.echo(secrets.token_hex(32))


@cli.command()
def version() -> None:
    """Print the version."""
    click.echo(f"shadowmesh {__version__}")


@cli.command("check-config")
@click.option("--relay", "kind", flag_value="relay", help="Check FILE as a relay configuration.")
@click.option("--client", "kind", flag_value="client", help="Check FILE as a client configuration.")
@click.argument("file", type=click.Path(readable=False))  # the loader has its own words for that
def check_config(kind: str | None, file: str) -> None:
    """Check a configuration file.

    Prints every mistake with its place, and ends with status 2 if there is one. Without an option the keys of
    FILE say whether it is a relay's or a client's. Certificate and API keys of a relay are loaded, too.
    """
    from shadowmesh.config import (
        ClientConfig,
        Loaded,
        RelayConfig,
        load_client_config,
        load_config,
        load_relay_config,
    )

    loaded: Loaded[RelayConfig] | Loaded[ClientConfig]
    if kind == "relay":
        loaded = load_relay_config(file)
    elif kind == "client":
        loaded = load_client_config(file)
    else:
        loaded = load_config(file)
    for warning in loaded.warnings:
        click.echo(f"warning: {warning}", err=True)
    kind = "client"
    if isinstance(loaded.config, RelayConfig):
        kind = "relay"
        problems = _certificate_problems(file, loaded.config.tls)
        if loaded.config.auth.mode == "api_key":
            problems += _keys_problems(loaded.config.auth.keys_file)
        if problems:
            raise ConfigError([f"{file}: {problem}" for problem in problems])
        if unused := loaded.config.without_effect:
            click.echo(f"note: no effect yet in this version: {', '.join(unused)}", err=True)
    elif loaded.config.relay.tls_ca_file is not None:
        from shadowmesh.net.client import check_ca_file

        try:
            check_ca_file(loaded.config.relay.tls_ca_file)
        except StartError as error:
            raise ConfigError([f"{file}: relay.tls_ca_file: {error}"]) from None
    click.echo(f"{file}: ok ({kind} configuration)")


def _certificate_problems(file: str, tls: Tls | None) -> list[str]:
    from shadowmesh.net.tls import Certificate, mistakes

    if tls is None:
        return []
    try:
        certificate = Certificate(tls.cert_file, tls.key_file)
    except StartError as error:
        return mistakes(tls.cert_file, tls.key_file) or [str(error)]
    for warning in certificate.warnings:
        click.echo(f"warning: {file}: {warning}", err=True)
    return []


def _keys_problems(keys_file: str) -> list[str]:
    from shadowmesh.relay.keyfile import KeysFile

    try:
        KeysFile(keys_file)
    except StartError as error:
        return [str(error)]
    return []


def main() -> None:
    """Entry point."""
    try:
        cli(prog_name="shadowmesh")
    except OSError as error:
        where = "the output cannot be written: " if error.filename is None else f"{error.filename}: "
        with suppress(OSError):
            click.echo(f"shadowmesh: {where}{error.strerror}", err=True)
        sys.exit(1)
    finally:
        try:
            print(end="", flush=True)
        except OSError:
            # What could not be written is still buffered, and would fail once more at the interpreter's exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
