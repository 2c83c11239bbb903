"""The daemon program: make the parts, join them, run until told to stop, and leave nothing behind."""

from __future__ import annotations

import asyncio
import gc
import os
import random
import secrets
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from shadowmesh import __version__
from shadowmesh.config.client import ClientConfig
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys, fingerprint
from shadowmesh.daemon.api import create_api
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.events import Events
from shadowmesh.daemon.link import AGENT, Identity, RelayLink
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.errors import StartError, TunError
from shadowmesh.mesh.context import Context, Local
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.peer import Peer
from shadowmesh.mesh.trust import Trust
from shadowmesh.net.http import serve_http
from shadowmesh.net.loop import run_loop
from shadowmesh.observe.logging import get_logger
from shadowmesh.tun.base import TunDevice
from shadowmesh.tun.linux import open_tun

STOP_SECONDS = 2.5  # from the signal to the end, whatever happens
REMEMBER_AFTER = 1.0  # seconds in which all peers that are met cost one write of the disk
_IDENTITIES = {"identity_new", "identity_changed"}
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger("daemon")


def run(config: ClientConfig) -> None:
    """Run until SIGTERM or SIGINT. Raises StartError and TunError, in words."""
    network = config.network
    # First the device: who may not make one learns that, instead of something about the state directory.
    tun = open_tun(network.device_name, network.local_ip, network.mtu, [route.to for route in network.routes])
    try:
        state = StateDirectory(_state_path(config))
        try:
            run_loop(Daemon(config, state, state.seed(), tun).run())
            log.info("stopped")
        finally:
            state.close()
    finally:
        tun.close()


def _state_path(config: ClientConfig) -> str:
    """The configured directory; else what systemd gives by StateDirectory=; else the default."""
    if "state_directory" in config.daemon.model_fields_set:
        return config.daemon.state_directory
    return os.environ.get("STATE_DIRECTORY", "").split(":")[0] or config.daemon.state_directory


