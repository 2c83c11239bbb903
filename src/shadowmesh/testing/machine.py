"""A host of the laboratory whose files may be changed, too: there an administrator's commands are typed.

/etc, /opt, /usr and /var are copies on write (overlayfs over memory) and /run is empty, in a mount namespace
that ends with the lab. All else is this machine's, so that programs find what they need. No systemd runs.

    with Lab("a") as lab:
        machine = Machine(lab.relay)
        machine.write("/etc/shadowmesh/relay-config.yaml", guide.RELAY_CONFIG)
        machine.shell("sudo useradd -r -s /bin/false shadowmesh")
"""

from __future__ import annotations

import shlex
import subprocess
from pathlib import Path

from shadowmesh.testing.netlab import Host, installed
from shadowmesh.testing.program import Program

_COPY = """
copy() { # FROM TO
    room=$(mktemp -d "$memory/XXXX")
    mkdir "$room/upper" "$room/work"
    mount -t overlay -o "lowerdir=$1,upperdir=$room/upper,workdir=$room/work" none "$2"
}
"""
_PREPARE = """
mount -t tmpfs -o mode=755 none "$memory"
for name in etc opt usr var; do copy "/$name" "/$name"; done
mount -t tmpfs -o mode=755 none /run
echo ready
exec sleep infinity
"""
_COPIES = ("/etc/", "/opt/", "/usr/", "/var/", "/run/")
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_PROGRAMS = ("shadowmesh", "shadowmesh-relay", "shadowmesh-daemon")


HOME = "/var/tmp"  # noqa: S108 - the machine's own
"""Where commands are typed."""


class Machine:
    """Files of its own for a host; commands run as root, with nothing of our environment.

    `sudo` runs what is behind it; the programs of this package are in /usr/local/bin.
    """

    def __init__(self, host: Host) -> None:
        self.host = host
        self._memory = host.lab.directory / f"machine-{host.name}"
        self._memory.mkdir()
        argv = ("unshare", "--mount", "--propagation", "private", "sh", "-ec", self._with_copy(_PREPARE))
        self._holder = host.start(*argv, name=self._memory.name)
        self._holder.wait_for_text("ready")
        self.write("/usr/local/sbin/sudo", '#!/bin/sh\nexec env "$@"\n', mode=0o755)
        for name in _PROGRAMS:
            self.link(f"/usr/local/bin/{name}", installed(name))

    def path(self, path: str) -> Path:
        """Where this process finds the machine's file `path`."""
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def write(self, path: str, text: str, mode: int = 0o644) -> None:
        """Write a file, with the directories that it needs; a ValueError if it were one of this machine."""
        if not path.startswith(_COPIES):
            raise ValueError(f"{path} would be written on this machine")
        file = self.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)

    def link(self, path: str, target: str) -> None:
        """Make a symbolic link, with the directories that it needs."""
        self.path(path).parent.mkdir(parents=True, exist_ok=True)
        self.path(path).unlink(missing_ok=True)
        self.path(path).symlink_to(target)

    def copy(self, path: str, source: Path) -> None:
        """Make the directory `path` a copy on write of one of this machine's."""
        self.path(path).mkdir(parents=True, exist_ok=True)
        self.shell(self._with_copy(f"copy {shlex.quote(str(source))} {shlex.quote(path)}"))

    def shell(
        self, command: str, *, check: bool = True, timeout: float = 30.0, input: str | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command line to its end; with `check`, any status but 0 is a LabError with its output."""
        return self.host.run(
            *self._enter(), "sh", "-c", f"cd; {command}", check=check, timeout=timeout, input=input
        )

    def start(self, command: str, *, name: str) -> Program:
        """Start a command line that is one program, as `Host.start` does."""
        return self.host.start(*self._enter(), "sh", "-c", f"cd; exec {command}", name=name)

    def _with_copy(self, script: str) -> str:
        return f"memory={shlex.quote(str(self._memory))}\n{_COPY}\n{script}"

    def _enter(self) -> list[str]:
        environment = [f"PATH={_PATH}", f"HOME={HOME}", "LANG=C.UTF-8", "PYTHONUNBUFFERED=1"]
        return ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", "--", "env", "-i", *environment]
