"""What the relay logs and shows of its clients: their life in two lines, and nothing that identifies them."""

from __future__ import annotations

import asyncio
import io
import json
import logging
import re
from base64 import b64encode
from collections.abc import Iterator
from time import monotonic
from typing import Any

import httpx
import pytest
import structlog
from structlog.testing import capture_logs
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from shadowmesh.net.http import serve_http
from shadowmesh.observe.logging import configure
from shadowmesh.relay.admin import health_app, metrics_app
from shadowmesh.relay.server import LOGGED_RATE
from shadowmesh.testing.relay_client import RelayClient, address, frame, key, public
from shadowmesh.testing.relay_server import QUICK, TestRelay, running_relay, with_relay

A, B, C, NOBODY = address("a"), address("b"), address("c"), address("nobody")
LOUD: dict[str, Any] = {"frame_logging": True, "log_routing": True, "log_connections": True}


def of(logs: Any, event: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] == event]


@with_relay()
async def test_the_life_of_a_connection_is_two_lines(relay: TestRelay) -> None:
    with capture_logs() as logs:
        async with relay.client() as a:
            await a.join(A, device="a")
            async with relay.client() as b:
                await b.join(B, C, device="b")
                for size in (10, 1000):
                    await a.send(frame(B, A, bytes(size)))
                    await b.next_data()
                await b.send(frame(A, C, bytes(100)))
                await a.next_data()
            await relay.until(lambda: len(relay.server.connections) == 1, "leaving")
    joined, left = (line for line in logs if line.get("device") == public(key("b")).hex()[:8])
    assert joined == {
        "event": "client joined",
        "log_level": "info",
        "logger_name": "relay",
        "device": public(key("b")).hex()[:8],
        "network": public(key("network")).hex()[:8],
        "peer_id": joined["peer_id"],
        "source": relay.server.shown_source("127.0.0.1"),
        "addresses": 2,
        "refused": 0,
        "agent": "other",
    }
    assert re.fullmatch("[0-9a-f]{8}", joined["peer_id"])
    assert 0 <= left.pop("seconds") < 5
    shared = {name: joined[name] for name in ("device", "network", "peer_id", "log_level", "logger_name")}
    assert left == shared | {
        "event": "client left",
        "reason": "closed by the client (1000)",
        "frames_in": 1,
        "bytes_in": 133,
        "frames_out": 2,
        "bytes_out": 1076,
    }


@pytest.mark.parametrize("logged", [True, False])
def test_log_connections(logged: bool) -> None:
    @with_relay(log_connections=logged)
    async def scenario(relay: TestRelay) -> None:
        with capture_logs() as logs:
            async with relay.client() as client:
                await client.join(A)
            await relay.until(lambda: not relay.server.connections, "leaving")
        assert [line["event"] for line in logs] == (["client joined", "client left"] if logged else [])

    scenario()


@pytest.mark.parametrize("logged", [True, False])
def test_frame_logging(logged: bool) -> None:
    @with_relay(frame_logging=logged)
    async def scenario(relay: TestRelay) -> None:
        with capture_logs() as logs:
            async with relay.client() as a, relay.client() as b:
                await a.join(A, device="a")
                await b.join(B, device="b")
                await a.send(frame(B, A, b"payload"))
                await b.next_data()
        expected = {
            "event": "data frame",
            "log_level": "info",
            "logger_name": "relay",
            "network": public(key("network")).hex()[:8],
            "source": A.hex()[:8],
            "destination": B.hex()[:8],
            "size": 40,
        }
        assert of(logs, "data frame") == ([expected] if logged else [])

    scenario()


