"""The list of a network's devices, from which the next free overlay IP follows: lines `IP NAME`, as in hosts.

It is kept beside the client configuration of the one device that invites the others, `client-config.hosts`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import ip_interface

from shadowmesh.cli.newfile import write_new
from shadowmesh.config import IPAddress, IPInterface, IPNetwork
from shadowmesh.errors import StartError

MAX_FILE = 1 << 20
_HEAD = "# Devices of the network, for `shadowmesh invite`. A line that is removed makes its IP free again.\n"

Devices = dict[IPAddress, str]
"""Name by overlay IP; a name may be empty, or have several IPs."""


def beside(config: str) -> str:
    """Where the list of a configuration is: client-config.hosts beside client-config.yaml."""
    return os.path.splitext(os.path.realpath(config))[0] + ".hosts"


def load(path: str) -> Devices:
    """The devices in a file. An IP may have a prefix length. Raises StartError in words."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_FILE + 1)
    except OSError as error:
        raise StartError(f"{path}: {error.strerror}") from None
    if len(content) > MAX_FILE:
        raise StartError(f"{path}: larger than {MAX_FILE >> 20} MiB")
    devices: Devices = {}
    for number, line in enumerate(content.decode("utf-8", "replace").splitlines(), 1):
        if words := line.partition("#")[0].split():
            try:
                devices[ip_interface(words[0]).ip] = " ".join(words[1:])
            except ValueError:
                raise StartError(
                    f"{path}:{number}: does not begin with an IP; write lines such as: 10.10.10.7 laptop"
                ) from None
    return devices


def save(path: str, devices: Devices) -> None:
    """Replace the file, or make it. Raises StartError in words."""
    ordered = sorted(devices.items(), key=lambda one: (one[0].version, int(one[0])))
    text = _HEAD + "".join(f"{ip} {name}".rstrip() + "\n" for ip, name in ordered)
    write_new(path, text, force=True, keep=False)


def next_free(network: IPNetwork, taken: Iterable[IPAddress]) -> IPInterface:
    """The lowest address of a network that a device can have and that is not taken. Raises StartError."""
    none_of = set(taken)
    for ip in network.hosts():
        if ip not in none_of:
            return ip_interface(f"{ip}/{network.prefixlen}")
    raise StartError(f"all addresses of {network} are taken; remove devices that are gone from the list")
