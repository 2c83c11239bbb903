"""The daemon as the unit runs it: an unprivileged user with CAP_NET_ADMIN and no other power of root's."""

from __future__ import annotations

import json
import os
import re
import secrets
import shlex
import signal
import stat
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from shadowmesh.testing import guide
from shadowmesh.testing.netlab import RELAY_IP4, Lab, installed
from shadowmesh.testing.program import Program

pytestmark = pytest.mark.netns

USER = 61234  # of nobody: no name, no group, no file but those given to it
KEY = secrets.token_hex(32)
NET_ADMIN = 1 << 12
LAN_HOST = "192.168.77.1"
# PR_SET_MDWE is what MemoryDenyWriteExecute= is made of, on kernels that have it.
NO_WRITABLE_CODE = (
    "import ctypes, os, sys; ctypes.CDLL(None).prctl(65, 1, 0, 0, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
ALONE = [
    *("setpriv", f"--reuid={USER}", f"--regid={USER}", "--clear-groups", "--no-new-privs"),
    *("--inh-caps=-all,+net_admin", "--ambient-caps=-all,+net_admin", "--bounding-set=-all,+net_admin"),
]


ROOT = Path(__file__).parents[2]


def opened(beside: Path) -> list[str]:
    """What to put before a command so that everybody can run this Python and our code.

    A home directory that is closed to others gets an empty one in its place, which has only these in it.
    """
    needed = {Path(sys.base_prefix).resolve(), Path(sys.prefix).resolve(), ROOT}
    parents = {parent for path in needed for parent in path.parents}
    closed = [parent for parent in sorted(parents) if not parent.stat().st_mode & stat.S_IXOTH]
    if not closed:
        return []
    moved = {path: beside / str(i) for i, path in enumerate(needed) if path.is_relative_to(closed[0])}
    script = [
        *(f"mkdir -p {to} && mount --bind {shlex.quote(str(path))} {to}" for path, to in moved.items()),
        f"mount -t tmpfs -o mode=755 none {closed[0]}",
        *(f"mkdir -p '{path}' && mount --move {to} {shlex.quote(str(path))}" for path, to in moved.items()),
        'exec "$@"',
    ]
    return ["unshare", "--mount", "sh", "-ec", "\n".join(script), "sh"]


def give(path: Path, mode: int, content: str | None = None) -> Path:
    """Make a file or a directory that belongs to the user."""
    if content is None:
        path.mkdir()
    else:
        path.write_text(content)
    os.chown(path, USER, USER)
    path.chmod(mode)
    return path


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory)
        path.chmod(0o711)
        give(path / "state", 0o700)
        give(path / "run", 0o750)
        give(path / "credentials", 0o500)
        give(path / "credentials/encryption.key", 0o400, KEY + "\n")
        server = f"ws://{RELAY_IP4}:{guide.RELAY_PORT}"
        text = guide.client_config(ip="10.10.10.1/24", key=KEY, peer_id="a", server=server)
        config = yaml.safe_load(text)
        del config["encryption"]
        config["daemon"]["token_file"] = str(path / "run/api.token")
        config["network"] |= {
            "local_ip": ["10.10.10.1/24", "fd00:10::1/64"],
            "routes": [{"to": "192.168.77.0/24", "via": "10.10.10.2"}],
        }
        give(path / "client-config.yaml", 0o400, yaml.safe_dump(config))
        yield path


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("a", "b") as lab:
        lab.start_relay()
        lab["b"].ip(f"addr add {LAN_HOST}/24 dev lo")
        lab.start_client(
            "b",
            "10.10.10.2/24",
            KEY,
            network={"local_ip": ["10.10.10.2/24", "fd00:10::2/64"], "advertise": ["192.168.77.0/24"]},
        )
        yield lab


@pytest.fixture(scope="module")
def daemon(lab: Lab, home: Path) -> Program:
    environment = [
        "env",
        f"CREDENTIALS_DIRECTORY={home}/credentials",
        f"STATE_DIRECTORY={home}/state",
    ]
    python = [sys.executable, "-c", NO_WRITABLE_CODE]
    program = [installed("shadowmesh-daemon"), str(home / "client-config.yaml")]
    argv = [*opened(home / "mounts"), *ALONE, *environment, *python, *program]
    started = lab["a"].start(*argv, name="shadowmesh-daemon-a")
    lab.client_programs["a"] = started
    lab.wait_connected("a")
    return started


def test_it_has_the_one_capability(daemon: Program) -> None:
    text = Path(f"/proc/{daemon.pid}/status").read_text()
    facts = dict(re.findall(r"^(\w+):\t(.*)$", text, re.MULTILINE))
    assert facts["Uid"].split() == [str(USER)] * 4
    assert facts["Groups"].strip() == ""
    assert facts["NoNewPrivs"] == "1"
    for name in ("CapEff", "CapPrm", "CapBnd", "CapAmb"):
        assert int(facts[name], 16) == NET_ADMIN, name


def test_device_addresses_and_routes_work(lab: Lab, daemon: Program) -> None:
    for address in ("10.10.10.2", "fd00:10::2", LAN_HOST):
        lab["a"].wait_for_ping(address)
    lab["b"].wait_for_ping("10.10.10.1")
    status = lab.status("a")
    assert status is not None
    assert status["offload"]
    assert status["drops"] == {} or not {"tun_refused", "bad_offload"} & status["drops"].keys()
    assert "warning" not in daemon.text(), daemon.text()


def test_it_reads_and_writes_no_file_of_others(lab: Lab, daemon: Program, tmp_path: Path) -> None:
    secret = tmp_path / "of-root"
    secret.write_text("secret")
    secret.chmod(0o600)
    for command in (["cat", str(secret)], ["cat", "/etc/shadow"], ["touch", "/etc/shadowmesh-test"]):
        done = lab["a"].run(*ALONE, *command, check=False)
        assert "Permission denied" in done.stderr


def test_its_own_files_are_written_whole_and_for_itself(lab: Lab, daemon: Program, home: Path) -> None:
    lab["a"].wait_for_ping("10.10.10.2")
    known = home / "state/known_peers.json"
    daemon.wait_for(known.exists, "known peers")
    (peers,) = json.loads(known.read_text()).values()
    assert "10.10.10.2" in peers
    assert sorted(os.listdir(home / "state")) == ["device.key", "known_peers.json", "lock"]
    for file, mode in {
        home / "state/device.key": 0o600,
        known: 0o600,
        home / "run/api.token": 0o640,
    }.items():
        found = file.stat()
        assert (found.st_uid, stat.S_IMODE(found.st_mode)) == (USER, mode), file


def test_a_reload_and_an_end_that_leaves_nothing(lab: Lab, daemon: Program, home: Path) -> None:
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_text("configuration reloaded")
    assert daemon.stop() == 0
    assert "shadowmesh0" not in lab["a"].run("ip", "link").stdout
    assert not (home / "run/api.token").exists()
    assert KEY not in daemon.text()
