"""Event loops, certificates and short waits for the tests of the sockets."""

from __future__ import annotations

import ssl
from functools import partial
from typing import cast

import pytest

from shadowmesh.net import websocket
from shadowmesh.net.loop import new_loop
from shadowmesh.net.tls import Certificate
from shadowmesh.testing.certificates import Paths, make_certificate
from shadowmesh.testing.websocket import Drive, drive


@pytest.fixture(params=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Drive:
    """`drive` in each kind of event loop that our programs may run in."""
    if request.param == "asyncio":
        return drive
    if new_loop is None:
        pytest.skip("no uvloop here")
    return cast(Drive, partial(drive, new_loop=new_loop))


@pytest.fixture
def short_close(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raw peers do not answer close frames, and nobody wants to wait for that."""
    monkeypatch.setattr(websocket, "CLOSE_SECONDS", 0.2)


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> Paths:
    return make_certificate(tmp_path_factory.mktemp("tls"), ["127.0.0.1", "relay.example"])


@pytest.fixture
def server_tls(files: Paths) -> ssl.SSLContext:
    return Certificate(str(files.cert), str(files.key)).context


@pytest.fixture
def client_tls(files: Paths) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=files.ca)
