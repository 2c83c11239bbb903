"""The client's side of the relay protocol, against a relay that plays a script."""

from __future__ import annotations

import asyncio
import contextlib
import http
import json
import socket
from base64 import b64decode
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from shadowmesh.crypto.join import verify_join
from shadowmesh.daemon import backoff
from shadowmesh.daemon import link as link_module
from shadowmesh.daemon.link import AGENT, RelayLink
from shadowmesh.net.client import connect
from shadowmesh.testing.scripted_relay import (
    ADDRESSES,
    DEVICE,
    IDENTITY,
    NETWORK,
    Linked,
    admit,
    challenge,
    closing,
    joined_message,
    linked,
    quicken,
    silent,
    stay,
    then,
    with_relay,
)
from shadowmesh.testing.websocket import drive, until
from shadowmesh.wire.control import decode_claims


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    quicken(monkeypatch)


# Joining


def test_join() -> None:
    joins: list[dict[str, Any]] = []
    nonces: list[bytes] = []
    requests: list[Request] = []

    async def script(ws: ServerConnection) -> None:
        assert ws.request is not None
        requests.append(ws.request)
        nonces.append(await challenge(ws))
        joins.append(json.loads(await ws.recv()))
        await ws.send(joined_message())
        await ws.wait_closed()

    @with_relay(script)
    async def test(running: Linked) -> None:
        await running.joined()
        link = running.link
        assert (link.state, link.ready, link.reason, link.connects) == ("connected", True, "", 1)
        assert link.remote == "203.0.113.9:51234"
        assert link.relay is not None
        assert (link.relay.server_name, link.relay.region) == ("relay-1", "here")
        assert running.engine.happened("relay_joined") == [
            {"relay": link.url, "ip": None, "name": "relay-1", "addresses": 2}
        ]
        await until(lambda: link.rtt is not None)

    url = urlsplit(requests[0].path)
    assert url.path == "/relay"
    assert parse_qs(url.query) == {"peer_id": ["p"], "shard": [f"{NETWORK.network_id[0]:02x}"]}
    assert "Authorization" not in requests[0].headers
    raw = b64decode(joins[0]["claims"])
    signatures = [b64decode(joins[0][f"{which}_signature"]) for which in ("network", "device")]
    verify_join(nonces[0], raw, NETWORK.network_id, DEVICE.device_id, signatures[0], signatures[1])
    claims = decode_claims(raw)
    assert (claims.version, claims.instance, claims.relay) == (1, b"I" * 16, "127.0.0.1")
    assert (claims.network, claims.device) == (NETWORK.network_id, DEVICE.device_id)
    assert (claims.addresses, claims.agent) == (ADDRESSES, AGENT)


def test_a_relay_quicker_than_our_own_dialling(monkeypatch: pytest.MonkeyPatch) -> None:
    """`joined` may come before the task that dials runs again."""

    async def slow(*args: Any, **options: Any) -> None:
        await connect(*args, **options)
        await asyncio.sleep(0.05)

    monkeypatch.setattr(link_module, "connect", slow)

    @with_relay(closing(1012), stay)
    async def test(running: Linked) -> None:
        await running.joined(2)
        await asyncio.sleep(0.1)
        assert running.link.state == "connected"
        assert running.engine.happened("relay_lost")[0]["code"] == 1012


def test_only_what_is_refused_and_ours_is_asked_for_again() -> None:
    asked: list[dict[str, Any]] = []

    async def script(ws: ServerConnection) -> None:
        await admit(ws, *ADDRESSES, b"C" * 16)
        for refused in [[ADDRESSES[1]], [b"C" * 16, ADDRESSES[1]], []]:
            asked.append(json.loads(await ws.recv()))
            answer = {
                "type": "addresses",
                "refused": [{"address": each.hex(), "code": "too_many"} for each in refused],
            }
            await ws.send(json.dumps(answer))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.2):
                asked.append(json.loads(await ws.recv()))
        await ws.close()

    @with_relay(script, silent)
    async def test(running: Linked) -> None:
        await running.joined()
        assert running.link.refused == dict.fromkeys(ADDRESSES, "address_in_use")
        await running.lost()
        assert running.link.refused == {}
        told = [(facts["address"], facts["code"]) for facts in running.engine.happened("address_refused")]
        assert told == [
            (ADDRESSES[0], "address_in_use"),
            (ADDRESSES[1], "address_in_use"),
            (ADDRESSES[1], "too_many"),
        ]

    add = [[each.hex() for each in addresses] for addresses in (ADDRESSES, ADDRESSES[1:], ADDRESSES[1:])]
    assert asked == [{"type": "addresses", "add": each, "remove": []} for each in add]


