"""The local API: what it answers, and to whom not. A hostile page gets nothing by any path."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from openapi_spec_validator import validate
from structlog.testing import capture_logs

from shadowmesh.config import ClientConfig
from shadowmesh.config.address import HostPort
from shadowmesh.config.client import DaemonConfig
from shadowmesh.daemon.api import MAX_BODY, create_api, serve_api
from shadowmesh.daemon.control import Control
from shadowmesh.daemon.openapi import DESCRIPTION
from shadowmesh.daemon.ping import UnknownPeer
from shadowmesh.daemon.token import Token
from shadowmesh.errors import ConfigError, StartError
from shadowmesh.net.http import MAX_CONNECTIONS
from shadowmesh.testing.websocket import drive

GETS = ["/health", "/status", "/peers", "/metrics", "/openapi.json"]
POSTS = ["/connect", "/disconnect", "/reload", "/trust", "/ping"]
BODIES: dict[str, dict[str, object]] = {"/trust": {"ip": "10.10.10.2"}, "/ping": {"peer": "b"}}
HEALTH = {"status": "connected", "reason": "", "uptime": 1.5, "version": "1"}


class FakeReport:
    """Facts made up."""

    def __init__(self) -> None:
        self.facts: dict[str, Any] = dict(HEALTH)

    def health(self) -> dict[str, Any]:
        return self.facts

    def status(self) -> dict[str, Any]:
        return {**self.facts, "peers": self.peers()}

    def peers(self) -> list[dict[str, Any]]:
        return [{"name": "b"}]


class FakeControl:
    """Notes what it is asked to do."""

    def __init__(self) -> None:
        self.report = FakeReport()
        self.asked: list[object] = []

    def connect(self) -> None:
        self.asked.append("connect")

    async def disconnect(self) -> None:
        self.asked.append("disconnect")

    async def reload(self) -> dict[str, Any]:
        self.asked.append("reload")
        return {"applied": ["relay.server"], "refused": [], "warnings": []}

    def trust(self, ip: str, fingerprint: str) -> dict[str, Any]:
        self.asked.append(("trust", ip, fingerprint))
        return {"ip": ip, "fingerprint": fingerprint, "before": ""}

    async def ping(self, peer: str, count: int) -> dict[str, Any]:
        self.asked.append(("ping", peer, count))
        if peer == "nobody":
            raise UnknownPeer("nobody is nobody")
        return {"peer": peer, "rtt_ms": [1.0] * count}


class Api:
    """The API of a daemon that does nothing but note what it is asked."""

    def __init__(self, token: Token) -> None:
        self.control = FakeControl()
        self.secret = Path(token.path).read_text().strip() if not token.trouble else ""
        self._app = create_api(cast(Control, self.control), token)

    def ask(
        self,
        method: str,
        path: str,
        headers: dict[str, str] | list[tuple[str, str]] | None = None,
        body: bytes = b"",
    ) -> httpx.Response:
        async def request() -> httpx.Response:
            transport = httpx.ASGITransport(self._app)
            async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1:9090") as client:
                return await client.request(method, path, headers=headers, content=body)

        return asyncio.run(request())

    def post(self, path: str, body: object = None, **headers: str) -> httpx.Response:
        """As the operator's program does it."""
        fields = {"Content-Type": "application/json", "Authorization": f"Bearer {self.secret}"}
        fields |= {name.replace("_", "-"): value for name, value in headers.items()}
        content = body if isinstance(body, bytes) else json.dumps(body).encode() if body is not None else b""
        return self.ask("POST", path, {name: value for name, value in fields.items() if value}, content)


@pytest.fixture
def api(tmp_path: Path) -> Iterator[Api]:
    token = Token(str(tmp_path / "api.token"))
    yield Api(token)
    token.close()


# -- what it answers


