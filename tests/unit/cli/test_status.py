"""`shadowmesh status` and its like against a daemon's real API in front of a mesh in memory."""

from __future__ import annotations

import json
import os
import re
import socket
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from structlog.testing import capture_logs

from shadowmesh.cli import ctl, local, status, tables
from shadowmesh.daemon import ping as ping_module
from shadowmesh.testing import guide
from shadowmesh.testing.reports import Served


class Host(Served):
    """A host with that daemon, on which commands are typed."""

    def run(self, *arguments: str) -> Result:
        api = ["--api", f"http://127.0.0.1:{self.port}", "--token-file", str(self.token_file)]
        return CliRunner().invoke(ctl.cli, [*arguments, *api])


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Host]:
    monkeypatch.setattr(status, "PING_EVERY", 0.0)
    monkeypatch.setattr(ping_module, "ANSWER_SECONDS", 0.3)
    one = Host(tmp_path)
    yield one
    one.close()


def test_status_for_people(served: Host) -> None:
    served.link.rtt = 0.0123
    result = served.run("status")
    assert (result.exit_code, result.stderr) == (0, "")
    lines = [re.split(r" {2,}", line.strip()) for line in result.stdout.splitlines()]
    assert ["state", "connected"] in lines
    assert ["device", "a, 10.10.10.1/24, fd00::1/64 on shadowmesh0, MTU 1400"] in lines
    assert ["peers", "1 connected"] in lines
    (relay,) = [line for line in lines if line[0] == "relay-a"]
    assert relay[1:3] == ["eu-west-2", "connected"]
    assert relay[4:] == ["12.3 ms", "0", "-", "ws://relay-a.example:9545/relay 192.0.2.9"]
    assert "\x1b" not in result.stdout


def test_status_tells_what_is_wrong_and_ends_with_1(served: Host) -> None:
    reason = "the relay asks for an API key: write it as relay.api_key"
    served.reported.event("relay_lost", relay=served.link.url, reason=reason)
    served.link.lose(reason)
    result = served.run("status")
    assert result.exit_code == 1
    assert f"waiting: {reason}" in result.stdout
    assert "WHY IT WAS LOST" in result.stdout
    assert re.search(r"api_key +the relay does not let us in", result.stdout)


def test_status_for_programs(served: Host) -> None:
    result = served.run("status", "--json")
    assert result.exit_code == 0
    facts = json.loads(result.stdout)
    assert (facts["name"], facts["status"], len(facts["peers"])) == ("a", "connected", 1)


def test_peers(served: Host) -> None:
    result = served.run("peers")
    assert result.exit_code == 0
    head, row = result.stdout.splitlines()
    assert " ".join(head.split()) == (
        "NAME IPS STATE PATH RTT LOSS IN OUT HANDSHAKE REKEYS OFFLOAD IDENTITY AGENT"
    )
    assert re.split(r" {2,}", row.strip())[:4] == ["b", "10.10.10.2, fd00::2", "connected", "relay-a"]
    (peer,) = json.loads(served.run("peers", "--json").stdout)
    assert peer["name"] == "b"


def test_ping(served: Host) -> None:
    result = served.run("ping", "b", "-c", "2")
    assert result.exit_code == 0, result.output
    first, second, summary = result.stdout.splitlines()
    assert re.fullmatch(r"b \(10\.10\.10\.2, fd00::2\): \d+\.\d ms", first)
    assert re.fullmatch(r"2 probes, 2 answers, 0 % lost; least .* ms", summary)
    assert second
    lines = served.run("ping", "10.10.10.2", "-c", "2", "--json").stdout.splitlines()
    assert [json.loads(line)["name"] for line in lines] == ["b", "b"]


