"""What iperf3, ping and wrk print, as numbers."""

from __future__ import annotations

import json
import re
from typing import Any, NamedTuple

from shadowmesh.testing.program import LabError

_WRK_UNITS = {"us": 1e-3, "ms": 1.0, "s": 1e3, "m": 60e3}


class Tcp(NamedTuple):
    """One TCP run of iperf3, all streams together."""

    bits_per_second: float
    bytes: int
    """As the receiver counted them."""
    retransmits: int
    congestion: str
    """Congestion control of the sender."""


class Udp(NamedTuple):
    """One UDP run of iperf3."""

    sent: float
    """Datagrams/s that the sender got rid of."""
    received: float
    """Datagrams/s that came through."""

    @property
    def loss(self) -> float:
        """Share of the datagrams that did not come through, 0…1."""
        return 1.0 - self.received / self.sent if self.sent else 1.0


class Ping(NamedTuple):
    """Round trips of one ping command, in milliseconds and in the order of arrival."""

    times: list[float]
    sent: int


class Wrk(NamedTuple):
    """One run of wrk."""

    requests_per_second: float
    median_ms: float
    errors: int
    """Failed connections, reads, writes, time-outs, and answers other than 2xx and 3xx."""


def iperf3_tcp(text: str) -> Tcp:
    """`iperf3 -J` over TCP. Raises LabError with iperf3's own words."""
    end = _iperf3(text)
    received, sent = end["sum_received"], end["sum_sent"]
    return Tcp(
        received["bits_per_second"],
        received["bytes"],
        sent.get("retransmits", 0),
        end.get("sender_tcp_congestion", ""),
    )


def iperf3_udp(text: str) -> Udp:
    """`iperf3 -J -u`. Raises LabError with iperf3's own words.

    The receiver counts as lost only what is missing before the last datagram that came; so loss is taken
    from what the sender sent.
    """
    end = _iperf3(text)
    sent, received = end["sum_sent"], end["sum_received"]
    seconds = sent["seconds"]
    arrived = max(0, received["packets"] - received["lost_packets"])
    return Udp(sent["packets"] / seconds, min(arrived, sent["packets"]) / seconds)


def _iperf3(text: str) -> dict[str, Any]:
    try:
        result = json.loads(text)
    except ValueError:
        raise LabError(f"iperf3 gave no JSON: {text.strip()[:200]!r}") from None
    if error := result.get("error"):
        raise LabError(f"iperf3: {error}")
    end: dict[str, Any] = result["end"]
    if not end.get("sum_received"):
        raise LabError("iperf3 ended without a result of the receiver")
    return end


def ping(text: str) -> Ping:
    """iputils `ping` without -q. Raises LabError when nothing answered."""
    # Without the duplicates that iputils marks "(DUP!)".
    times = [float(time) for time in re.findall(r"^\d+ bytes from .* time=([\d.]+) ms$", text, re.MULTILINE)]
    sent = re.search(r"^(\d+) packets transmitted", text, re.MULTILINE)
    if not times or not sent:
        raise LabError(f"ping: no answer: {text.strip()[-200:]!r}")
    return Ping(times, int(sent[1]))


def wrk(text: str) -> Wrk:
    """`wrk --latency`. Raises LabError when it made no request."""
    rate = re.search(r"^Requests/sec:\s+([\d.]+)$", text, re.MULTILINE)
    median = re.search(r"^\s+50%\s+([\d.]+)(us|ms|s|m)$", text, re.MULTILINE)
    if not rate or not median or not float(rate[1]):
        raise LabError(f"wrk: no request was answered: {text.strip()[-200:]!r}")
    faults = re.search(r"Socket errors: connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    errors = sum(map(int, faults.groups())) if faults else 0
    errors += int(other[1]) if other else 0
    return Wrk(float(rate[1]), float(median[1]) * _WRK_UNITS[median[2]], errors)
