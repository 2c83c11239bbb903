"""How the relay shows what it counts: the guide's names, and more; docs/monitoring.md has them all."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

from shadowmesh import __version__
from shadowmesh.observe.metrics import Kind, Latencies, Metric
from shadowmesh.relay.admin import loop_lag, readiness

if TYPE_CHECKING:
    from shadowmesh.net.server import Server as Listener
    from shadowmesh.relay.server import Server

PREFIX = "shadowmesh_relay_"


def collect(server: Server, now: float) -> Iterator[Metric | Latencies]:
    """All metrics of a relay at monotonic time `now`."""
    here = {"region": server.config.region}
    for name, text, kind, value in _numbers(server, now):
        yield Metric(PREFIX + name, text, kind, [(here, value)])
    counters, listener = server.counters, server.listener
    for name, text, label, values in (
        ("tls_failed_total", "Connections that did not get through TLS.", "reason", _tls_failed(listener)),
        ("drops_total", "Data frames dropped.", "reason", counters.drops),
        ("refused_total", "Connections that were not let in.", "reason", counters.refused),
        ("closes_total", "WebSocket close codes sent.", "code", counters.closes),
    ):
        samples = [(here | {label: str(key)}, value) for key, value in sorted(values.items())]
        yield Metric(PREFIX + name, text, "counter", samples)
    yield from _times(server, here, now)
    build = {
        "version": __version__,
        "python_version": platform.python_version(),
        "server_name": server.config.server_name,
    }
    yield Metric("shadowmesh_build_info", "What runs here; always 1.", "gauge", [(here | build, 1)])


def _numbers(server: Server, now: float) -> Iterator[tuple[str, str, Kind, float]]:
    """The metrics with the one label `region`: (name, help, kind, value)."""
    counters, admission, memory = server.counters, server.admission, server.memory
    yield "connections", "Clients that have joined.", "gauge", admission.joined
    yield "max_connections", "Clients that may join.", "gauge", admission.max_connections
    yield "utilization_percent", "Joined of allowed clients.", "gauge", admission.utilization_percent
    yield "connections_unjoined", "Connections that have not joined yet.", "gauge", admission.unjoined
    yield "ready", "1 if new clients may come (/ready).", "gauge", readiness(server, now) == "ready"
    yield "draining", "1 while the relay sends its clients away.", "gauge", server.draining
    yield "networks", "Networks with a member, present or just gone.", "gauge", server.router.networks
    yield "addresses", "Addresses held by joined clients.", "gauge", server.router.addresses

    yield "frames_total", "Data frames received from clients.", "counter", counters.frames_in
    yield "frames_relayed_total", "Data frames passed on.", "counter", counters.frames_out
    yield "frames_dropped", "Data frames not passed on.", "unknown", counters.drops.total()
    yield "frames_queued", "Data frames waiting for slow clients.", "gauge", memory.frames
    yield "bytes_received_total", "Bytes of the frames received.", "counter", counters.bytes_in
    yield "bytes_relayed", "Bytes of the frames passed on.", "unknown", counters.bytes_out
    yield "queued_bytes", "Bytes waiting for slow clients.", "gauge", memory.used
    yield "queue_limit_bytes", "Bytes that may wait for all clients together.", "gauge", memory.limit

    yield "joins_total", "Accepted joins.", "counter", counters.joins
    if server.listener is not None:
        yield from _listener(server.listener)
    if server.certificate is not None:
        expiry = server.certificate.not_after
        text = "When the TLS certificate expires, in Unix time."
        yield "certificate_expiry_timestamp_seconds", text, "gauge", expiry


def _tls_failed(listener: Listener | None) -> Mapping[str, int]:
    return {} if listener is None else listener.tls_failed


def _listener(listener: Listener) -> Iterator[tuple[str, str, Kind, float]]:
    yield "accepts_total", "TCP connections accepted.", "counter", listener.accepted
    text = "Connections that the system, or the bound on file descriptors, did not let in."
    yield "accept_errors_total", text, "counter", listener.accept_errors
    text = "Connections closed before they asked for anything, because there were too many such."
    yield "idle_refused_total", text, "counter", listener.pending_refused


def _times(server: Server, here: dict[str, str], now: float) -> Iterator[Metric | Latencies]:
    latency = server.counters.latency
    quantiles = zip(("0.5", "0.99"), latency.quantiles((0.5, 0.99), now), strict=True)
    yield Metric(
        PREFIX + "latency_ms",
        "From the turn that read a frame until the kernel took its last byte; the last one to two minutes.",
        "gauge",
        [(here | {"quantile": name}, round(value * 1000, 3)) for name, value in quantiles],
    )
    text = "From the turn that read a frame until the kernel took its last byte, since the start."
    yield Latencies(PREFIX + "latency_seconds", text, here, latency)
    if server.lag is not None:
        text = "How late the event loop came at worst in the last 10 seconds."
        lag = loop_lag(server, now)
        yield Metric(PREFIX + "loop_lag_worst_seconds", text, "gauge", [(here, lag)])
        text = "How late the event loop comes to what is due."
        yield Latencies(PREFIX + "loop_lag_seconds", text, here, server.lag.histogram)