def test_a_ping_that_nobody_answers_ends_with_1(served: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "PING_EVERY", 0)
    result = served.run("ping", "nobody", "-c", "2")
    assert result.exit_code == 1
    assert "nobody: no answer; waited for a session with this peer" in result.stdout
    assert result.stdout.count("Nobody is known as nobody: is the name spelt right?") == 1
    assert "\n2 probes, 0 answers, 100 % lost" in result.stdout
    assert "is the name" not in served.run("ping", "10.10.10.77", "-c", "1").stdout


NO_PEERS = (
    ("192.0.2.1", "is in none of this device's overlay networks"),
    ("10.10.10.1", "is this device itself"),
    ("10.10.10.0", "is no device's: it is an address of the network 10.10.10.0/24 itself"),
    ("10.10.10.255", "is no device's: it is an address of the network 10.10.10.0/24 itself"),
)


@pytest.mark.parametrize("command", ["ping", "trust"])
@pytest.mark.parametrize(("ip", "why"), NO_PEERS)
def test_what_no_peer_can_have_is_refused(served: Host, command: str, ip: str, why: str) -> None:
    result = served.run(command, ip)
    assert (result.exit_code, result.stderr) == (1, f"shadowmesh: {ip} {why}\n")
    assert served.trusted == []


def test_nobody_has_no_name(served: Host) -> None:
    result = served.run("ping", "")
    assert (result.exit_code, "write the name or the overlay IP of a peer" in result.stderr) == (2, True)