@with_relay(**LOUD)
async def test_these_logs_are_at_a_bounded_rate(relay: TestRelay) -> None:
    async with relay.client() as a, relay.client() as b:
        await a.join(A, device="a")
        await b.join(B, device="b")
        begin = monotonic()
        with capture_logs() as logs:
            for _ in range(300):
                await a.send(frame(B, A))
                await a.send(frame(NOBODY, A))
            for _ in range(300):
                await b.next_data()
            most = LOGGED_RATE * (1 + monotonic() - begin) + 1
            await asyncio.sleep(2 / LOGGED_RATE)
            await a.send(frame(NOBODY, A))
            await relay.until(lambda: relay.counters.drops["not_here"] == 301, "the last frame")
        frames, drops = of(logs, "data frame"), of(logs, "frame dropped")
        assert LOGGED_RATE / 2 <= len(frames) <= most + 1
        assert LOGGED_RATE / 2 <= len(drops) <= most + 1
        left_out = of(logs, "lines left out")
        for lines, count in ((frames, 601), (drops, 301)):
            told = [line["count"] for line in left_out if line["like"] == lines[0]["event"]]
            assert sum(line.get("unlogged_before", 0) for line in lines) + len(lines) + sum(told) == count


@with_relay(log_routing=True, queue_size=1, write_buffer_size=1)
async def test_log_routing(relay: TestRelay) -> None:
    with capture_logs() as logs:
        async with relay.client() as a, relay.client() as b:
            await a.join(A, device="a")
            await b.join(B, device="b")
            await b.send({"type": "addresses", "add": [C.hex(), A.hex()], "remove": [B.hex()]})
            await b.next_control("addresses")
            await a.send(frame(NOBODY, A))
            await a.send(frame(A, B))
            await a.next_control("problem")
            b.ws.transport.pause_reading()
            while not relay.counters.drops["queue_full"]:
                await a.send(frame(C, A, bytes(60_000)))
            b.ws.transport.abort()
            await asyncio.sleep(5 / LOGGED_RATE)  # room in the log for what comes
        await relay.until(lambda: not relay.server.connections, "leaving")
    of_a, of_b = public(key("a")).hex()[:8], public(key("b")).hex()[:8]
    told = [
        (
            line["event"],
            line["device"],
            *(line[name] for name in ("addresses", "address", "reason") if name in line),
        )
        for line in logs
        if line["event"].startswith(("addr", "frame"))
    ]
    assert told[:7] == [
        ("addresses claimed", of_a, A.hex()[:8]),
        ("addresses claimed", of_b, B.hex()[:8]),
        ("addresses claimed", of_b, C.hex()[:8]),
        ("addresses released", of_b, B.hex()[:8]),
        ("address refused", of_b, A.hex()[:8]),
        ("frame dropped", of_a, "not_here"),
        ("frame dropped", of_a, "foreign_source"),
    ]
    assert {("addresses in grace", of_a, A.hex()[:8]), ("frame dropped", of_b, "queue_full")} <= set(told)


# -- zero knowledge

DIRECT, BEHIND, PROXY = "127.0.0.77", "203.0.113.77", "127.0.0.78"
ORIGIN = "https://x.example"
PAYLOAD = b"what nobody else may read"
SECRETS = ["network", "a", "b", "c"]


