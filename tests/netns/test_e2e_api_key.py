"""The programs with API keys: a key is made, used, rotated and revoked, and the daemon says what happens."""

from __future__ import annotations

import secrets
import subprocess
import time
from collections.abc import Iterator

import pytest

from shadowmesh.testing.netlab import Lab, installed
from shadowmesh.testing.program import wait_for

pytestmark = pytest.mark.netns

KEY = secrets.token_hex(32)
A, B = "10.10.10.1", "10.10.10.2"


class AskingLab(Lab):
    """A lab whose relay asks for API keys."""

    def keys(self, *arguments: str) -> str:
        file = str(self.directory / "keys.json")
        argv = [installed("shadowmesh"), "relay-keys", *arguments, "--file", file]
        return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()

    def client(self, name: str, ip: str, key: str | None, *, wait: bool = True) -> None:
        relay = {"api_key": key, "insecure_api_key": True} if key else {}
        self.start_client(name, f"{ip}/24", KEY, wait=wait, relay=relay)

    def reason(self, name: str) -> str:
        status = self.status(name) or {}
        return str(status.get("reason", "")) if status.get("status") == "waiting" else ""


@pytest.fixture
def lab() -> Iterator[AskingLab]:
    lab = AskingLab("a", "b")
    with lab:
        yield lab


def test_a_key_from_its_making_to_its_end(lab: AskingLab) -> None:
    first = lab.keys("add", "a")
    lab.start_relay(auth={"mode": "api_key", "keys_file": str(lab.directory / "keys.json")})
    assert lab.relay_program is not None
    lab.client("a", A, first)
    lab.client("b", B, None, wait=False)
    asked = "the relay asks for an API key: write it as relay.api_key"
    wait_for(lambda: lab.reason("b") == asked, "reason of b")
    lab.client_programs["b"].wait_for_text(f"cannot reach the relay .*{asked}")
    lab.client_programs["b"].stop()

    second = lab.keys("add", "b", "--max-connections", "1")  # while the relay runs
    lab.relay_program.wait_for_text("API keys reloaded .*keys=2")
    lab.client("b", B, second)
    lab["a"].wait_for_ping(B)

    began = time.monotonic()
    lab.keys("revoke", "b")
    words = "the relay withdrew our access: this API key is revoked"
    wait_for(lambda: lab.reason("b") == words, "notice of the revocation")
    assert time.monotonic() - began < 5
    lab.client_programs["b"].wait_for_text(f"lost the relay .*code=4005 .*{words}")
    assert (lab.status("a") or {})["status"] == "connected"

    # Rotated with grace: a goes on with the key before, and b comes with the new one.
    rotated = lab.keys("rotate", "a", "--grace", "1h")
    lab.relay_program.wait_for_text(r"(API keys reloaded[\s\S]*){3}")
    lab.client_programs["b"].stop()
    lab.client("b", B, rotated)
    lab["a"].wait_for_ping(B)
    assert (lab.status("a") or {})["relay"]["connects"] == 1

    for program in (lab.relay_program, *lab.client_programs.values()):
        for key in (first, second, rotated):
            assert key[13:] not in program.text()
    # Nor is one in any command line.
    shown = subprocess.run(["ps", "axww", "-o", "args"], capture_output=True, text=True, check=True).stdout
    assert "shadowmesh-daemon" in shown
    assert not [key for key in (first, second, rotated) if key[13:] in shown]


def test_a_key_of_another_network(lab: AskingLab) -> None:
    key = lab.keys("add", "a", "--network", secrets.token_hex(32))
    lab.start_relay(auth={"mode": "api_key", "keys_file": str(lab.directory / "keys.json")})
    lab.client("a", A, key, wait=False)
    words = "the relay refused the join: this API key is for another network"
    wait_for(lambda: lab.reason("a") == words, "reason of a")


def test_a_device_that_needs_a_second_connection_of_its_key(lab: AskingLab) -> None:
    key = lab.keys("add", "a", "--max-connections", "1")
    lab.start_relay(auth={"mode": "api_key", "keys_file": str(lab.directory / "keys.json")})
    lab.client("a", A, key)
    lab.client("b", B, key, wait=False)
    words = "the relay has no place for us: this API key has as many connections as it may have"
    wait_for(lambda: words in lab.client_programs["b"].text(), "words of b")
    lab.client_programs["a"].stop()
    lab.wait_connected("b", timeout=15)
