"""A Debian that has really booted, systemd and all, in namespaces of its own, to try packages and services.

The system is made once by debootstrap and kept in the user's cache; each boot works on a copy on write of it
in memory (systemd-nspawn's --volatile=overlay), has no network but loopback, and leaves nothing behind. Needs
Linux, root and the commands of TOOLS; the first time also a Debian mirror.

    with Booted() as debian:
        debian.copy(Path("dist/shadowmesh-relay_0.2.0_amd64.deb"), "/root/relay.deb")
        debian.shell("dpkg -i /root/relay.deb")
        debian.wait_for(lambda: debian.active("shadowmesh-relay"), "the service")
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import secrets
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

from shadowmesh.testing.netlab import missing_tools, obstacle
from shadowmesh.testing.program import LabError, Program, wait_for

T = TypeVar("T")

TOOLS = {"debootstrap": "debootstrap", "systemd-nspawn": "systemd-container"}
"""Commands needed besides those of the laboratory, and the Debian package each is in."""
PACKAGES = (
    "systemd systemd-sysv dbus sudo adduser kmod procps iproute2 iputils-ping net-tools curl ca-certificates"
    " nftables iptables ufw logrotate"
)
"""What the system has beyond Debian's smallest: no Python but what these need, and no compiler."""
SUITE = "bookworm"
# Its own name, for debootstrap copies this machine's; without it in /etc/hosts each sudo complains.
_FILES = {
    "hostname": "debian\n",
    "hosts": "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 debian\n",
    "resolv.conf": "",
    "apt/sources.list": "",  # it has no network, and `apt update` would wait for it
}
_ENVIRONMENT = (
    "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME=/root",
    "LANG=C.UTF-8",
    "DEBIAN_FRONTEND=noninteractive",
    "SYSTEMD_PAGER=cat",
)
_MAKING_SECONDS = 600.0
_BOOT_SECONDS = 60.0
_POWER_OFF_SECONDS = 30.0


def hindrance() -> str | None:
    """Why no Debian can be booted here, in one line for a person, or None."""
    return obstacle() or "; ".join(missing_tools(TOOLS)) or None


