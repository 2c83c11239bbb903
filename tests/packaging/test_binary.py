"""The single files of a release, each PyInstaller's bootloader and the program as its child, run for real."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import signal
import socket
import ssl
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import httpx
import pytest
import yaml

from shadowmesh import __version__, onefile
from shadowmesh.testing import artifacts, guide
from shadowmesh.testing.artifacts import ROOT
from shadowmesh.testing.certificates import make_certificate
from shadowmesh.testing.netlab import Lab
from shadowmesh.testing.program import Program, wait_for
from shadowmesh.testing.relay_program import NotifySocket, RelayProgram

pytestmark = [pytest.mark.netns, pytest.mark.packaging]

PROGRAMS = ["relay", "daemon"]
NEEDED = (
    "libz.so.1",
    "libc.so.6",
    "libdl.so.2",
    "libm.so.6",
    "libpthread.so.0",
    "libresolv.so.2",
    "librt.so.1",
    "libutil.so.1",
)


class Packaged(RelayProgram):
    """The single file as a service manager starts it, with a folder of its own to unpack to."""

    def __init__(self, directory: Path, *, before: Sequence[str] = (), **settings: object) -> None:
        self.unpacked = directory / "unpacked"
        self.unpacked.mkdir(exist_ok=True)
        self._before = before
        self._name = str(directory / "notify")
        super().__init__(directory, settings, environment={"TMPDIR": str(self.unpacked)})

    def _start(self) -> None:
        program = str(artifacts.binary("relay"))
        log = self.config.with_name(f"relay-{secrets.token_hex(4)}.log")
        environment = {**self._environment, "NOTIFY_SOCKET": self._name}
        argv = [*self._before, program, "-config", str(self.config)]
        with log.open("wb") as output:
            process = subprocess.Popen(argv, stderr=output, env=environment, start_new_session=True)
        Program.__init__(self, "relay", process, log)

    @property
    def child(self) -> int:
        """The process id of the program itself."""
        return int(Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text())

    @property
    def left(self) -> list[str]:
        return os.listdir(self.unpacked)


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[NotifySocket]:
    with NotifySocket(str(tmp_path / "notify")) as receiver:
        yield receiver


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists() or "\nState:\tZ" in Path(f"/proc/{pid}/status").read_text()


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_start_takes_a_second_at_most(program: str) -> None:
    best = 10.0
    for _ in range(8):
        began = time.monotonic()
        done = subprocess.run([artifacts.binary(program), "--version"], capture_output=True, text=True)
        best = min(best, time.monotonic() - began)
        assert (done.returncode, done.stdout) == (0, f"shadowmesh-{program} {__version__}\n")
        if best <= 0.7:
            break
    assert best <= 1.0


@pytest.mark.parametrize("program", PROGRAMS)
def test_called_shadowmesh_it_is_the_command_with_all_that_help_lists(program: str, tmp_path: Path) -> None:
    single = tmp_path / "shadowmesh"
    single.symlink_to(artifacts.binary(program))
    done = subprocess.run([single, "version"], capture_output=True, text=True)
    assert done.stdout == f"shadowmesh {__version__}\n"
    # For the rest that of the packages, which has nothing to unpack.
    command = tmp_path / "directory/shadowmesh"
    command.parent.mkdir()
    command.symlink_to(ROOT / f"build/programs/shadowmesh-{program}/shadowmesh-{program}")

    def said(*arguments: str) -> str:
        return subprocess.run([command, *arguments], capture_output=True, text=True, check=True).stdout

    names = re.findall(r"^  ([\w-]+)  ", said("--help").partition("Commands:\n")[2], re.MULTILINE)
    assert {"check-config", "keygen", "relay-keys", "status"} <= set(names)
    assert "demo" not in names
    for name in names:
        assert said(name, "--help").startswith(f"Usage: shadowmesh {name}")
    assert re.fullmatch(r"[0-9a-f]{64}\n", said("keygen"))
    # By its name alone, from another directory: the client is what it is itself.
    argv = ["shadowmesh", "init", "client", "--relay", "ws://192.0.2.1:1", "--name", "a", "-o", "c.yaml"]
    alone = {"PATH": str(command.parent)}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=tmp_path, env=alone)
    assert done.returncode == 0, done.stderr
    assert ("install it first" in done.stdout) == (program == "relay")


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_mark_of_our_files_is_unpacked_first(program: str) -> None:
    """So that what a bootloader did not unpack whole is known, too."""
    listing = """
import sys
from PyInstaller.archive.readers import CArchiveReader
print(next(name for name, entry in CArchiveReader(sys.argv[1]).toc.items() if entry[4] in ("b", "x")))
"""
    argv = [str(ROOT / "build/venv/bin/python"), "-c", listing, str(artifacts.binary(program))]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout == f"{onefile.MARK}\n"


def test_a_relay_has_no_keys_and_makes_no_tunnels() -> None:
    listing = """
