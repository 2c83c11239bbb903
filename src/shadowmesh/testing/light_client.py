"""A relay client of raw bytes: it sends what no library would, and a thousand of them fit in one test."""

from __future__ import annotations

import hashlib
import json
from base64 import b64decode, b64encode
from typing import Any

from shadowmesh.testing.relay_client import address, frame, key, public
from shadowmesh.testing.websocket import BINARY, CLOSE, PING, TEXT, RawPeer
from shadowmesh.testing.websocket import frame as websocket_frame


class LightClient:
    """One joined connection; made by `join`. `name` is that of its device and of its one address."""

    def __init__(self, peer: RawPeer, name: str, joined: dict[str, Any]) -> None:
        self.peer = peer
        self.name = name
        self.joined = joined

    @classmethod
    async def join(cls, port: int, name: str, more: str = "") -> LightClient:
        """Connect and join; more: further header lines of the request, each ended by CR LF."""
        peer = await RawPeer.upgraded(port, "/relay?peer_id=light", more)
        _, challenge = await peer.frame()
        peer.send(websocket_frame(TEXT, json.dumps(join_message(challenge, name)).encode()))
        opcode, answer = await peer.frame()
        assert opcode == TEXT, (opcode, answer)
        return cls(peer, name, json.loads(answer))

    def send(self, to: str, payload: bytes) -> None:
        """Send a data frame to the device of that name."""
        self.peer.send(websocket_frame(BINARY, frame(address(to), address(self.name), payload)))

    async def receive(self) -> tuple[bytes, bytes]:
        """The source and payload of the next data frame; pings and control messages before it are skipped."""
        while True:
            opcode, data = await self.peer.frame()
            assert opcode in (BINARY, PING, TEXT), (opcode, data)
            if opcode == BINARY:
                return data[17:33], data[33:]

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
