"""A certificate that is renewed while the relay runs, as Let's Encrypt's is."""

from __future__ import annotations

import asyncio
import re
import ssl
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.program import wait_for
from shadowmesh.testing.relay_client import RelayClient, numbered_frames
from shadowmesh.testing.relay_program import RelayProgram

LOOK = 0.05
QUICK = f"from shadowmesh.relay import app; app.CERTIFICATE_SECONDS = {LOOK}"


class Renewing:
    """A relay with TLS whose certificate is renewed."""

    def __init__(self, directory: Path, before: str = "") -> None:
        self.directory = directory
        files = make_certificate(directory, ["127.0.0.1"])
        self.trust = ssl.create_default_context(cafile=files.ca)
        settings = {"tls": {"cert_file": str(files.cert), "key_file": str(files.key)}}
        self.relay = RelayProgram(directory, settings, before=before)
        self.url = self.relay.url.replace("ws:", "wss:")

    def renew(self, days: int = 30) -> bytes:
        """Replace the two files; the new certificate."""
        path = make_certificate(self.directory, ["127.0.0.1"], days=days).cert
        return ssl.PEM_cert_to_DER_cert(path.read_text())

    async def shown(self) -> bytes:
        """The certificate that a new client sees."""
        async with RelayClient(self.url, ssl=self.trust) as client:
            tls: ssl.SSLObject = client.ws.transport.get_extra_info("ssl_object")
            der = tls.getpeercert(binary_form=True)
            assert der is not None
            return der

    async def until_shown(self, certificate: bytes) -> None:
        """Wait until new clients see this certificate."""
        deadline = time.monotonic() + 10
        while await self.shown() != certificate:
            assert time.monotonic() < deadline
            await asyncio.sleep(LOOK)


@pytest.fixture
def renewing(tmp_path: Path) -> Iterator[Renewing]:
    renewing = Renewing(tmp_path, QUICK)
    with renewing.relay.ready():
        yield renewing


def test_a_renewal_under_traffic(renewing: Renewing) -> None:
    async def scenario() -> None:
        async with numbered_frames(renewing.url, ssl=renewing.trust):
            for _ in range(3):
                await renewing.until_shown(renewing.renew())

    asyncio.run(scenario())
    day = r"\d{4}-\d\d-\d\d"
    assert re.search(rf"\[info\] certificate renewed \[relay\] valid_until={day}\n", renewing.relay.text())
    assert re.search(rf" tls=on certificate_valid_until={day} ", renewing.relay.text())


def test_a_reload_says_that_it_takes_a_new_certificate(tmp_path: Path) -> None:
    renewing = Renewing(tmp_path)  # which looks for a new one by itself every ten seconds
    with renewing.relay.ready() as relay:
        assert "certificate renewed" not in relay.hang_up()
        new = renewing.renew()
        said = relay.hang_up()
        assert re.search(r"\[info\] certificate renewed \[relay\] valid_until=\S+\n", said)
        assert "configuration reloaded [relay] changed=nothing" in said
        assert asyncio.run(renewing.shown()) == new
        assert "certificate renewed" not in relay.hang_up()


@pytest.mark.parametrize("broken", ["cert.pem", "key.pem"])
def test_a_broken_renewal_is_said_once_and_the_old_certificate_stays(renewing: Renewing, broken: str) -> None:
    relay, words = renewing.relay, "certificate not renewed, the one in use stays"
    old = asyncio.run(renewing.shown())
    for times in (1, 2):
        other = renewing.directory / "other.pem"
        other.write_text("nonsense" * times)
        other.replace(renewing.directory / broken)  # at once: an empty file would be another mistake
        wait_for(lambda times=times: relay.text().count(words) == times, "error line")  # type: ignore[misc]
        time.sleep(5 * LOOK)
        assert relay.text().count(words) == times
        assert asyncio.run(renewing.shown()) == old
    (renewing.directory / broken).unlink()
    wait_for(lambda: relay.text().count(words) == 3, "error line")
    assert broken in relay.text().splitlines()[-1]
    assert "configuration not reloaded" in relay.hang_up()
    assert asyncio.run(renewing.shown()) == old
    asyncio.run(renewing.until_shown(renewing.renew()))


def test_an_expired_certificate_does_not_take_the_place_of_a_valid_one(renewing: Renewing) -> None:
    before = asyncio.run(renewing.shown())
    renewing.renew(days=-1)
    renewing.relay.wait_for_text(r"not renewed, the one in use stays .*expired on .*the one in use is valid")
    assert asyncio.run(renewing.shown()) == before


def test_a_reload_takes_a_renewed_certificate_at_once(tmp_path: Path) -> None:
    renewing = Renewing(tmp_path)
    with renewing.relay.ready() as relay:
        new = renewing.renew()
        relay.hang_up()
        assert asyncio.run(renewing.shown()) == new
