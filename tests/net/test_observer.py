"""What somebody sees who has every byte between clients and their relay, or the whole memory of the relay.

Two real daemons behind the real relay, without TLS, so that all of it lies open.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from base64 import b64decode
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_address
from pathlib import Path

import pytest

from shadowmesh.config import load_client_config
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.app import Daemon
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.testing import guide
from shadowmesh.testing.packets import udp_packet
from shadowmesh.testing.relay_program import RelayProgram, free_ports
from shadowmesh.testing.websocket import accepting, drive
from shadowmesh.tun.base import MAX_RECORD
from shadowmesh.tun.memory import memory_pair
from shadowmesh.wire.offload import PLAIN

K = "6b8c5c1d5e2d4f7f9a0b1c2d3e4f50617283940a5b6c7d8e9fa0b1c2d3e4f506"
NETWORK = NetworkKeys(bytes.fromhex(K))
IPS = ("10.77.88.1", "10.77.88.2")
NAMES = ("alices-laptop", "bobs-laptop")
PLAINTEXT = b"nobody but these two may read this"
PACKETS = 20


class Device:
    """A running daemon, and the kernel's side of its device."""

    def __init__(self, path: Path, number: int, port: int) -> None:
        self.ip, self.name = IPS[number], NAMES[number]
        path.mkdir()
        text = guide.client_config(ip=f"{self.ip}/24", key=K, peer_id="x", server=f"ws://127.0.0.1:{port}")
        daemon = {
            "listen_address": f"127.0.0.1:{free_ports(1)[0]}",
            "state_directory": str(path / "state"),
            "token_file": str(path / "token"),
        }
        file = path / "c.yaml"
        file.write_text(guide.merged(text, {"daemon": daemon, "peer": {"id": self.name}}))
        file.chmod(0o600)
        self.state = StateDirectory(path / "state")
        self.seed = self.state.seed()
        self.tun, self.kernel = memory_pair()
        self.daemon = Daemon(load_client_config(str(file)).config, self.state, self.seed, self.tun, str(file))
        self.task = asyncio.create_task(self.daemon.run())

    def secrets(self) -> dict[str, bytes]:
        """What nobody else is to learn of it."""
        keys = DeviceKeys(self.seed, NETWORK.network_id)
        return {
            "seed": self.seed,
            "static key": keys.static_private.private_bytes_raw(),
            "public static key": keys.static_public,
            "signing key": keys.signing_key.private_bytes_raw(),
            "name": self.name.encode(),
            "IP": self.ip.encode(),
        }

    def taken(self) -> int:
        """How many packets with the plaintext have come since the last call."""
        buffer = memoryview(bytearray(MAX_RECORD))
        found = 0
        while size := self.kernel.read_into(buffer):
            found += PLAINTEXT in bytes(buffer[:size])
        return found

    async def stop(self) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})
        for each in (self.tun, self.kernel, self.state):
            each.close()


def secrets(*devices: Device) -> dict[str, bytes]:
    """All that is secret, in the forms in which it is somewhere."""
    inner = [ip_address(device.ip).packed for device in devices]
    found = {
        "K": bytes.fromhex(K),
        "K in hex": K.encode(),
        "psk": NETWORK.peer_psk,
        "network's signing key": NETWORK.signing_key.private_bytes_raw(),
        "plaintext": PLAINTEXT,
        "header": inner[0] + inner[1],
        "header back": inner[1] + inner[0],
    }
    return found | {
        f"{device.name}: {what}": each for device in devices for what, each in device.secrets().items()
    }


