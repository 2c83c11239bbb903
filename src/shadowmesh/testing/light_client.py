"""A relay client of raw bytes: it sends what no library would, and a thousand of them fit in one test."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from ssl import SSLContext
from typing import Any

from shadowmesh.testing.relay_client import address, frame, key, public
from shadowmesh.testing.websocket import BINARY, CLOSE, PING, PONG, TEXT, RawPeer
from shadowmesh.testing.websocket import frame as websocket_frame


class LightClient:
    """One joined connection; made by `join`. `name` is that of its device and of its one address."""

    def __init__(self, peer: RawPeer, name: str, joined: dict[str, Any]) -> None:
        self.peer = peer
        self.name = name
        self.joined = joined

    @classmethod
    async def join(
        cls,
        port: int,
        name: str,
        more: str = "",
        *,
        ssl: SSLContext | None = None,
        source: str = "",
        **claims: Any,
    ) -> LightClient:
        """Connect and join; more: further header lines of the request, each ended by CR LF."""
        peer = await RawPeer.upgraded(port, "/relay?peer_id=light", more, ssl, source)
        _, challenge = await peer.frame()
        peer.send(websocket_frame(TEXT, json.dumps(join_message(challenge, name, **claims)).encode()))
        opcode, answer = await peer.frame()
        if opcode != TEXT:
            await peer.close()
            raise AssertionError(f"not joined: {answer!r}")
        return cls(peer, name, json.loads(answer))

    def say(self, message: dict[str, Any]) -> None:
        """Send a control message."""
        self.peer.send(websocket_frame(TEXT, json.dumps(message).encode()))

    def send(self, to: str, payload: bytes) -> None:
        """Send a data frame to the device of that name."""
        self.peer.send(websocket_frame(BINARY, frame(address(to), address(self.name), payload)))

    def stop_reading(self) -> None:
        """Take nothing from the socket until `go_on_reading`."""
        self.peer.writer.transport.pause_reading()  # type: ignore[attr-defined]

    def go_on_reading(self) -> None:
        """Take from the socket again."""
        self.peer.writer.transport.resume_reading()  # type: ignore[attr-defined]

    async def receive(self) -> tuple[bytes, bytes]:
        """The source and payload of the next data frame; pings before it are answered, control is skipped."""
        while True:
            opcode, data = await self.peer.frame()
            assert opcode in (BINARY, PING, TEXT), (opcode, data)
            if opcode == BINARY:
                return data[17:33], data[33:]
            if opcode == PING:
                self.peer.send(websocket_frame(PONG, data))

    async def closed(self) -> tuple[int, str]:
        """Code and reason of the close frame; other frames before it are skipped."""
        while True:
            opcode, payload = await self.peer.frame()
            if opcode == CLOSE:
                return int.from_bytes(payload[:2]), payload[2:].decode()


def join_message(challenge: bytes, name: str, **changes: Any) -> dict[str, Any]:
    """The answer to a challenge by the device of that name; `changes` replaces single claims."""
    claims = {
        "version": 1,
        "network": public(key("network")).hex(),
        "device": public(key(name)).hex(),
        "instance": hashlib.sha256(b"instance " + name.encode()).hexdigest()[:32],
        "relay": "127.0.0.1",
        "addresses": [address(name).hex()],
        "agent": "light/1",
    }
    raw = json.dumps(claims | changes).encode()
    bound = b64decode(json.loads(challenge)["nonce"]) + hashlib.sha256(raw).digest()

    def signature(role: str, signer: str) -> str:
        return b64encode(key(signer).sign(f"shadowmesh/v1 join {role}\0".encode() + bound)).decode()

    return {
        "type": "join",
        "claims": b64encode(raw).decode(),
        "network_signature": signature("network", "network"),
        "device_signature": signature("device", name),
    }
