"""The daemon while it runs: what systemd hears of it, reloads, trust given by the operator."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from shadowmesh.config import load_client_config
from shadowmesh.crypto.keys import fingerprint
from shadowmesh.daemon import app as app_module
from shadowmesh.daemon.app import Daemon
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.errors import ConfigError, RequestError, StartError, TunError
from shadowmesh.observe.logging import configure
from shadowmesh.testing import guide
from shadowmesh.testing.relay_program import NotifySocket, free_ports
from shadowmesh.testing.relay_server import running_relay
from shadowmesh.testing.websocket import drive, until
from shadowmesh.tun.memory import memory_pair

KEY = "6b8c5c1d5e2d4f7f9a0b1c2d3e4f50617283940a5b6c7d8e9fa0b1c2d3e4f506"
NOWHERE = "ws://127.0.0.1:1"
IP = bytes([10, 10, 10, 2])


@pytest.fixture(autouse=True)
def stay_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves behind is to be collected."""
    monkeypatch.setattr("gc.freeze", lambda: None)


class Device:
    """A running daemon and its configuration file."""

    def __init__(self, path: Path, **changes: Any) -> None:
        self.file = path / "client-config.yaml"
        text = guide.client_config(ip="10.10.10.1/24", key=KEY, peer_id="a", server=NOWHERE)
        daemon = {
            "listen_address": f"127.0.0.1:{free_ports(1)[0]}",
            "state_directory": str(path / "state"),
            "token_file": str(path / "token"),
        }
        self._text = guide.merged(text, {"daemon": daemon})
        self.write(**changes)
        self.state = StateDirectory(path / "state")
        self.tun, self.kernel = memory_pair()
        config = load_client_config(str(self.file)).config
        self.daemon = Daemon(config, self.state, self.state.seed(), self.tun, str(self.file))

    def write(self, **changes: Any) -> None:
        self.file.write_text(guide.merged(self._text, changes))
        self.file.chmod(0o600)

    def relay(self) -> str:
        """The URL of the relay that it uses."""
        return str(self.daemon.status()["relay"]["server"])


def with_device(path: Path, test: Callable[[Device], Awaitable[None]], **changes: Any) -> None:
    async def main() -> None:
        device = Device(path, **changes)
        task = asyncio.create_task(device.daemon.run())
        try:
            await until(
                lambda: task.done() or "relay link" in {each.get_name() for each in asyncio.all_tasks()}
            )
            if task.done():
                task.result()
            await test(device)
        finally:
            task.cancel()
            await asyncio.wait({task})
            device.tun.close()
            device.kernel.close()
            device.state.close()

    drive(main)


def test_systemd_hears_of_start_reload_status_and_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app_module, "STATUS_SECONDS", 0.05)
    with NotifySocket(str(tmp_path / "notify")) as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)
        monkeypatch.setenv("WATCHDOG_USEC", "100000")

        async def main() -> None:
            device = Device(tmp_path)
            running = asyncio.create_task(device.daemon.run())

            async def heard(start: str) -> str:
                await until(lambda: any(message.startswith(start) for message in systemd.poll()))
                return systemd.expect(start)

            ready = await heard("READY=1")  # there is no relay, and none is waited for
            assert ready == "READY=1\nSTATUS=Connecting to ws://127.0.0.1:1/relay; 0 of 0 peers connected"
            await heard("WATCHDOG=1")
            await heard("WATCHDOG=1")
            await heard("STATUS=Waiting for ws://127.0.0.1:1/relay; 0 of 0 peers connected")
            device.file.write_text("nonsense: 1\n")
            os.kill(os.getpid(), signal.SIGHUP)
            await heard("RELOADING=1\nMONOTONIC_USEC=")
            await heard("READY=1\nSTATUS=")
            async with running_relay() as relay:
                device.write(relay={"server": f"ws://127.0.0.1:{relay.port}"})
                os.kill(os.getpid(), signal.SIGHUP)
                await heard("RELOADING=1")
                await heard(f"STATUS=Connected to ws://127.0.0.1:{relay.port}/relay; 0 of 0 peers connected")
                os.kill(os.getpid(), signal.SIGTERM)
                await heard("STOPPING=1")
                await running
            device.tun.close()
            device.kernel.close()
            device.state.close()

        drive(main)