def test_status_and_peers(api: Api) -> None:
    assert api.ask("GET", "/status").json() == HEALTH | {"peers": [{"name": "b"}]}
    assert api.ask("GET", "/peers").json() == {"peers": [{"name": "b"}]}


@pytest.mark.parametrize("status", ["connecting", "joining", "waiting", "down"])
def test_health_says_by_its_status_whether_there_is_a_relay(api: Api, status: str) -> None:
    assert (api.ask("GET", "/health").status_code, api.ask("GET", "/health").json()) == (200, HEALTH)
    api.control.report.facts.update(status=status, reason="the relay restarts")
    response = api.ask("GET", "/health")
    assert (response.status_code, response.json()["reason"]) == (503, "the relay restarts")


def test_answers_are_for_people_too(api: Api) -> None:
    response = api.ask("GET", "/health")
    assert response.text == (
        '{\n  "status": "connected",\n  "reason": "",\n  "uptime": 1.5,\n  "version": "1"\n}\n'
    )
    assert response.headers["content-type"] == "application/json"
    assert response.headers["cache-control"] == "no-store"


def test_what_the_operator_asks_for_is_done(api: Api) -> None:
    assert api.post("/connect").json() == HEALTH
    assert api.post("/disconnect", {}).json() == HEALTH
    assert api.post("/reload", {}).json()["applied"] == ["relay.server"]
    assert api.post("/trust", {"ip": "10.10.10.2"}).json()["ip"] == "10.10.10.2"
    assert api.post("/trust", {"ip": "10.10.10.2", "fingerprint": "a"}).json()["fingerprint"] == "a"
    assert api.post("/ping", {"peer": "b", "count": 3}).json()["rtt_ms"] == [1.0] * 3
    assert api.control.asked == [
        *("connect", "disconnect", "reload"),
        *(("trust", "10.10.10.2", ""), ("trust", "10.10.10.2", "a"), ("ping", "b", 3)),
    ]


