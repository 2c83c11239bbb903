"""A laboratory of network namespaces for the real programs; demo, netns tests and benchmarks share it.

    client a ── eth0 ┐                         ┌ eth0 ── client b
      198.18.0.6     └ to-a ── relay ── to-b ──┘           198.18.0.10
                          203.0.113.1

Every client has one veth pair to the relay's namespace and its routes to all outer addresses through it, but
the relay's kernel forwards nothing: the programs there are the only way from client to client. The addresses
come from the documentation and benchmarking ranges (RFC 5737, RFC 2544, RFC 3849); all others have no route,
so that a stray DNS query fails at once. Needs Linux, root of its network namespace and the commands of TOOLS.

    with Lab("a", "b") as lab:
        lab.start_relay()
        lab.start_client("a", "10.10.10.1/24", key)
        lab.start_client("b", "10.10.10.2/24", key)
        lab["a"].wait_for_ping("10.10.10.2")
"""

from __future__ import annotations

import ctypes
import functools
import http.client
import ipaddress
import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from shadowmesh.testing import guide
from shadowmesh.testing.program import LabError, Program, wait_for

T = TypeVar("T")

RELAY = "relay"
RELAY_IP4 = "203.0.113.1"
RELAY_IP6 = "2001:db8::1"
_LINKS4 = ipaddress.ip_network("198.18.0.0/15")
_OUTSIDE4 = (str(_LINKS4), "203.0.113.0/24")
_OUTSIDE6 = "2001:db8::/32"
_CLONE_NEWNET = 0x40000000