def base(suite: str = SUITE) -> Path:
    """The directory of the system, which is made if it is not there yet (one to two minutes).

    It is in $XDG_CACHE_HOME (~/.cache), a directory for each suite and list of packages; to have it made
    anew, remove it. Raises LabError with debootstrap's last words.
    """
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shadowmesh"
    cache.mkdir(parents=True, exist_ok=True)
    made_of = hashlib.sha256(f"{PACKAGES} {_FILES}".encode()).hexdigest()[:8]
    root = cache / f"debian-{suite}-{made_of}"
    with (cache / f"{root.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two suites at once: the second one waits
        if not root.exists():
            _make(suite, root)
    return root


def _make(suite: str, root: Path) -> None:
    # Under another name until it is whole.
    making = Path(tempfile.mkdtemp(prefix=f"{root.name}.", dir=root.parent))
    making.chmod(0o755)
    include = f"--include={','.join(PACKAGES.split())}"
    argv = ["debootstrap", "--variant=minbase", include, suite, str(making / "root")]
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=_MAKING_SECONDS
        )
        if done.returncode:
            raise LabError(f"{shlex.join(argv)}: status {done.returncode}\n{done.stdout[-2000:]}")
        for package in (making / "root/var/cache/apt/archives").glob("*.deb"):
            package.unlink()
        for name, text in _FILES.items():
            (making / "root/etc" / name).write_text(text)
        (making / "root").rename(root)
    finally:
        shutil.rmtree(making, ignore_errors=True)


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Booted:
    """One boot of it: from entering the context until leaving it, when it is powered off."""

    def __init__(self, suite: str = SUITE) -> None:
        self._suite = suite
        self._console: Program | None = None
        self._log = os.memfd_create("console")  # in memory, so that a kill -9 leaves no file behind either
        self._leader = 0

    def __enter__(self) -> Self:
        try:
            self._boot(base(self._suite))
        except BaseException:
            self._end()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._end()

    def _boot(self, root: Path) -> None:
        # No registration, no scope: there may be no systemd out here that could be asked for them. All of
        # it is in one PID namespace, which ends with `unshare`, and that with us, even after a kill -9.
        argv = ["setpriv", "--pdeathsig=KILL", "--", "unshare", "--mount", "--propagation=private"]
        argv += ["--pid", "--fork", "--kill-child", "--mount-proc", "--"]
        argv += ["systemd-nspawn", "--quiet", f"--directory={root}", "--volatile=overlay", "--boot"]
        argv += [f"--machine=shadowmesh-{secrets.token_hex(4)}", "--console=pipe"]
        argv += ["--register=no", "--keep-unit", "--link-journal=no", "--resolv-conf=off", "--timezone=off"]
        argv += ["--private-network", "--capability=CAP_NET_ADMIN", "--bind=/dev/net/tun"]
        process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT)
        self._console = Program("systemd-nspawn", process, Path(f"/proc/self/fd/{self._log}"))
        self._leader = self.wait_for(self._init, "init", _BOOT_SECONDS)
        self.wait_for(
            lambda: self.shell("systemctl is-system-running --wait", check=False).stdout.strip() == "running",
            "end of the boot",
            _BOOT_SECONDS,
        )

    def _init(self) -> int | None:
        """Process id, out here, of the system's first process."""
        assert self._console is not None
        for nspawn in _children(self._console.pid):
            for child in _children(nspawn):
                if Path(f"/proc/{child}/comm").read_text() == "systemd\n":
                    return child
        return None

    def _end(self) -> None:
        try:
            if self._console is None or self._console.status is not None:
                return
            if self._leader:
                self.shell("systemctl poweroff", check=False)
                with suppress(LabError):
                    self._console.wait(_POWER_OFF_SECONDS)
        finally:
            try:
                if self._console is not None and self._console.status is None:
                    self._console.kill()
                    leader = Path(f"/proc/{self._leader}")
                    wait_for(lambda: not self._leader or not leader.exists(), "end of the system")
            finally:
                os.close(self._log)

    def path(self, path: str) -> Path:
        """Where this process finds the system's file `path`."""
        return Path(f"/proc/{self._leader}/root{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, with the directories that it needs."""
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def copy(self, source: Path, path: str) -> None:
        """Copy a file of this machine into the system."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source, self.path(path))

    def shell(
        self, command: str, *, check: bool = True, timeout: float = 60.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line there as root, to its end.

        With `check`, any status but 0 is a LabError with its output.
        """
        argv = ["nsenter", f"--target={self._leader}", "--all", "--"]
        argv += ["env", "-i", *_ENVIRONMENT, "sh", "-c", f"cd; {command}"]
        try:
            done = subprocess.run(argv, capture_output=True, text=True, timeout=timeout, input=input or "")
        except subprocess.TimeoutExpired:
            raise LabError(f"{command}: not done after {timeout:g} s") from None
        if check and done.returncode:
            raise LabError(f"{command}: status {done.returncode}\n{done.stdout}{done.stderr}")
        return done

    def active(self, unit: str) -> bool:
        """Whether a unit is active."""
        return not self.shell(f"systemctl is-active --quiet {shlex.quote(unit)}", check=False).returncode

    def show(self, unit: str, name: str) -> str:
        """One property of a unit, as `systemctl show` has it."""
        return self.shell(f"systemctl show --value -p {name} {shlex.quote(unit)}").stdout.strip()

    def wait_for(self, condition: Callable[[], T | None], what: str, timeout: float = 20.0) -> T:
        """Wait until `condition` gives something true, and return that; LabError after `timeout` seconds.

        It ends with the last lines of the journal.
        """
        assert self._console is not None
        try:
            return self._console.wait_for(condition, what, timeout)
        except LabError as error:
            if not self._leader or self._console.status is not None:
                raise
            journal = self.shell("journalctl --no-pager -n 40", check=False).stdout
            raise LabError(f"{error}\n--- journal\n{journal}") from None
