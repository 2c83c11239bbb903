"""`shadowmesh demo` as a program: what it reports, what it leaves, and that it says no when it cannot run."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh.cli import demo
from shadowmesh.testing import netlab
from shadowmesh.testing.program import wait_for

pytestmark = pytest.mark.netns

DEMO = [netlab.installed("shadowmesh"), "demo", "--size", "4", "--seconds", "1"]
CLAIMS = [
    *("no other way", "found each other", "ping", "file by HTTP", "iperf3"),
    *("/status", "/metrics", "one of the frames", "its links", "its log", "the search works"),
]
# A user who is not root but may read root's files: the demo then makes a user namespace of its own.
AS_USER = ["unshare", "-U", "--map-user=1000", "--map-group=1000", "--"]


@pytest.fixture(autouse=True)
def nothing_left(tmp_path: Path) -> Iterator[None]:
    """Whatever happens to a demo, its processes go."""
    if missing := netlab.missing_tools(demo.TOOLS):
        pytest.skip("; ".join(missing))
    yield
    wait_for(lambda: not processes(str(tmp_path)), "end of the demo's processes")


def daemons(text: str) -> list[int]:
    """Those of the processes that are clients by now: what starts them (nsenter, setpriv) is not."""
    return [pid for pid in processes(text) if Path(f"/proc/{pid}/comm").read_text() == "shadowmesh-daem\n"]


def namespaces(prefix: str = "") -> list[str]:
    names = os.listdir("/run/netns") if Path("/run/netns").exists() else []
    return [name for name in names if name.startswith(prefix)]


def prefix_of(text: str) -> str:
    """How the namespaces of the processes with `text` are called, "" before there are any.

    Others may run laboratories beside this one, whose namespaces are not ours to count or to remove.
    """
    inside = {namespace for pid in processes(text) if (namespace := inode(f"/proc/{pid}/ns/net"))}
    named = [name for name in namespaces("sm-") if inode(f"/run/netns/{name}") in inside]
    return named[0].rpartition("-")[0] if named else ""


def inode(path: str) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None  # ended meanwhile


def processes(text: str) -> list[int]:
    """Ids of the processes with `text` in their command line."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if text.encode() in file.read_bytes():
                found.append(int(file.parent.name))
        except OSError:
            continue  # ended meanwhile
    return found


@pytest.mark.parametrize("prefix", [[], AS_USER], ids=["root", "user"])
def test_the_report_is_complete_and_true(prefix: list[str], tmp_path: Path) -> None:
    if prefix and (reason := netlab.obstacle(as_user=True)):
        pytest.skip(reason)
    command = [*prefix, *DEMO, "--keep", str(tmp_path / "kept")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        # A user's demo has names of its own, which nobody else sees.
        names = "" if prefix else wait_for(lambda: prefix_of(str(tmp_path)), "namespaces of the demo")
        output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, output + errors
    assert not errors
    assert not (names and namespaces(names))
    assert "✗" not in output
    claims = re.findall(r"^  ✓ (.+?)  ", output, re.MULTILINE)
    assert claims == CLAIMS
    assert re.search(r"[\d.]+ Gbit/s of TCP", output)
    logged = output.partition("\nWhat the relay logged about its clients (all of these are pseudonyms)")[2]
    assert logged.count("client joined") == 2
    assert (tmp_path / "kept" / "relay-any.pcap").stat().st_size > 8 << 20


@pytest.mark.parametrize(
    "number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL], ids=lambda number: number.name
)
def test_an_interrupted_demo_leaves_nothing(number: int, tmp_path: Path) -> None:
    """Also with kill -9 no program is left; only then do names of namespaces stay, which are removed here."""
    process = subprocess.Popen(
        [*DEMO, "--keep", str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    try:
        wait_for(lambda: len(daemons(str(tmp_path))) == 2, "daemons of the demo", timeout=20)
        prefix = wait_for(lambda: prefix_of(str(tmp_path)), "namespaces of the demo")
        process.send_signal(number)
        process.communicate(timeout=10)
    finally:
        process.kill()
        process.wait()
    assert process.returncode != 0
    if number == signal.SIGKILL:
        wait_for(lambda: not processes(str(tmp_path)), "end of the demo's processes")
        for name in namespaces(prefix):
            subprocess.run(["ip", "netns", "del", name], check=True)
    assert not namespaces(prefix)


def test_missing_tools_are_named_with_their_packages(tmp_path: Path) -> None:
    for tool in ("ip", "nsenter", "setpriv", "unshare", "ping", "tcpdump"):
        (tmp_path / tool).symlink_to("/bin/true")
    done = subprocess.run(DEMO, env={"PATH": str(tmp_path)}, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "curl is not installed: apt-get install curl" in done.stderr
    assert "iperf3 is not installed: apt-get install iperf3" in done.stderr
    assert done.stdout == ""