def test_a_daemon_that_cannot_start_is_never_ready(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with NotifySocket(str(tmp_path / "notify")) as systemd:
        monkeypatch.setenv("NOTIFY_SOCKET", systemd.name)

        async def never(device: Device) -> None:
            raise AssertionError

        with pytest.raises(Exception, match="listen_address"):
            with_device(tmp_path, never, daemon={"listen_address": "192.0.2.1:1"})
        assert systemd.poll() == []


def test_a_reload_changes_the_level_of_the_log(tmp_path: Path) -> None:
    async def test(device: Device) -> None:
        assert logging.getLogger().level == logging.WARNING
        device.write(daemon={"log_level": "error"})
        assert await device.daemon.reload() == {
            "applied": ["daemon.log_level"],
            "refused": [],
            "warnings": [],
        }
        assert logging.getLogger().level == logging.ERROR
        assert await device.daemon.reload() == {"applied": [], "refused": [], "warnings": []}

    configure("warning")
    try:
        with_device(tmp_path, test, daemon={"log_level": "warning"})
    finally:
        configure()


def test_a_reload_goes_to_another_relay_and_keeps_the_tunnel(tmp_path: Path) -> None:
    async def test(device: Device) -> None:
        async with running_relay() as one, running_relay() as other:
            for relay in (one, other, one):
                url = f"ws://127.0.0.1:{relay.port}"
                device.write(relay={"server": url})
                assert (await device.daemon.reload())["applied"] == ["relay.server"]
                await until(lambda: device.daemon.status()["status"] == "connected")
                assert device.relay() == f"{url}/relay"
                await until(lambda relay=relay: relay.server.admission.joined == 1)  # type: ignore[misc]
                for before in {one, other} - {relay}:
                    await until(lambda before=before: before.server.admission.joined == 0)  # type: ignore[misc]

    with_device(tmp_path, test)


def test_a_reload_while_the_operator_wants_no_relay(tmp_path: Path) -> None:
    async def test(device: Device) -> None:
        async with running_relay() as relay:
            await device.daemon._control.disconnect()
            device.write(relay={"server": f"ws://127.0.0.1:{relay.port}"})
            await device.daemon.reload()
            await asyncio.sleep(0.1)
            assert (device.daemon.status()["status"], relay.server.admission.joined) == ("down", 0)
            device.daemon._control.connect()
            await until(lambda: device.daemon.status()["status"] == "connected")

    with_device(tmp_path, test)


def test_what_cannot_change_is_refused_and_the_rest_applies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async def test(device: Device) -> None:
        device.write(network={"mtu": 1300}, peer={"id": "b"}, peers={"verify": "strict"})
        assert await device.daemon.reload() == {
            "applied": ["peers.verify"],
            "refused": ["needs a restart: network.mtu 1400 -> 1300", "needs a restart: peer.id a -> b"],
            "warnings": [],
        }
        assert device.daemon.status()["mtu"] == device.tun.mtu
        assert device.daemon.status()["name"] == "a"
        device.write(network={"mtu": 1300})
        os.kill(os.getpid(), signal.SIGHUP)
        log = ""
        while "configuration reloaded" not in log:
            await asyncio.sleep(0.01)
            log += capsys.readouterr().err
        assert "[warning] needs a restart: network.mtu 1400 -> 1300" in log
        assert "changed=peers.verify" in log

    configure()
    with_device(tmp_path, test)


ROUTES = [{"to": "192.168.7.0/24", "via": "10.10.10.2"}]


def test_a_reload_routes_and_offers_other_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(app_module, "_forwards", lambda version: version == 6)

    async def test(device: Device) -> None:
        key = bytes([10, 10, 10, 1, 192, 168, 7, 9])
        (network,) = device.daemon._networks
        link, mesh = network.link, network.mesh
        assert mesh.flow(key) is None
        device.write(network={"routes": ROUTES, "advertise": ["192.168.8.0/24", "fd07::/48"]})
        outcome = await device.daemon.reload()
        assert outcome["applied"] == ["network.routes", "network.advertise"]
        assert ["ip_forward=1" in warning for warning in outcome["warnings"]] == [True]
        assert [str(route) for route in device.tun.routes] == ["192.168.7.0/24"]
        assert mesh.flow(key) is not None
        assert mesh.may_send(bytes([192, 168, 8, 1]))
        assert (network.context.local.seq, network.context.local.info().routes) == (
            1,
            ("192.168.8.0/24", "fd07::/48"),
        )
        device.write(network={"advertise": ["192.168.8.0/24", "fd07::/48"]})
        assert await device.daemon.reload() == {"applied": ["network.routes"], "refused": [], "warnings": []}
        assert (mesh.flow(key), device.tun.routes, network.context.local.seq) == (None, (), 1)
        assert network.link is link
        device.write(
            network={"routes": ROUTES}, encryption={"next_key": KEY.replace("6b", "7b")}
        )  # a network that comes has them, too
        await device.daemon.reload()
        assert [len(each.context.local.routes) for each in device.daemon._networks] == [1, 1]

    with_device(tmp_path, test)


def test_a_route_that_the_kernel_refuses_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(routes: object) -> None:
        raise TunError("cannot add the route 192.168.7.0/24 to shadowmesh0: there is one already")

    async def test(device: Device) -> None:
        monkeypatch.setattr(device.tun, "set_routes", refuse)
        device.write(network={"routes": ROUTES}, daemon={"log_level": "error"}, peers={"verify": "strict"})
        with pytest.raises(TunError, match="there is one already"):
            await device.daemon.reload()
        os.kill(os.getpid(), signal.SIGHUP)
        log = ""
        while "configuration not reloaded" not in log:
            await asyncio.sleep(0.01)
            log += capsys.readouterr().err
        assert "cannot add the route 192.168.7.0/24" in log
        assert device.daemon._networks[0].context.local.routes == ()
        device.write(peers={"verify": "strict"})
        assert (await device.daemon.reload())["applied"] == ["peers.verify"]

    configure()
    with_device(tmp_path, test)


def test_a_network_that_cannot_be_made_changes_nothing(tmp_path: Path) -> None:
    known = tmp_path / "state/known_peers.json"
    changes: dict[str, Any] = {
        "encryption": {"next_key": KEY.replace("6b", "7b")},
        "network": {"routes": ROUTES},
        "peers": {"verify": "strict"},
    }

    async def test(device: Device) -> None:
        known.write_text("{")
        device.write(**changes)
        for _ in range(2):
            with pytest.raises(StartError, match=r"known_peers\.json is damaged"):
                await device.daemon.reload()
            assert (device.tun.routes, len(device.daemon._networks)) == ((), 1)
        known.unlink()
        applied = (await device.daemon.reload())["applied"]
        assert sorted(applied) == ["encryption.next_key", "network.routes", "peers.verify"]
        assert len(device.daemon._networks) == 2
        assert device.daemon._networks[1].trust._strict

    with_device(tmp_path, test)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_reload_refuses_a_file_of_certificates_that_cannot_be_used(
    tmp_path: Path, content: str | None
) -> None:
    file = tmp_path / "ca.pem"
    if content is not None:
        file.write_text(content)

    async def test(device: Device) -> None:
        device.write(
            relay={"server": "wss://127.0.0.1:2", "tls_ca_file": str(file)}, network={"routes": ROUTES}
        )
        with pytest.raises(StartError, match=r"ca\.pem"):
            await device.daemon.reload()
        assert (device.relay(), device.tun.routes) == (f"{NOWHERE}/relay", ())

    with_device(tmp_path, test)


def test_reloads_come_one_after_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """While one waits for the kernel, another one does not do the same again."""
    begun, go = threading.Event(), threading.Event()
    calls: list[object] = []

    def slow(routes: object) -> None:
        calls.append(routes)
        begun.set()
        assert go.wait(10)

    async def test(device: Device) -> None:
        monkeypatch.setattr(device.tun, "set_routes", slow)
        device.write(network={"routes": ROUTES})
        first = asyncio.create_task(device.daemon.reload())
        await until(begun.is_set)
        second = asyncio.create_task(device.daemon.reload())
        await asyncio.sleep(0.05)
        assert not second.done()
        go.set()
        assert [(await task)["applied"] for task in (first, second)] == [["network.routes"], []]
        assert len(calls) == 1

    with_device(tmp_path, test)


def test_a_file_with_mistakes_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def test(device: Device) -> None:
        device.write(daemon={"log_level": "loud"}, relay={"server": "ws://127.0.0.1:2"}, peer={"ip": 1})
        with pytest.raises(ConfigError) as caught:
            await device.daemon.reload()
        assert [line.split(": ")[1] for line in caught.value.problems] == ["daemon.log_level", "peer.ip"]
        capsys.readouterr()
        os.kill(os.getpid(), signal.SIGHUP)
        log = ""
        while "configuration not reloaded" not in log:
            await asyncio.sleep(0.01)
            log += capsys.readouterr().err
        assert "daemon.log_level" in log
        assert "problems=2" in log
        assert device.relay() == f"{NOWHERE}/relay"
        assert KEY not in log

    configure()
    with_device(tmp_path, test)


def test_trust_takes_the_key_that_was_refused(tmp_path: Path) -> None:
    old, new = b"o" * 32, b"n" * 32

    async def test(device: Device) -> None:
        daemon = device.daemon
        (network,) = daemon._networks
        network.trust.remember(IP, old)
        network.event("identity_refused", ip=IP, static=new)
        assert daemon.status()["identities_refused"]["10.10.10.2"]["fingerprint"] == fingerprint(new)
        with pytest.raises(RequestError, match=f"has the fingerprint {fingerprint(new)}, not that one"):
            daemon.trust("10.10.10.2", fingerprint(old))
        assert daemon.trust("10.10.10.2", fingerprint(new)) == {
            "ip": "10.10.10.2",
            "fingerprint": fingerprint(new),
            "before": fingerprint(old),
        }
        assert daemon.status()["identities_refused"] == {}
        (known,) = json.loads((tmp_path / "state/known_peers.json").read_text()).values()
        assert known == {"10.10.10.2": new.hex()}
        assert daemon.trust("10.10.10.2")["fingerprint"] == ""  # the next one that answers is taken
        (known,) = json.loads((tmp_path / "state/known_peers.json").read_text()).values()
        assert known == {}

    with_device(tmp_path, test, peers={"verify": "strict"})


def test_trust_that_cannot_be_written_down_is_not_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In neither network; the operator, who is told so, can ask again."""
    old, new = b"o" * 32, b"n" * 32

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    async def test(device: Device) -> None:
        networks = device.daemon._networks
        assert len(networks) == 2
        for network in networks:
            network.trust.remember(IP, old)
            network.event("identity_refused", ip=IP, static=new)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(StartError, match="No space left"):
                device.daemon.trust("10.10.10.2")
        assert [(each.trust.known, each.trust.refused) for each in networks] == [({IP: old}, {IP: new})] * 2
        assert device.daemon.status()["identities_refused"]
        assert device.daemon.trust("10.10.10.2")["fingerprint"] == fingerprint(new)
        assert [each.trust.known for each in networks] == [{IP: new}] * 2

    with_device(tmp_path, test, encryption={"next_key": KEY.replace("6b", "7b")}, peers={"verify": "strict"})


def test_trust_refuses_in_words(tmp_path: Path) -> None:
    async def test(device: Device) -> None:
        for ip, words in {
            "laptop": "not an IP address",
            "10.10.10.3": "10.10.10.3: no key is known for it",
            "10.10.10.2": "10.10.10.2: its key is pinned in peers.trusted: change the fingerprint there",
        }.items():
            with pytest.raises(RequestError, match=words):
                device.daemon.trust(ip)

    with_device(tmp_path, test, peers={"trusted": {"10.10.10.2": "a" * 32}})


def test_reload_takes_over_pins(tmp_path: Path) -> None:
    async def test(device: Device) -> None:
        trust = device.daemon._networks[0].trust
        before = trust.check(IP, b"k" * 32).value
        device.write(peers={"trusted": {"10.10.10.2": fingerprint(b"o" * 32)}})
        await device.daemon.reload()
        assert (before, trust.check(IP, b"k" * 32).value) == ("new", "refused")
        assert yaml.safe_load(device.file.read_text())["peers"]

    with_device(tmp_path, test)
