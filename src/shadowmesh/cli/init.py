"""`shadowmesh init relay|client`: writes a first configuration from answers or options."""

from __future__ import annotations

import os
import secrets
import shlex
from collections.abc import Sequence
from contextlib import suppress
from ipaddress import ip_network
from typing import Any

import click

from shadowmesh.cli import inventory, newfile
from shadowmesh.cli.drafts import (
    FILE,
    Client,
    Parsed,
    device_name,
    host_label,
    interactive,
    own_configuration,
    path_of,
    program,
    say_commands,
    say_start,
    say_written,
    secret_in,
    service_key_file,
    yaml_text,
)
from shadowmesh.cli.local import DEFAULT_ADDRESS
from shadowmesh.config import IPInterface, IPNetwork, load_relay_config, parse_relay_config
from shadowmesh.config.address import bind_ip, host_port, overlay_interface, prefix, relay_url
from shadowmesh.config.secret import network_key, network_key_in, relay_key
from shadowmesh.config.values import absolute, hex32, label, whole
from shadowmesh.errors import ConfigError, StartError

NAME = Parsed("NAME", device_name)
_SERVER_NAME = Parsed("NAME", label)
RELAY = Parsed("URL", relay_url)
IP = Parsed("IP/PREFIX", overlay_interface, typed=True)
_NETWORK = Parsed("CIDR", prefix, typed=True)
_PORT = Parsed("PORT", whole(1, 65535), typed=True)
_ADDRESS = Parsed("IP", bind_ip)
_NETWORK_ID = Parsed("HEX", hex32)
_PATH = Parsed("FILE", absolute("/etc/shadowmesh/ca.pem"))
DEFAULT_NETWORK = ip_network("10.10.10.0/24")
_MOST_RELAYS = 4


@click.group()
def init() -> None:
    """Write a first configuration.

    Asks for what no option says, when there is somebody to ask. A file that is there is never written over.
    """


@init.command()
@click.option("--name", type=_SERVER_NAME, help="Shown to clients. Default: this host's name.")
@click.option(
    "--region", type=_SERVER_NAME, help='Label of the metrics, such as eu-west-1. Default: "default".'
)
@click.option("--port", type=_PORT, default=9545, show_default=True, help="Of the WebSocket.")
@click.option("--tls-cert", type=_PATH, help="PEM: certificate and chain; wss:// instead of ws://.")
@click.option("--tls-key", type=_PATH, help="PEM: the certificate's private key.")
@click.option("--api-keys", is_flag=True, help="Let in only who has a key of `shadowmesh relay-keys`.")
@click.option(
    "--allowed-network", "networks", type=_NETWORK_ID, multiple=True, help="Let in this network id only."
)
@click.option(
    "--monitoring-bind",
    type=_ADDRESS,
    default="127.0.0.1",
    show_default=True,
    help="Where /health, /status and /metrics answer.",
)
@path_of(f"{newfile.DIRECTORY}/{newfile.RELAY_CONFIG}")
def relay(
    name: str | None,
    region: str | None,
    port: int,
    tls_cert: str | None,
    tls_key: str | None,
    api_keys: bool,
    networks: Sequence[str],
    monitoring_bind: str,
    output: str,
    force: bool,
) -> None:
    """A relay's configuration.

    Open to everybody unless --api-keys or --allowed-network says otherwise; what passes it is sealed all the
    same.
    """
    newfile.refuse_existing(output, force)
    if (tls_cert is None) != (tls_key is None):
        raise click.UsageError("--tls-cert and --tls-key belong together")
    if name is None:
        name = host_label() or "relay"
        name = _ask("Name of this relay", _SERVER_NAME, name) if interactive() else name
    if region is None:
        region = "default"
        region = _ask("Region, a label of the metrics", _SERVER_NAME, region) if interactive() else region
    sections: dict[str, object] = {
        "region": region,
        "server_name": name,
        "relay_port": port,
        "health_bind": monitoring_bind,
        "metrics_bind": monitoring_bind,
        "allowed_origins": [],
        "auth": {"mode": "api_key" if api_keys else "open"},
    }
    if tls_cert and tls_key:
        from shadowmesh.net.tls import Certificate

        Certificate(tls_cert, tls_key)
        sections["tls"] = {"cert_file": tls_cert, "key_file": tls_key}
    if networks:
        sections["allowed_networks"] = list(networks)
    head = "# ShadowMesh relay. All keys: man shadowmesh.yaml. Check: shadowmesh check-config FILE\n\n"
    text = yaml_text(head, sections)
    parse_relay_config(text.encode(), output)
    # Nothing in it is secret, and the service runs as another user.
    backup = newfile.write_new(output, text, force=force, mode=0o644)
    say_written(output, backup)
    for warning in load_relay_config(output).warnings:
        click.echo(f"warning: {warning}", err=True)
    click.echo()
    command = f"{program('shadowmesh-relay')} -config {shlex.quote(output)}"
    in_place = output == f"{newfile.DIRECTORY}/{newfile.RELAY_CONFIG}"
    say_start("shadowmesh-relay", command, in_place, bool(backup))
    if api_keys:
        say_commands("Make a key for each device with", [f"sudo {program('shadowmesh')} relay-keys add NAME"])
    scheme = "wss" if tls_cert else "ws"
    say_commands(
        f"Open port {port}; then on the first device, with this host's name or address",
        [f"sudo shadowmesh init client --relay {scheme}://HOST:{port}"],
    )


