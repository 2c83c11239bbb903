"""No secret of a device stands in what it says: log (debug), errors, tracebacks, repr, API, check-config."""

from __future__ import annotations

import asyncio
import base64
import io
import os
import signal
import traceback
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner
from pydantic import ValidationError

from shadowmesh.cli.ctl import cli
from shadowmesh.config import ClientConfig, load_client_config
from shadowmesh.daemon import backoff
from shadowmesh.daemon.app import Daemon
from shadowmesh.daemon.state import StateDirectory
from shadowmesh.observe.logging import Style, configure, get_logger
from shadowmesh.testing import guide
from shadowmesh.testing.proxy import proxying
from shadowmesh.testing.relay_program import free_ports
from shadowmesh.testing.relay_server import running_relay
from shadowmesh.testing.websocket import drive, until
from shadowmesh.tun.memory import memory_pair

KEY = "6b8c5c1d5e2d4f7f9a0b1c2d3e4f50617283940a5b6c7d8e9fa0b1c2d3e4f506"
API_KEY = "smk_abcdefgh_0123456789abcdefghijklmnopqrstuvwxyz-_ABCDE"
PASSWORD = "open:sesame%"
WRITTEN = "open%3Asesame%25"


def forms(secret: bytes) -> list[str]:
    """How bytes may come to stand in a text."""
    return [
        *(secret.hex(), secret.hex().upper(), repr(secret)[2:-1]),
        *(
            base64.b64encode(secret).decode().rstrip("="),
            base64.urlsafe_b64encode(secret).decode().rstrip("="),
        ),
    ]


SECRETS = [
    *forms(bytes.fromhex(KEY)),
    *(API_KEY, API_KEY[13:], PASSWORD, WRITTEN),
    base64.b64encode(f"me:{PASSWORD}".encode()).decode(),
]


def holds_none(text: str, *more: str) -> None:
    found = [secret for secret in (*SECRETS, *more) if secret in text]
    assert not found, text


def written(path: Path, port: int, relay: str, proxy: str) -> str:
    text = guide.client_config(ip="10.10.10.1/24", key=KEY, peer_id="a", server=relay)
    changes = {
        "daemon": {
            "log_level": "debug",
            "listen_address": f"127.0.0.1:{port}",
            "state_directory": str(path / "state"),
            "token_file": str(path / "token"),
        },
        "relay": {"api_key": API_KEY, "insecure_api_key": True, "proxy": proxy},
    }
    file = path / "client-config.yaml"
    file.write_text(guide.merged(text, changes))
    file.chmod(0o600)
    return str(file)


@pytest.mark.parametrize("style", ["json", "console"])
def test_a_running_daemon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, style: Style) -> None:
    """Through a proxy that refuses, one that does not, with a reload, a bug, and all that the API answers."""
    monkeypatch.setattr("gc.freeze", lambda: None)
    monkeypatch.setattr(backoff, "_UNKNOWN_KEY", (0.02, 0.02))
    stream = io.StringIO()
    configure("debug", style, stream)
    said: list[str] = []

    async def main() -> None:
        port = free_ports(1)[0]
        async with running_relay() as relay, proxying() as proxy:
            proxy.credentials = ("me", "another")
            url = f"http://me:{WRITTEN}@127.0.0.1:{proxy.port}"
            file = written(tmp_path, port, f"ws://127.0.0.1:{relay.port}", url)
            tun, kernel = memory_pair()
            state = StateDirectory(tmp_path / "state")
            daemon = Daemon(load_client_config(file).config, state, state.seed(), tun, file)
            running = asyncio.create_task(daemon.run())
            await asyncio.sleep(0)
            await until(lambda: running.done() or daemon.status()["reason"])
            proxy.credentials = ("me", PASSWORD)
            await until(lambda: daemon.status()["status"] == "connected")
            daemon._on_hangup()
            await until(lambda: "configuration reloaded" in stream.getvalue())
            Path(file).write_text(Path(file).read_text().replace(KEY, KEY[:-1]))
            daemon._on_hangup()
            await until(lambda: "configuration not reloaded" in stream.getvalue())

            def fail(*_: object) -> None:
                config, seed = daemon._config, daemon._networks  # noqa: F841 (what a traceback could show)
                raise RuntimeError(f"a bug with {daemon._config!r} and {daemon._networks!r}")

            asyncio.get_running_loop().call_soon(fail)
            try:
                fail()
            except RuntimeError:
                get_logger("test").exception("caught")
                said.append(traceback.format_exc())
            async with httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}") as client:
                for path in ("/health", "/status", "/peers", "/metrics", "/openapi.json", "/nowhere"):
                    answer = await client.get(path)
                    said.append(f"{answer.headers}{answer.text}")
            said.extend(map(repr, (daemon, vars(daemon), vars(daemon._control), daemon.status())))
            token = (tmp_path / "token").read_text().strip()
            seed = (tmp_path / "state/device.key").read_text().strip()
            os.kill(os.getpid(), signal.SIGTERM)
            await running
            for each in (tun, kernel, state):
                each.close()
        log = stream.getvalue()
        for words in ("cannot reach the relay", "connected to the relay"):
            assert words in log
        assert "RuntimeError" in log
        holds_none(log + "".join(said), token, seed, *forms(bytes.fromhex(seed)))

    try:
        drive(main, errors=1)
    finally:
        configure()


def test_a_configuration_in_every_form(tmp_path: Path) -> None:
    file = written(tmp_path, 9090, "wss://relay.example.com", f"socks5://me:{WRITTEN}@proxy:1080")
    loaded = load_client_config(file)
    config = loaded.config
    assert config.encryption.key.reveal().hex() == KEY  # they are in it
    assert config.relay.api_key is not None
    holds_none(f"{loaded!r}{loaded}{config!r}{config}{config.model_dump()}{vars(config)}")
    with pytest.raises(Exception) as caught:
        config.model_dump_json()
    holds_none(repr(caught.value))
    with pytest.raises(ValidationError) as refused:
        ClientConfig.model_validate({**config.model_dump(), "peer": {"id": ""}})
    holds_none(f"{refused.value}{refused.value.errors()}")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("", ""),
        (KEY, KEY + "0"),
        (KEY, "x" + KEY),
        (API_KEY, API_KEY + "0"),
        (API_KEY, f"Bearer {API_KEY}"),
        (f"me:{WRITTEN}@", f"me:{PASSWORD}@"),
        (f"me:{WRITTEN}@proxy:1080", f"me:{WRITTEN}"),
        ("socks5://", "socks6://"),
        ("proxy: ", "proxi: "),
        ("api_key: ", "apikey: "),
        ("key: ", f"{KEY}: "),
    ],
)
def test_check_config(tmp_path: Path, old: str, new: str) -> None:
    file = written(tmp_path, 9090, "wss://relay.example.com", f"socks5://me:{WRITTEN}@proxy:1080")
    Path(file).write_text(Path(file).read_text().replace(old, new, 1) if old else Path(file).read_text())
    result = CliRunner().invoke(cli, ["check-config", file])
    assert result.exit_code == (2 if old else 0), result.output
    holds_none(result.output)
