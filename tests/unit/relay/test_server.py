from __future__ import annotations

import pytest
from structlog.testing import capture_logs

from shadowmesh.config import RelayConfig
from shadowmesh.net.server import Reject, Request
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.server import Server


def request(path: str = "/relay", peer_id: str = "x", protocols: tuple[str, ...] = ()) -> Request:
    return Request(path, {"peer_id": peer_id}, {}, ("192.0.2.7", 1234), protocols)


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


def test_the_next_logged_refusal_tells_how_many_were_not(server: Server) -> None:
    with capture_logs() as logs:
        for _ in range(13):
            server.refused("protocol", "192.0.2.7")
        skipped = 13 - len(logs)
        server._refusal_log.burst, server._refusal_log._tokens = 20, 20
        server.refused("protocol", "192.0.2.7")
    assert logs[-1]["unlogged_before"] == skipped


def test_sources_are_hashed_under_a_key_of_this_run(server: Server) -> None:
    other = Server(RelayConfig())
    assert server.source_hash("192.0.2.7") == server.source_hash("192.0.2.7")
    assert server.source_hash("192.0.2.7") != server.source_hash("192.0.2.8")
    assert server.source_hash("192.0.2.7") != other.source_hash("192.0.2.7")


@pytest.mark.parametrize(
    ("asked", "status"),
    [
        (request("/"), 404),
        (request("/relay/"), 404),
        (request(peer_id=""), 400),
        (request(peer_id="a/b"), 400),
        (request(peer_id="a\n"), 400),
    ],
)
def test_upgrades_are_refused(server: Server, asked: Request, status: int) -> None:
    answer = server.upgrade(asked)
    assert isinstance(answer, Reject)
    assert answer.status == status


@pytest.mark.parametrize(
    ("offered", "agreed"), [((), None), (("other",), None), (("other", "shadowmesh.v1"), "shadowmesh.v1")]
)
def test_subprotocol(server: Server, offered: tuple[str, ...], agreed: str | None) -> None:
    connection = server.upgrade(request(protocols=offered))
    assert isinstance(connection, Connection)
    assert connection.subprotocol == agreed
    assert server.admission.unjoined == 0, "counted when it is open, not before"
