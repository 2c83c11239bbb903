"""What a start takes along: the modules of a relay and a daemon that are ready, and what keeps them few."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from shadowmesh import lean
from shadowmesh.testing.client_file import NAMED
from shadowmesh.testing.relay_program import free_ports

UNUSED = {
    *("sqlite3", "xml"),
    *("attr", "click", "pygments", "rich", "segno", "websockets"),
    *("prometheus_client", "pyroute2.ndb", "starlette.applications", "starlette.routing"),
    *("cryptography.x509", "uvicorn.main", "uvicorn.supervisors"),
    *("shadowmesh.cli.ctl", "shadowmesh.observe.metrics", "shadowmesh.testing"),
}
"""Libraries, and parts of them, for commands, for what a configuration may ask for, and for nobody."""
MOST = {"relay": 310, "daemon": 460}
"""How many modules beside Python's own there may be: some more than there are, for new versions of libraries,
but not a library more."""
MEMORY_TUN = """
from shadowmesh.daemon import app
from shadowmesh.tun.memory import memory_pair
app.open_tun = lambda *_: memory_pair()[0]
"""
START = """
import gc, json, os, sys
from shadowmesh import lean
from shadowmesh.cli.{name} import main

def started():
    facts = {{"modules": list(sys.modules), "before": gc.isenabled()}}
    really()
    print(json.dumps(facts | {{"after": gc.isenabled(), "frozen": gc.get_freeze_count()}}), flush=True)
    os._exit(0)

really, lean.started = lean.started, started
main([{file!r}])
"""


def configuration(name: str, directory: Path) -> str:
    ports = free_ports(3)
    if name == "relay":
        return "relay_port: {}\nhealth_port: {}\nmetrics_port: {}\n".format(*ports)
    own = {"listen_address": f"127.0.0.1:{ports[0]}", "state_directory": str(directory)}
    own["token_file"] = str(directory / "token")
    return re.sub(r"(?m)^daemon:\n( .*\n)+", f"daemon: {json.dumps(own)}\n", NAMED)


@pytest.mark.parametrize("name", ["relay", "daemon"])
def test_what_is_loaded_when_a_program_is_ready(name: str, tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(configuration(name, tmp_path))
    file.chmod(0o600)
    code = START.format(name=name, file=str(file))
    done = subprocess.run(
        [sys.executable, "-c", (MEMORY_TUN if name == "daemon" else "") + code],
        capture_output=True,
        text=True,
        timeout=30,
    )
    facts = json.loads(done.stdout)
    assert not UNUSED & set(facts["modules"])
    counted = [each for each in facts["modules"] if each.partition(".")[0] not in sys.stdlib_module_names]
    assert len(counted) <= MOST[name]
    assert (facts["before"], facts["after"]) == (False, True)
    assert facts["frozen"] > 10_000


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The name of a package with a part that is used and one that is not."""
    name = "package_of_the_test"
    directory = tmp_path / name
    directory.mkdir()
    (directory / "__init__.py").write_text(f"from {name}.used import A\nfrom {name}.unused import B\nC = 3\n")
    (directory / "used.py").write_text("A = 1\n")
    (directory / "unused.py").write_text("B = 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield name
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[each]


def test_a_bare_package_is_completed_when_somebody_asks_for_the_rest(package: str) -> None:
    with lean.bare(package):
        used = import_module(f"{package}.used")
    module = sys.modules[package]
    assert used.A == 1
    assert not hasattr(module, "unused")
    assert f"{package}.unused" not in sys.modules
    assert (module.C, module.A, module.B) == (3, 1, 2)
    assert module.used is used
    with pytest.raises(AttributeError, match="D"):
        _ = module.D


def test_a_name_that_others_take_from_a_bare_package_does_not_complete_it(package: str) -> None:
    with lean.bare(package, A=f"{package}.used"):
        pass
    namespace: dict[str, Any] = {}
    exec(f"from {package} import A", namespace)
    assert namespace["A"] == 1
    assert f"{package}.unused" not in sys.modules
    assert sys.modules[package].C == 3


def test_a_part_of_a_bare_package_is_imported_from_it_without_the_rest(package: str) -> None:
    with lean.bare(package):
        namespace: dict[str, Any] = {}
        exec(f"from {package} import used", namespace)
    assert namespace["used"].A == 1
    assert f"{package}.unused" not in sys.modules


def test_a_package_that_is_loaded_already_stays_as_it_is(package: str) -> None:
    whole = import_module(package)
    with lean.bare(package), lean.without(package):
        assert import_module(package) is whole
    assert (sys.modules[package], whole.C) == (whole, 3)


def test_what_is_done_without_can_be_imported_afterwards(package: str) -> None:
    with lean.without(package), pytest.raises(ImportError):
        import_module(package)
    assert import_module(package).C == 3


def test_a_package_that_is_not_there_is_missed_by_who_imports_it() -> None:
    with lean.bare("no_such_package"), pytest.raises(ImportError):
        import_module("no_such_package.part")
