from __future__ import annotations

from typing import Any

import pytest
from structlog.testing import capture_logs

from shadowmesh.config import RelayConfig
from shadowmesh.net.server import Reject, Request
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.kinds import Logged
from shadowmesh.relay.server import AWAY_PER_CONNECTION, Server
from shadowmesh.relay.source import source_of
from shadowmesh.relay.timing import Timing
from shadowmesh.testing.relay_server import at_once


def request(
    path: str = "/relay",
    peer_id: str = "x",
    protocols: tuple[str, ...] = (),
    headers: dict[str, str] | None = None,
) -> Request:
    return Request(path, {"peer_id": peer_id}, headers or {}, ("192.0.2.7", 1234), protocols)


def config(**settings: Any) -> RelayConfig:
    """As from a file."""
    return RelayConfig(**settings)


def opened(server: Server, source: str) -> Connection:
    connection = Connection(server, (source, 1), source, "x")
    server.admission.open(connection)
    return connection


def status(answer: Connection | Reject) -> int:
    return answer.status if isinstance(answer, Reject) else 101


@pytest.fixture
def server() -> Server:
    return Server(RelayConfig())


def test_refusals_are_all_counted_but_not_all_logged(server: Server) -> None:
    with capture_logs() as logs:
        for _ in range(100):
            server.refused("protocol", "192.0.2.7", "not JSON")
    assert server.counters.refused["protocol"] == 100
    assert 10 <= len(logs) <= 12
    assert all("192.0.2.7" not in str(line) for line in logs)


def test_sources_are_hashed_under_a_key_of_this_run(server: Server) -> None:
    other = Server(RelayConfig())
    assert server.shown_source("192.0.2.7") == server.shown_source("192.0.2.7")
    assert server.shown_source("192.0.2.7") != server.shown_source("192.0.2.8")
    assert server.shown_source("192.0.2.7") != other.shown_source("192.0.2.7")


def test_ips_are_shown_where_the_configuration_says_so() -> None:
    server = Server(RelayConfig(zero_knowledge=False))
    assert server.shown_source("2001:db8:1:2:3:4:5:6") == "2001:db8:1:2:3:4:5:6"


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (request("/"), 404),
        (request("/relay/"), 404),
        (request(peer_id=""), 400),
        (request(peer_id="a/b"), 400),
        (request(peer_id="a\n"), 400),
    ],
)
def test_upgrades_are_refused(server: Server, asked: Request, expected: int) -> None:
    assert status(server.upgrade(asked)) == expected


def test_the_order_of_answers() -> None:
    """Each fault is mended in turn, and the next one shows."""
    server = Server(config(allowed_origins=["https://app.example.com"], max_connections=1))
    evil, good = {"Origin": "https://evil.example"}, {"Origin": "https://app.example.com"}
    waiting = [opened(server, "192.0.2.7") for _ in range(16)]
    server.admission.max_unjoined = 16
    server.admission.joined = 1

    assert status(server.upgrade(request("/", peer_id="", headers=evil))) == 404
    assert status(server.upgrade(request(peer_id="", headers=evil))) == 400
    assert status(server.upgrade(request(headers=evil))) == 403
    answers = [server.upgrade(request(headers=good))]
    server.admission.leave_unjoined(waiting[0])
    server.admission.max_unjoined = 15
    answers.append(server.upgrade(request(headers=good)))
    server.admission.max_unjoined = 16
    answers.append(server.upgrade(request(headers=good)))
    assert [(status(each), each.body) for each in answers if isinstance(each, Reject)] == [
        (429, "too many connections from this source have not joined yet"),
        (503, "too many connections have not joined yet"),
        (503, "the relay is full"),
    ]
    assert all(each.headers["Retry-After"] == "5" for each in answers if isinstance(each, Reject))
    assert status(server.upgrade(request(headers=good | {"Shadowmesh-Rejoin": "1"}))) == 101
    assert status(server.upgrade(request(headers=good | {"shadowmesh-rejoin": "yes"}))) == 503
    counted = {"bad_request": 2, "origin": 1, "too_many_from_source": 1, "full": 3}
    assert {kind: n for kind, n in server.counters.refused.items() if n} == counted


def test_a_request_that_is_read_when_the_relay_stops_opens_nothing(server: Server) -> None:
    """Its connection has been cut, so it is no client, and nothing is counted."""
    server.draining = True
    assert status(server.upgrade(request())) == 503
    assert not server.counters.refused.total()


@pytest.mark.parametrize(
    ("ip", "proxies", "expected"),
    [("127.0.0.1", [], 101), ("::1", [], 101), ("127.0.0.1", ["127.0.0.1"], 429), ("192.0.2.7", [], 429)],
)
def test_this_host_is_no_source_unless_it_is_a_trusted_proxy(
    ip: str, proxies: list[str], expected: int
) -> None:
    """A proxy may run here that nobody told us of: 16 of its clients must not keep all others waiting."""
    server = Server(config(trusted_proxies=proxies))
    for _ in range(16):
        opened(server, source_of(ip))
    asked = Request("/relay", {"peer_id": "x"}, {}, (ip, 1), ())
    assert status(server.upgrade(asked)) == expected


def test_a_new_configuration_reaches_every_table(server: Server) -> None:
    new = config(
        max_connections=8,
        queue_size=7,
        connection_timeout=6,
        allowed_origins=[],
        trusted_proxies=["192.0.2.7"],
        log_routing=True,
        limits={"queue_memory": 200_000},
    )
    at_once(server.reconfigure(new))
    assert (server.admission.max_connections, server.memory.max_frames) == (8, 7)
    assert server.memory.limit == 200_000
    assert server.router._max_away == 8 * AWAY_PER_CONNECTION
    assert (server.timing.keepalive, server.timing.dead, server.timing.join) == (2, 6, 10)
    assert status(server.upgrade(request(headers={"Origin": "https://app.example.com"}))) == 403
    connection = server.upgrade(request(headers={"X-Real-IP": "198.51.100.1"}))
    assert isinstance(connection, Logged)
    assert (connection.client, connection.source) == (("198.51.100.1", 0), "198.51.100.1")
    assert (server.frame_log is None, server.routing_log is None) == (True, False)


def test_timers_that_a_test_or_the_file_sets_stay() -> None:
    server = Server(RelayConfig(), Timing(keepalive=1, dead=2, tick=0.1))
    at_once(server.reconfigure(RelayConfig(region="elsewhere")))
    assert (server.timing.keepalive, server.timing.dead) == (1, 2)
    at_once(server.reconfigure(RelayConfig(connection_timeout=30)))
    assert (server.timing.keepalive, server.timing.dead, server.timing.tick) == (10, 25, 0.1)


@pytest.mark.parametrize(
    ("offered", "agreed"), [((), None), (("other",), None), (("other", "shadowmesh.v1"), "shadowmesh.v1")]
)
def test_subprotocol(server: Server, offered: tuple[str, ...], agreed: str | None) -> None:
    connection = server.upgrade(request(protocols=offered))
    assert isinstance(connection, Connection)
    assert connection.subprotocol == agreed
    assert server.admission.unjoined == 0, "counted when it is open, not before"