class Daemon:
    """One device in one network."""

    def __init__(self, config: ClientConfig, state: StateDirectory, seed: bytes, tun: TunDevice) -> None:
        self._config = config
        self._state = state
        self._tun = tun
        self._network = NetworkKeys(config.encryption.key.reveal())
        self._device = DeviceKeys(seed, self._network.network_id)
        pins = {ip.packed: pin for ip, pin in config.peers.trusted.items()}
        known = state.known_peers(self._network.network_id)
        self._trust = Trust(known, pins, strict=config.peers.verify == "strict")
        self._started = time.monotonic()
        self._remembering: asyncio.TimerHandle | None = None
        self._changed: set[bytes] = set()  # static keys that came for an IP which had another
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Future[None]
        self._events: Events
        self._names: dict[str, str]
        self._mesh: Mesh
        self._link: RelayLink
        self._engine: Engine

    async def run(self) -> None:
        """Everything between the start and the end of the event loop.

        Raises StartError, and TunError when the device is lost.
        """
        self._loop = loop = asyncio.get_running_loop()
        loop.set_default_executor(_Lookups())
        self._events = Events(log, loop.time)
        self._stop = loop.create_future()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)

        context = self._make_context()
        own = context.addresses.items()
        self._names = {
            address.hex(): str(ip_address(ip)) if ip else self._config.peer.id for address, ip in own
        }
        self._mesh = self._engine.start(context)
        self._link.listener = self._engine
        listen = self._config.daemon.listen_address
        try:
            api = await serve_http(create_api(self.status), listen.host, listen.port, "daemon.listen_address")
            self._log_start()
            gc.collect()
            gc.freeze()  # what lives from here to the end need not be looked at again
            try:
                await self._run_link()
            finally:
                await api.close()
        finally:
            self._engine.stop()
            self._remember()

    async def _run_link(self) -> None:
        linking = asyncio.create_task(self._link.run(), name="relay link")
        try:
            await asyncio.wait({self._stop, linking}, return_when=asyncio.FIRST_COMPLETED)
            if linking.done():
                linking.result()
            self._stop.result()
            log.info("stopping")
        finally:
            self._mesh.bye()
            self._engine.stop()
            linking.cancel()
            await asyncio.wait({linking})

    def _make_context(self) -> Context:
        config = self._config
        local = Local(
            interfaces=config.network.local_ip,
            name=config.peer.id,
            mtu=config.network.mtu,
            agent=AGENT,
            routes=tuple((route.to, route.via.packed) for route in config.network.routes),
            advertise=config.network.advertise,
        )
        context = Context(
            network=self._network,
            device=self._device,
            local=local,
            output=None,  # type: ignore[arg-type]
            trust=self._trust,
            random=secrets.token_bytes,
            uniform=random.uniform,
        )
        identity = Identity(self._network, self._device, secrets.token_bytes(16), tuple(context.addresses))
        server = config.relay.server
        self._link = RelayLink(
            server.url,
            server.host,
            identity,
            secrets.token_hex(16),
            self._on_event,
            config.relay.api_key,
        )
        self._engine = context.output = Engine(self._tun, self._link, self._loop, self._on_event)
        return context

    def _on_signal(self) -> None:
        if self._stop.done():
            os._exit(1)  # asked twice: at once
        self._stop.set_result(None)
        self._loop.call_later(STOP_SECONDS, os._exit, 0)  # the device goes with the process

    def _on_event(self, name: str, /, **facts: object) -> None:
        if name == "tun_lost":
            error = facts["error"]
            if isinstance(error, TunError) and not self._stop.done():
                self._stop.set_exception(error)
            return
        self._events(name, **{key: self._own(value) for key, value in facts.items()})
        if name == "identity_changed" and isinstance(peer := facts["peer"], Peer):
            self._changed.add(peer.static)
        if name in _IDENTITIES and self._remembering is None:
            self._remembering = self._loop.call_later(REMEMBER_AFTER, self._remember)

    def _own(self, fact: object) -> object:
        """An own blind address as the IP or the name that it stands for; anything else as it is."""
        name = fact.hex() if isinstance(fact, bytes) else fact
        return self._names.get(name, fact) if isinstance(name, str) else fact

    def _remember(self) -> None:
        """Write down the peers that were met since the last time."""
        if self._remembering is None:
            return
        self._remembering.cancel()
        self._remembering = None
        try:
            self._state.remember_peers(self._network.network_id, self._trust.known)
        except StartError as error:
            log.error("cannot remember the peers' keys", reason=str(error))

    def _log_start(self) -> None:
        for warning in (*self._tun.warnings, *self._state.warnings):
            log.warning(warning)
        for version in {prefix.version for prefix in self._config.network.advertise}:
            if not _forwards(version):
                log.warning(
                    "network.advertise offers other networks, but this host does not forward packets: "
                    f"sysctl -w {_FORWARDING[version]}=1"
                )
        log.info(
            "started",
            version=__version__,
            device=self._tun.name,
            ips=",".join(str(interface) for interface in self._config.network.local_ip),
            mtu=self._tun.mtu,
            offload=",".join(self._tun.offload) or "none",
            fingerprint=fingerprint(self._device.static_public),
            network=self._network.network_id.hex()[:16],
            relay=self._link.url,
        )

    # -- status

    def status(self) -> dict[str, Any]:
        """The facts of GET /status."""
        config, link = self._config, self._link
        now = self._loop.time()
        return {
            "status": link.state,
            "reason": link.reason or self._refusals(),
            "version": __version__,
            "uptime": round(time.monotonic() - self._started, 1),
            "name": config.peer.id,
            "device": self._tun.name,
            "ips": [str(interface) for interface in config.network.local_ip],
            "mtu": self._tun.mtu,
            "offload": list(self._tun.offload),
            "fingerprint": fingerprint(self._device.static_public),
            "network": self._network.network_id.hex(),
            "relay": {
                "server": link.url,
                "name": link.relay.server_name if link.relay else "",
                "region": link.relay.region if link.relay else "",
                "seconds": round(now - link.since, 1),
                "connects": link.connects,
                "rtt_ms": round(link.rtt * 1000, 2) if link.rtt is not None else None,
                "remote": link.remote,
                "dropped": link.dropped,
                "refused": {str(self._own(address)): code for address, code in link.refused.items()},
            },
            "peers": [self._peer(peer, now) for peer in self._mesh.peers.values()],
            "packets_in": self._engine.packets_in,
            "packets_out": self._engine.packets_out,
            "drops": dict(self._engine.drops),
            "events": dict(self._events.counts),
        }

    def _refusals(self) -> str:
        refused = ", ".join(str(self._own(address)) for address in self._link.refused)
        return f"the relay gives to another device: {refused}" if refused else ""

    def _peer(self, peer: Peer, now: float) -> dict[str, Any]:
        info = peer.info
        return {
            "name": info.id if info else "",
            "ips": sorted(str(ip_address(ip)) for ip in peer.verified),
            "fingerprint": peer.fingerprint,
            "identity": "changed" if peer.static in self._changed else "known",
            "connected": self._mesh.is_connected(peer),
            "path": "relay",
            "heard": round(now - peer.heard, 1),
            "last_handshake": round(now - peer.last_handshake, 1),
            "handshakes": peer.handshakes,
            "messages_in": peer.messages_in,
            "messages_out": peer.messages_out,
            "bytes_in": peer.bytes_in,
            "bytes_out": peer.bytes_out,
            "agent": info.agent if info else "",
            "mtu": info.mtu if info else 0,
            "routes": list(info.routes) if info else [],
        }


def _forwards(version: int) -> bool:
    """Whether this host passes packets on for others; True where it does not tell."""
    try:
        return Path("/proc/sys", *_FORWARDING[version].split(".")).read_text().strip() != "0"
    except OSError:
        return True


class _Lookups(ThreadPoolExecutor):
    """Threads for looking up names, for which nobody waits at the end: a resolver may hang for minutes."""

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        future: Future[T] = Future()

        def work() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(fn(*args, **kwargs))
                except BaseException as error:
                    future.set_exception(error)

        threading.Thread(target=work, name="lookup", daemon=True).start()
        return future
