"""What goes wrong around a client, one after the other, under traffic: for netns tests and `bench faults`.

    with scene("relay_restart") as faults:
        seconds = faults.outage()

Each scenario breaks the way to the relay and mends it; what counts is the time from then to the first answer
to a ping, and that a TCP connection inside the tunnel, which was sending all the time, goes on.
"""

from __future__ import annotations

import random
import re
import secrets
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from shadowmesh.testing import breaks, guide
from shadowmesh.testing.netlab import RELAY_IP4, Host, Lab, installed, tail
from shadowmesh.testing.program import Program, wait_for

A, B = "10.10.10.1", "10.10.10.2"
OTHER_IP4 = "203.0.113.2"  # a second address of the relay's host
OTHER_PORT, OTHER_HEALTH, OTHER_METRICS, PROXY_PORT, SINK_PORT = 9645, 8180, 9190, 3128, 5000
SETTINGS: Mapping[str, Any] = {"drain_window": 0}
PING_EVERY = 0.05
LONG = 60.0
"""Seconds without a carrier, but for short runs."""
CHUNK = 16 * 1024
_REPLY = re.compile(rb"^\[(\d+\.\d+)\] \d+ bytes from .* time=([\d.]+) ms", re.MULTILINE)


class Transfer:
    """A TCP connection from a to b inside the tunnel, on which numbered data goes all the time."""

    def __init__(self, a: Host, b: Host) -> None:
        self.received = 0
        self.error: Exception | None = None
        self._listener = b.listen(B, SINK_PORT)
        self._near = a.connect(B, SINK_PORT)
        self._far, _ = self._listener.accept()
        for end in (self._near, self._far):
            end.settimeout(None)
        self._over = False
        self._threads = [
            threading.Thread(target=self._work, args=(work,)) for work in (self._send, self._take)
        ]
        for thread in self._threads:
            thread.start()

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError as error:
            if not self._over:
                self.error = error

    def _send(self) -> None:
        number = 0
        while not self._over:
            self._near.sendall(number.to_bytes(8) * (CHUNK // 8))
            number += 1
            time.sleep(0.01)

    def _take(self) -> None:
        number = 0
        while data := self._far.recv(CHUNK, socket.MSG_WAITALL):
            if self._over:
                return
            if data != number.to_bytes(8) * (CHUNK // 8):
                raise OSError("the tunnel has changed what TCP carries")
            number += 1
            self.received = number

    def goes_on(self, timeout: float = 30.0) -> None:
        """Wait until new data arrive; AssertionError if the connection has ended."""
        before = self.received
        wait_for(lambda: self.error or self.received > before + 10, "data of the long transfer", timeout)
        assert self.error is None, self.error

    def close(self) -> None:
        """End it."""
        self._over = True
        for end in (self._near, self._far, self._listener):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(5.0)
        for end in (self._near, self._far, self._listener):
            end.close()


class Scene:
    """A lab with a relay (or two), devices a and b, a transfer and a ping between them.

    two: relays, both in the list of both devices. proxied: a dials through an HTTP proxy. named: a dials a
    name, whose address stands in a file. round_robin: both dial a name with the addresses of two relays.
    two_gateways: a has two of them, and a default route by the first. carrier_seconds: how long
    `carrier_lost` takes; settings: of the relays.
    """

    def __init__(
        self,
        lab: Lab,
        *,
        two: bool = False,
        proxied: bool = False,
        named: bool = False,
        round_robin: bool = False,
        two_gateways: bool = False,
        carrier_seconds: float = 5.0,
        settings: Mapping[str, Any] = SETTINGS,
    ) -> None:
        self.lab = lab
        self.a, self.b = lab["a"], lab["b"]
        self.carrier_seconds = carrier_seconds
        self.settings = settings
        self.broken = ExitStack()
        """What is mended when the scene ends."""
        self.changes = 0
        """How many of the address there were."""
        self.gateways: list[tuple[str, str]] = self._add_gateway() if two_gateways else []
        """Of a: device of the relay's host that leads to it, and the route; the one in use first."""
        if round_robin:
            lab.relay.ip(f"addr add {OTHER_IP4}/32 dev lo")
            self.relays = [
                lab.start_relay(bind_address=RELAY_IP4, **settings),
                self.start_other(relay_port=guide.RELAY_PORT, bind_address=OTHER_IP4),
            ]
        else:
            self.relays = [lab.start_relay(**settings)]
        self.key = key = secrets.token_hex(32)
        changes: dict[str, Any] = {}
        if two:
            self.relays.append(self.start_other())
            servers = [f"ws://{RELAY_IP4}:{port}" for port in (guide.RELAY_PORT, OTHER_PORT)]
            changes = {"relay": {"server": None, "servers": servers}}
        self.client_changes = changes
        if round_robin:
            self.start_named("b", B, key, RELAY_IP4, OTHER_IP4)
        else:
            lab.start_client("b", f"{B}/24", key, **changes)
        self.proxy = Proxy(lab.relay) if proxied else None
        if proxied:
            changes = {"relay": {"proxy": f"http://{RELAY_IP4}:{PROXY_PORT}"}}
        if named:
            lab.relay.ip(f"addr add {OTHER_IP4}/32 dev lo")
            self.daemon = self.start_named("a", A, key, RELAY_IP4)
        elif round_robin:
            self.daemon = self.start_named("a", A, key, RELAY_IP4, OTHER_IP4)
        else:
            self.daemon = lab.start_client("a", f"{A}/24", key, **changes)
        if round_robin:
            both = [RELAY_IP4, OTHER_IP4]
            wait_for(lambda: self.joined("a") == self.joined("b") == both, "both relays", 20.0)
        self.a.wait_for_ping(B)
        self.transfer = Transfer(self.a, self.b)
        self.ping = self.a.start("ping", "-n", "-D", "-i", str(PING_EVERY), B, name="ping")
        self.transfer.goes_on()

    def start_other(self, **changes: Any) -> Program:
        """A second relay on the same host, on another port."""
        other = {"relay_port": OTHER_PORT, "health_port": OTHER_HEALTH, "metrics_port": OTHER_METRICS}
        text = guide.merged(guide.RELAY_CONFIG, other | {**self.settings} | changes)
        config = self.lab.write("other-relay-config.yaml", text)
        argv = self.lab.argv("shadowmesh-relay", "other-relay")
        program = self.lab.relay.start(*argv, "-config", str(config), name="other-relay")
        program.wait_for(lambda: self.lab.relay.get_json("/health", OTHER_HEALTH), "answer from /health")
        return program

    def start_first(self) -> None:
        """The first relay again, after its end."""
        self.relays[0] = self.lab.start_relay(**self.settings)

    def start_client(self, name: str, ip: str) -> Program:
        """A daemon again, after its end; returns at once. Not one that dials a name or through a proxy."""
        return self.lab.start_client(name, f"{ip}/24", self.key, wait=False, **self.client_changes)

    def _add_gateway(self) -> list[tuple[str, str]]:
        """A second way from a to the relay's host, and default routes instead of those to its addresses."""
        routes = self.a.run("ip", "-4", "route", "show").stdout
        gateway, *_ = re.findall(r"via (\S+) dev eth0", routes)
        self.lab.relay.ip(
            f"link add to-a2 type veth peer name eth1 netns {self.a.namespace}",
            "addr add 198.19.1.1/30 dev to-a2",
            "link set to-a2 up",
        )
        found = [("to-a", f"default via {gateway} dev eth0"), ("to-a2", "default via 198.19.1.1 dev eth1")]
        self.a.ip(
            "addr add 198.19.1.2/30 dev eth1",
            "link set eth1 up",
            *(f"route del {to}" for to in re.findall(r"^(\S+) via", routes, re.MULTILINE)),
            f"route add {found[0][1]}",
        )
        return found

    def start_named(self, name: str, ip: str, key: str, *addresses: str) -> Program:
        """Start a daemon that dials relay.test, where /etc/hosts is a file of ours (see `resolve`)."""
        self.resolve(name, *addresses)
        hosts, lab = self.hosts(name), self.lab
        server = f"ws://relay.test:{guide.RELAY_PORT}"
        text = guide.client_config(ip=f"{ip}/24", key=key, peer_id=name, server=server)
        own = {"state_directory": f"{lab.directory}/state-{name}", "token_file": str(lab.token_file(name))}
        text = guide.merged(text, {"daemon": own})
        config = lab.write(f"client-config-{name}.yaml", text)
        script = f"mount --bind {hosts} /etc/hosts && exec {installed('shadowmesh-daemon')} {config}"
        program = lab[name].start("unshare", "--mount", "sh", "-c", script, name=f"shadowmesh-daemon-{name}")
        lab.client_programs[name] = program
        lab.wait_connected(name)
        return program

    def hosts(self, name: str) -> Path:
        """The /etc/hosts of a device."""
        return self.lab.directory / f"hosts-{name}"

    def resolve(self, name: str, *addresses: str) -> None:
        """Let relay.test have these addresses for a device from now on."""
        self.lab.write(f"hosts-{name}", "".join(f"{address} relay.test\n" for address in addresses))

    def joined(self, name: str) -> list[str]:
        """Addresses of the relays that a device is joined to."""
        relays = (self.lab.status(name) or {"relays": []})["relays"]
        return sorted(relay["address"] for relay in relays if relay["state"] == "connected")

    def replies(self) -> list[float]:
        """When the last some hundred answers to the ping came (Unix time)."""
        return [float(when) for when, _ in _REPLY.findall(tail(self.ping.log))]

    def outage(self, fault: Callable[[Scene], float]) -> float:
        """Let something go wrong; seconds from the moment when the way is back to the first ping reply."""
        back = fault(self)
        reply = wait_for(
            lambda: next((at for at in self.replies() if at >= back), None), "answer to a ping", 60.0
        )
        # Its own TCP tries again after twice as long each time (RFC 6298).
        self.transfer.goes_on(30.0 + 2 * self.carrier_seconds)
        return reply - back

    def close(self) -> None:
        """End the traffic."""
        self.broken.close()
        self.transfer.close()
        if self.proxy is not None:
            self.proxy.stop()


class Proxy:
    """An HTTP proxy that knows CONNECT alone, in the namespace of a host."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._pipes: list[socket.socket] = []
        self.start()

    def start(self) -> None:
        """Listen."""
        self._listener = self._host.listen(RELAY_IP4, PROXY_PORT)
        threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def stop(self) -> None:
        """Listen no more and cut all connections."""
        for each in (self._listener, *self._pipes):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._pipes.clear()

    def _accept(self, listener: socket.socket) -> None:
        with suppress(OSError):
            while True:
                client, _ = listener.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        self._pipes.append(client)
        with suppress(OSError, ValueError):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                head += client.recv(1)
            address, _, port = head.split()[1].decode().rpartition(":")
            server = self._host.connect(address, int(port))
            for end in (client, server):
                end.settimeout(None)
            self._pipes.append(server)
            client.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            threading.Thread(target=_pump, args=(server, client), daemon=True).start()
            _pump(client, server)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)


# -- what goes wrong; each returns when the way was back (Unix time)


def relay_restart(scene: Scene) -> float:
    """The relay is killed, and started again a second later."""
    with breaks.ended(scene.relays[0], scene.start_first, kill=True):
        time.sleep(1.0)
    return time.time()


def relay_black_hole(scene: Scene) -> float:
    """Nothing gets through between a and the relay, and nothing says so.

    For varied times, as the client's TCP tries at fixed ones.
    """
    with breaks.dropped(scene.lab.relay, ("INPUT", "-s", scene.a.ip4), ("OUTPUT", "-d", scene.a.ip4)):
        time.sleep(random.uniform(4.0, 12.0))
    return time.time()


def address_changed(scene: Scene) -> float:
    """a gets another address, and loses the one it had."""
    scene.changes += 1
    breaks.renumber(scene.lab, "a", f"198.18.{100 + scene.changes % 100}")
    return time.time()


def route_changed(scene: Scene) -> float:
    """The way by one gateway dies without a word, and the default route then leads to the other one."""
    (old, _), (_, route) = scene.gateways
    scene.lab.relay.run("iptables", "-w", "-F")
    for chain, which in (("INPUT", "-i"), ("OUTPUT", "-o")):
        scene.lab.relay.run("iptables", "-w", "-I", chain, which, old, "-j", "DROP")
    time.sleep(0.5)
    scene.a.ip(f"route replace {route}")
    scene.gateways.reverse()
    return time.time()


def carrier_lost(scene: Scene) -> float:
    """The cable is out for a while."""
    with breaks.no_carrier(scene.lab, "a"):
        time.sleep(scene.carrier_seconds)
    return time.time()


def stopped(scene: Scene, seconds: float = 5.0) -> float:
    """The daemon does not run for a while, as when the host sleeps."""
    with breaks.stopped(scene.daemon):
        time.sleep(seconds)
    return time.time()


def first_relay_killed(scene: Scene) -> float:
    """Of two relays the one in use is killed; it comes back later."""
    used = _used(scene)
    scene.relays[used].kill()
    return time.time()


def first_relay_black_hole(scene: Scene) -> float:
    """Of two relays the one in use is a black hole from now on."""
    scene.broken.enter_context(breaks.black_hole(scene.lab, (guide.RELAY_PORT, OTHER_PORT)[_used(scene)]))
    return time.time()


def relay_drains(scene: Scene) -> float:
    """The relay is told to stop, and another is started in its place as soon as it has."""
    began = time.time()
    scene.relays[0].signal(signal.SIGTERM)
    scene.relays[0].wait(15.0)
    scene.start_first()
    return max(began, time.time())


def first_relay_drains(scene: Scene) -> float:
    """Of two relays the one in use is told to stop."""
    scene.relays[_used(scene)].signal(signal.SIGTERM)
    return time.time()


def proxy_restart(scene: Scene) -> float:
    """The proxy in between cuts all connections and takes none for a second."""
    assert scene.proxy is not None
    scene.proxy.stop()
    time.sleep(1.0)
    scene.proxy.start()
    return time.time()


def name_moved(scene: Scene) -> float:
    """The relay's name leads to another address, and at the former one nothing answers."""
    first = RELAY_IP4 in scene.hosts("a").read_text()
    old, new = (RELAY_IP4, OTHER_IP4) if first else (OTHER_IP4, RELAY_IP4)
    scene.lab.relay.run("iptables", "-w", "-F")
    for chain, which in (("INPUT", "-d"), ("OUTPUT", "-s")):
        scene.lab.relay.run(
            *("iptables", "-w", "-I", chain, which, old, "!", "-i" if chain == "INPUT" else "-o", "to-b"),
            *("-p", "tcp", "-j", "DROP"),
        )
    scene.resolve("a", new)
    return time.time()


def _used(scene: Scene) -> int:
    """The number of the relay that a and b use."""
    before = [_frames(scene, port) for port in (guide.METRICS_PORT, OTHER_METRICS)]
    time.sleep(0.3)
    after = [_frames(scene, port) for port in (guide.METRICS_PORT, OTHER_METRICS)]
    return int(after[1] - before[1] > after[0] - before[0])


def _frames(scene: Scene, port: int) -> float:
    _, text = scene.lab.relay.get("/metrics", port)
    lines = [line for line in text.splitlines() if line.startswith("shadowmesh_relay_bytes_")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)


class Scenario(NamedTuple):
    """One kind of fault. announced: something tells the client of it, or of its end. once: not repeatable."""

    fault: Callable[[Scene], float]
    title: str
    announced: bool = True
    once: bool = False
    two: bool = False
    proxied: bool = False
    named: bool = False
    round_robin: bool = False
    two_gateways: bool = False


SCENARIOS = {
    "relay_restart": Scenario(relay_restart, "relay killed, started again"),
    "relay_black_hole": Scenario(relay_black_hole, "relay a black hole for 4 to 12 s", announced=False),
    "address_changed": Scenario(address_changed, "own address changed"),
    "route_changed": Scenario(route_changed, "default route changed", two_gateways=True),
    "carrier_lost": Scenario(carrier_lost, f"no carrier for {LONG:g} s"),
    "stopped": Scenario(stopped, "daemon stopped for 5 s (sleep)"),
    "first_relay_killed": Scenario(first_relay_killed, "first relay of two killed", once=True, two=True),
    "first_relay_black_hole": Scenario(
        first_relay_black_hole, "first relay of two a black hole", announced=False, once=True, two=True
    ),
    "relay_drains": Scenario(relay_drains, "relay drains, started again"),
    "first_relay_drains": Scenario(first_relay_drains, "first relay of two drains", once=True, two=True),
    "proxy_restart": Scenario(proxy_restart, "proxy in between restarted", proxied=True),
    "round_robin_relay_killed": Scenario(
        first_relay_killed, "one of two relays of one name killed", once=True, round_robin=True
    ),
    "name_moved": Scenario(name_moved, "DNS answer changed, old address dead", announced=False, named=True),
}
"""Every fault by name."""


@contextmanager
def scene(scenario: Scenario, carrier_seconds: float = 5.0) -> Iterator[Scene]:
    """A lab set up for one kind of fault, with traffic."""
    with Lab("a", "b") as lab:
        made = Scene(
            lab,
            two=scenario.two,
            proxied=scenario.proxied,
            named=scenario.named,
            round_robin=scenario.round_robin,
            two_gateways=scenario.two_gateways,
            carrier_seconds=carrier_seconds,
        )
        try:
            yield made
        finally:
            made.close()
