"""Flows for the load generator: between clients joined to a relay, or through a TCP proxy."""

from __future__ import annotations

import functools
import secrets
import socket
from collections.abc import Sequence

from bench.load import FIRST_BYTE, Burst, Flow
from shadowmesh.crypto.join import sign_join
from shadowmesh.errors import ControlError
from shadowmesh.testing.program import LabError
from shadowmesh.testing.relay_client import address, key, public
from shadowmesh.testing.websocket import BINARY, PONG, TEXT, UPGRADE, frame
from shadowmesh.wire import control
from shadowmesh.wire.frame import pack

ONE_SOURCE = {"connects_per_second": 0, "connections_per_source": 0}
"""Limits of a relay whose clients all come from one address, faster than clients do."""
CONGESTION = "cubic"
PATIENCE = 20.0
"""Seconds that any answer of the relay may take."""
_AT_ONCE = 16  # a relay takes at most so many unjoined connections from one source
_ALIVE = frame(PONG)


class Peer:
    """One client of a relay on a plain socket; `ask`, `answer` and `joined` make it join."""

    def __init__(self, number: int, relay: tuple[str, int]) -> None:
        self.name = f"bench {number}"
        self.address = address(self.name)
        self.socket = _connect(relay)
        self._dialled = relay[0]
        self._input = b""

    def ask(self) -> None:
        """Send the upgrade request."""
        subprotocol = f"Sec-WebSocket-Protocol: {control.SUBPROTOCOL}\r\n"
        self.socket.sendall(UPGRADE.format(path="/relay?peer_id=bench", more=subprotocol).encode())

    def answer(self) -> None:
        """Read the challenge and send the join."""
        head = self._until(b"\r\n\r\n")
        if not head.startswith(b"HTTP/1.1 101 "):
            raise LabError(f"the relay refused a connection: {head[:200]!r}")
        challenge = self._message()
        assert isinstance(challenge, control.Challenge)
        network, device = key("bench"), key(self.name)
        ids = public(network), public(device), secrets.token_bytes(16)
        claims = control.encode_claims(
            control.Claims(control.VERSION, *ids, self._dialled, (self.address,), "bench")
        )
        join = control.Join(claims, *sign_join(challenge.nonce, claims, network, device))
        self.socket.sendall(frame(TEXT, control.encode(join).encode()))

    def joined(self) -> None:
        """Read the relay's answer to the join."""
        answer = self._message()
        if not isinstance(answer, control.Joined) or answer.held != (self.address,):
            raise LabError(f"the relay did not let {self.name} in: {answer}")

    def alive(self) -> None:
        """Send a pong that nobody asked for: a relay pings who is silent, and that would come amid frames."""
        self.socket.sendall(_ALIVE)

    def _message(self) -> control.FromRelay | None:
        """The next message of the relay, which must be a short text."""
        while len(self._input) < 2 or len(self._input) < self._end():
            self._read()
        message, self._input = self._input[: self._end()], self._input[self._end() :]
        try:
            return control.decode_from_relay(message[4 if message[1] == 126 else 2 :])
        except ControlError:
            raise LabError(f"the relay says {message!r}") from None

    def _end(self) -> int:
        """Where the first WebSocket frame of the input ends."""
        size = self._input[1]
        return 4 + int.from_bytes(self._input[2:4]) if size == 126 else 2 + size

    def _until(self, end: bytes) -> bytes:
        while end not in self._input:
            self._read()
        found, _, self._input = self._input.partition(end)
        return found

    def _read(self) -> None:
        if not (data := self.socket.recv(8192)):
            raise LabError(f"the relay ended the connection of {self.name} after {self._input!r}")
        self._input += data


class Crowd:
    """Clients joined to a relay; those of one number send to those of the next."""

    def __init__(self, relay: tuple[str, int]) -> None:
        self._relay = relay
        self._peers: list[Peer] = []

    @property
    def sockets(self) -> list[socket.socket]:
        return [peer.socket for peer in self._peers]

    def grow(self, count: int) -> None:
        """Join until there are `count` peers."""
        while (first := len(self._peers)) < count:
            new = [Peer(number, self._relay) for number in range(first, min(first + _AT_ONCE, count))]
            for step in (Peer.ask, Peer.answer, Peer.joined):
                for peer in new:
                    step(peer)
            self._peers += new
            if first // 512 != len(self._peers) // 512:
                self.keep()

    def keep(self) -> None:
        """Have no peer taken for silent within the next twenty seconds."""
        for peer in self._peers:
            peer.alive()

    def flows(self, count: int) -> list[Flow]:
        """Of the first 2 × `count` peers."""
        return [Flow(*(peer.socket for peer in self._pair(number))) for number in range(count)]

    def bursts(self, count: int, size: int, frames: int, kind: str = "") -> list[Burst]:
        """For each flow `frames` data frames with payloads of `size` bytes."""
        return [self._burst(self._pair(number), size, frames, kind) for number in range(count)]

    def _pair(self, number: int) -> list[Peer]:
        return self._peers[2 * number : 2 * number + 2]

    @staticmethod
    def _burst(pair: Sequence[Peer], size: int, frames: int, kind: str) -> Burst:
        sender, receiver = pair
        data = pack(receiver.address, sender.address, bytes(size))
        sent, arrives = frame(BINARY, data), len(frame(BINARY, data, masked=False))
        # One payload for all flows: a generator that reads another 64 KiB for each would miss its cache.
        parts = [sent[:-size], _once(sent[-size:])] if frames == 1 else [sent * frames]
        return Burst(kind, frames, frames * size, parts, frames * arrives)

    def close(self) -> None:
        for peer in self._peers:
            peer.socket.close()


class Proxied:
    """TCP connections through a proxy that connects each on to our listening socket."""

    def __init__(self, proxy: tuple[str, int], listen: tuple[str, int]) -> None:
        self._proxy = proxy
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._listener = socket.create_server(listen, backlog=1024)
        self._listener.settimeout(PATIENCE)
        _use_cubic(self._listener)  # and so does what it accepts

    @property
    def sockets(self) -> list[socket.socket]:
        return [end for pair in self._pairs for end in pair]

    def grow(self, count: int) -> None:
        """Connect until there are `count` sockets, which is two for each pair."""
        while 2 * len(self._pairs) < count:
            sender = _connect(self._proxy)
            self._pairs.append((sender, self._listener.accept()[0]))

    def keep(self) -> None:
        """Nothing to do."""

    def flows(self, count: int) -> list[Flow]:
        """Of the first `count` pairs."""
        return [Flow(*pair) for pair in self._pairs[:count]]

    def bursts(self, count: int, size: int, frames: int, kind: str = "") -> list[Burst]:
        """For each flow as many bytes as the payloads of that many frames have."""
        sent = bytes([FIRST_BYTE]) + bytes(size * frames - 1)
        return [Burst(kind, frames, len(sent), [sent], len(sent))] * count

    def close(self) -> None:
        for end in (self._listener, *self.sockets):
            end.close()


Ends = Crowd | Proxied


def _connect(to: tuple[str, int]) -> socket.socket:
    made = socket.create_connection(to, PATIENCE)
    made.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    _use_cubic(made)
    return made


def _use_cubic(end: socket.socket) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, CONGESTION.encode())


@functools.cache
def _once(data: bytes) -> bytes:
    """The same object for the same bytes."""
    return data