def test_a_peer_without_an_ip(served: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = {"name": "phone", "ips": [], "rtt_ms": [0.9], "waiting_for": ""}
    monkeypatch.setattr(local.LocalDaemon, "post", lambda *_, **__: answer)
    assert served.run("ping", "phone", "-c", "1").stdout.startswith(
        "phone: 0.9 ms\n1 probe, 1 answer, 0 % lost;"
    )


def test_down_and_up(served: Host) -> None:
    with capture_logs() as lines:
        down_and_up(served)
    assert [line["event"] for line in lines] == [
        f"switched {to} by the local API" for to in ("off", "on", "off", "on")
    ]


def down_and_up(served: Host) -> None:
    assert served.run("down").exit_code == 0
    assert served.run("down").exit_code == 0
    pinged = served.run("ping", "b")
    words = "shadowmesh: switched off by `shadowmesh down`; `shadowmesh up` connects again\n"
    assert (pinged.exit_code, pinged.stderr) == (1, words)
    result = served.run("status")
    assert (result.exit_code, "`shadowmesh up` connects again" in result.stdout) == (1, True)
    result = served.run("up")
    assert (result.exit_code, result.stdout) == (0, "connected\n")
    assert json.loads(served.run("down", "--json").stdout)["status"] == "down"
    assert json.loads(served.run("up", "--json").stdout)["status"] == "connected"


def test_up_says_why_it_is_not_connected(served: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "UP_SECONDS", 0.0)
    served.link.lose("r:9545 refuses connections")
    result = served.run("up")
    assert result.exit_code == 1
    assert "not connected yet: r:9545 refuses connections; the daemon goes on trying" in result.stderr


def test_trust(served: Host) -> None:
    result = served.run("trust", "10.10.10.2", "--fingerprint", "abc")
    assert (result.exit_code, result.stdout) == (0, "10.10.10.2: abc is trusted now\n")
    assert served.run("trust", "10.10.10.2").stdout == "10.10.10.2: the next device that answers is trusted\n"
    assert served.trusted == [("10.10.10.2", "abc"), ("10.10.10.2", "")]
    served.before = "abc"
    result = served.run("trust", "10.10.10.2", "--fingerprint", "abc")
    assert result.stdout == "10.10.10.2: abc was trusted already\n"


def test_reload(served: Host) -> None:
    result = served.run("reload")
    assert (result.exit_code, result.stdout) == (0, "applied: relay.server\n")
    served.reloaded["refused"] = ["needs a restart: network.mtu 1400 -> 1300"]
    result = served.run("reload")
    assert (result.exit_code, result.stderr) == (1, "needs a restart: network.mtu 1400 -> 1300\n")
    served.reloaded["applied"] = []
    assert served.run("reload").stdout == "applied: nothing\n"
    served.reloaded["refused"] = []
    assert served.run("reload").stdout == "applied: nothing has changed\n"
    served.reloaded = {}
    with capture_logs() as lines:
        result = served.run("reload")
    assert [line["event"] for line in lines] == [
        "f.yaml:3:1: relay: is missing",
        "configuration not reloaded",
    ]
    assert result.exit_code == 1
    assert "f.yaml:3:1: relay: is missing" in result.stderr


def test_watch(served: Host) -> None:
    lines = served.run("watch", "--json", "-n", "0.2", "--times", "2").stdout.splitlines()
    assert [json.loads(line)["status"] for line in lines] == ["connected", "connected"]
    shown = served.run("watch", "--times", "1").stdout
    assert shown.endswith("\n")
    assert "RELAY" in shown
    assert "NAME" in shown


def test_watch_takes_seconds_only(served: Host) -> None:
    for interval in ("nan", "inf", "0"):
        assert served.run("watch", "-n", interval, "--times", "1").exit_code == 2


def test_watch_waits_for_a_daemon_that_is_away() -> None:
    api = ["--api", f"http://127.0.0.1:{closed_port()}", "--token-file", "/x"]
    result = CliRunner().invoke(ctl.cli, ["watch", "--json", "--times", "1", *api])
    assert (result.exit_code, "no daemon answers" in json.loads(result.stdout)["error"]) == (0, True)
    result = CliRunner().invoke(ctl.cli, ["watch", "--times", "1", *api])
    assert (result.exit_code, "no daemon answers" in result.stdout) == (0, True)


# -- when it is not as it should be


def closed_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def test_no_daemon() -> None:
    port = closed_port()
    for command in (["status"], ["peers"], ["down"]):
        result = CliRunner().invoke(
            ctl.cli, [*command, "--api", f"http://127.0.0.1:{port}", "--token-file", "/nowhere/api.token"]
        )
        assert result.exit_code == 1
        assert f"no daemon answers at http://127.0.0.1:{port}: is it running" in result.stderr
        assert "--api" in result.stderr


def test_a_token_that_may_not_be_read(served: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("builtins.open", refuse)
    result = served.run("down")
    assert result.exit_code == 1
    assert "add yourself to the group shadowmesh" in result.stderr
    assert "or use sudo" in result.stderr


def test_another_token_and_none(served: Host, tmp_path: Path) -> None:
    api = ["--api", f"http://127.0.0.1:{served.port}", "--token-file"]
    (tmp_path / "other").write_text("x" * 43)
    result = CliRunner().invoke(ctl.cli, ["down", *api, str(tmp_path / "other")])
    assert result.exit_code == 1
    assert f"does not know the token in {tmp_path}/other" in result.stderr
    assert str(served.token_file) in result.stderr
    result = CliRunner().invoke(ctl.cli, ["down", *api, str(tmp_path / "none")])
    assert (result.exit_code, f"there is no token in {tmp_path}/none" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "content",
    [
        b"root:x:0:0:root:/root:/bin/bash\nsecret:x:1:1\n",
        b"secret",
        b"\x7fELF\x02\x01\xff",
        b"",
        b"secret" * 1000,
    ],
)
def test_a_file_that_is_no_token_is_neither_shown_nor_sent(
    served: Host, tmp_path: Path, content: bytes
) -> None:
    file = tmp_path / "other"
    file.write_bytes(content)
    api = ["--api", f"http://127.0.0.1:{served.port}", "--token-file"]
    for path in (file, tmp_path):
        result = CliRunner().invoke(ctl.cli, ["reload", *api, str(path)])
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr == (
            f"shadowmesh: {path} is no token file: name the daemon's daemon.token_file with --token-file\n"
        )


@pytest.fixture
def stranger() -> Iterator[Callable[[dict[str, tuple[int, str]]], str]]:
    """Something else with HTTP: path → (status, body); returns its URL."""
    servers: list[HTTPServer] = []

    def start(answers: dict[str, tuple[int, str]]) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                code, body = answers.get(self.path, (404, "Not Found"))
                self.send_response(code)
                self.end_headers()
                self.wfile.write(body.encode())

            def log_message(self, *_: object) -> None:
                """Says nothing."""

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("answers", "what"),
    [
        ({"/metrics": (200, "shadowmesh_relay_connections 1\n")}, "the metrics port of a relay"),
        ({"/status": (200, '{"max_connections": 1000}')}, "the health port of a relay"),
        ({"/metrics": (200, "prometheus_build_info 1\n")}, "another program"),
        ({"/status": (200, "<html>")}, "another program"),
        ({"/status": (200, "[" * 100_000)}, "another program"),
        ({}, "another program"),
    ],
)
def test_something_else_answers(
    stranger: Callable[[dict[str, tuple[int, str]]], str], answers: dict[str, tuple[int, str]], what: str
) -> None:
    url = stranger(answers)
    result = CliRunner().invoke(ctl.cli, ["status", "--api", url])
    assert result.exit_code == 1
    assert result.stderr.startswith(f"shadowmesh: {what} answers at {url}, not this host's daemon")


def test_something_that_speaks_no_http() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"SSH-2.0-x\r\n")
            connection.close()

        thread = threading.Thread(target=greet)
        thread.start()
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        result = CliRunner().invoke(ctl.cli, ["status", "--api", url])
        thread.join()
    assert (result.exit_code, "another program answers" in result.stderr) == (1, True)


