"""What is compared: ways from A to B, each in the namespaces A – R – B of a laboratory of its own."""

from __future__ import annotations

import json
import re
import secrets
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from pathlib import Path
from typing import NamedTuple

from shadowmesh.testing.netlab import RELAY_IP4, Host, Lab
from shadowmesh.testing.program import LabError, Program

IPERF3_PORT = 5201
HTTP_PORT = 8088

NGINX_STREAM = Path("/usr/lib/nginx/modules/ngx_stream_module.so")
# Random, as all namespaces of the machine share the directory of the control sockets.
_WIREGUARD_SOCKETS = Path("/var/run/wireguard")
_OVERLAY = "10.10.10."


class Way(NamedTuple):
    """A way from A to B that is up."""

    target: str
    """The address that programs in A connect to."""
    listen: str
    """The address that servers in B listen on."""
    programs: Mapping[str, Program]
    """The subject's own programs, by a name that says where each runs."""


Start = Callable[[Lab, str], AbstractContextManager[Way]]


class Subject(NamedTuple):
    """One of the compared; `start(lab, congestion)` brings it up for the block."""

    name: str
    title: str
    start: Start
    tools: Mapping[str, str]
    """Commands, or paths of files, and the Debian package that has each."""
    version: tuple[str, ...] = ()
    """The command that prints its version."""
    only_tcp: bool = False


@contextmanager
def bare(lab: Lab, congestion: str) -> Iterator[Way]:
    """The kernel of R forwards between the two veth pairs; nothing is encrypted."""
    _forward(lab)
    address = lab["b"].ip4
    lab["a"].wait_for_ping(address)
    yield Way(address, address, {})


@contextmanager
def proxy(lab: Lab, congestion: str) -> Iterator[Way]:
    """nginx in R accepts TCP and connects on to B: what a relay on TCP could reach without any cipher."""
    target = lab["b"].ip4
    servers = "\n".join(
        f"server {{ listen {RELAY_IP4}:{port}; proxy_pass {target}:{port}; proxy_buffer_size 64k; }}"
        for port in (IPERF3_PORT, HTTP_PORT)
    )
    program = start_nginx(lab.relay, "proxy", f"stream {{ {servers} }}", f"load_module {NGINX_STREAM};")
    program.wait_for(lambda: listens(lab.relay, IPERF3_PORT), "listening port of nginx")
    yield Way(RELAY_IP4, target, {"nginx in R": program})


@contextmanager
def wireguard(lab: Lab, congestion: str) -> Iterator[Way]:
    """wireguard-go in A and B, over UDP on the direct way that R's kernel forwards."""
    _forward(lab)
    ends = {"a": f"{_OVERLAY}1", "b": f"{_OVERLAY}2"}
    devices = {name: f"wg{secrets.token_hex(4)}{name}" for name in ends}
    private = {name: lab[name].run("wg", "genkey").stdout.strip() for name in ends}
    public = {name: lab[name].run("wg", "pubkey", input=private[name]).stdout.strip() for name in ends}
    programs: dict[str, Program] = {}
    try:
        for name, other in (("a", "b"), ("b", "a")):
            config = (
                f"[Interface]\nPrivateKey = {private[name]}\nListenPort = 51820\n"
                f"[Peer]\nPublicKey = {public[other]}\nAllowedIPs = {ends[other]}/32\n"
                f"Endpoint = {lab[other].ip4}:51820\n"
            )
            program = lab[name].start("wireguard-go", "-f", devices[name], name=f"wireguard-go-{name}")
            programs[f"wireguard-go in {name.upper()}"] = program
            program.wait_for((_WIREGUARD_SOCKETS / f"{devices[name]}.sock").exists, "control socket")
            file = lab.write(f"{name}.conf", config)
            lab[name].run("wg", "setconf", devices[name], str(file))
            lab[name].run("ip", "addr", "add", f"{ends[name]}/24", "dev", devices[name])
            lab[name].run("ip", "link", "set", devices[name], "mtu", "1420", "up")
            _set_congestion(lab[name], devices[name], congestion)
        lab["a"].wait_for_ping(ends["b"])
        yield Way(ends["b"], ends["b"], programs)
    finally:
        for program in programs.values():
            program.stop()
        for device in devices.values():
            (_WIREGUARD_SOCKETS / f"{device}.sock").unlink(missing_ok=True)


@contextmanager
def nebula(lab: Lab, congestion: str) -> Iterator[Way]:
    """nebula in A and B, which can reach each other only through the nebula in R, lighthouse and relay."""
    ips = {"relay": f"{_OVERLAY}254", "a": f"{_OVERLAY}1", "b": f"{_OVERLAY}2"}
    directory = lab.directory
    _certify(directory, "ca", "-name", "benchmark")
    programs: dict[str, Program] = {}
    for name, ip in ips.items():
        issuer = ("-ca-crt", str(directory / "ca.crt"), "-ca-key", str(directory / "ca.key"))
        _certify(directory, "sign", *issuer, "-name", name, "-ip", f"{ip}/24")
        file = lab.write(f"{name}.yaml", json.dumps(_nebula_config(directory, name, ips["relay"])))
        program = lab[name].start("nebula", "-config", str(file), name=f"nebula-{name}")
        programs[f"nebula in {'R' if name == 'relay' else name.upper()}"] = program
        if name != "relay":
            program.wait_for(partial(_is_up, lab[name], "nebula0"), "device nebula0")
            _set_congestion(lab[name], "nebula0", congestion)
    lab["a"].wait_for_ping(ips["b"], timeout=30.0)
    yield Way(ips["b"], ips["b"], programs)


