"""A router with a slow line between a client of a lab and the relay, and another relay that has none.

The queue is the router's, as it is at home: on the sender's own device the kernel would hold back the sender
(TCP small queues) and hide it.
"""

from __future__ import annotations

from pathlib import Path

from shadowmesh.testing import guide
from shadowmesh.testing.netlab import Host, Lab
from shadowmesh.testing.program import Program

ROUTER = "router"
OTHER_PORT, OTHER_HEALTH, OTHER_METRICS = 9645, 8180, 9190
OTHER_RELAY = f"ws://203.0.113.2:{OTHER_PORT}"
_TO_RELAY, _TO_CLIENT = "to-relay", "to-client"
_AT_RELAY, _AT_ROUTER = "198.19.255.1", "198.19.255.2"
_BESIDE_RELAY, _BESIDE_CLIENT = "198.19.255.5", "198.19.255.6"


def add_bottleneck(lab: Lab, name: str, shape: str, congestion: str) -> Host:
    """Put a router between client `name` and the relay, the queueing discipline `shape` on both its sides.

    shape: as `tc qdisc` takes it; congestion: of connections through it. Call it before the client starts:
    only the client's IPv4 addresses still reach the relay.
    """
    client, relay = lab[name], lab.relay
    namespace = lab.namespace(ROUTER)
    relay.run("ip", "netns", "add", namespace)
    router = Host(lab, ROUTER, _AT_ROUTER, "")
    gate = client.run("ip", "-o", "route", "get", relay.ip4).stdout.split()[2]
    relay.ip(f"link del to-{name}")
    relay.ip(
        f"link add to-{name} type veth peer name {_TO_RELAY} netns {namespace}",
        f"addr add {_AT_RELAY}/30 dev to-{name}",
        f"link set to-{name} up",
        f"route add {client.ip4}/32 via {_AT_ROUTER} congctl {congestion}",
    )
    client.ip(
        f"link add eth0 type veth peer name {_TO_CLIENT} netns {namespace}",
        f"addr add {client.ip4}/30 dev eth0",
        "link set eth0 up",
        f"route add {relay.ip4}/32 via {gate} congctl {congestion}",
    )
    router.ip(
        "link set lo up",
        f"addr add {_AT_ROUTER}/30 dev {_TO_RELAY}",
        f"addr add {gate}/30 dev {_TO_CLIENT}",
        f"link set {_TO_RELAY} up",
        f"link set {_TO_CLIENT} up",
        f"route add {relay.ip4}/32 via {_AT_RELAY}",
    )
    router.inside(lambda: Path("/proc/sys/net/ipv4/ip_forward").write_text("1"))
    for device in (_TO_RELAY, _TO_CLIENT):
        router.run("tc", "qdisc", "replace", "dev", device, "root", *shape.split())
    return router


def add_other_relay(lab: Lab, name: str, congestion: str) -> Program:
    """Start another relay on the relay's host, at OTHER_RELAY, to which client `name` has no slow line.

    To be called behind `add_bottleneck`.
    """
    port, address = f"beside-{name}", OTHER_RELAY[5:].partition(":")[0]
    lab.relay.ip(
        f"link add {port} type veth peer name eth1 netns {lab[name].namespace}",
        f"addr add {address}/32 dev lo",
        f"addr add {_BESIDE_RELAY}/30 dev {port}",
        f"link set {port} up",
    )
    lab[name].ip(
        f"addr add {_BESIDE_CLIENT}/30 dev eth1",
        "link set eth1 up",
        f"route add {address}/32 via {_BESIDE_RELAY} congctl {congestion}",
    )
    ports = {"relay_port": OTHER_PORT, "health_port": OTHER_HEALTH, "metrics_port": OTHER_METRICS}
    config = lab.write("other-relay-config.yaml", guide.merged(guide.RELAY_CONFIG, ports))
    program = lab.relay.start(*lab.argv("shadowmesh-relay", "other-relay"), "-config", str(config))
    program.wait_for(lambda: lab.relay.get_json("/health", OTHER_HEALTH), "answer from /health")
    return program