@pytest.mark.parametrize(
    "url",
    [
        *("127.0.0.1:9090", "https://127.0.0.1", "http://", "http://127.0.0.1/y", "http://127.0.0.1:y"),
        *("http://[::1", "http://[x]:1", "http://nosuch.invalid:9090", "http://127.0.0.1?x", "http://u@::1"),
    ],
)
def test_a_wrong_url_is_a_usage_error(url: str) -> None:
    result = CliRunner().invoke(ctl.cli, ["status", "--api", url])
    assert result.exit_code == 2
    assert "Invalid value for --api: write it as http://127.0.0.1:9090" in result.stderr


def test_a_name_is_not_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    result = CliRunner().invoke(ctl.cli, ["status", "--api", "http://nosuch.invalid:9090"])
    assert (result.exit_code, "the daemon answers to no other name" in result.stderr) == (2, True)


def test_the_configuration_says_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "client-config.yaml"
    monkeypatch.setattr(local, "CONFIG", str(file))
    assert local._configured() == (local.DEFAULT_API, local.DEFAULT_TOKEN_FILE)
    text = guide.client_config(
        ip="10.10.10.1/24", key=os.urandom(32).hex(), peer_id="a", server="ws://192.0.2.1:1"
    )
    for address, url in (
        ("127.0.0.1:9091", "http://127.0.0.1:9091"),
        ("[::1]:9092", "http://[::1]:9092"),
        ("0.0.0.0:9093", "http://127.0.0.1:9093"),
    ):
        daemon = {"listen_address": address, "token_file": "/run/other/token"}
        file.write_text(guide.merged(text, {"daemon": daemon}))
        assert local._configured() == (url, "/run/other/token")
        # A service has its key elsewhere, where this user may not read it.
        file.write_text(guide.merged(text, {"daemon": daemon, "encryption": None}))
        assert local._configured() == (url, "/run/other/token")
    file.write_text("daemon: {listen_address: nowhere}")
    assert local._configured() == (local.DEFAULT_API, local.DEFAULT_TOKEN_FILE)
    file.write_text("mistake")
    assert local._configured() == (local.DEFAULT_API, local.DEFAULT_TOKEN_FILE)


# -- tables