@init.command()
@click.option(
    "--relay", "relays", type=RELAY, multiple=True, help="ws://HOST:9545 or wss://HOST; up to four times."
)
@click.option("--name", type=NAME, help="Of this device. Default: this host's name.")
@click.option(
    "--network",
    type=_NETWORK,
    help=f"Overlay network to take the next free IP of. Default: {DEFAULT_NETWORK}.",
)
@click.option(
    "--ip", "ips", type=IP, multiple=True, help="Overlay IP with prefix length, in place of --network."
)
@click.option("--taken", type=FILE, help="File with the IPs of other devices: a line `IP NAME` each.")
@click.option("--key-file", type=FILE, help="Take the network key from there (-: standard input).")
@click.option("--api-key-file", type=FILE, help="This device's API key for the relay (-: standard input).")
@click.option("--tls-ca-file", type=_PATH, help="PEM of an authority that is trusted beside the system's.")
@click.option("--mtu", type=Parsed("1280-9000", whole(1280, 9000), typed=True), help="Default: 1400.")
@click.option("--listen-address", type=Parsed("IP:PORT", host_port), help="Of the local API.")
@path_of(f"{newfile.DIRECTORY}/{newfile.CLIENT_CONFIG}")
def client(
    relays: Sequence[str],
    name: str | None,
    network: IPNetwork | None,
    ips: Sequence[IPInterface],
    taken: str | None,
    key_file: str | None,
    api_key_file: str | None,
    tls_ca_file: str | None,
    mtu: int | None,
    listen_address: str | None,
    output: str,
    force: bool,
) -> None:
    """The configuration of a network's first device.

    Makes the network key, or takes that of a network that is there (--key-file), and begins the list of
    devices from which `shadowmesh invite` takes the next free IP, client-config.hosts beside the file. Other
    devices join by an invitation. With --force and the key that was there, the overlay IP stays, too.
    """
    newfile.refuse_existing(output, force)
    if ips and network is not None:
        raise click.UsageError("--ip and --network exclude each other")
    if key_file == api_key_file == "-":
        raise click.UsageError("--key-file and --api-key-file cannot both be standard input")
    if len(relays) > _MOST_RELAYS:
        raise click.UsageError(f"--relay is there {len(relays)} times; a device has at most {_MOST_RELAYS}")
    name_here = name or host_label()
    missing = [] if relays else ["--relay URL"]
    missing += [] if name_here else ["--name NAME"]
    if key_file and not ips and taken is None:
        missing.append("--ip IP/PREFIX or --taken FILE (who has a key has other devices)")
    if missing and not interactive():
        raise click.UsageError(_missing(missing))
    relays = relays or [_ask("Relay (ws://HOST:9545 or wss://HOST)", RELAY)]
    if name is None:
        name = _ask("Name of this device", NAME, name_here) if interactive() else name_here
    assert name is not None
    key = _key(key_file, output)
    before = _before(output, key)
    devices = _others(output, taken, name)
    for one in before:
        devices.pop(one.ip, None)
    if not ips and network is None and before:
        ips = before
    elif not ips:
        free = inventory.next_free(network or DEFAULT_NETWORK, devices)
        ips = [_ask("Its overlay IP", IP, str(free)) if interactive() else free]
    for one in ips:
        if one.ip in devices:
            raise StartError(
                f"{one.ip} is taken by {devices[one.ip] or 'another device'}; choose another one"
            )
    api_key = secret_in(api_key_file, "the API key") if api_key_file else None
    if api_key is not None:
        try:
            relay_key(api_key)
        except ValueError as error:
            raise StartError(f"the API key {error}") from None
    if tls_ca_file is not None:
        from shadowmesh.net.client import check_ca_file

        check_ca_file(tls_ca_file)
    made = Client(
        key,
        ips,
        name,
        relays,
        listen_address or free_listen_address(output),
        mtu,
        api_key,
        ca_file=tls_ca_file,
    )
    replaced = made.write(output, force)
    path = inventory.beside(output)
    inventory.save(path, devices | {one.ip: name for one in ips})
    say_written(path, "")
    made.say_what_next(output, replaced)
    where = "" if service_key_file(output) else f" --config {shlex.quote(output)}"
    say_commands(
        "For another device make an invitation with", [f"sudo {program('shadowmesh')} invite NAME{where}"]
    )