class Tap:
    """A TCP connection's way to the relay, recorded. streams: of each connection and direction, the bytes."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.streams: list[tuple[bool, bytearray]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, onwards = await asyncio.open_connection("127.0.0.1", self.port)
        ways = [self._carry(True, reader, onwards), self._carry(False, there, writer)]
        await asyncio.gather(*ways)

    async def _carry(self, up: bool, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen = bytearray()
        self.streams.append((up, seen))
        try:
            while data := await reader.read(1 << 16):
                seen += data
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    def seen(self) -> bytes:
        """All of it as it was sent, and the payload of each WebSocket frame."""
        return b"".join(bytes(seen) + b"".join(payloads(bytes(seen))) for _, seen in self.streams)


def payloads(stream: bytes) -> list[bytes]:
    """The payloads of the WebSocket frames behind the HTTP head, unmasked."""
    at, found = stream.find(b"\r\n\r\n") + 4, []
    while at + 2 <= len(stream):
        masked, size, at = stream[at + 1] >> 7, stream[at + 1] & 127, at + 2
        if size > 125:
            end = at + (2 if size == 126 else 8)
            size, at = int.from_bytes(stream[at:end]), end
        mask, at = (stream[at : at + 4], at + 4) if masked else (bytes(4), at)
        payload = stream[at : at + size]
        at += size
        key = int.from_bytes((mask * (size // 4 + 1))[: len(payload)])
        found.append((int.from_bytes(payload) ^ key).to_bytes(len(payload)))
    return found


@asynccontextmanager
async def talking(path: Path, port: int) -> AsyncIterator[tuple[Device, Device]]:
    """Two devices behind a port, of which each has had packets of the other."""
    one, other = (Device(path / str(number), number, port) for number in range(2))
    try:
        async with asyncio.timeout(20):
            got = {one: 0, other: 0}
            while min(got.values()) < PACKETS:
                for sender, receiver in ((one, other), (other, one)):
                    packet = PLAIN + udp_packet(sender.ip, receiver.ip, PLAINTEXT)
                    sender.kernel.write(memoryview(packet))
                    got[receiver] += receiver.taken()
                await asyncio.sleep(0.02)
        yield one, other
    finally:
        await one.stop()
        await other.stop()


@pytest.fixture(autouse=True)
def stay_thawed(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a test leaves behind is to be collected."""
    monkeypatch.setattr("gc.freeze", lambda: None)


def test_a_capture_shows_no_plaintext_ip_name_or_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RelayProgram(tmp_path) as relay:
            relay.ready()
            tap = Tap(relay.relay_port)
            async with accepting(tap.serve) as port, talking(tmp_path / "d", port) as devices:
                seen = tap.seen()
            assert NETWORK.network_id.hex().encode() in b"".join(claims(seen)), "it sees pseudonyms"
            for device in devices:
                address = NETWORK.ip_address(ip_address(device.ip).packed)
                assert address is not None
                assert seen.count(address) > PACKETS, "it sees blind addresses, of each frame"
            for what, secret in secrets(*devices).items():
                assert secret not in seen, what

    (tmp_path / "d").mkdir()
    drive(scenario)


def claims(seen: bytes) -> list[bytes]:
    """The claims in what was seen, decoded."""
    return [b64decode(json.loads(each)["claims"]) for each in re.findall(rb'\{"type": ?"join".*?\}', seen)]


def test_the_memory_of_a_relay_holds_no_plaintext_ip_name_or_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        with RelayProgram(tmp_path) as relay:
            relay.ready()
            async with talking(tmp_path / "d", relay.relay_port) as devices:
                memory = memory_of(relay.pid)
            for device in devices:
                address = NETWORK.ip_address(ip_address(device.ip).packed)
                assert address is not None
                assert address in memory, "it is the memory of that relay"
            for what, secret in secrets(*devices).items():
                assert secret not in memory, what

    (tmp_path / "d").mkdir()
    drive(scenario)


def memory_of(pid: int) -> bytes:
    """All that a process may write to."""
    found = []
    try:
        with open(f"/proc/{pid}/maps") as maps, open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for line in maps:
                ends, rights = line.split()[:2]
                if rights.startswith("rw"):
                    start, end = (int(each, 16) for each in ends.split("-"))
                    try:
                        found.append(os.pread(memory.fileno(), end - start, start))
                    except OSError:
                        continue  # the kernel's own
    except PermissionError:
        pytest.skip("this system lets nobody read the memory of a process")
    return b"\0".join(found)
