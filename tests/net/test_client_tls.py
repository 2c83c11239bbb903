"""Whom a client trusts, and what it says of a certificate that is not good."""

from __future__ import annotations

import os
import re
import socket
import ssl
from pathlib import Path

import pytest

from shadowmesh.errors import StartError
from shadowmesh.net.client import ConnectFailed, check_ca_file, connect
from shadowmesh.net.loop import new_loop
from shadowmesh.net.server import Reject, Request
from shadowmesh.net.websocket import WebSocket
from shadowmesh.testing.certificates import Paths, make_certificate
from shadowmesh.testing.websocket import Recorder, drive, serving, until
from shadowmesh.wire.frame import MAX_FRAME

LOGIN = "the login page of this network, as hotels have one? Then open a browser and log in"


def accept(request: Request) -> WebSocket | Reject:
    return Recorder()


def server_tls(paths: Paths, *, alone: bool = True) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    if not alone:
        paths.cert.write_bytes(paths.cert.read_bytes() + paths.ca.read_bytes())
    context.load_cert_chain(paths.cert, paths.key)
    return context


def attempt(context: ssl.SSLContext, ca_file: Path | None, host: str = "127.0.0.1") -> str:
    """Why a client that trusts `ca_file` does not connect, without its port and the time; "" when it does."""
    words: list[str] = []

    async def main() -> None:
        async with serving(accept, context) as server:
            ws = Recorder()
            url = f"wss://{host}:{server.port}/relay"
            try:
                await connect(
                    url,
                    ws,
                    max_frame=MAX_FRAME,
                    address="127.0.0.1",
                    ca_file=str(ca_file) if ca_file else None,
                )
            except ConnectFailed as failed:
                words.append(str(failed).replace(f":{server.port}", ""))
                return
            ws.close()
            await until(lambda: ws.closed)

    drive(main, new_loop=new_loop)
    return re.sub(r"\d{4}-\d\d-\d\d \d\d:\d\d UTC", "NOW", "".join(words))


def test_a_ca_of_ones_own(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    context = server_tls(paths)
    assert attempt(context, paths.ca) == ""
    assert attempt(context, None) == (
        "the TLS certificate of 127.0.0.1 is not valid: unable to get local issuer certificate; if the relay "
        "has a CA of its own, write its certificate as relay.tls_ca_file; if not, somebody in between reads "
        f"TLS: a company's proxy (whose CA would go there), or {LOGIN}"
    )
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other", ["127.0.0.1"])
    assert "its certificate is not the one in relay.tls_ca_file" in attempt(context, other.ca)
    both = tmp_path / "both.pem"
    both.write_text(f"My CAs\n{other.ca.read_text()}\nand\n{paths.ca.read_text()}")
    assert attempt(context, both) == ""
    assert attempt(context, paths.cert) == ""  # the relay's own certificate does, too
    assert "self" in attempt(server_tls(paths, alone=False), None)


def test_expired_too_early_and_of_another_name(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"], days=-1)
    clock = "this device's clock says NOW: if that is wrong, set it"
    assert attempt(server_tls(paths), paths.ca) == (
        f"the TLS certificate of 127.0.0.1 is not valid: certificate has expired; {clock}, "
        "else the relay's operator must renew the certificate"
    )
    paths = make_certificate(tmp_path, ["127.0.0.1"], days=9, begins=3)
    assert attempt(server_tls(paths), paths.ca) == (
        f"the TLS certificate of 127.0.0.1 is not valid: certificate is not yet valid; {clock}"
    )
    paths = make_certificate(tmp_path, ["relay.example.com"])
    words = "; relay.server must have a name that stands in it. Or does somebody else answer: " + LOGIN
    assert attempt(server_tls(paths), paths.ca) == (
        f"the TLS certificate of 127.0.0.1 is not valid: IP address mismatch{words}"
    )
    assert attempt(server_tls(paths), paths.ca, "other.example") == (
        f"the TLS certificate of other.example is not valid: hostname mismatch{words}"
    )
    assert attempt(server_tls(paths), paths.ca, "relay.example.com") == ""


def test_a_ca_file_that_is_none(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    check_ca_file(str(paths.ca))
    text = tmp_path / "text"
    text.write_text("no certificate")
    broken = tmp_path / "broken"
    broken.write_text("-----BEGIN CERTIFICATE-----\nMIIB\n-----END CERTIFICATE-----\n")
    der = tmp_path / "der"
    der.write_bytes(ssl.PEM_cert_to_DER_cert(paths.ca.read_text()))
    none = (
        "no PEM certificate in this file, or a malformed one; DER becomes PEM with: openssl x509 -inform der"
    )
    for path, why in (
        (text, none),
        (broken, none),
        (der, none),
        (paths.key, none),
        (tmp_path, ""),
        (tmp_path / "gone", "No such file or directory"),
    ):
        with pytest.raises(StartError, match=re.escape(f"relay.tls_ca_file {path}: {why}")):
            check_ca_file(str(path))
        assert attempt(server_tls(paths), path).startswith(f"relay.tls_ca_file {path}: {why}")


def test_a_ca_file_that_may_not_be_read(tmp_path: Path) -> None:
    paths = make_certificate(tmp_path, ["127.0.0.1"])
    paths.ca.chmod(0)
    if os.geteuid() == 0:
        os.chmod(tmp_path, 0o711)
        os.seteuid(65534)
    try:
        with pytest.raises(StartError, match=": Permission denied"):
            check_ca_file(str(paths.ca))
    finally:
        if os.getuid() == 0:
            os.seteuid(0)


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="Linux has it")
def test_the_kernel_gives_up_what_is_not_acknowledged() -> None:
    async def main() -> None:
        async with serving(accept) as server:
            ws = Recorder()
            await connect(f"ws://127.0.0.1:{server.port}/relay", ws, max_frame=MAX_FRAME)
            assert ws._transport is not None
            connection = ws._transport.underlying_transport.get_extra_info("socket")
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == 20_000
            ws.close()
            await until(lambda: ws.closed)

    drive(main)
