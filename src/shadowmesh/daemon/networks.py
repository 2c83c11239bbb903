"""One device in one network or, while the network key is being replaced, in two at once (docs/rotation.md).

A key makes a network of its own: own addresses at the relay, own identities, own sessions. With a next key
the device is in both, with one TUN device: it takes what comes in either, and sends where it has a session
with the peer, in the network of `encryption.key` first.
"""

from __future__ import annotations

import asyncio
import random
import secrets
from collections import Counter
from collections.abc import Callable, Sequence

from shadowmesh.config.secret import SecretKey
from shadowmesh.crypto.keys import DeviceKeys, NetworkKeys
from shadowmesh.daemon.engine import Engine
from shadowmesh.daemon.link import Identity, RelayLink
from shadowmesh.daemon.links import Links, as_one
from shadowmesh.mesh.context import Context, Local
from shadowmesh.mesh.handshake import Handshakes
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.mesh.paths import Paths
from shadowmesh.mesh.peer import Flow, Peer, Session
from shadowmesh.mesh.trust import Trust
from shadowmesh.wire import frame, ip, offload, record


class Network:
    """This device in one network: keys, trust, mesh engine and the connections to the relays.

    Complete after `use` and `speak`. It is the mesh's `Output` and hears its links; packets and times are the
    engine's, which has one TUN device for all networks.
    """

    mesh: Mesh
    link: RelayLink | Links
    together: Networks | None = None
    """The networks that this one is one of."""

    def __init__(self, key: SecretKey, seed: bytes, local: Local, trust: Callable[[bytes], Trust]) -> None:
        self.key = key
        self.keys = NetworkKeys(key.reveal())
        self.device = DeviceKeys(seed, self.keys.network_id)
        self.trust = trust(self.keys.network_id)
        self.context = Context(
            network=self.keys,
            device=self.device,
            local=local,
            output=self,
            trust=self.trust,
            random=secrets.token_bytes,
            uniform=random.uniform,
        )
        addresses = tuple(self.context.addresses)
        self.identity = Identity(self.keys, self.device, secrets.token_bytes(16), addresses)
        self._engine: Engine
        self.now: Callable[[], float]
        self.event: Callable[..., None]

    def use(self, links: Sequence[RelayLink]) -> None:
        """Connect by these links from now on."""
        self.link = as_one(links)
        if hasattr(self, "_engine"):
            self.link.listener = self

    @property
    def links(self) -> Sequence[RelayLink]:
        """All connections as they are now: a name can have several addresses, and others later."""
        return self.link.links

    @property
    def full(self) -> bool:
        """Whether the link, which is alone, takes no more."""
        return len(self.links) == 1 and self.links[0].full

    @property
    def lane(self) -> Network | None:
        """What names the link, which is alone, to the engine; None where it is that of the only network."""
        return self if self.together is not None else None

    def speak(self, engine: Engine, event: Callable[..., None], drops: Counter[str] | None = None) -> None:
        """Begin, with the engine that has the packets; drops: the counters of the networks before."""
        if drops is not None:
            self.context.drops = drops
        self._engine = engine
        self.now = engine.now
        self.event = event
        self.deliver, self.coalesces = engine.deliver, engine.coalesces
        self.on_frame = engine.on_frame
        self.mesh = engine.start(self.context) if drops is None else Mesh(self.context)
        self.link.listener = self

    # -- the mesh's Output

    def send(self, destination: bytes, source: bytes, message: bytes, via: object = None) -> None:
        """See mesh.context.Output."""
        if self.link.ready:
            self.link.send_frame(frame.pack(destination, source, message), via)

    deliver: Callable[..., None]
    coalesces: bool

    def unreachable(self, kind: int, body: bytes) -> None:
        """See mesh.context.Output."""
        if self.together is None or not self.together.elsewhere(self, kind, body):
            self._engine.unreachable(kind, body)

    # -- what the links hear

    on_frame: Callable[..., None]

    def hold(self, address: bytes, via: object = None) -> None:
        """A relay has much waiting for this address."""
        self._engine.hold(address, self.lane if via is None else via)

    def release(self, address: bytes, via: object = None) -> None:
        """It has little any more."""
        self._engine.release(address, self.lane if via is None else via)

    def pause(self, via: object = None) -> None:
        """A link takes no more."""
        self._engine.pause(self.lane if via is None else via)

    def resume(self, via: object = None) -> None:
        """It takes more."""
        self._engine.resume(self.lane if via is None else via)

    def joined(self, via: object = None) -> None:
        """A link is ready."""
        self._engine.opened(via)
        self.mesh.joined(self.now(), via)
        self._engine.arm()

    def lost(self, via: object = None) -> None:
        """A link is not ready any more."""
        if via is not None:
            self.mesh.lost(via, self.now())
            self._engine.closed(via)
            self._engine.arm()

    def draining(self) -> None:
        """The relay leaves in a moment; with a single one there is no other way meanwhile."""

    def gone(self, address: bytes, via: object = None) -> None:
        """A relay has nobody at this address."""
        self.mesh.gone(address, self.now(), via)
        self._engine.arm()

    def refused(self, addresses: set[bytes], via: object = None) -> None:
        """A relay gives us all own addresses but these."""
        self.mesh.refused(addresses, via)


