"""How the relay shows what it counts: the names of the deployment guide, and a few more."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import TYPE_CHECKING

from shadowmesh import __version__
from shadowmesh.observe.metrics import Kind, Metric

if TYPE_CHECKING:
    from shadowmesh.relay.server import Server


def collect(server: Server, now: float) -> Iterator[Metric]:
    """All metrics of a relay at monotonic time `now`."""
    counters, admission, memory = server.counters, server.admission, server.memory
    here = {"region": server.config.region}

    def one(name: str, text: str, kind: Kind, value: float) -> Metric:
        return Metric(f"shadowmesh_relay_{name}", text, kind, [(here, value)])

    def by(name: str, text: str, label: str, values: Counter[str]) -> Metric:
        return Metric(
            f"shadowmesh_relay_{name}",
            text,
            "counter",
            [(here | {label: key}, value) for key, value in sorted(values.items())],
        )

    yield one("connections", "Clients that have joined.", "gauge", admission.joined)
    yield one("max_connections", "Clients that may join.", "gauge", admission.max_connections)
    yield one("utilization_percent", "Joined of allowed clients.", "gauge", admission.utilization_percent)
    yield one("frames_total", "Data frames received from clients.", "counter", counters.frames_in)
    yield one("frames_dropped", "Data frames not passed on.", "unknown", counters.drops.total())
    yield one("bytes_relayed", "Bytes of the frames passed on.", "unknown", counters.bytes_out)
    quantiles = counters.latency.quantiles((0.5, 0.99), now)
    yield Metric(
        "shadowmesh_relay_latency_ms",
        "From reading a frame until the kernel took its last byte, sampled over the last one to two minutes.",
        "gauge",
        [
            (here | {"quantile": name}, round(value * 1000, 3))
            for name, value in zip(("0.5", "0.99"), quantiles, strict=True)
        ],
    )
    yield one("frames_relayed_total", "Data frames passed on.", "counter", counters.frames_out)
    yield one("frames_queued", "Data frames waiting for slow clients.", "gauge", memory.frames)
    yield one("queued_bytes", "Bytes waiting for slow clients.", "gauge", memory.used)
    yield by("drops_total", "Data frames dropped.", "reason", counters.drops)
    yield by("refused_total", "Connections that were not let in.", "reason", counters.refused)
    if server.listener is not None:
        yield one(
            "idle_refused_total",
            "Connections closed before they asked for anything, because there were too many such.",
            "counter",
            server.listener.pending_refused,
        )
        yield one("accept_errors_total", "Failed accept calls.", "counter", server.listener.accept_errors)
    closes = Counter({str(code): n for code, n in counters.closes.items()})
    yield by("closes_total", "WebSocket close codes sent.", "code", closes)
    yield one("connections_unjoined", "Connections that have not joined yet.", "gauge", admission.unjoined)
    yield one("networks", "Networks with a member, present or just gone.", "gauge", server.router.networks)
    yield one("addresses", "Addresses held by joined clients.", "gauge", server.router.addresses)
    build = {"version": __version__, "server_name": server.config.server_name}
    yield Metric("shadowmesh_build_info", "Version of this program.", "gauge", [(here | build, 1)])
