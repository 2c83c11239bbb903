"""Outputs of the real programs, shortened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bench import parse
from shadowmesh.testing.program import LabError

PING = """\
PING 10.10.10.2 (10.10.10.2) 56(84) bytes of data.
64 bytes from 10.10.10.2: icmp_seq=1 ttl=64 time=0.734 ms
64 bytes from 10.10.10.2: icmp_seq=2 ttl=64 time=12 ms
64 bytes from 10.10.10.2: icmp_seq=2 ttl=64 time=99.9 ms (DUP!)

--- 10.10.10.2 ping statistics ---
3 packets transmitted, 2 received, +1 duplicates, 33.3333% packet loss, time 11ms
"""

WRK = """\
Running 1s test @ http://10.10.10.2:8088/1k
  2 threads and 64 connections
  Thread Stats   Avg      Stdev     Max   +/- Stdev
    Latency     3.02ms    1.22ms  14.31ms   75.01%
    Req/Sec    10.32k     1.02k   12.45k    70.00%
  Latency Distribution
     50%  950.00us
     75%    3.60ms
     99%    6.99ms
  20617 requests in 1.01s, 24.83MB read
  Socket errors: connect 0, read 1, write 0, timeout 2
  Non-2xx or 3xx responses: 4
Requests/sec:  20412.55
Transfer/sec:     24.58MB
"""


def iperf3(**end: Any) -> str:
    return json.dumps({"start": {}, "intervals": [], "end": end})


def test_tcp_counts_what_was_received() -> None:
    text = iperf3(
        sum_sent={"bytes": 1100, "bits_per_second": 8800.0, "retransmits": 7},
        sum_received={"bytes": 1000, "bits_per_second": 8000.0},
        sender_tcp_congestion="cubic",
    )
    assert parse.iperf3_tcp(text) == parse.Tcp(8000.0, 1000, 7, "cubic")


def test_udp_loss_has_what_was_lost_at_the_end() -> None:
    """The receiver saw numbers up to 900 of 1000 and missed 100 of those."""
    text = iperf3(
        sum_sent={"packets": 1000, "seconds": 2.0},
        sum_received={"packets": 900, "lost_packets": 100},
    )
    result = parse.iperf3_udp(text)
    assert result == parse.Udp(sent=500.0, received=400.0)
    assert result.loss == pytest.approx(0.2)
    assert parse.Udp(0.0, 0.0).loss == 1.0


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"end": {}, "error": "unable to connect to server"}', "iperf3: unable to connect to server"),
        ("iperf3: parameter error", "gave no JSON: 'iperf3: parameter error'"),
        ('{"end": {}}', "without a result of the receiver"),
    ],
)
def test_a_failed_iperf3_is_an_error_with_its_words(text: str, words: str) -> None:
    with pytest.raises(LabError, match=words):
        parse.iperf3_tcp(text)


def test_ping_has_each_time_but_no_duplicates() -> None:
    assert parse.ping(PING) == parse.Ping([0.734, 12.0], sent=3)
    with pytest.raises(LabError, match="no answer"):
        parse.ping("1 packets transmitted, 0 received")


def test_wrk_times_are_milliseconds_and_all_errors_count() -> None:
    assert parse.wrk(WRK) == parse.Wrk(20412.55, 950 * 1e-3, errors=7)
    assert parse.wrk(WRK.replace("950.00us", "1.20s")).median_ms == pytest.approx(1200)
    assert parse.wrk(WRK.partition("  Socket")[0] + "Requests/sec: 5\n").errors == 0
    with pytest.raises(LabError, match="no request"):
        parse.wrk("unable to connect")
