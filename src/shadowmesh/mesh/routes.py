"""Where packets go: own networks and configured routes lead to an overlay IP, and that to a blind address."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

from shadowmesh.mesh.context import Context, IPNetwork
from shadowmesh.mesh.peer import Flow, Peer
from shadowmesh.wire.record import Info

MAX_FLOWS = 4096


class Routes:
    """The routes of one device. owners: overlay IP → the peer whose it is; after a change, clear `flows`."""

    def __init__(self, context: Context) -> None:
        self.owners: dict[bytes, Peer] = {}
        self.flows: dict[bytes, Flow] = {}
        self._context = context
        self._own_ips = frozenset(context.local.ips)
        self._primary = next(iter(context.addresses))

    def flow(self, key: bytes) -> Flow | None:
        """Where packets with this source ‖ destination (8 or 32 bytes) go.

        None if there is no route, or if this host may not send from that source.
        """
        flow = self.flows.get(key)
        if flow is None:
            flow = self._resolve(key)
            if flow is not None:
                if len(self.flows) >= MAX_FLOWS:
                    self.flows.clear()
                self.flows[key] = flow
        return flow

    def _resolve(self, key: bytes) -> Flow | None:
        half = len(key) // 2
        source, target = key[:half], key[half:]
        next_hop = self.next_hop(target)
        if next_hop is None or next_hop in self._own_ips or not self.may_send(source):
            return None
        destination = self._context.network.ip_address(next_hop)
        if destination is None:
            return None
        own = self._context.network.ip_address(source) if source in self._own_ips else None
        return Flow(next_hop, own or self._primary, destination, self.owners.get(next_hop))

    def next_hop(self, target: bytes) -> bytes | None:
        """The overlay IP of the device to send to, by the longest of the own networks and configured routes.

        In an own network that is the target itself, None for its broadcast addresses.
        """
        address, local = ip_address(target), self._context.local
        hops = [*((interface.network, target) for interface in local.interfaces), *local.routes]
        fitting = [(network, hop) for network, hop in hops if address in network]
        if not fitting:
            return None
        network, hop = max(fitting, key=lambda each: each[0].prefixlen)
        shared = hop is target and network.version == 4 and network.prefixlen < 31
        if shared and address in (network.network_address, network.broadcast_address):
            return None
        return hop

    def may_send(self, source: bytes) -> bool:
        """Whether packets of this host may have this source IP: an own one, or of an advertised prefix."""
        return source in self._own_ips or within(source, self._context.local.advertise)

    def leads_to(self, peer: Peer, source: bytes) -> bool:
        """Whether our own configuration sends packets for this IP to this peer: by the longest route."""
        next_hop = self.next_hop(source)
        return next_hop is not None and next_hop != source and self.owners.get(next_hop) is peer

    def check_offers(self, peer: Peer, info: Info, ips: set[bytes]) -> None:
        """Tell of each of our routes by these overlay IPs of a peer that it does not offer."""
        for prefix, via in self._context.local.routes:
            if via in ips and not offered(prefix, info):
                self._context.output.event("route_not_offered", route=str(prefix), peer=peer)


def offered(network: IPNetwork, info: Info) -> bool:
    """Whether a peer says that it passes packets on to all of this prefix."""
    offers = [ip_network(route) for route in info.routes]
    return any(offer.version == network.version and network.subnet_of(offer) for offer in offers)  # type: ignore[arg-type]


def within(address: bytes, networks: tuple[IPNetwork, ...] | list[IPNetwork]) -> bool:
    """Whether an overlay IP lies in one of these."""
    return bool(networks) and any(ip_address(address) in network for network in networks)
