"""The fuzz targets without atheris: their corpora, and a few hundred inputs made from them.

`./scripts/fuzz TARGET` looks for more (CONTRIBUTING.md).
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

import pytest

from fuzz import control, frame, message, offload, seeds, upgrade, websocket
from shadowmesh.mesh.mesh import Mesh
from shadowmesh.net import server
from shadowmesh.net.websocket import WebSocket
from shadowmesh.relay.connection import Connection
from shadowmesh.relay.gate import Gate
from shadowmesh.relay.keys import Keys
from shadowmesh.relay.pacing import Pace
from shadowmesh.relay.router import GRACE, Member, Router
from shadowmesh.relay.server import Server as RelayServer
from shadowmesh.relay.sources import Sources
from shadowmesh.wire import control as wire_control
from shadowmesh.wire import offload as wire_offload
from shadowmesh.wire.control import Gone

ROOT = Path(__file__).parents[2]
MUTANTS = 400


def corpus(target: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((seeds.CORPUS / target).iterdir())}


def mutant(random: Random, inputs: list[bytes], words: list[bytes], most: int) -> bytes:
    """One of the inputs with a few bytes changed, left out, repeated or put in."""
    data = bytearray(random.choice(inputs))
    for _ in range(random.randint(1, 4)):
        at, end = sorted(random.randint(0, len(data)) for _ in range(2))
        end = min(end, at + 20)
        match random.randrange(6):
            case 0 if data:
                data[random.randrange(len(data))] ^= 1 << random.randrange(8)
            case 1 if data:
                data[random.randrange(len(data))] = random.choice(b"\x00\x01\x7f\x80\xff")
            case 2:
                del data[at:end]
            case 3:
                data[at:at] = data[at:end]
            case 4:
                data[at:at] = random.choice(words)
            case _:
                data[at:] = random.choice(inputs)[at:]
    return bytes(data[:most])


@pytest.mark.parametrize("name", seeds.TARGETS)
def test_target(name: str) -> None:
    target, inputs = import_module(f"fuzz.{name}"), list(corpus(name).values())
    assert target.__doc__
    for data in inputs:
        target.one(data)
    random = Random(name)
    for _ in range(MUTANTS):
        data = mutant(random, inputs, target.WORDS, target.MAX_SIZE)
        try:
            target.one(data)
        except Exception as error:
            raise AssertionError(f"fuzz/{name}.py fails with {data!r}") from error


@pytest.mark.parametrize("name", seeds.TARGETS)
def test_an_input_does_the_same_again(name: str) -> None:
    target = import_module(f"fuzz.{name}")
    for data in list(corpus(name).values())[::5]:
        assert target.one(data) == target.one(data)


@pytest.mark.parametrize("name", seeds.TARGETS)
def test_the_corpus_is_what_the_vectors_give(name: str) -> None:
    there = {file: data for file, data in corpus(name).items() if file.startswith(seeds.PREFIX)}
    assert there == seeds.files(name), "run PYTHONPATH=tests python -m fuzz.seeds"
    assert all(len(data) <= import_module(f"fuzz.{name}").MAX_SIZE for data in there.values())


def _leave_at_once(self: Router[Any], member: Member[Any], now: float) -> None:
    """Without grace."""
    LEAVE(self, member, now - GRACE)


LEAVE = Router.leave
BREAKS: list[tuple[Any, Any, str, Any]] = [
    (upgrade, server, "_refusal", lambda request: None),
    (
        upgrade,
        Keys,
        "admit",
        lambda self, shown, now: self._grant("a" * 8, upgrade.DIGEST[upgrade.GOOD], now),
    ),
    (upgrade, Sources, "barred", lambda self, source, now: 0.0),
    (upgrade, Sources, "failed", lambda self, source, now: None),
    (upgrade, Sources, "is_full", lambda self, source: False),
    (upgrade, RelayServer, "refuses", lambda self, request: None),
    (websocket, WebSocket, "_on_control", lambda self, kind, payload: None),
    (control, wire_control, "_unique", lambda pairs: dict(pairs)),
    (
        frame,
        Connection,
        "_absent",
        lambda self, destination, *rest: self.deliver(destination, 0.0, self),
    ),
    (frame, Connection, "_drop", lambda self, reason: self._tell(Gone(bytes(16), "not_here"))),
    (frame, Router, "_give_up", lambda self, outcome, entry, now: True),
    (frame, Router, "_give_up", lambda self, outcome, entry, now: entry.member is None),
    (frame, Router, "leave", _leave_at_once),
    (frame, RelayServer, "_settle", lambda self, outcome, before: None),
    (frame, Gate, "most_addresses", lambda self, connection, old=None: 64),
    (frame, Gate, "renew", lambda self, connection: None),
    (frame, Pace, "debt", lambda self, now: 1 / 0),
    (message, Mesh, "_accept", lambda self, session, key: True),
    (offload, wire_offload, "MAX_SEGMENTS", 1000),
]


@pytest.mark.parametrize(
    ("target", "owner", "name", "wrong"), BREAKS, ids=[f"{each[0].__name__} {each[2]}" for each in BREAKS]
)
def test_a_target_finds_what_is_broken(
    target: Any, owner: Any, name: str, wrong: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, wrong)
    found = 0
    for data in corpus(target.__name__.removeprefix("fuzz.")).values():
        try:
            target.one(data)
        except AssertionError:
            found += 1
    assert found


def test_atheris_is_pinned_and_for_fuzzing_only() -> None:
    pins = (ROOT / "requirements/fuzz.txt").read_text()
    assert "atheris==" in pins
    assert "http" not in pins
    assert "atheris" not in (ROOT / "requirements/dev.txt").read_text()


def test_the_script_is_executable_and_plain_sh() -> None:
    script = ROOT / "scripts/fuzz"
    assert script.stat().st_mode & 0o111
    assert script.read_text().startswith("#!/bin/sh\n")