import sys
from PyInstaller.archive.readers import CArchiveReader
print("\\n".join(CArchiveReader(sys.argv[1]).open_embedded_archive("PYZ.pyz").toc))
"""
    modules = {}
    for program in PROGRAMS:
        argv = [str(ROOT / "build/venv/bin/python"), "-c", listing, str(artifacts.binary(program))]
        text = subprocess.run(argv, capture_output=True, text=True, check=True).stdout
        modules[program] = set(text.splitlines())
    secret = {"shadowmesh.mesh.mesh", "shadowmesh.crypto.noise", "shadowmesh.crypto.session", "pyroute2"}
    assert secret <= modules["daemon"]
    assert not secret & modules["relay"]
    assert not [name for name in set.union(*modules.values()) if name.startswith("shadowmesh.testing")]


@pytest.mark.parametrize("program", PROGRAMS)
def test_the_pages_and_the_package_say_which_glibc_is_needed(program: str) -> None:
    """Counted over the bootloader, Python and every library."""
    directory = ROOT / f"build/programs/shadowmesh-{program}"
    files = [file for file in directory.rglob("*") if ".so" in file.name or file.name == directory.name]
    assert len(files) > 30
    symbols = subprocess.run(
        ["objdump", "-T", *map(str, files)], capture_output=True, text=True, check=True
    ).stdout
    newest = max(tuple(map(int, found)) for found in re.findall(r"GLIBC_(\d+)\.(\d+)", symbols))
    wanted = ".".join(map(str, newest))
    assert f"glibc {wanted}" in (ROOT / "docs/building.md").read_text()
    fields = subprocess.run(
        ["dpkg-deb", "-f", artifacts.deb(program), "Depends"], capture_output=True, text=True
    )
    assert f"libc6 (>= {wanted})" in fields.stdout


def test_it_serves_on_a_system_with_glibc_and_zlib_and_nothing_else(tmp_path: Path) -> None:
    root = tmp_path / "root"
    libraries = Path(f"/lib/{os.uname().machine}-linux-gnu")
    for directory in ("dev", "etc", "proc", "tmp", "lib64", libraries.relative_to("/")):
        (root / directory).mkdir(parents=True)
    for name in NEEDED:
        shutil.copy(libraries / name, root / libraries.relative_to("/"))
    (loader,) = (
        Path("/lib64").glob("ld-linux-*") if Path("/lib64").exists() else Path("/lib").glob("ld-linux-*")
    )
    shutil.copy(loader, root / loader.relative_to("/"))
    shutil.copy(artifacts.binary("relay"), root / "shadowmesh-relay")
    shutil.copy(artifacts.binary("daemon"), root / "shadowmesh")
    for device in ("null", "urandom"):
        os.mknod(root / "dev" / device, 0o666 | 0o020000, os.stat(f"/dev/{device}").st_rdev)
    for program in ("shadowmesh-relay", "shadowmesh"):
        done = subprocess.run(["chroot", root, f"/{program}", "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, f"{program} {__version__}\n"), done.stderr
    with Packaged(tmp_path) as ports:  # for its configuration
        ports.stop()
    shutil.copy(ports.config, root / "etc/relay-config.yaml")
    argv = ["chroot", str(root), "/shadowmesh-relay", "/etc/relay-config.yaml"]
    with (
        (tmp_path / "log").open("wb") as log,
        subprocess.Popen(argv, stderr=log, env={"PATH": "/usr/sbin"}) as process,
    ):
        relay = Program("relay", process, tmp_path / "log")
        relay.wait_for_text("relay is ready")
        assert ports.get("/health").status_code == 200
        assert relay.stop() == 0
    assert os.listdir(root / "tmp") == []


def test_systemd_hears_of_the_child_and_keeps_the_bootloader_as_main_process(
    tmp_path: Path, systemd: NotifySocket
) -> None:
    """Its exit status stays visible so, and a reload reaches the child through it."""
    before = ["sh", "-c", 'WATCHDOG_USEC=100000 WATCHDOG_PID=$$ exec "$@"', "sh"]
    with Packaged(tmp_path, before=before) as relay:
        ready = systemd.expect("READY=1")
        assert "MAINPID" not in ready
        systemd.expect("WATCHDOG=1")
        assert relay.child != relay.pid
        relay.hang_up()
        systemd.expect("RELOADING=1")
        systemd.expect("READY=1")
        assert relay.stop() == 0
    assert relay.left == []


def test_a_relay_with_tls_answers_over_it(tmp_path: Path) -> None:
    """Its OpenSSL is among the files that are unpacked, and is looked for while it runs."""
    certificate = make_certificate(tmp_path, ["127.0.0.1"])
    tls = {"cert_file": str(certificate.cert), "key_file": str(certificate.key)}
    with Packaged(tmp_path, tls=tls).ready() as relay:
        context = ssl.create_default_context(cafile=str(certificate.ca))
        url = relay.url.replace("ws://", "https://")
        assert httpx.get(url, verify=context, trust_env=False).status_code == 426
        assert relay.stop() == 0


def test_a_signal_to_the_whole_service_is_one_signal(tmp_path: Path) -> None:
    """systemd's KillMode=control-group and Ctrl-C reach both, and the bootloader passes its own on."""
    with Packaged(tmp_path).ready() as relay:
        os.killpg(relay.pid, signal.SIGTERM)
        assert relay.wait() == 0
    assert "relay has stopped" in relay.text()
    assert "second signal" not in relay.text()
    assert relay.left == []


