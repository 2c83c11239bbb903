"""The text of new configurations, and what the commands that write them share."""

from __future__ import annotations

import hmac
import json
import os
import shlex
import shutil
import socket
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import click

from shadowmesh.cli import local, newfile
from shadowmesh.config import ClientConfig, IPInterface, load_client_config, parse_client_config
from shadowmesh.config.address import host_port
from shadowmesh.config.secret import network_key_in
from shadowmesh.config.values import label, shown
from shadowmesh.crypto.keys import NetworkKeys
from shadowmesh.errors import StartError

FILE = click.Path(readable=False)  # whoever opens it has better words, sudo among them
UNITS = tuple(f"{there}/systemd/system" for there in ("/etc", "/usr/local/lib", "/usr/lib", "/lib"))
_MOST_OF_SECRET = 8192  # characters; an invitation that is broken into lines is the longest


class Parsed(click.ParamType[Any]):
    """What one of the configuration's own parsers takes: as it is written, or if `typed` as it is parsed."""

    def __init__(self, name: str, parser: Callable[[object], Any], typed: bool = False) -> None:
        self.name = name
        self._parser = parser
        self._typed = typed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            parsed = self._parser(value) if isinstance(value, str) else value
        except ValueError as error:
            self.fail(str(error), param, ctx)
        return parsed if self._typed else value


def device_name(value: object) -> str:
    """A label by which other devices can find this one."""
    name = label(value)
    if NetworkKeys(bytes(32)).name_address(name) is None:  # as it is with every key
        raise ValueError(
            f"nobody could find a device by the name {shown(name)}; write letters, digits and . _ - between "
            "them"
        )
    return name


