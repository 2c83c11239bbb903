"""deploy/caddy: Debian's Caddy on our file, with a real relay and real WebSockets behind it."""

from __future__ import annotations

import asyncio
import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from http.client import HTTPSConnection
from pathlib import Path

import pytest

from guide.pages import ROOT
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.program import Program, wait_for
from shadowmesh.testing.relay_client import RelayClient, address, frame
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.relay_server import running_relay

CADDYFILE = ROOT / "deploy/caddy/Caddyfile"
A, B = address("a"), address("b")

pytestmark = pytest.mark.skipif(
    not shutil.which("caddy"), reason="caddy is not installed: scripts/setup test"
)


class Site:
    """Our file with a certificate and ports of the test's; all else as it is."""

    def __init__(self, directory: Path) -> None:
        self.port, self.relay_port = free_ports(2)
        paths = make_certificate(directory, ["localhost"])
        self.tls = ssl.create_default_context(cafile=paths.ca)
        text = CADDYFILE.read_text().replace("127.0.0.1:9545", f"127.0.0.1:{self.relay_port}")
        own = f"https://localhost:{self.port} {{\n\tbind 127.0.0.1\n\ttls {paths.cert} {paths.key}\n"
        text = text.replace("relay.example.org {\n", own)
        text = text.replace("{\n", "{\n\tadmin off\n\tauto_https disable_redirects\n", 1)
        (directory / "Caddyfile").write_text(text)
        environment = {"HOME": str(directory), "PATH": "/usr/bin"}
        with (directory / "caddy.log").open("wb") as log:
            argv = ["caddy", "run", "--config", str(directory / "Caddyfile"), "--adapter", "caddyfile"]
            process = subprocess.Popen(argv, stdout=log, stderr=subprocess.STDOUT, env=environment)
        self.program = Program("caddy", process, directory / "caddy.log")
        self.program.wait_for(lambda: "serving initial configuration" in self.program.text(), "Caddy")

    def client(self, headers: dict[str, str] | None = None) -> RelayClient:
        url = f"wss://localhost:{self.port}/relay?peer_id=secret"
        source = ("127.0.0.9", 0)
        return RelayClient(url, ssl=self.tls, additional_headers=headers or {}, local_addr=source)

    def get(self, path: str) -> tuple[int, str]:
        connection = HTTPSConnection("localhost", self.port, context=self.tls, timeout=10)
        try:
            connection.request("GET", path)
            response = connection.getresponse()
            return response.status, response.headers["Strict-Transport-Security"]
        finally:
            connection.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        yield site
    finally:
        if site.program.status is None:
            site.program.stop()


def test_the_file_is_valid_and_in_caddys_own_form(tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), "PATH": "/usr/bin"}
    argv = ["caddy", "validate", "--config", str(CADDYFILE), "--adapter", "caddyfile"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    formatted = subprocess.run(["caddy", "fmt", CADDYFILE], capture_output=True, text=True, env=environment)
    assert formatted.stdout == CADDYFILE.read_text()


def test_frames_pass_and_a_client_cannot_say_that_it_is_another(site: Site) -> None:
    async def scenario() -> None:
        relay = running_relay(port=site.relay_port, trusted_proxies=["127.0.0.1"])
        forged = {"X-Real-IP": "203.0.113.9", "X-Forwarded-For": "203.0.113.9"}
        async with asyncio.timeout(20), relay, site.client() as a, site.client(forged) as b:
            for client, mine, name in ((a, A, "a"), (b, B, "b")):
                joined = await client.join(mine, device=name, relay="localhost")
                assert joined["remote"] == "127.0.0.9:0"
            for size in (1, 1400, 65536):
                await a.send(frame(B, A, bytes(size)))
                assert await b.data.get() == frame(B, A, bytes(size))
                await b.send(frame(A, B, bytes(size)))
                assert await a.data.get() == frame(A, B, bytes(size))

    asyncio.run(scenario())


def test_all_but_the_relay_is_hidden_and_no_log_has_the_query_string(site: Site) -> None:
    hsts = "max-age=63072000"
    assert site.get("/health") == (404, hsts)
    assert site.get("/relay/x") == (404, hsts)
    status, header = site.get("/relay?peer_id=secret")  # nobody answers behind it
    assert (status, header) == (502, hsts)
    site.program.stop()
    wait_for(lambda: re.search("shutdown complete|exiting", site.program.text()), "end of Caddy's log")
    assert "secret" not in site.program.text()