@pytest.mark.parametrize("victim", ["bootloader", "program"])
def test_kill_9_of_either_leaves_nothing_behind(tmp_path: Path, victim: str) -> None:
    with Packaged(tmp_path).ready() as relay:
        child = relay.child
        os.kill(relay.pid if victim == "bootloader" else child, signal.SIGKILL)
        assert relay.wait() == -signal.SIGKILL
        wait_for(lambda: gone(child) and not relay.left, "end without anything left")
        again = relay.again().ready()
        assert again.stop() == 0
        assert ("relay has stopped" in relay.text()) == (victim == "bootloader")


def test_what_both_left_when_killed_goes_at_the_next_start_and_nothing_else(tmp_path: Path) -> None:
    with Packaged(tmp_path).ready() as relay:
        child, (files,) = relay.child, relay.left
        os.kill(relay.pid, signal.SIGSTOP)
        os.kill(child, signal.SIGKILL)
        relay.kill()
        assert relay.left == [files]
        foreign = relay.unpacked / "_MEIother"
        foreign.mkdir()
        old = time.time() - 2 * onefile.UNPACK_SECONDS
        for directory in (relay.unpacked / files, foreign):
            os.utime(directory, (old, old))
        again = relay.again().ready()
        assert foreign.name in relay.left
        assert files not in relay.left
        (live,) = set(relay.left) - {foreign.name}
        os.utime(relay.unpacked / live, (old, old))
        subprocess.run(
            [artifacts.binary("relay"), "--version"], env={"TMPDIR": str(relay.unpacked)}, check=True
        )
        assert live in relay.left
        assert again.stop() == 0


def test_the_client_has_its_device_and_takes_it_with_it(tmp_path: Path) -> None:
    key, server = secrets.token_hex(32), "ws://192.0.2.1:9545"
    text = guide.client_config(ip="10.10.10.1/24", key=key, peer_id="a", server=server)
    settings = {"state_directory": str(tmp_path / "state"), "token_file": str(tmp_path / "api.token")}
    config = {**(parsed := yaml.safe_load(text)), "daemon": {**parsed["daemon"], **settings}}
    (tmp_path / "client-config.yaml").write_text(yaml.safe_dump(config))
    (tmp_path / "client-config.yaml").chmod(0o600)
    with NotifySocket(str(tmp_path / "notify")) as systemd, Lab("a") as lab:
        environment = ["env", f"NOTIFY_SOCKET={systemd.name}", f"TMPDIR={tmp_path}"]
        argv = [*environment, str(artifacts.binary("daemon")), str(tmp_path / "client-config.yaml")]
        daemon = lab["a"].start(*argv, name="packaged-daemon")
        systemd.expect("READY=1")
        assert "10.10.10.1/24" in lab["a"].run("ip", "addr", "show", "shadowmesh0").stdout
        assert daemon.stop() == 0
        assert "shadowmesh0" not in lab["a"].run("ip", "link").stdout
    assert not list(tmp_path.glob("_MEI*"))


def test_a_temporary_folder_that_forbids_programs_is_named(tmp_path: Path) -> None:
    (tmp_path / "noexec").mkdir()
    (tmp_path / "other").mkdir()
    script = f"""
mount -t tmpfs -o noexec none {tmp_path}/noexec
TMPDIR={tmp_path}/noexec "$1" --version && exit 99
ls {tmp_path}/noexec
TMPDIR={tmp_path}/other "$1" --version
"""
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", str(artifacts.binary("relay"))]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"shadowmesh-relay {__version__}\n")
    assert re.search(
        rf"Failed to load Python shared library '{tmp_path}/noexec/_MEI.*failed to map segment", done.stderr
    )
    page = " ".join((ROOT / "docs/building.md").read_text().split())
    assert "failed to map segment from shared object" in page
    assert "TMPDIR=" in page


def test_no_temporary_folder_at_all_is_one_line(tmp_path: Path) -> None:
    script = (
        'mount --rbind "$PWD" "$PWD"; mount -o remount,ro,bind /; mount -t tmpfs -o ro none /tmp; exec "$@"'
    )
    program = str(shutil.copy(artifacts.binary("relay"), "/root/"))
    try:
        argv = ["unshare", "--mount", "sh", "-c", script, "sh", program, "--version"]
        done = subprocess.run(argv, capture_output=True, text=True, cwd="/")
    finally:
        os.unlink(program)
    assert done.returncode != 0
    assert re.fullmatch(r"\[PYI-\d+:ERROR\] Could not create temporary directory!\n", done.stderr)


def test_a_taken_port_and_a_wrong_file_have_their_words_and_status(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with Packaged(tmp_path, relay_port=port, bind_address="127.0.0.1") as relay:
            assert relay.wait() == 1
    assert re.search(rf"relay cannot start.*{port}", relay.text())
    (tmp_path / "relay-config.yaml").write_text("relay_prot: 1\n")
    relay = relay.again()
    assert relay.wait() == 2
    assert "did you mean relay_port?" in relay.text()
    assert relay.left == []
