"""The daemon program: make the parts, join them, run until told to stop, and leave nothing behind."""

from __future__ import annotations

import asyncio
import faulthandler
import os
import secrets
import signal
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from typing import Any, ParamSpec, TypeVar, cast

from shadowmesh import __version__, lean, onefile
from shadowmesh.config.client import ClientConfig
from shadowmesh.config.client_reload import changed, merged, needs_restart
from shadowmesh.config.loader import load_client_config
from shadowmesh.config.proxy import proxy_to
from shadowmesh.config.secret import SecretKey
from shadowmesh.crypto.keys import fingerprint
from shadowmesh.daemon.api import serve_api
from shadowmesh.daemon.control import Control
from shadowmesh.daemon.diagnosis import DEDUCED
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.events import Events
from shadowmesh.daemon.link import AGENT, RelayLink
from shadowmesh.daemon.links import Links
from shadowmesh.daemon.listener import Link
from shadowmesh.daemon.networks import Network, Networks, run_links
from shadowmesh.daemon.ping import Pinger
from shadowmesh.daemon.report import Report
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.errors import RequestError, StartError, TunError
from shadowmesh.mesh.context import IPNetwork, Local
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.trust import Trust
from shadowmesh.net.client import check_ca_file
from shadowmesh.net.loop import run_loop
from shadowmesh.net.watch import NetworkWatch
from shadowmesh.observe.logging import configure, get_logger, log_not_reloaded
from shadowmesh.observe.systemd import Notifier
from shadowmesh.tun.base import TunDevice
from shadowmesh.tun.linux import open_tun

STOP_SECONDS = 2.5  # from the signal to the end, whatever happens
STATUS_SECONDS = 3.0  # between looks at whether systemd's status line is still right
REMEMBER_AFTER = 1.0  # seconds in which all peers that are met cost one write of the disk
_IDENTITIES = {"identity_new", "identity_changed"}
_FORWARDING = {4: "net.ipv4.ip_forward", 6: "net.ipv6.conf.all.forwarding"}

P = ParamSpec("P")
T = TypeVar("T")

log = get_logger("daemon")