def path_of(path: str) -> Callable[..., Any]:
    """The options about the file that a command writes; `path` is the default."""

    def options(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in (
            click.option(
                "--force", is_flag=True, help="Replace a file that is there; it is kept as FILE.bak."
            ),
            click.option("--output", "-o", default=path, show_default=True, type=FILE, help="The file."),
        ):
            command = option(command)
        return command

    return options


def interactive() -> bool:
    """Whether there is a person to ask."""
    return sys.stdin is not None and sys.stdin.isatty() and sys.stderr is not None and sys.stderr.isatty()


def host_label() -> str | None:
    """This machine's name, if it does as that of a device."""
    with suppress(ValueError):
        return device_name(socket.gethostname().partition(".")[0].lower())
    return None


def secret_in(path: str, what: str) -> str:
    """What a file holds, or standard input for `-`: one secret, without the white space around it."""
    where = "standard input" if path == "-" else path
    try:
        with click.open_file(path, encoding="latin-1") as file:
            text: str = file.read(_MOST_OF_SECRET + 1).strip()
    except OSError as error:
        raise StartError(f"{where}: {error.strerror}") from None
    if len(text) > _MOST_OF_SECRET:
        raise StartError(f"{where}: too large; {what} belongs there and nothing else")
    if not text:
        raise StartError(f"{where} is empty; {what} belongs there")
    return text


def own_configuration(config: str) -> ClientConfig:
    """This device's; the key that the unit shows to its service lies beside it. Raises ConfigError."""
    given = os.environ.get("CREDENTIALS_DIRECTORY")
    os.environ["CREDENTIALS_DIRECTORY"] = given or os.path.dirname(os.path.realpath(config))
    try:
        return load_client_config(config).config
    finally:
        if given is None:
            del os.environ["CREDENTIALS_DIRECTORY"]


@dataclass(frozen=True, slots=True)
class Client:
    """A client configuration to be written."""

    key: bytes = field(repr=False)
    addresses: Sequence[IPInterface]
    name: str
    relays: Sequence[str]
    listen_address: str = local.DEFAULT_ADDRESS
    mtu: int | None = None
    api_key: str | None = field(default=None, repr=False)
    insecure_api_key: bool = False
    ca_file: str | None = None

    def text(self, key_file: str | None = None) -> str:
        """The file, with the key in it or the name of the file that has it."""
        ips = [str(one) for one in self.addresses]
        network: dict[str, object] = {"device_name": "shadowmesh0", "local_ip": ips if ips[1:] else ips[0]}
        if self.mtu is not None:
            network["mtu"] = self.mtu
        relay: dict[str, object] = {"server": self.relays[0]}
        if self.relays[1:]:
            relay = {"servers": list(self.relays)}
        if self.ca_file is not None:
            relay["tls_ca_file"] = self.ca_file
        if self.insecure_api_key:
            relay["insecure_api_key"] = True
        if self.api_key is not None:
            relay["api_key"] = self.api_key
        return yaml_text(
            "# ShadowMesh client. All keys: man shadowmesh.yaml. Check: shadowmesh check-config FILE\n",
            {
                "daemon": {"listen_address": self.listen_address, "log_level": "info"},
                "network": network,
                "encryption": {"key": self.key.hex()} if key_file is None else {"key_file": key_file},
                "peer": {"id": self.name},
                "relay": relay,
            },
        )

    def check(self, path: str) -> None:
        """Raises ConfigError, as the daemon would of the file."""
        parse_client_config(self.text().encode(), path)

    def write(self, path: str, force: bool) -> bool:
        """Write it, and say so. True if it replaced another. Raises ConfigError, StartError.

        In the place of the service the key goes to a file of its own, root's alone, which systemd shows to
        the service. A different one that is there is kept under another name.
        """
        self.check(path)
        newfile.refuse_existing(path, force)
        key_file = service_key_file(path)
        new_key = key_file is not None and not _has(key_file, self.key)
        kept = newfile.write_new(key_file, self.key.hex() + "\n", force=True) if key_file and new_key else ""
        try:
            backup = newfile.write_new(
                path, self.text(key_file), force=force, for_service=key_file is not None
            )
        except StartError:
            if key_file and new_key:
                os.replace(kept, key_file) if kept else os.unlink(key_file)
            raise
        say_written(path, backup)
        if key_file and new_key:
            say_written(key_file, kept)
        for warning in load_client_config(path).warnings:
            click.echo(f"warning: {warning}", err=True)
        return bool(backup)

    def say_what_next(self, path: str, replaced: bool) -> None:
        """How this device is started, and what others call it."""
        ips = ", ".join(map(str, self.addresses))
        click.echo(
            f"\nThis device is {self.name}, {ips}, in network {NetworkKeys(self.key).network_id.hex()}."
        )
        say_start(
            "shadowmesh-daemon",
            f"sudo {program('shadowmesh-daemon')} {shlex.quote(path)}",
            service_key_file(path) is not None,
            replaced,
        )
        api = local.api_url(*host_port(self.listen_address))
        where = "" if api == local.DEFAULT_API else f" --api {api}"
        say_commands("Then see how it is with", [f"{program('shadowmesh')} status{where}"])


def service_key_file(config: str) -> str | None:
    """Where the key of a configuration goes that is the service's; None for another one."""
    in_place = os.path.realpath(config) == os.path.realpath(
        os.path.join(newfile.DIRECTORY, newfile.CLIENT_CONFIG)
    )
    return os.path.join(newfile.DIRECTORY, newfile.KEY) if in_place else None


def yaml_text(head: str, sections: Mapping[str, object]) -> str:
    """A configuration; each value as JSON, which is YAML, so that none can be more than a value."""

    def value(one: object) -> str:
        return json.dumps(one, ensure_ascii=False)

    lines = [head]
    for name, section in sections.items():
        if isinstance(section, dict):
            lines.append(f"\n{name}:\n" + "".join(f"  {key}: {value(one)}\n" for key, one in section.items()))
        else:
            lines.append(f"{name}: {value(section)}\n")
    return "".join(lines)


def say_written(path: str, backup: str) -> None:
    click.echo(f"wrote {path}" + (f" (what was there is {backup} now)" if backup else ""))


def say_commands(what: str, commands: Sequence[str]) -> None:
    click.echo(f"{what}:")
    for command in commands:
        click.echo(f"    {command}")


def say_start(service: str, command: str, is_service: bool, replaced: bool) -> None:
    """How a program of ours is started that has a configuration now."""
    if shutil.which(service) is None and _beside(service) is None:
        click.echo(f"{service} is not on this machine: install it first.")
    say_commands("Start it with", [f"{command}    # in this terminal"])
    if is_service:
        unit = any(os.path.exists(os.path.join(directory, f"{service}.service")) for directory in UNITS)
        how = "restart" if replaced else "enable --now"
        say_commands(
            "or as a service" + ("" if unit else f", when {service}.service is installed"),
            [f"sudo systemctl {how} {service}"],
        )


def program(name: str) -> str:
    """How a program of ours is called here: by its name, or where it is not in PATH, beside this one."""
    beside = _beside(name)
    return shlex.quote(beside) if shutil.which(name) is None and beside else name


def _beside(name: str) -> str | None:
    """The program of ours that lies beside this one or beside what this one is a link to, or is that."""
    called = os.path.abspath(shutil.which(sys.argv[0]) or sys.argv[0])  # a single file has the bare name
    file = os.path.realpath(called)
    if os.path.basename(file).startswith(f"{name}-linux-"):  # as it was downloaded
        return file
    beside = (os.path.join(os.path.dirname(each), name) for each in (called, file))
    return next(filter(os.path.exists, beside), None)


def _has(path: str, key: bytes) -> bool:
    try:
        return hmac.compare_digest(network_key_in(path).reveal(), key)
    except ValueError:
        return False
