"""deploy/nginx: whom its limit counts as one client, and what its logs say of clients."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection
from pathlib import Path

import pytest

from shadowmesh.testing.relay_program import free_ports

CONF = Path(__file__).parents[2] / "deploy/nginx/shadowmesh-relay.conf"
ALLOWED = 200  # at once

pytestmark = pytest.mark.skipif(not shutil.which("nginx"), reason="nginx is not installed")


@pytest.fixture
def port(tmp_path: Path) -> Iterator[int]:
    """Our server block without TLS, which believes X-Forwarded-For; no relay answers behind it."""
    port, nobody = free_ports(2)
    block = re.sub(r"^ *(ssl_.*|listen \[.*)\n", "", CONF.read_text(), flags=re.MULTILINE)
    block = block.replace("listen 443 ssl;", f"listen 127.0.0.1:{port};").replace(
        "127.0.0.1:9545", f"127.0.0.1:{nobody}"
    )
    block = block.replace("/var/log/nginx", str(tmp_path))
    config = tmp_path / "nginx.conf"
    config.write_text(
        f"daemon off; pid {tmp_path}/pid; error_log {tmp_path}/error.log; events {{}}\n"
        f"http {{ set_real_ip_from 127.0.0.1; real_ip_header X-Forwarded-For;\n{block}}}\n"
    )
    with subprocess.Popen(["nginx", "-p", tmp_path, "-c", config]) as program:
        try:
            deadline = time.monotonic() + 10
            while True:
                with suppress(ConnectionRefusedError):
                    socket.create_connection(("127.0.0.1", port)).close()
                    break
                assert time.monotonic() < deadline
                assert program.poll() is None
                time.sleep(0.02)
            yield port
        finally:
            program.terminate()


def statuses(port: int, sources: list[str]) -> set[int]:
    """The answers to one request from each of these addresses, as fast as they come."""
    connection = HTTPConnection("127.0.0.1", port)
    found = set()
    for source in sources:
        connection.request("GET", "/relay?peer_id=secret", headers={"X-Forwarded-For": source})
        response = connection.getresponse()
        response.read()
        found.add(response.status)
    connection.close()
    return found


@pytest.mark.parametrize("prefix", ["2001:db8:0:5:", "2001:db8::", "a0a:a0a:a0a:a0a:"])
def test_a_64_of_ipv6_is_one_source(port: int, prefix: str) -> None:
    assert statuses(port, [f"{prefix}{n:x}:{n:x}:a0a:1" for n in range(1, 2 * ALLOWED)]) == {429, 502}


def test_an_ipv4_address_is_one_source(port: int) -> None:
    assert statuses(port, ["198.51.100.7"] * 2 * ALLOWED) == {429, 502}


@pytest.mark.parametrize("form", ["2001:db8:0:{:x}::1", "10.10.{}.10"])
def test_neighbours_are_counted_each_by_themselves(port: int, form: str) -> None:
    assert statuses(port, [form.format(n // 2) for n in range(2 * ALLOWED)]) == {502}


def test_no_log_has_the_query_string(port: int, tmp_path: Path) -> None:
    assert statuses(port, ["198.51.100.7"] * 2 * ALLOWED) == {429, 502}
    lines = (tmp_path / "shadowmesh-relay.log").read_text()
    assert "198.51.100.7" in lines
    for log in tmp_path.glob("*.log"):
        assert "secret" not in log.read_text(), log.name
    assert (tmp_path / "shadowmesh-relay.error.log").read_text() == ""
