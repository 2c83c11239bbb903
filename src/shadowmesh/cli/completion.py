"""`shadowmesh completion`: what a shell needs to complete our commands."""

from __future__ import annotations

import click
from click.shell_completion import ShellComplete, get_completion_class

PLACES = {
    "bash": "/usr/share/bash-completion/completions/shadowmesh",
    "zsh": "/usr/share/zsh/vendor-completions/_shadowmesh",
    "fish": "/usr/share/fish/vendor_completions.d/shadowmesh.fish",
}
"""Where the packages of each shell look for it, for all users."""


@click.command()
@click.argument("shell", type=click.Choice(list(PLACES)))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion of commands and options for a shell.

    For bash, for this user: shadowmesh completion bash >> ~/.bashrc
    """
    made = get_completion_class(shell)
    assert made is not None
    shell_complete = made(ctx.find_root().command, {}, "shadowmesh", "_SHADOWMESH_COMPLETE")
    click.echo(ShellComplete.source(shell_complete))  # bash's own runs a bash, to find out its version