@pytest.fixture
def log(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Everything that the relay logs, through structlog or not, down to debug."""
    out = io.StringIO()
    before = logging.root.handlers[:], logging.root.level
    for name in ("websockets.client", "httpx", "httpcore.connection", "httpcore.http11"):  # the test's own
        monkeypatch.setattr(logging.getLogger(name), "disabled", True)
    configure("debug", "json", out)
    yield out
    structlog.reset_defaults()
    logging.root.handlers[:], logging.root.level = before


async def busy(relay: TestRelay) -> None:
    """Joins, refusals, conflicts, frames, drops, a bug: direct and behind a proxy."""
    behind = {"local_addr": (PROXY, 0), "additional_headers": {"X-Forwarded-For": BEHIND}}
    direct = {"local_addr": (DIRECT, 0)}
    async with relay.client(**direct) as a, relay.client(**behind) as b, relay.client(**behind) as c:
        assert (await a.join(A, device="a"))["remote"].startswith(DIRECT)
        assert (await b.join(B, device="b"))["remote"].startswith(BEHIND)
        await c.send_join(c.claims([C], relay="other.example"), device="b")
        await c.closed()
        for url, options in (
            (relay.url + "x" * 99, direct),
            (relay.url, behind | {"origin": ORIGIN}),
        ):
            with pytest.raises(InvalidStatus):
                await connect(url, proxy=None, **options)
        for to, source in ((B, A), (NOBODY, A), (B, NOBODY), (A, A), (B, A)):
            await a.send(frame(to, source, PAYLOAD))
        assert await b.next_data() == frame(B, A, PAYLOAD)
        await b.send({"type": "addresses", "add": [A.hex()]})
        await b.next_control("addresses")
        (connection,) = (each for each in relay.server.connections if each.member and A in each.member.held)
        connection.fail(RuntimeError("a bug"))
        await a.closed()


async def shown(relay: TestRelay) -> str:
    """What the HTTP ports show."""
    pages = ""
    for app, paths in (
        (health_app(relay.server), ("/health", "/ready", "/status")),
        (metrics_app(relay.server), ("/metrics",)),
    ):
        http = await serve_http(app, "127.0.0.1", 0, "test")
        async with httpx.AsyncClient(trust_env=False) as client:
            for path in paths:
                pages += (await client.get(f"http://127.0.0.1:{http.port}{path}")).text
        await http.close()
    return pages


def everything(log: io.StringIO, **settings: Any) -> tuple[str, list[dict[str, Any]]]:
    """(all that a busy relay logs and shows, its log lines)."""

    async def scenario() -> str:
        asyncio.get_running_loop().set_debug(False)
        async with (
            asyncio.timeout(20),
            running_relay(
                QUICK,
                **LOUD,
                **settings,
                trusted_proxies=[PROXY],
                public_names=["127.0.0.1"],
                allowed_origins=["https://app.example.com"],
            ) as relay,
        ):
            await busy(relay)
            pages = await shown(relay)
            await relay.server.drain(flush=0.1)
            return pages

    pages = asyncio.run(scenario())
    lines = log.getvalue()
    return pages + lines, [json.loads(line) for line in lines.splitlines()]


def test_zero_knowledge(log: io.StringIO) -> None:
    text, lines = everything(log)
    events = {line["event"] for line in lines}
    assert {
        "client joined",
        "client left",
        "client refused",
        "data frame",
        "frame dropped",
        "addresses claimed",
        "address refused",
        "addresses in grace",
        "unhandled exception in Logged",
    } <= events
    assert "shadowmesh_relay_frames_total" in text
    forbidden = {
        DIRECT,
        BEHIND,
        PROXY,
        "x.example",
        PAYLOAD.decode(),
        PAYLOAD.hex(),
        b64encode(PAYLOAD).decode()[:-4],
    }
    for name in SECRETS:
        secret = key(name).private_bytes_raw()
        forbidden |= {secret.hex(), b64encode(secret).decode(), public(key(name)).hex()}
    forbidden |= {each.hex() for each in (A, B, C, NOBODY)}
    assert [each for each in forbidden if each in text] == []
    sources = {line["source"] for line in lines if line["event"].startswith("client ") and "source" in line}
    assert len(sources) == 2, "the same client can be told from others, and nothing more"


def test_without_zero_knowledge(log: io.StringIO) -> None:
    text, lines = everything(log, zero_knowledge=False)
    joined = [line for line in lines if line["event"] == "client joined"]
    assert [line["source"] for line in joined] == [DIRECT, BEHIND]
    assert [line["device"] for line in joined] == [public(key(name)).hex() for name in ("a", "b")]
    assert [line["detail"] for line in lines if line.get("why") == "origin"] == [ORIGIN]
    assert {line["source"] for line in lines if line["event"] == "client refused"} == {BEHIND}
    forbidden = [PAYLOAD.decode(), PAYLOAD.hex(), *(key(name).private_bytes_raw().hex() for name in SECRETS)]
    assert [each for each in forbidden if each in text] == []


def test_the_hash_of_a_source_is_of_this_run() -> None:
    async def scenario() -> set[str]:
        found = set()
        for _ in range(2):
            with capture_logs() as logs:
                async with running_relay() as relay, RelayClient(relay.url) as client:
                    await client.join(A)
            found.add(of(logs, "client joined")[0]["source"])
        return found

    assert len(asyncio.run(scenario())) == 2