def test_answers_nobody_asked_for_do_not_multiply_the_questions() -> None:
    asked: list[str | bytes] = []
    refusal = [{"address": ADDRESSES[0].hex(), "code": "address_in_use"}]

    async def script(ws: ServerConnection) -> None:
        await admit(ws)
        for _ in range(20):
            await ws.send(json.dumps({"type": "addresses", "refused": refusal}))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.15):
                while True:
                    asked.append(await ws.recv())
        await ws.close()

    @with_relay(script, silent)
    async def test(running: Linked) -> None:
        await running.lost()

    assert len(asked) == 1


# Frames and messages


def test_frames_both_ways() -> None:
    received: list[str | bytes] = []

    async def script(ws: ServerConnection) -> None:
        await challenge(ws)
        await ws.recv()
        await ws.send(b"before joined")
        await ws.send(joined_message())
        await ws.send(b"\x10" + bytes(100_000))
        received.append(await ws.recv())
        await ws.wait_closed()

    @with_relay(script)
    async def test(running: Linked) -> None:
        running.link.send_frame(b"dropped: there is no relay yet")
        await running.joined()
        running.link.send_frame(memoryview(b"\x10hello"))
        await until(lambda: received and running.engine.frames)
        assert received == [b"\x10hello"]
        assert running.engine.frames == [b"\x10" + bytes(100_000)]


def test_words_of_the_relay() -> None:
    gone = json.dumps({"type": "gone", "address": "41" * 16, "reason": "not_here"})
    problem = json.dumps({"type": "problem", "code": "address_in_use", "detail": "41" * 16})
    unknown = json.dumps({"type": "weather", "rain": True})
    hints = [json.dumps({"type": kind, "address": "42" * 16}) for kind in ("pause", "resume")]

    @with_relay(then(unknown, problem, *hints, gone))
    async def test(running: Linked) -> None:
        await until(lambda: running.engine.absent)
        assert running.engine.absent == [b"A" * 16]
        assert running.engine.happened("address_contested") == [{"address": "41" * 16}]
        assert running.engine.hints == [("hold", b"B" * 16), ("release", b"B" * 16)]
        assert running.link.ready


@pytest.mark.parametrize(
    "message",
    [
        "garbage",
        "[1]",
        '{"type":"gone","address":"xx","reason":"not_here"}',
        '{"type":"gone","type":"gone"}',
        "[" * 5000,
        joined_message(),
    ],
)
def test_a_relay_that_talks_nonsense(message: str) -> None:
    @with_relay(then(message), stay)
    async def test(running: Linked) -> None:
        facts = await running.lost()
        assert facts["code"] is None
        assert facts["reason"].startswith("the relay breaks the protocol: ")
        await running.joined(2)


@pytest.mark.parametrize("kind", ["joined", "gone", "pause", "resume", "addresses", "challenge"])
def test_messages_out_of_order(kind: str) -> None:
    async def script(ws: ServerConnection) -> None:
        if kind == "challenge":
            await challenge(ws)
            await challenge(ws)
        elif kind == "joined":
            await ws.send(joined_message())
        else:
            await challenge(ws)
            await ws.send(json.dumps({"type": kind, "address": "41" * 16, "reason": "not_here"}))
        await ws.wait_closed()

    @with_relay(script, stay)
    async def test(running: Linked) -> None:
        assert (await running.lost())["reason"] == "the relay breaks the protocol: a message out of order"
        await running.joined()
        assert running.engine.absent == []


def test_another_version() -> None:
    async def script(ws: ServerConnection) -> None:
        await challenge(ws, version=2)
        await ws.wait_closed()

    @with_relay(script, stay)
    async def test(running: Linked) -> None:
        reason = (await running.lost())["reason"]
        assert reason == "the relay speaks version 2 of the protocol, this client 1: upgrade this client"


# Ends of a connection


@pytest.mark.parametrize(
    ("code", "retry_in", "words"),
    [
        (1000, 0.02, "the relay closed the connection (1000): text"),
        (1008, 0.02, "the relay closed the connection (1008): text"),
        (1012, 0.02, "the relay stops or restarts"),
        (1013, 0.02, "the relay has no place for us: text"),
        (4001, 30.0, "the relay refused the join: text"),
        (4002, 0.02, "the relay gave up waiting for the join: text"),
        (4003, 30.0, "the relay closed the connection (4003): text"),
        (4004, 60.0, "duplicate_device: another process uses this device's key: text"),
        (4005, 30.0, "the relay withdrew our access: text"),
    ],
)
def test_close_codes(code: int, retry_in: float, words: str) -> None:
    @with_relay(closing(code, "text"), stay)
    async def test(running: Linked) -> None:
        facts = await running.lost()
        assert (facts["code"], facts["retry_in"]) == (code, round(retry_in, 1))
        link = running.link
        if retry_in < 1:
            await running.joined(2)
            assert (link.reason, link.connects) == ("", 2)
        else:
            assert (link.state, link.ready, link.reason) == ("waiting", False, words)
        assert facts["reason"] == words


