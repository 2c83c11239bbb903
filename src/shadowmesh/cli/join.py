"""`shadowmesh join`: turns an invitation into this machine's configuration."""

from __future__ import annotations

import click

from shadowmesh.cli import inventory, newfile
from shadowmesh.cli.drafts import FILE, Client, Parsed, interactive, path_of, secret_in
from shadowmesh.cli.init import NAME, free_listen_address
from shadowmesh.config.address import host_port
from shadowmesh.invitation import SCHEME, decode


@click.command()
@click.argument("file", default="-", type=FILE)
@click.option("--name", type=NAME, help="Another name than that in the invitation.")
@click.option("--listen-address", type=Parsed("IP:PORT", host_port), help="Of the local API.")
@path_of(f"{newfile.DIRECTORY}/{newfile.CLIENT_CONFIG}")
def join(file: str, name: str | None, listen_address: str | None, output: str, force: bool) -> None:
    """Write this machine's configuration from an invitation.

    Asks for it, or reads it from standard input or FILE. It is no argument, for all users of a machine see
    the arguments of its programs.
    """
    if file.lower().startswith(SCHEME):
        raise click.UsageError(
            "an invitation holds the network key, and other users and the shell's history see what is "
            "written here: call `shadowmesh join` alone, and paste the invitation when it asks"
        )
    newfile.refuse_existing(output, force)
    if file == "-" and interactive():
        text: str = click.prompt("Invitation (it stays hidden)", hide_input=True, err=True)
    else:
        text = secret_in(file, "an invitation")
    invitation = decode(text)
    made = Client(
        invitation.key,
        invitation.addresses,
        name or invitation.name,
        invitation.relays,
        listen_address or free_listen_address(output),
        invitation.mtu,
        invitation.api_key,
        invitation.insecure_api_key,
        invitation.ca_file,
    )
    replaced = made.write(output, force)
    if kept := newfile.put_aside(inventory.beside(output)):
        click.echo(f"the list of devices that was here is not this network's any more: {kept}")
    made.say_what_next(output, replaced)