TOOLS = {
    "ip": "iproute2",
    "ping": "iputils-ping",
    "tcpdump": "tcpdump",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
"""Commands that a lab runs, and the Debian package each is in."""

# With one's own user id, as tcpdump fails to change its groups when it finds itself root of a user namespace.
USER_NAMESPACE = ["unshare", "--user", "--map-current-user", "--keep-caps", "--net", "--mount"]
"""Runs the command behind it with every right over new network and mount namespaces, for any user."""


def missing_tools(tools: Mapping[str, str] = TOOLS) -> list[str]:
    """One line for each command of `tools` that is not installed, with its Debian package."""
    return [
        f"{tool} is not installed: apt-get install {package}"
        for tool, package in tools.items()
        if not shutil.which(tool)
    ]


def privileged() -> bool:
    """Whether this process may make network namespaces: root, or the same rights in a user namespace."""
    capabilities = re.search(r"^CapEff:\t(\w+)$", Path("/proc/self/status").read_text(), re.MULTILINE)
    needed = 1 << 12 | 1 << 21  # CAP_NET_ADMIN, CAP_SYS_ADMIN
    return capabilities is not None and int(capabilities[1], 16) & needed == needed


@functools.cache
def obstacle(as_user: bool = False) -> str | None:
    """Why no lab can be had here, in one line for a person, or None.

    `as_user`: behind USER_NAMESPACE instead of as it is.
    """
    if sys.platform != "linux":
        return "needs Linux: it works with network namespaces"
    if missing := missing_tools():
        return "; ".join(missing)
    if not as_user and not privileged():
        return "needs root (CAP_NET_ADMIN and CAP_SYS_ADMIN)"
    if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
        return "cannot open /dev/net/tun: modprobe tun; in a container: --device /dev/net/tun"
    argv = [*(USER_NAMESPACE if as_user else ["unshare", "--net"]), "true"]
    tried = subprocess.run(argv, capture_output=True, text=True, check=False)
    return f"network namespaces are not allowed here: {tried.stderr.strip()}" if tried.returncode else None


class Host:
    """One network namespace: a computer of its own as far as the network goes."""

    def __init__(self, lab: Lab, name: str, ip4: str, ip6: str) -> None:
        self.lab = lab
        self.name = name
        self.namespace = lab.namespace(name)
        self.ip4 = ip4
        """Outer address, that of the relay or of the client's veth."""
        self.ip6 = ip6

    def _argv(self, argv: Sequence[str]) -> list[str]:
        # nsenter rather than `ip netns exec`: it needs no mount of /sys, which some containers refuse. The
        # parent's death ends the program too, so that even a kill -9 of the lab leaves nothing running; a
        # parent that has died before that was arranged is not ours any more.
        enter = ["nsenter", f"--net=/run/netns/{self.namespace}", "setpriv", "--pdeathsig", "KILL", "--"]
        alive = ["sh", "-c", f'[ $PPID = {os.getpid()} ] && exec "$@"', "sh"]
        return [*enter, *alive, *argv]

    def run(
        self, *argv: str, check: bool = True, timeout: float = 60.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command here to its end; with `check`, any status but 0 is a LabError with its output."""
        try:
            done = subprocess.run(
                self._argv(argv), capture_output=True, text=True, timeout=timeout, input=input, check=False
            )
        except subprocess.TimeoutExpired:
            raise LabError(f"{self.name}: {' '.join(argv)}: not done after {timeout:g} s") from None
        if check and done.returncode:
            raise LabError(
                f"{self.name}: {' '.join(argv)}: status {done.returncode}\n{done.stdout}{done.stderr}"
            )
        return done

    def start(self, *argv: str, name: str | None = None) -> Program:
        """Start a program here, in a session of its own, and return at once.

        It ends with the thread that started it, so start from one that lives as long as the lab.
        """
        return self.lab.start_program(name or Path(argv[0]).name, self._argv(argv))

    def ip(self, *commands: str) -> None:
        """Run `ip` here, once over all the commands (without the word `ip`)."""
        _ip(*commands, enter=self._argv([]))

    def wait_for_ping(self, address: str, timeout: float = 10.0) -> None:
        """Wait until `address` answers an ICMP echo from here."""

        def answered() -> bool:
            return self.run("ping", "-n", "-c1", "-W1", address, check=False).returncode == 0

        wait_for(answered, f"answer to a ping from {self.name} to {address}", timeout)

    def inside(self, function: Callable[[], T]) -> T:
        """Call `function` in a thread inside this namespace; sockets that it makes stay here for ever."""
        results: list[T] = []
        errors: list[BaseException] = []

        def enter() -> None:
            try:
                libc = ctypes.CDLL(None, use_errno=True)
                with open(f"/run/netns/{self.namespace}") as namespace:
                    if libc.setns(namespace.fileno(), _CLONE_NEWNET):
                        raise OSError(ctypes.get_errno(), f"cannot enter namespace {self.namespace}")
                results.append(function())
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        if errors:
            raise errors[0]
        return results[0]

    def new_socket(
        self, family: socket.AddressFamily = socket.AF_INET, kind: socket.SocketKind = socket.SOCK_STREAM
    ) -> socket.socket:
        """A new socket of this namespace, usable from any thread, with a time-out of 10 s."""
        made = self.inside(lambda: socket.socket(family, kind))
        made.settimeout(10.0)
        return made

    def connect(self, address: str, port: int) -> socket.socket:
        """A TCP connection from here; raises OSError as connect(2) does."""
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        made = self.new_socket(family)
        try:
            made.connect((address, port))
        except BaseException:
            made.close()
            raise
        return made

    def listen(self, address: str, port: int = 0) -> socket.socket:
        """A listening TCP socket here; port 0 takes a free one (`getsockname()[1]`)."""
        made = self.new_socket(socket.AF_INET6 if ":" in address else socket.AF_INET)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, port))
        made.listen()
        return made

    def get(self, url_path: str, port: int, address: str = "127.0.0.1") -> tuple[int, str]:
        """HTTP GET from here: status and body. Raises OSError when nothing answers."""
        connection = http.client.HTTPConnection(address, port)
        connection.sock = self.connect(address, port)
        try:
            connection.request("GET", url_path)
            response = connection.getresponse()
            return response.status, response.read().decode()
        except http.client.HTTPException as error:
            raise OSError(f"http://{address}:{port}{url_path}: {error!r}") from error
        finally:
            connection.close()

    def get_json(self, url_path: str, port: int) -> dict[str, Any] | None:
        """The JSON object at http://127.0.0.1:port/…, or None while nothing answers there with 200."""
        with suppress(OSError):
            code, body = self.get(url_path, port)
            if code == 200:
                answer: dict[str, Any] = json.loads(body)
                return answer
        return None

    def capture(self, interface: str = "any") -> Capture:
        """Start recording all packets of an interface of this host; returns once tcpdump listens."""
        return Capture(self, interface)


class Capture:
    """tcpdump on one interface, whole packets."""

    def __init__(self, host: Host, interface: str) -> None:
        self.host = host
        self.file = host.lab.directory / f"{host.name}-{interface}.pcap"
        # -Z root: the file is ours to write. -B: 64 MiB, so that a burst loses nothing.
        options = ["-n", "-U", "-s0", "-B65536", "-Zroot", "-i", interface, "-w", str(self.file)]
        self.program = host.start("tcpdump", *options, name=f"tcpdump-{host.name}-{interface}")
        self.program.wait_for_text("listening on")

    def finish(self, address: str) -> bytes:
        """Stop, and return the pcap file with every packet up to now; a lost packet is a LabError.

        The kernel hands packets over in blocks, up to a second late. So a datagram with a random mark is
        sent to `address`, which has to pass the interface, and the recording ends when it has come through.
        """
        mark = secrets.token_bytes(16)
        with self.host.new_socket(kind=socket.SOCK_DGRAM) as sender:
            sender.sendto(mark, (address, 9))
        self.program.wait_for(lambda: mark in tail(self.file), "mark in the capture")
        self.program.stop()
        if "\n0 packets dropped by kernel" not in self.program.text():
            raise LabError(f"the capture is not complete\n{self.program.text()}")
        return self.file.read_bytes()


class Lab:
    """A relay namespace and one namespace for each client name, joined by veth pairs; a context manager.

    `congestion` is the congestion control of the outer TCP connections in both directions; None leaves the
    kernel's default. On exit, also by an exception, SIGINT, SIGTERM or SIGHUP, every program is ended by
    its id and every namespace removed; the files (configurations, state, logs) go with it unless `keep`
    names a directory for them.
    """

    def __init__(self, *clients: str, congestion: str | None = "cubic", keep: Path | None = None) -> None:
        self._names = clients or ("a", "b")
        self._congestion = congestion
        self._prefix = f"{lab_prefix(os.getpid())}{secrets.token_hex(3)}-"
        self._keep = keep
        self.directory = Path()
        self.hosts: dict[str, Host] = {}
        self.programs: list[Program] = []
        """Every program started so far, ended ones included."""
        self.relay_program: Program | None = None
        self.client_programs: dict[str, Program] = {}
        self._handlers: dict[int, Any] = {}
        self._ip6 = False

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def relay(self) -> Host:
        """The namespace that the relay runs in."""
        return self.hosts[RELAY]

    def namespace(self, name: str) -> str:
        """The name that `ip netns` knows the host by."""
        return self._prefix + name

    def __enter__(self) -> Self:
        self._catch_signals()
        try:
            if self._keep:
                self._keep.mkdir(parents=True, exist_ok=True)
            self.directory = self._keep or Path(tempfile.mkdtemp(prefix="shadowmesh-lab-"))
            self._build()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End all programs and remove the namespaces; again is harmless."""
        with _signals_ignored():
            self._end_programs()
            for name in self._namespaces():
                subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
            if not self._keep and self.directory != Path():
                shutil.rmtree(self.directory, ignore_errors=True)
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        self._handlers.clear()

    def add_client(self, name: str) -> Host:
        """One more client namespace."""
        _ip(f"netns add {self.namespace(name)}")
        return self._join(name)

    def start_relay(self, **changes: object) -> Program:
        """Start shadowmesh-relay on the guide's relay-config.yaml and wait until /health answers 200.

        `changes` are keys of that file with other values.
        """
        text = guide.merged(guide.RELAY_CONFIG, changes)
        config = self.write("relay-config.yaml", text)
        argv = self.argv("shadowmesh-relay", "shadowmesh-relay")
        program = self.relay.start(*argv, "-config", str(config), name="shadowmesh-relay")
        self.relay_program = program
        program.wait_for(lambda: self.relay.get_json("/health", guide.HEALTH_PORT), "answer from /health")
        return program

    def start_client(
        self,
        name: str,
        ip: str,
        key: str,
        *,
        peer_id: str | None = None,
        wait: bool = True,
        **changes: object,
    ) -> Program:
        """Start shadowmesh-daemon in namespace `name` on the guide's client-config.yaml.

        `ip` is its overlay address with prefix length, `key` the network key in hex, `peer_id` its id
        (default: the name), `changes` other values, as nested mappings. With `wait`, returns once its relay
        connection is up. The state directory is that of the name: a second start is the same device.
        """
        server = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}"
        text = guide.client_config(ip=ip, key=key, peer_id=peer_id or name, server=server)
        own = {"state_directory": f"{self.directory}/state-{name}", "token_file": str(self.token_file(name))}
        text = guide.merged(text, {"daemon": own})
        config = self.write(f"client-config-{name}.yaml", guide.merged(text, changes))
        own_name = f"shadowmesh-daemon-{name}"
        program = self[name].start(*self.argv("shadowmesh-daemon", own_name), str(config), name=own_name)
        self.client_programs[name] = program
        if wait:
            self.wait_connected(name)
        return program

    def argv(self, program: str, name: str) -> Sequence[str]:
        """How a program of ours is started, without its arguments. name: what the log calls it."""
        return [installed(program)]

    def token_file(self, name: str) -> Path:
        """Where the client's daemon puts the token of its local API."""
        return self.directory / f"token-{name}"

    def status(self, name: str) -> dict[str, Any] | None:
        """The client's GET /status, or None while its daemon does not answer."""
        return self[name].get_json("/status", guide.DAEMON_PORT)

    def wait_connected(self, name: str, timeout: float = 10.0) -> None:
        """Wait until the client's daemon says that its relay connection is up."""

        def connected() -> bool:
            return (self.status(name) or {}).get("status") == "connected"

        self.client_programs[name].wait_for(connected, f"relay connection of {name}", timeout)

    def write(self, name: str, text: str) -> Path:
        """Write a file into the lab's directory, readable by its owner only."""
        path = self.directory / name
        path.touch(mode=0o600)
        path.write_text(text)
        return path

    def logs(self) -> str:
        """What all programs have written, one after the other, under a headline each."""
        return "\n".join(f"--- {program.name}\n{program.text()}" for program in self.programs)

    def _build(self) -> None:
        names = [RELAY, *self._names]
        _ip(*(f"netns add {self.namespace(name)}" for name in names))
        relay = Host(self, RELAY, RELAY_IP4, RELAY_IP6)
        self.hosts[RELAY] = relay
        self._ip6 = relay.inside(Path("/proc/net/if_inet6").exists)
        relay.ip("link set lo up", f"addr add {RELAY_IP4}/32 dev lo")
        if self._ip6:
            relay.ip(f"addr add {RELAY_IP6}/128 dev lo nodad")
        # New namespaces inherit IPv4's forwarding from the host's.
        relay.inside(lambda: _write_if_other("/proc/sys/net/ipv4/ip_forward", "0"))
        for name in self._names:
            self._join(name)

    def _join(self, name: str) -> Host:
        number = len(self.hosts)
        gate4, client4 = (str(_LINKS4[4 * number + offset]) for offset in (1, 2))
        gate6, client6 = (f"2001:db8:1:{number:x}::{offset}" for offset in (1, 2))
        host = Host(self, name, client4, client6)
        port = f"to-{name}"
        congestion = f" congctl {self._congestion}" if self._congestion else ""
        _ip(f"link add {port} netns {self.relay.namespace} type veth peer name eth0 netns {host.namespace}")
        at_relay = [
            f"addr add {gate4}/30 dev {port}",
            f"link set {port} up",
            f"route replace {_LINKS4[4 * number]}/30 dev {port}{congestion}",
        ]
        at_client = [
            "link set lo up",
            f"addr add {client4}/30 dev eth0",
            "link set eth0 up",
            *(f"route add {prefix} via {gate4}{congestion}" for prefix in _OUTSIDE4),
        ]
        if self._ip6:
            prefix = f"2001:db8:1:{number:x}::/64"
            at_relay += [
                f"addr add {gate6}/64 dev {port} nodad noprefixroute",
                f"route add {prefix} dev {port}{congestion}",
            ]
            at_client += [
                f"addr add {client6}/64 dev eth0 nodad",
                f"route add {_OUTSIDE6} via {gate6}{congestion}",
            ]
        self.relay.ip(*at_relay)
        host.ip(*at_client)
        self.hosts[name] = host
        return host

    def start_program(self, name: str, argv: list[str]) -> Program:
        """Start a program that ends with the lab; `Host.start` starts it inside a namespace."""
        log = self.directory / f"{len(self.programs):02}-{name}.log"
        with open(log, "wb") as output:
            process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for us alone: we end them in order
                # A proxy of ours does not stand in the laboratory.
                env={name: each for name, each in os.environ.items() if not name.lower().endswith("_proxy")}
                | {"PYTHONUNBUFFERED": "1"},
            )
        program = Program(name, process, log)
        self.programs.append(program)
        return program

    def _end_programs(self, grace: float = 2.0) -> None:
        deadline = time.monotonic() + grace
        for program in self.programs:
            program.signal(signal.SIGTERM)
        for program in self.programs:
            try:
                program.wait(max(0.0, deadline - time.monotonic()))
            except LabError:
                program.kill()

    def _namespaces(self) -> list[str]:
        with suppress(FileNotFoundError):
            return sorted(name for name in os.listdir("/run/netns") if name.startswith(self._prefix))
        return []

    def _catch_signals(self) -> None:
        if threading.current_thread() is not threading.main_thread():
            return
        for number in (signal.SIGTERM, signal.SIGHUP):
            self._handlers[number] = signal.signal(number, _exit_by_signal)


def lab_prefix(pid: int) -> str:
    """What the names of the namespaces begin with that a process makes."""
    return f"sm-{pid}-"


def installed(name: str) -> str:
    """Path of one of this package's programs: the one beside this Python, else that of PATH."""
    return shutil.which(name, path=sysconfig.get_path("scripts")) or shutil.which(name) or name


def _exit_by_signal(number: int, _frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


@contextmanager
def _signals_ignored() -> Iterator[None]:
    """A second Ctrl-C does not interrupt the clean-up, which is bounded in time."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    handlers = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, handlers, strict=True):
            signal.signal(number, handler)


def _ip(*commands: str, enter: Sequence[str] = ()) -> None:
    """Run `ip` once over all commands, behind the command line `enter`."""
    text = "\n".join(commands) + "\n"
    done = subprocess.run(
        [*enter, "ip", "-batch", "-"], input=text, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise LabError(f"ip: {done.stderr.strip()}\n{text}")


def tail(file: Path, size: int = 65536) -> bytes:
    """The last so many bytes of a file."""
    with open(file, "rb") as stream:
        stream.seek(max(0, file.stat().st_size - size))
        return stream.read()


def _write_if_other(path: str, value: str) -> None:
    # /proc/sys is read-only in some containers, which is no harm where the value is right already.
    file = Path(path)
    if file.read_text().strip() != value:
        file.write_text(value)