@contextmanager
def shadowmesh(lab: Lab, congestion: str) -> Iterator[Way]:
    """The programs of this repository on the configuration files of the deployment guide."""
    key = secrets.token_hex(32)
    programs = {"relay in R": lab.start_relay()}
    for name, ip in (("a", f"{_OVERLAY}1"), ("b", f"{_OVERLAY}2")):
        programs[f"daemon in {name.upper()}"] = lab.start_client(name, f"{ip}/24", key)
        _set_congestion(lab[name], "shadowmesh0", congestion)
    lab["a"].wait_for_ping(f"{_OVERLAY}2")
    yield Way(f"{_OVERLAY}2", f"{_OVERLAY}2", programs)


SUBJECTS = {
    subject.name: subject
    for subject in (
        Subject("bare", "bare veth path", bare, {}),
        Subject(
            "proxy",
            "nginx TCP proxy",
            proxy,
            {"nginx": "nginx-light", str(NGINX_STREAM): "libnginx-mod-stream"},
            ("nginx", "-v"),
            only_tcp=True,
        ),
        Subject(
            "wireguard",
            "wireguard-go, direct",
            wireguard,
            {"wireguard-go": "wireguard-go", "wg": "wireguard-tools"},
            ("wireguard-go", "--version"),
        ),
        Subject(
            "nebula",
            "nebula, relayed",
            nebula,
            {"nebula": "nebula", "nebula-cert": "nebula"},
            ("nebula", "-version"),
        ),
        Subject("shadowmesh", "ShadowMesh, relayed", shadowmesh, {}),
    )
}


def start_nginx(host: Host, name: str, block: str, modules: str = "", connections: int = 1024) -> Program:
    """nginx in the foreground, as one process and with all its files in the lab's directory.

    `connections` may be open at once, those to clients and those to servers.
    """
    directory = host.lab.directory / f"nginx-{name}"
    directory.mkdir()
    config = host.lab.write(
        f"nginx-{name}.conf",
        f"{modules} daemon off; master_process off; pid {directory}/pid; error_log stderr;\n"
        f"worker_rlimit_nofile {2 * connections}; events {{ worker_connections {connections}; }}\n{block}\n",
    )
    argv = ("nginx", "-e", "stderr", "-p", str(directory), "-c", str(config))
    return host.start(*argv, name=f"nginx-{name}")


def listens(host: Host, port: int) -> bool:
    """Whether something in `host` listens on this TCP port, over IPv4 or IPv6."""
    tables = (Path(f"/proc/thread-self/net/{table}") for table in ("tcp", "tcp6"))
    text = host.inside(lambda: "".join(table.read_text() for table in tables if table.exists()))
    return bool(re.search(rf":{port:04X} [0-9A-F]+:0000 0A ", text))  # 0A: LISTEN


def _forward(lab: Lab) -> None:
    lab.relay.inside(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))


def _set_congestion(host: Host, device: str, congestion: str) -> None:
    """Give the overlay's route its congestion control, for the sockets of programs that choose none."""
    host.run("ip", "route", "replace", f"{_OVERLAY}0/24", "dev", device, "congctl", congestion)


def _is_up(host: Host, device: str) -> bool:
    """Whether the device exists and is up."""
    return "UP" in host.run("ip", "-o", "link", "show", "dev", device, check=False).stdout


def _certify(directory: Path, *arguments: str) -> None:
    argv = ["nebula-cert", *arguments]
    done = subprocess.run(argv, cwd=directory, capture_output=True, text=True, timeout=30, check=False)
    if done.returncode:
        raise LabError(f"{' '.join(argv)}: {done.stdout}{done.stderr}")


def _nebula_config(directory: Path, name: str, lighthouse: str) -> dict[str, object]:
    """nebula's own defaults, but for what makes R the lighthouse and relay of A and B."""
    is_relay = name == "relay"
    anyone = [{"port": "any", "proto": "any", "host": "any"}]
    return {
        "pki": {
            "ca": str(directory / "ca.crt"),
            "cert": str(directory / f"{name}.crt"),
            "key": str(directory / f"{name}.key"),
        },
        "static_host_map": {} if is_relay else {lighthouse: [f"{RELAY_IP4}:4242"]},
        "lighthouse": {"am_lighthouse": is_relay, "hosts": [] if is_relay else [lighthouse]},
        "listen": {"host": "0.0.0.0", "port": 4242},
        "punchy": {"punch": True},
        "relay": {"am_relay": is_relay, "use_relays": True, "relays": [] if is_relay else [lighthouse]},
        "tun": {"disabled": is_relay, "dev": "nebula0", "mtu": 1300},
        "firewall": {"outbound": anyone, "inbound": anyone},
    }