def test_nothing_is_cut_on_a_narrow_terminal(served: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PIPED_WIDTH", 60)
    text = served.run("status").stdout
    assert max(map(len, text.splitlines())) <= 60
    fingerprint = json.loads(served.run("status", "--json").stdout)["fingerprint"]
    assert fingerprint in re.sub(r"\s", "", text)
    lines = [line.split() for line in served.run("peers").stdout.splitlines()]
    assert ["NAME", "b"] in lines
    assert ["IDENTITY", "known"] in lines


def test_a_long_reason_makes_no_other_line_longer(served: Host) -> None:
    reason = "no, " * 70
    served.reported.event("relay_lost", relay=served.link.url, reason=reason)
    served.link.lose(reason)
    for command in (["status"], ["watch", "--times", "1"]):
        lines = served.run(*command).stdout.splitlines()
        assert reason.strip() in " ".join(lines)
        assert [line for line in lines if line.endswith(" ")] == []


def test_relays_of_one_name_have_their_address_behind_it(served: Host) -> None:
    facts = json.loads(served.run("status", "--json").stdout)
    (one,) = facts["relays"]
    loss = {"seconds_ago": 3.0, "reason": "the connection was lost"}
    one["history"] = [loss]
    second = one | {"address": "192.0.2.10", "history": []}
    other = one | {"server": "ws://other.example:9545/relay", "history": []}
    assert tables._names([one, one]) == ["relay-a", "relay-a"]  # in two networks
    assert tables._names([one, second, other]) == [
        "relay-a (192.0.2.9)",
        "relay-a (192.0.2.10)",
        "relay-a (other.example:9545)",
    ]
    why = "the connection was lost"
    assert list(tables._losses([one, one, other])) == [
        ("3 s ago", "relay-a (relay-a.example:9545)", why),
    ]


def test_an_address_that_another_device_has(served: Host) -> None:
    facts = json.loads(served.run("status", "--json").stdout)
    facts["relays"][0]["refused"] = {"10.10.10.2": "address_in_use"}
    facts["reason"] = "the relay gives to another device: 10.10.10.2"
    assert "connected, but 10.10.10.2 belongs to another device\n" in shown(facts)


def test_watch_begins_with_what_is_wrong(served: Host) -> None:
    facts = json.loads(served.run("status", "--json").stdout)
    facts["diagnosis"] = [{"code": "mtu", "text": "large packets"}]
    first, *rest = shown(facts, brief=True).splitlines()
    assert first.split() == ["mtu", "large", "packets"]
    assert not {"offload", "fingerprint"} & {line.split()[0] for line in rest if line.strip()}
    assert shown(facts).splitlines()[-1] == first


def test_watch_fits_on_a_small_terminal(served: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_PIPED_WIDTH", 80)
    served.reported.event("relay_lost", relay=served.link.url, reason="the connection was lost")
    lines = served.run("watch", "--times", "1").stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert len(lines) < 20
    heads = [line.split() for line in lines if line.startswith(("RELAY", "NAME"))]
    assert [head[-1] for head in heads] == ["SERVER", "HANDSHAKE"]


def shown(facts: dict[str, Any], *, brief: bool = False) -> str:
    with (console := tables.console()).capture() as capture:
        console.print(tables.status(facts, brief=brief))
    return re.sub(r" +$", "", capture.get(), flags=re.MULTILINE)


def test_names_are_no_markup(served: Host) -> None:
    facts = json.loads(served.run("status", "--json").stdout)
    facts["peers"][0]["name"] = "[red]x[/red]"
    with (console := tables.console()).capture() as capture:
        console.print(tables.peers(facts))
    assert "[red]x[/red]" in capture.get()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172800, "2 d")],
)
def test_durations(seconds: float, text: str) -> None:
    assert tables.duration(seconds) == text


@pytest.mark.parametrize(
    ("number", "text"), [(0, "0 B"), (999, "999 B"), (1500, "1.5 kB"), (2e12, "2.0 TB"), (3e15, "3000.0 TB")]
)
def test_sizes(number: float, text: str) -> None:
    assert tables.size(number) == text