def run(config: ClientConfig, file: str = "") -> None:
    """Run until SIGTERM or SIGINT. `file` is where `config` is from, to be read again by a reload.

    Raises StartError and TunError, in words.
    """
    faulthandler.enable()  # systemd's watchdog ends a hanging program with SIGABRT: say where it hung
    network = config.network
    # First the device: who may not make one learns that, instead of something about the state directory.
    tun = open_tun(network.device_name, network.local_ip, network.mtu, [route.to for route in network.routes])
    try:
        state = StateDirectory(_state_path(config))
        try:
            run_loop(Daemon(config, state, state.seed(), tun, file).run())
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
    """One device in one network, or in two while the network key is being replaced."""

    def __init__(
        self, config: ClientConfig, state: StateDirectory, seed: bytes, tun: TunDevice, file: str = ""
    ) -> None:
        self._config = config
        self._file = file
        self._state = state
        self._seed = SecretKey(seed)
        self._tun = tun
        self._notifier = Notifier()
        self._remembering: asyncio.TimerHandle | None = None
        self._reloading = asyncio.Lock()
        self._hangups: set[asyncio.Task[None]] = set()
        self._relinked = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop
        self._stop: asyncio.Future[None]
        self._events: Events
        self._local: Local
        self._networks: list[Network]
        self._mesh: Mesh  # of all networks, and so is the link
        self._link: Link
        self._engine: Engine
        self._report: Report
        self._pinger: Pinger
        self._control: Control

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
        loop.add_signal_handler(signal.SIGHUP, self._on_hangup)

        self._make_parts()
        try:
            api = await serve_api(self._control, self._config.daemon)
            try:
                self._log_start()
                await self._serve()
            finally:
                await api.close()
        finally:
            self._engine.stop()
            self._remember()

    async def _serve(self) -> None:
        """From the moment when device and API are there to the signal that ends it all.

        systemd hears that the start is done before there is a relay: a boot must not wait for the network.
        """
        self._notifier.ready(self._status_line())
        lean.started()
        tasks = [
            asyncio.create_task(self._notifier.feed_watchdog(), name="watchdog"),
            asyncio.create_task(self._tell_status(), name="status"),
            asyncio.create_task(self._control.run(), name="control"),
        ]
        for task in tasks:
            task.add_done_callback(self._on_task_done)
        watch = NetworkWatch(self._on_network, self._tun.name, self._on_tun_changed)
        try:
            await self._stop
            self._notifier.stopping("Stopping")
            log.info("stopping")
        finally:
            watch.close()
            self._mesh.bye()
            self._engine.stop()
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _make_parts(self) -> None:
        config = self._config
        self._local = Local(
            interfaces=config.network.local_ip,
            name=config.peer.id,
            mtu=config.network.mtu,
            agent=AGENT,
            routes=_hops(config),
            advertise=config.network.advertise,
        )
        self._networks = []
        made = self._make_networks(config)
        first = made[0]
        self._engine = engine = Engine(self._tun, first.link, self._loop, self._on_event)
        first.speak(engine, partial(self._on_event_in, first))
        now = self._loop.time
        # The same clock as the loop's, whose readings may be milliseconds old.
        self._pinger = pinger = Pinger(first.context, first.mesh, time.monotonic, lambda: self._link.ready)
        self._report = report = Report(
            first.context, first.mesh, engine, self._tun, first.links, self._events.counts, now, pinger.rtt
        )
        links = partial(run_links, lambda: self._networks, self._relinked)
        self._control = Control(first.mesh, report, pinger, links, self.reload, self.trust)
        self._networks.append(first)
        self._arrange(made[1:])

    def _on_signal(self) -> None:
        if onefile.echo():
            return
        if self._stop.done():
            os._exit(1)  # asked twice: at once
        self._stop.set_result(None)
        self._loop.call_later(STOP_SECONDS, os._exit, 0)  # the device goes with the process

    def _on_task_done(self, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None and not self._stop.done():
            self._stop.set_exception(error)

    def _on_event(self, name: str, /, **facts: object) -> None:
        if name == "tun_lost":
            error = facts["error"]
            if isinstance(error, TunError) and not self._stop.done():
                self._stop.set_exception(error)
            return
        self._events(name, **{key: self._report.own(value) for key, value in facts.items()})
        self._report.note(name, facts)
        self._pinger.note(name, facts)
        if name in _IDENTITIES and self._remembering is None:
            self._remembering = self._loop.call_later(REMEMBER_AFTER, self._remember)

    def _on_event_in(self, network: Network, name: str, /, **facts: object) -> None:
        match name, facts:
            case "identity_refused", {"ip": bytes(ip), "static": bytes(static)}:
                network.trust.refused[ip] = static
        self._on_event(name, **facts)

    def _remember(self) -> None:
        """Write down the peers that were met since the last time."""
        if self._remembering is None:
            return
        self._remembering.cancel()
        self._remembering = None
        try:
            self._write_known()
        except StartError as error:
            log.error("cannot remember the peers' keys", reason=str(error))

    def _write_known(self) -> None:
        networks = self._networks
        self._state.remember_peers({each.keys.network_id: each.trust.known for each in networks})

    # -- networks and relays

    def _make_networks(self, config: ClientConfig) -> list[Network]:
        """Those of the configured networks that we are not in yet. Raises StartError, and changes nothing."""
        keys = filter(None, (config.encryption.key, config.encryption.next_key))
        there = [network.key for network in self._networks]
        return [self._make_network(key, config) for key in keys if key not in there]

    def _make_network(self, key: SecretKey, config: ClientConfig) -> Network:
        network = Network(key, self._seed.reveal(), self._local, partial(self._make_trust, config))
        network.use(self._make_links(network, config))
        return network

    def _make_links(self, network: Network, config: ClientConfig) -> list[RelayLink]:
        """A connection to each relay; the process says the same made-up name to all of them."""
        relay, peer_id = config.relay, secrets.token_hex(16)
        return [
            RelayLink(
                url.url,
                url.host,
                network.identity,
                peer_id,
                self._on_event,
                relay.api_key,
                proxy=partial(proxy_to, url, relay.proxy),
                ca_file=relay.tls_ca_file,
            )
            for url in relay.urls
        ]

    def _arrange(self, made: list[Network]) -> None:
        """Be in the networks of the configured keys, in this order. Sessions in one that stays live on."""
        self._remember()  # also of a network that ends here
        encryption, before = self._config.encryption, self._networks
        for network in made:
            network.speak(self._engine, partial(self._on_event_in, network), self._engine.drops)
            network.mesh.use(self._local)
        keys = [key for key in (encryption.key, encryption.next_key) if key is not None]
        wanted = [each for each in (*before, *made) if each.key in keys]
        self._networks = sorted(wanted, key=lambda network: keys.index(network.key))
        for network in before:
            if network not in self._networks:
                network.mesh.bye()
        self._use()

    def _use(self) -> None:
        """Have everybody use the networks and their links as they are now."""
        first, *others = self._networks
        first.together = None  # with one network nothing is in between
        self._mesh, self._link = first.mesh, first.link
        lanes: Mapping[bytes, object] = {}
        if others:
            both = Networks(self._networks)
            self._mesh, self._link, lanes = cast(Mesh, both), both, both.of
        contexts = [network.context for network in self._networks]
        full = [network.lane for network in self._networks if network.full]  # those that were there before
        self._engine.use(self._link, self._mesh, lanes, full)
        self._report.use(contexts, self._mesh, self._links())
        for network in self._networks:
            if isinstance(network.link, Links):
                network.link.changed = self._on_links
        self._pinger.use(first.context, self._mesh)
        self._control.use(self._mesh)
        self._relinked.set()

    def _links(self) -> list[RelayLink]:
        return [link for network in self._networks for link in network.links]

    def _on_links(self) -> None:
        self._report.links = self._links()

    def _on_network(self, reason: str) -> None:
        if not self._report.down:
            for network in self._networks:
                network.link.check(reason)

    def _on_tun_changed(self) -> None:
        def done(repairing: asyncio.Future[tuple[str, ...]]) -> None:
            if repairing.cancelled():
                return
            if (error := repairing.exception()) is not None:
                log.error("cannot repair the network device, which somebody has changed", why=str(error))
            elif repaired := repairing.result():
                log.warning(
                    "repaired the network device, which somebody had changed", gave=", ".join(repaired)
                )

        self._loop.run_in_executor(None, self._tun.repair).add_done_callback(done)

    # -- reload

    def _on_hangup(self) -> None:
        self._notifier.reloading()
        task = self._loop.create_task(self._reload_and_log(), name="reload")
        self._hangups.add(task)
        task.add_done_callback(self._hangups.discard)

    async def _reload_and_log(self) -> None:
        try:
            await self.reload()
        except Exception as error:  # a bug in a reload costs the reload, not the tunnel
            log_not_reloaded(log, error)
        self._notifier.ready(self._status_line())

    async def reload(self) -> dict[str, Any]:
        """Read the configuration again and take over what can be; the rest stays as it is (POST /reload).

        Returns the keys that apply now, and lines about those that do not and about the file. Raises
        ConfigError with all problems of a file that cannot be used, StartError if a file that it names cannot
        be, TunError if the kernel does not take a route; nothing has changed then.
        """
        if not self._file:
            raise RequestError("this daemon has no configuration file to read again")
        async with self._reloading:
            return await self._reload()

    async def _reload(self) -> dict[str, Any]:
        old, loaded = self._config, load_client_config(self._file)
        if loaded.config.relay.tls_ca_file is not None:
            check_ca_file(loaded.config.relay.tls_ca_file)
        config = merged(old, loaded.config)
        made = self._make_networks(config)  # what can fail comes first, and the kernel last of it
        if config.network.routes != old.network.routes:
            routes = [route.to for route in config.network.routes]
            await self._loop.run_in_executor(None, self._tun.set_routes, routes)
        self._config = config
        applied, refused = changed(old, loaded.config), needs_restart(old, loaded.config)
        warnings = list(loaded.warnings)
        if "daemon.log_level" in applied:
            configure(config.daemon.log_level)
        if config.peers != old.peers:
            for network in self._networks:
                network.trust.configure(_pins(config), strict=config.peers.verify == "strict")
                network.mesh.recheck()
        if config.network != old.network:
            warnings += self._route(old.network.advertise)
        if config.relay != old.relay:
            for network in self._networks:
                network.use(self._make_links(network, config))
        if config.encryption != old.encryption or config.relay != old.relay:
            self._arrange(made)
        for warning in (*warnings, *refused):
            log.warning(warning)
        log.info("configuration reloaded", changed=", ".join(applied) or "nothing", config=self._file)
        return {"applied": list(applied), "refused": refused, "warnings": warnings}

    def _route(self, before: tuple[IPNetwork, ...]) -> list[str]:
        """Route and offer what is configured now; before: what was offered. Returns warnings."""
        advertise = self._config.network.advertise
        seq = self._local.seq + (advertise != before)
        self._local = replace(self._local, routes=_hops(self._config), advertise=advertise, seq=seq)
        for network in self._networks:
            network.mesh.use(self._local)
        self._engine.arm()
        return _forwarding(advertise) if advertise != before else []

    # -- identities

    def _make_trust(self, config: ClientConfig, network_id: bytes) -> Trust:
        strict = config.peers.verify == "strict"
        return Trust(self._state.known_peers(network_id), _pins(config), strict=strict)

    def trust(self, ip: str, expected: str = "") -> dict[str, Any]:
        """Trust the device that answers for an overlay IP with another key than before (POST /trust).

        That is the one that was refused last, else the one that is connected; its fingerprint must be
        `expected` if that is given. If there is neither, the key that is known is forgotten, and the next
        device that answers is taken. Returns ip, the fingerprint that is trusted ("": the next) and
        that of before. Raises RequestError, and StartError if that cannot be written down; nothing has
        changed then.
        """
        try:
            packed = ip_address(ip).packed
        except ValueError:
            raise RequestError("this is not an IP address; write the overlay IP of a peer") from None
        error: ValueError | None = None
        done: list[tuple[bytes | None, bytes | None]] = []
        saved = [(dict(each.trust.known), dict(each.trust.refused)) for each in self._networks]
        for network in self._networks:
            before = network.trust.known.get(packed)
            connected = any(packed in peer.verified for peer in network.mesh.peers.values())
            try:
                done.append((network.trust.accept(packed, expected.lower(), forget=not connected), before))
            except ValueError as refused:
                error = error or refused
        if not done:
            raise RequestError(f"{ip_address(packed)}: {error}")
        try:
            self._write_known()
        except StartError:
            for network, (known, refused_before) in zip(self._networks, saved, strict=True):
                network.trust.known, network.trust.refused = known, refused_before
            raise
        self._report.trusted(packed)
        static, before = done[0]
        facts = {
            "ip": str(ip_address(packed)),
            "fingerprint": fingerprint(static) if static else "",
            "before": fingerprint(before) if before else "",
        }
        log.info("peer trusted", **facts)
        return facts

    # -- what is said

    def status(self) -> dict[str, Any]:
        """The facts of GET /status."""
        return self._report.status()

    def _status_line(self) -> str:
        report = self._report
        word = {"connected": "Connected to", "connecting": "Connecting to", "joining": "Joining"}
        relays = ", ".join(link.url for link in report.links)
        state = (
            "Switched off" if report.state == "down" else f"{word.get(report.state, 'Waiting for')} {relays}"
        )
        return f"{state}; {report.connected} of {len(self._mesh.peers)} peers connected"

    async def _tell_status(self) -> None:
        before: set[str] = set()
        said: set[str] = set()
        while True:
            await asyncio.sleep(STATUS_SECONDS)
            self._notifier.status(self._status_line())
            found = {each["code"]: each["text"] for each in self._report.diagnosis()}
            for code in (found.keys() & before & DEDUCED) - said:  # what is gone the next time was a guess
                log.warning(found[code], diagnosis=code)
                said.add(code)
            before = set(found)

    def _log_start(self) -> None:
        forwarding = _forwarding(self._config.network.advertise)
        for warning in (*self._tun.warnings, *self._state.warnings, *forwarding):
            log.warning(warning)
        log.info(
            "started",
            version=__version__,
            device=self._tun.name,
            ips=",".join(str(interface) for interface in self._config.network.local_ip),
            mtu=self._tun.mtu,
            offload=",".join(self._tun.offload) or "none",
            fingerprint=fingerprint(self._networks[0].device.static_public),
            network=",".join(network.keys.network_id.hex()[:16] for network in self._networks),
            relay=", ".join(link.url for link in self._report.links),
        )


def _pins(config: ClientConfig) -> dict[bytes, str]:
    return {ip.packed: pin for ip, pin in config.peers.trusted.items()}


def _hops(config: ClientConfig) -> tuple[tuple[IPNetwork, bytes], ...]:
    return tuple((route.to, route.via.packed) for route in config.network.routes)


def _forwarding(advertise: tuple[IPNetwork, ...]) -> list[str]:
    """A warning for each version of IP that is offered, but that this host does not pass on."""
    return [
        "network.advertise offers other networks, but this host does not forward packets: "
        f"sysctl -w {_FORWARDING[version]}=1"
        for version in sorted({prefix.version for prefix in advertise})
        if not _forwards(version)
    ]


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