def free_listen_address(output: str) -> str:
    """Of the local API: the default, or beside a relay, whose metrics are there, the next port."""
    beside_relay = os.path.exists(os.path.join(os.path.dirname(output), newfile.RELAY_CONFIG))
    return "127.0.0.1:9091" if beside_relay else DEFAULT_ADDRESS


def _key(key_file: str | None, output: str) -> bytes:
    """That of a file, that which waits for this configuration already, or a fresh one."""
    there = service_key_file(output)
    try:
        if key_file == "-":
            return network_key("".join(secret_in("-", "the network key").split())).reveal()
        if key_file is None and there and os.path.lexists(there):
            click.echo(f"the network key is the one in {there}")
            key_file = there
        return network_key_in(key_file).reveal() if key_file else secrets.token_bytes(32)
    except ValueError as error:
        raise StartError(f"the network key: {error}") from None


def _before(output: str, key: bytes) -> Sequence[IPInterface]:
    """This device's overlay IPs by the configuration that is replaced, if that is for the same network."""
    if not os.path.lexists(output):
        return ()
    with suppress(ConfigError):
        own = own_configuration(output)
        return own.network.local_ip if own.encryption.key.reveal() == key else ()
    return ()


def _others(output: str, taken: str | None, name: str) -> inventory.Devices:
    """The devices that are known, without this one as it was before."""
    devices = inventory.load(taken) if taken else {}
    path = inventory.beside(output)
    if os.path.lexists(path):
        devices |= inventory.load(path)
    return {ip: each for ip, each in devices.items() if each.lower() != name.lower()}


def _ask(what: str, kind: Parsed, default: str | None = None) -> Any:
    return click.prompt(what, type=kind, default=default, err=True)


def _missing(options: Sequence[str]) -> str:
    return f"not given, and there is no terminal to ask on: {', '.join(options)}"
