"""How the daemon shows what it counts to Prometheus; docs/monitoring.md has all names."""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator

from shadowmesh import __version__
from shadowmesh.daemon.report import Link, Report
from shadowmesh.observe.metrics import Kind, Metric

PREFIX = "shadowmesh_daemon_"


def collect(report: Report) -> Iterator[Metric]:
    """All metrics of a daemon. No label names a peer: their number and names are not for a metrics store."""
    for name, text, kind, value in _numbers(report):
        yield Metric(PREFIX + name, text, kind, [({}, value)])
    for name, text, label, counted in (
        ("drops_total", "Packets and messages dropped.", "reason", report.drops),
        ("events_total", "What has happened.", "event", report.events),
    ):
        samples = [({label: key}, count) for key, count in sorted(counted.items())]
        yield Metric(PREFIX + name, text, "counter", samples)
    yield from _relays(report)
    troubles = sorted({each["code"] for each in report.diagnosis()})
    text = "1 for each thing that is wrong, as `shadowmesh status` says it."
    yield Metric(PREFIX + "trouble", text, "gauge", [({"code": code}, 1) for code in troubles])
    build = {"version": __version__, "python_version": platform.python_version()}
    yield Metric("shadowmesh_build_info", "What runs here; always 1.", "gauge", [(build, 1)])


def _numbers(report: Report) -> Iterator[tuple[str, str, Kind, float]]:
    totals, traffic, events = report.totals(), report.traffic, report.events
    yield "connected", "1 while there is a relay.", "gauge", report.state == "connected"
    yield "down", "1 while the operator wants no relay.", "gauge", report.down
    yield "peers", "Peers with a session.", "gauge", len(report.mesh.peers)
    yield "peers_connected", "Peers that packets reach.", "gauge", report.connected
    yield "packets_received_total", "Packets from peers given to this host.", "counter", traffic.packets_in
    yield "packets_sent_total", "Packets of this host for peers.", "counter", traffic.packets_out
    yield "messages_received_total", "Messages with content from peers.", "counter", totals.messages_in
    yield "messages_sent_total", "Messages with packets to peers.", "counter", totals.messages_out
    yield "bytes_received_total", "Bytes inside the tunnel from peers.", "counter", totals.bytes_in
    yield "bytes_sent_total", "Bytes inside the tunnel to peers.", "counter", totals.bytes_out
    yield "handshakes_total", "Handshakes with peers, rekeys included.", "counter", totals.handshakes
    text = "Overlay IPs that came with another key and were let in."
    yield "identity_changed_total", text, "counter", events.get("identity_changed", 0)
    text = "Overlay IPs that came with another key and were refused."
    yield "identity_refused_total", text, "counter", events.get("identity_refused", 0)


def _relays(report: Report) -> Iterator[Metric]:
    def each(name: str, text: str, kind: Kind, value: Callable[[Link], float | None]) -> Metric:
        # While the network key is replaced there are two connections to each relay: they are one series.
        values: dict[str, float] = {}
        for link in report.links:
            if (one := value(link)) is not None:
                before = values.get(link.url, 0.0)
                values[link.url] = before + one if kind == "counter" else max(before, one)
        return Metric(PREFIX + name, text, kind, [({"server": url}, one) for url, one in values.items()])

    def connected(link: Link) -> float:
        return not report.down and link.state == "connected"

    yield each("relay_connected", "1 while connected to this relay.", "gauge", connected)
    yield each("relay_rtt_seconds", "Round trip to this relay.", "gauge", lambda link: link.rtt)
    yield each("relay_joins_total", "Accepted joins.", "counter", lambda link: link.connects)
    text = "Frames given up because this relay did not read."
    yield each("relay_frames_dropped_total", text, "counter", lambda link: link.dropped)
    text = "Own addresses that this relay gives to another device."
    yield each("relay_addresses_refused", text, "gauge", lambda link: len(link.refused))
    lost = [
        ({"server": server, "reason": reason}, count)
        for (server, reason), count in sorted(report.losses.items())
    ]
    yield Metric(PREFIX + "relay_lost_total", "Connections lost.", "counter", lost)