def test_what_cannot_be_done_is_said(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    response = api.post("/ping", {"peer": "nobody"})
    assert (response.status_code, response.json()) == (404, {"error": "nobody is nobody"})

    async def refuse() -> dict[str, Any]:
        raise ConfigError(["f.yaml:1:1: relay: is missing", "f.yaml:2:1: x: unknown key"])

    monkeypatch.setattr(api.control, "reload", refuse)
    response = api.post("/reload")
    assert response.status_code == 409
    assert response.json() == {
        "error": "the configuration has mistakes",
        "problems": ["f.yaml:1:1: relay: is missing", "f.yaml:2:1: x: unknown key"],
    }


@pytest.mark.parametrize("path", ["/", "/status/", "/STATUS", "//status", "/favicon.ico"])
def test_an_unknown_path_lists_the_known_ones(api: Api, path: str) -> None:
    response = api.ask("GET", path)
    assert (response.status_code, response.json()) == (
        404,
        {"error": "no such path", "paths": [*GETS, *POSTS]},
    )


@pytest.mark.parametrize("path", [*GETS, *POSTS])
def test_another_method_names_the_right_one(api: Api, path: str) -> None:
    right = "GET, HEAD" if path in GETS else "POST"
    for method in {"GET", "POST", "PUT", "DELETE", "OPTIONS"} - set(right.split(", ")):
        response = api.ask(method, path)
        assert (response.status_code, response.headers["allow"]) == (405, right)
        assert response.json() == {"error": f"{path} is for {right.partition(',')[0]}"}
    assert not api.control.asked


# -- a hostile page


FOREIGN_HOSTS = [
    *("evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.example"),
    *("127.0.0.1@evil.example", "evil.example@127.0.0.1", "127.1", "2130706433", "0.0.0.0", "[::1]:9090"),
    *("192.168.1.5", "", "[::1", "[evil]", "a b", "127.0.0.1/x", "127.0.0.1#evil", "localhost."),
    *(
        "localhost?",
        "localhost#",
        "localhost/",
        "localhost:abc",
        "localhost:",
        "localhost:123456",
        "localhost:-1",
    ),
    *("localhost:9090:1", "@localhost", ":@localhost", "localhost\t", "localhost,evil", "::1", "[localhost]"),
    *("127.0.0.1?", "127.0.0.1:", "127.0.0.1:0x1", "127.0.0.01", "127.0.0.1.", "[127.0.0.1]", "[::1%lo]"),
]


@pytest.mark.parametrize("path", [*GETS, *POSTS, "/", "/nothing"])
def test_a_foreign_host_is_refused_on_every_path(api: Api, path: str) -> None:
    token = {"Content-Type": "application/json", "Authorization": f"Bearer {api.secret}"}
    for host in FOREIGN_HOSTS:
        for method in ("GET", "POST"):
            body = json.dumps(BODIES.get(path, {})).encode()
            response = api.ask(method, path, token | {"Host": host}, body)
            assert response.status_code == 403, host
            assert "this Host is not served here" in response.json()["error"]
    assert not api.control.asked


@pytest.mark.parametrize("path", [*GETS, *POSTS])
@pytest.mark.parametrize(
    "more",
    [
        [("Host", "127.0.0.1:9090"), ("Host", "evil.example")],
        [("Host", "127.0.0.1:9090"), ("Host", "127.0.0.1:9090")],
        [("Origin", "http://127.0.0.1:9090"), ("Origin", "https://evil.example")],
        [("Origin", "http://127.0.0.1:9090"), ("Origin", "http://127.0.0.1:9090")],
        [("Sec-Fetch-Site", "none"), ("Sec-Fetch-Site", "cross-site")],
    ],
    ids=str,
)
def test_what_counts_once_is_refused_twice(api: Api, path: str, more: list[tuple[str, str]]) -> None:
    headers = [("Content-Type", "application/json"), ("Authorization", f"Bearer {api.secret}"), *more]
    if more[0][0] != "Host":
        headers.append(("Host", "127.0.0.1:9090"))
    for method in ("GET", "POST"):
        assert api.ask(method, path, headers, json.dumps(BODIES.get(path, {})).encode()).status_code == 403
    assert not api.control.asked


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:9090", "127.0.0.1", "127.0.0.1:8080"])
def test_own_hosts_are_served(api: Api, host: str) -> None:
    assert api.ask("GET", "/status", {"Host": host}).status_code == 200


@pytest.mark.parametrize("path", [*GETS, *POSTS, "/", "/nothing"])
@pytest.mark.parametrize(
    "foreign",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9091"},
        {"Origin": "https://127.0.0.1:9090"},
        {"Origin": "http://127.0.0.1:9090.evil.example"},
        {"Origin": ""},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_another_origin_is_refused_on_every_path(api: Api, path: str, foreign: dict[str, str]) -> None:
    """Also with the token: a page that has it must be shown to be one."""
    token = {"Content-Type": "application/json", "Authorization": f"Bearer {api.secret}"}
    for method in ("GET", "POST", "OPTIONS"):
        response = api.ask(method, path, token | foreign, json.dumps(BODIES.get(path, {})).encode())
        assert response.status_code == 403
        assert not [name for name in response.headers if name.startswith("access-control")]
    assert not api.control.asked


def test_the_own_origin_may_ask(api: Api) -> None:
    own = {"Origin": "http://127.0.0.1:9090", "Sec-Fetch-Site": "same-origin"}
    assert api.ask("GET", "/status", own).status_code == 200
    assert api.ask("GET", "/status", {"Sec-Fetch-Site": "none"}).status_code == 200


@pytest.mark.parametrize("path", POSTS)
def test_a_form_changes_nothing(api: Api, path: str) -> None:
    """What a page can send without asking first (fetch.spec, "CORS-safelisted request-header")."""
    for kind in ("application/x-www-form-urlencoded", "multipart/form-data; boundary=x", "text/plain", ""):
        for body in (b"ip=10.10.10.2&peer=b", json.dumps(BODIES.get(path, {})).encode()):
            response = api.post(path, body, Content_Type=kind)
            assert (response.status_code, "application/json" in response.text) == (415, True)
    assert not api.control.asked


@pytest.mark.parametrize("path", POSTS)
def test_without_the_token_nothing_changes(api: Api, path: str) -> None:
    wrong = ["", "Bearer", "Bearer ", "Bearer x", f"Basic {api.secret}", api.secret, f"Bearer {api.secret}x"]
    wrong += [f"Bearer {api.secret[:-1]}", f"Bearer {api.secret.upper()}"]
    for authorization in wrong:
        response = api.post(path, BODIES.get(path), Authorization=authorization)
        assert response.status_code == 401, authorization
        assert response.headers["www-authenticate"] == "Bearer"
        assert api.secret not in response.text
        assert "api.token" in response.json()["error"]
    assert not api.control.asked


def test_without_a_token_file_nothing_changes(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    api = Api(Token(str(tmp_path / "file" / "api.token")))
    for authorization in ("Bearer ", "Bearer None", ""):
        response = api.post("/connect", Authorization=authorization)
        assert (response.status_code, "daemon.token_file" in response.text) == (503, True)
    assert not api.control.asked


@pytest.mark.parametrize(
    ("path", "body", "error"),
    [
        ("/connect", b"[]", "the body is not a JSON object"),
        ("/connect", b"{", "the body is not a JSON object"),
        ("/connect", b"[" * 4000, "the body is not a JSON object"),
        ("/connect", b"\xff", "the body is not a JSON object"),
        ("/connect", b'{"now": true}', "unknown field in the body: 'now'"),
        ("/trust", b"{}", "the body lacks 'ip', a string"),
        ("/trust", b'{"ip": 1}', "the body lacks 'ip', a string"),
        ("/ping", b'{"peer": "b", "count": 0}', "count is not a number from 1 to 20"),
        ("/ping", b'{"peer": "b", "count": 21}', "count is not a number from 1 to 20"),
        ("/ping", b'{"peer": "b", "count": true}', "count is not a number from 1 to 20"),
        ("/ping", b'{"peer": ""}', "the body lacks 'peer', a string"),
    ],
)
def test_a_bad_body_is_named(api: Api, path: str, body: bytes, error: str) -> None:
    response = api.post(path, body)
    assert (response.status_code, response.json()) == (400, {"error": error})
    assert not api.control.asked


def test_a_body_has_a_bound(api: Api) -> None:
    fits = b"{" + b" " * (MAX_BODY - 2) + b"}"
    assert api.post("/connect", fits).status_code == 200
    assert api.post("/connect", fits + b" ").status_code == 413


# -- its description


def test_the_description_is_openapi(api: Api) -> None:
    description = api.ask("GET", "/openapi.json").json()
    validate(description)
    assert description == DESCRIPTION


def test_the_description_has_every_path(api: Api) -> None:
    described = {path: set(item) for path, item in DESCRIPTION["paths"].items()}
    assert described == {path: {"get"} for path in GETS} | {path: {"post"} for path in POSTS}
    for path in POSTS:
        assert DESCRIPTION["paths"][path]["post"]["security"] == [{"token": []}]


# -- its port


def config(tmp_path: Path, host: str, port: int) -> DaemonConfig:
    return DaemonConfig.model_construct(
        listen_address=HostPort(host, port), token_file=str(tmp_path / "api.token")
    )


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::", "localhost"])
def test_it_is_served_under_the_address_that_was_asked(tmp_path: Path, host: str) -> None:
    """By a real server, on one address and on all."""

    async def main() -> None:
        api = await serve_api(cast(Control, FakeControl()), config(tmp_path, host, 0))
        ip = "[::1]" if ":" in host else "127.0.0.1"
        async with httpx.AsyncClient(trust_env=False) as client:
            base = f"http://{ip}:{api.server.port}"
            assert (await client.get(f"{base}/health")).status_code == 200
            for foreign in ("evil.example", "127.0.0.2", "[::2]"):
                answer = await client.get(f"{base}/health", headers={"Host": foreign})
                assert answer.status_code == 403
        await api.close()
        assert not (tmp_path / "api.token").exists()

    drive(main)


def test_the_log_says_that_there_is_no_token(tmp_path: Path) -> None:
    async def main() -> None:
        (tmp_path / "api.token").mkdir()
        with capture_logs() as lines:
            api = await serve_api(cast(Control, FakeControl()), config(tmp_path, "127.0.0.1", 0))
        (line,) = (line for line in lines if line["log_level"] == "warning")
        assert line["event"] == "no token, nothing can be changed by the local API"
        assert str(tmp_path / "api.token") in line["why"]
        await api.close()

    drive(main)


HOSTILE = [
    b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"%s %s HTTP/1.1\r\n\r\n",
    b"%s %s HTTP/1.0\r\n\r\n",
    b"%s http://evil.example%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
    b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: https://evil.example\r\nConnection: Upgrade\r\n"
    b"Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n",
    b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"x" * 70_000 + b"\r\n\r\n",
    b"%s %s HTTP/1.1\r\nHost: 127.0.0.1\r\nOrigin: null\r\nContent-Length: 3\r\n"
    b"Transfer-Encoding: chunked\r\n\r\n",
]


def test_hostile_requests_as_they_are_on_the_wire(tmp_path: Path) -> None:
    async def ask(port: int, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        answer = await reader.read()
        writer.close()
        return answer

    async def main() -> None:
        control = FakeControl()
        api = await serve_api(cast(Control, control), config(tmp_path, "127.0.0.1", 0))
        for method, path in [(b"GET", path) for path in GETS] + [(b"POST", path) for path in POSTS]:
            for request in HOSTILE:
                answer = await ask(api.server.port, request % (method, path.encode()))
                assert answer.split()[1] in (b"400", b"403", b"404", b"431"), answer
                assert b"access-control" not in answer.lower()
        assert not control.asked
        async with AsyncExitStack() as stack:  # many who begin a request and do not end it
            for _ in range(MAX_CONNECTIONS + 5):
                _, writer = await asyncio.open_connection("127.0.0.1", api.server.port)
                stack.callback(writer.close)
                writer.write(b"POST /reload HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n")
            good = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
            assert b" 200 " in await ask(api.server.port, good)
        await api.close()

    drive(main)


def test_a_port_that_is_taken_names_both_remedies(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            port = listener.getsockname()[1]
            with pytest.raises(StartError) as raised:
                await serve_api(cast(Control, FakeControl()), config(tmp_path, "127.0.0.1", port))
        text = str(raised.value)
        assert f"daemon.listen_address {port} on 127.0.0.1: another program has this port" in text
        assert "daemon.listen_address, such as 127.0.0.1:9091" in text
        assert "its metrics_port" in text
        assert not (tmp_path / "api.token").exists()

    drive(main)


def test_the_configuration_names_the_token_file() -> None:
    assert "token_file" in ClientConfig.model_fields["daemon"].annotation.model_fields  # type: ignore[union-attr]


def test_an_ipv4_address_and_its_mapped_form_are_one(api: Api) -> None:
    mapped = "http://[::ffff:127.0.0.1]:9090/health"  # as a dual-stack socket names its own address
    assert api.ask("GET", mapped, {"Host": "127.0.0.1:9090"}).status_code == 200
    assert api.ask("GET", mapped, {"Host": "127.0.0.2:9090"}).status_code == 403
    assert api.ask("GET", "/health", {"Host": "[::ffff:127.0.0.1]:9090"}).status_code == 200