class Networks:
    """Several networks that are to the engine one mesh and one link; that of `encryption.key` comes first.

    of: own address → its network, which is what names a link that is alone in it to the engine.
    """

    def __init__(self, networks: Sequence[Network]) -> None:
        self._networks = tuple(networks)
        self._first = self._networks[0]
        self.of = {address: network for network in networks for address in network.context.addresses}
        for network in networks:
            network.together = self

    # -- as a mesh

    def flow(self, key: bytes) -> Flow | None:
        """See Mesh.flow: in the first network where packets reach the peer, else in the first."""
        found: Flow | None = None
        for network in self._networks:
            flow = network.mesh.flow(key)
            if flow is None:
                return None
            if flow.peer is not None and network.link.ready and network.mesh.is_connected(flow.peer):
                return flow
            found = found or flow
        return found

    def session(self, flow: Flow, now: float) -> Session | None:
        """See Mesh.session."""
        network = self.of.get(flow.source)  # None: of a network that has just ended
        return network.mesh.session(flow, now) if network is not None and network.link.ready else None

    def sent(self, session: Session, size: int, now: float) -> None:
        """See Mesh.sent."""
        self.of[session.local].mesh.sent(session, size, now)

    def enqueue(self, flow: Flow, kind: int, body: bytes, now: float) -> bool:
        """See Mesh.enqueue: in the first network that does not know the peer to be away."""
        networks = [network for network in self._networks if network.link.ready] or self._networks
        return _enqueue(networks, kind, body, now)

    def elsewhere(self, given_up: Network, kind: int, body: bytes) -> bool:
        """Whether a packet that one network has given up waits in a later one now."""
        later = self._networks[self._networks.index(given_up) + 1 :]
        return _enqueue([each for each in later if each.link.ready], kind, body, given_up.now())

    def may_send(self, source: bytes) -> bool:
        """See Mesh.may_send."""
        return self._first.mesh.may_send(source)

    def receive(
        self, source: bytes, destination: bytes, data: memoryview, now: float, via: object = None
    ) -> None:
        """See Mesh.receive."""
        self.of.get(destination, self._first).mesh.receive(source, destination, data, now, via)

    @property
    def next_deadline(self) -> float | None:
        """See Mesh.next_deadline."""
        due = [network.mesh.next_deadline for network in self._networks]
        return min((at for at in due if at is not None), default=None)

    def tick(self, now: float) -> None:
        """See Mesh.tick."""
        for network in self._networks:
            network.mesh.tick(now)

    @property
    def peers(self) -> dict[bytes, Peer]:
        """See Mesh.peers: a device that is in both networks is two peers."""
        return {static: peer for network in self._networks for static, peer in network.mesh.peers.items()}

    def is_connected(self, peer: Peer) -> bool:
        """See Mesh.is_connected."""
        return any(
            network.mesh.peers.get(peer.static) is peer and network.mesh.is_connected(peer)
            for network in self._networks
        )

    def probe(self, session: Session, number: int) -> None:
        """See Mesh.probe."""
        self.of[session.local].mesh.probe(session, number)

    def keep(self, session: Session, now: float) -> None:
        """See Mesh.keep."""
        self.of[session.local].mesh.keep(session, now)

    def bye(self) -> None:
        """See Mesh.bye."""
        for network in self._networks:
            network.mesh.bye()

    @property
    def handshakes(self) -> Handshakes:
        """See Mesh.handshakes: of the first network."""
        return self._first.mesh.handshakes

    @property
    def paths(self) -> Paths:
        """See Mesh.paths: of the first network."""
        return self._first.mesh.paths

    # -- as a link

    @property
    def ready(self) -> bool:
        """Whether frames can be sent in one of them."""
        return any(network.link.ready for network in self._networks)

    @property
    def since(self) -> float:
        """Since when that is so, or not."""
        return max(network.link.since for network in self._networks)

    @property
    def max_frame(self) -> int:
        """See daemon.listener.Link."""
        return min(network.link.max_frame for network in self._networks)

    def send_frame(self, data: memoryview | bytes, via: object = None) -> None:
        """Send one data frame, in the network that its source is of."""
        self.of[bytes(data[17:33])].link.send_frame(data, via)


async def run_links(networks: Callable[[], Sequence[Network]], changed: asyncio.Event) -> None:
    """Keep the links of the networks there are until cancelled; when these have changed, of the new ones.

    A link that is still there is left alone. Raises what a link raises.
    """
    running: dict[RelayLink | Links, asyncio.Task[None]] = {}
    try:
        while True:
            changed.clear()
            wanted = {network.link: network.keys.network_id.hex()[:16] for network in networks()}
            await _end([running.pop(link) for link in running.keys() - wanted.keys()])
            if changed.is_set():
                continue  # meanwhile
            for link in wanted.keys() - running.keys():
                running[link] = asyncio.create_task(link.run(), name=f"network {wanted[link]}")
            change = asyncio.create_task(changed.wait())
            try:
                await asyncio.wait({change, *running.values()}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                change.cancel()
            for task in running.values():
                if task.done():
                    task.result()
    finally:
        await _end(list(running.values()))


async def _end(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)


def _enqueue(networks: Sequence[Network], kind: int, body: bytes, now: float) -> bool:
    key = ip.flow_key(body, offload.HEADER_SIZE if kind == record.OFFLOAD else 0, len(body))
    for network in networks:
        flow = network.mesh.flow(key) if key else None
        if flow is not None and network.mesh.enqueue(flow, kind, body, now):
            return True
    return False