def test_what_a_relay_says_cannot_write_on_the_terminal() -> None:
    @with_relay(closing(4001, "\x1b[31mred\nline ü"), stay)
    async def test(running: Linked) -> None:
        assert (await running.lost())["reason"] == "the relay refused the join: ?[31mred?line ?"


def test_drain() -> None:
    @with_relay(closing(1012, "", json.dumps({"type": "drain", "reconnect_after_ms": 300})), stay)
    async def test(running: Linked) -> None:
        assert (await running.lost())["retry_in"] == pytest.approx(0.3, abs=0.05)
        await running.joined(2)


def test_drain_is_no_way_to_have_us_dial_without_a_pause() -> None:
    @with_relay(closing(1012, "", json.dumps({"type": "drain", "reconnect_after_ms": 0})), stay)
    async def test(running: Linked) -> None:
        started = asyncio.get_running_loop().time()
        await running.joined(2)
        assert asyncio.get_running_loop().time() - started >= 0.02


def test_a_loss_without_a_close_frame() -> None:
    async def cut(ws: ServerConnection) -> None:
        await admit(ws)
        ws.transport.abort()

    @with_relay(cut, cut, stay)
    async def test(running: Linked) -> None:
        facts = await running.lost()
        assert (facts["code"], facts["reason"]) == (None, "the connection was lost")
        await running.joined(3)
        assert running.link.ready


def test_a_connection_that_lasted_starts_the_back_off_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "STABLE_AFTER", 0.0)
    monkeypatch.setattr(backoff, "USUAL", (0.1, 10.0))

    @with_relay(*[closing(1012)] * 3, stay)
    async def test(running: Linked) -> None:
        await running.joined(4)
        assert [facts["retry_in"] for facts in running.engine.happened("relay_lost")] == [0.1] * 3


def test_nobody_listens() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        port = holder.getsockname()[1]

        async def main() -> None:
            async with linked(port) as running:
                await until(lambda: running.engine.happened("relay_unreachable"))
                assert "refuses connections" in running.link.reason
                await asyncio.sleep(0.1)
                assert len(running.engine.happened("relay_unreachable")) == 1
                assert running.link.state in ("waiting", "connecting")

        drive(main)


def test_no_name(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def main() -> None:
        monkeypatch.setattr(socket, "getaddrinfo", fail)
        link = RelayLink(
            "ws://relay.invalid/relay", "relay.invalid", IDENTITY, "p", lambda name, **facts: None
        )
        task = asyncio.create_task(link.run())
        await until(lambda: link.reason)
        assert link.reason == "cannot find the address of relay.invalid: Name or service not known"
        task.cancel()
        await asyncio.wait({task})

    drive(main)


def test_a_busy_relay_does_not_send_us_away_for_an_hour(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_RETRY_AFTER", 0.1)
    tries: list[float] = []

    def full(ws: ServerConnection, request: Request) -> Response | None:
        tries.append(asyncio.get_running_loop().time())
        if len(tries) > 1:
            return None
        response = ws.respond(http.HTTPStatus.SERVICE_UNAVAILABLE, "full\n")
        response.headers["Retry-After"] = "3600"
        return response

    @with_relay(stay, process_request=full)
    async def test(running: Linked) -> None:
        await running.joined()
        assert running.engine.happened("relay_unreachable")[0]["reason"].startswith("HTTP 503")
        assert tries[1] - tries[0] >= 0.1


def test_goodbye() -> None:
    """What was sent last reaches the relay, then the close frame."""
    received: list[Any] = []

    async def script(ws: ServerConnection) -> None:
        await admit(ws)
        async for message in ws:
            received.append(message)
        received.append(ws.close_code)

    @with_relay(script)
    async def test(running: Linked) -> None:
        await running.joined()
        for number in range(3):
            running.link.send_frame(bytes([0x10, number]))
        await running.stop()
        assert running.task.cancelled()
        await until(lambda: len(received) == 4)

    assert received == [b"\x10\x00", b"\x10\x01", b"\x10\x02", 1000]


# Silence


def test_a_relay_that_never_challenges() -> None:
    @with_relay(silent, stay)
    async def test(running: Linked) -> None:
        assert (await running.lost())["reason"] == "the relay does not answer with a challenge"
        await running.joined()


def test_a_relay_that_never_joins_whatever_else_it_says() -> None:
    async def script(ws: ServerConnection) -> None:
        await challenge(ws)
        while True:
            await ws.send('{"type":"wait"}')
            await asyncio.sleep(0.02)

    @with_relay(script, stay)
    async def test(running: Linked) -> None:
        assert (await running.lost())["reason"] == "the relay does not answer the join"
        await running.joined()
