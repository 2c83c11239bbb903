"""`shadowmesh invite`: the invitation of one more device, as a line of text and a QR code."""

from __future__ import annotations

import io
import os
import shutil
import sys
from collections.abc import Sequence
from ipaddress import ip_interface

import click

from shadowmesh.cli import inventory
from shadowmesh.cli.drafts import FILE, Client, Parsed, device_name, own_configuration, secret_in
from shadowmesh.cli.init import IP
from shadowmesh.cli.local import CONFIG
from shadowmesh.cli.newfile import locked
from shadowmesh.config import ClientConfig, IPInterface
from shadowmesh.config.values import label
from shadowmesh.errors import StartError
from shadowmesh.invitation import Invitation, encode


@click.command()
@click.argument("name", type=Parsed("NAME", label))
@click.option("--config", default=CONFIG, show_default=True, type=FILE, help="This device's configuration.")
@click.option(
    "--ip", "ips", type=IP, multiple=True, help="Overlay IP with prefix length. Default: the next free."
)
@click.option("--again", is_flag=True, help="Once more for a device of the list, with its IP.")
@click.option("--api-key-file", type=FILE, help="The new device's API key for the relay (-: standard input).")
@click.option("--qr/--no-qr", default=None, help="With a QR code. Default: on a terminal.")
def invite(
    name: str, config: str, ips: Sequence[IPInterface], again: bool, api_key_file: str | None, qr: bool | None
) -> None:
    """Make an invitation for another device, called NAME.

    It has the network key in it: whoever sees it can be in the network. `shadowmesh join` takes it on the
    other machine; with a way there: shadowmesh invite NAME | ssh HOST sudo shadowmesh join
    """
    if again and ips:
        raise click.UsageError("--again and --ip exclude each other")
    own = own_configuration(config)
    if not again:  # the list of an older version may hold another name
        try:
            device_name(name)
        except ValueError as error:
            raise StartError(str(error)) from None
    api_key = secret_in(api_key_file, "the API key") if api_key_file else None
    if api_key is None and own.relay.api_key is not None:
        raise StartError(
            "the relay wants an API key of each device: make one there with `shadowmesh relay-keys add`, "
            "and give it with --api-key-file FILE"
        )
    path = inventory.beside(config)
    with locked(path):
        listed = os.path.lexists(path)
        if not listed and not ips:
            raise StartError(
                f"{path}: no such file. It is the list of all devices, kept where the first one was made: "
                "make invitations there, copy it here, write one (a line `IP NAME` for each device), or "
                "choose an IP with --ip"
            )
        devices = (inventory.load(path) if listed else {}) | {
            one.ip: own.peer.id for one in own.network.local_ip
        }
        ips = _addresses(own, name, ips, again, devices, path)
        line = _line(own, name, ips, api_key, config)
        if listed:
            inventory.save(path, devices | {one.ip: name for one in ips})
    click.echo(line)
    if sys.stdout.isatty() if qr is None else qr:
        try:
            _show_qr(line)
        except Exception as error:  # the line is printed, and what follows must be said in any case
            click.echo(f"note: the QR code cannot be drawn: {error}", err=True)
    relays = [url for _, url in own.relay.places()]
    if all(relay.is_local for relay in relays):
        click.echo(f"warning: {relays[0].url} leads other machines to themselves, and to no relay", err=True)
    if own.encryption.next_key is not None:
        click.echo("warning: encryption.next_key is not in it; write it into the new configuration", err=True)
    if own.relay.tls_ca_file is not None:
        click.echo(f"note: {own.relay.tls_ca_file} is not in it; copy it to the same place there", err=True)
    click.echo(
        f"{name} is to be {', '.join(map(str, ips))}. The network key is in this line: show it to nobody "
        "else. On that machine: sudo shadowmesh join",
        err=True,
    )


def _addresses(
    own: ClientConfig,
    name: str,
    ips: Sequence[IPInterface],
    again: bool,
    devices: inventory.Devices,
    path: str,
) -> Sequence[IPInterface]:
    """The new device's: those asked for, those it has in the list, or the next free one in each network."""
    has = [ip for ip, each in devices.items() if each.lower() == name.lower()]
    if again:
        networks = [one.network for one in own.network.local_ip]
        found = [ip_interface(f"{ip}/{one.prefixlen}") for one in networks for ip in has if ip in one]
        if not found:
            raise StartError(f"{path} has no {name}; without --again it gets the next free IP")
        return found
    if has:
        raise StartError(f"{name} is {has[0]} already; --again makes its invitation once more")
    for one in ips:
        networks = [own_ip.network for own_ip in own.network.local_ip]
        if one.network not in networks:
            raise StartError(
                f"{one} is in none of this device's networks; write an IP and the prefix length of "
                f"{' or '.join(map(str, networks))}"
            )
        if one.ip in devices:
            raise StartError(
                f"{one.ip} is taken by {devices[one.ip] or 'another device'}; choose another one"
            )
    return ips or [inventory.next_free(one.network, devices) for one in own.network.local_ip]


def _line(own: ClientConfig, name: str, ips: Sequence[IPInterface], api_key: str | None, config: str) -> str:
    """The invitation, once the configuration that it makes is known to be valid."""
    relays = [url.url for _, url in own.relay.places()]
    mtu = own.network.mtu if "mtu" in own.network.model_fields_set else None
    key, insecure, ca_file = own.encryption.key.reveal(), own.relay.insecure_api_key, own.relay.tls_ca_file
    Client(
        key, ips, name, relays, mtu=mtu, api_key=api_key, insecure_api_key=insecure, ca_file=ca_file
    ).check(f"the configuration of {name}")
    return encode(Invitation(key, tuple(ips), name, tuple(relays), mtu, api_key, insecure, ca_file))


def _show_qr(line: str) -> None:
    import segno

    code = segno.make(line.upper(), error="l", micro=False)  # capital letters take a third less room
    drawn = io.StringIO()
    code.terminal(out=drawn, compact=True)
    width = code.symbol_size()[0]
    if sys.stdout.isatty() and width > shutil.get_terminal_size().columns:
        click.echo(f"The QR code needs a terminal of {width} columns.", err=True)
        return
    try:
        click.echo(drawn.getvalue())
    except UnicodeEncodeError:
        click.echo("The QR code needs a terminal with UTF-8.", err=True)
