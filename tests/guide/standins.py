"""What a machine of the lab lacks when a page is typed into it: the Internet, and a systemd that has booted.

Each stand-in takes what the real command takes in our pages and refuses all else, so one that is mistyped
fails. git, nginx, ufw and all others are the real ones; the repository is one of this tree.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from shadowmesh.testing.machine import HOME, Machine

ROOT = Path(__file__).parents[2]
UPSTREAM = f"{HOME}/upstream.git"
CLONE = "/opt/shadowmesh"
_GIT = "git -c user.name=test -c user.email=test@localhost"
_REFUSE = 'refuse() { echo "${0##*/} $*: unknown here" >&2; exit 2; }\n'
_APT = """\
known=" caddy certbot curl git nftables nginx prometheus python3 python3-venv ufw "
case $* in
update) exit ;;
"install -y "?*) shift 2 ;;
*) refuse "$@" ;;
esac
for name; do case $known in *" $name "*) ;; *) refuse "$name" ;; esac; done
"""
_SYSTEMCTL = """\
case $* in
daemon-reload) exit ;;
"enable --now "?*) shift 2 ;;
"start "?* | "restart "?* | "reload "?* | "status "?*) shift ;;
*) refuse "$@" ;;
esac
[ $# = 1 ] || refuse "$@"
for place in /etc/systemd/system /usr/lib/systemd/system; do
    if [ -f "$place/${1%.service}.service" ]; then exit; fi
done
refuse "$@"
"""
_CERTBOT = """\
[ "$1" = certonly ] || refuse "$@"
shift
options=$(getopt -n certbot -o w:d: -l webroot,standalone,deploy-hook: -- "$@")
eval set -- "$options"
while [ "$1" != -- ]; do
    case $1 in
    -w) [ -d "$2" ] || refuse "$@" ;;
    -d) [ -d "/etc/letsencrypt/live/$2" ] || refuse "$@" ;;
    --deploy-hook) sh -ec "$2" ;;
    esac
    case $1 in -w | -d | --deploy-hook) shift ;; esac
    shift
done
[ $# = 1 ] || refuse "$@"
"""


def install(machine: Machine) -> None:
    """Put them where they come before the real ones."""
    for name, script in {"apt": _APT, "systemctl": _SYSTEMCTL, "certbot": _CERTBOT}.items():
        machine.write(f"/usr/local/sbin/{name}", f"#!/bin/sh\nset -eu\n{_REFUSE}{script}", mode=0o755)


def publish(machine: Machine) -> None:
    """Commit this tree, as it is now, to the repository that the pages leave open."""
    git = f"{_GIT} --git-dir={UPSTREAM} --work-tree={shlex.quote(str(ROOT))}"
    machine.shell(f"git init --quiet --bare --initial-branch=main {UPSTREAM}; {git} add --all")
    machine.shell(f"{git} commit --quiet --message='This tree'")


def change(machine: Machine, file: str) -> None:
    """Commit a new line at the end of a file there."""
    work = f"{HOME}/work"
    machine.shell(f"git clone --quiet {UPSTREAM} {work} && echo '# new' >>{work}/{file}")
    machine.shell(f"cd {work} && {_GIT} commit --quiet --all --message=New && git push --quiet")


def clone(machine: Machine, command: str) -> None:
    """Type a command that clones, and have .venv there, so that `scripts/setup run` has nothing to fetch."""
    machine.shell(command.replace("<this repository>", UPSTREAM))
    machine.copy(f"{CLONE}/.venv", ROOT / ".venv")
    machine.shell(f"""cd {CLONE}
        echo "$PWD $(python3 -c 'import sys; print(sys.version, sys.base_prefix)')" >.venv/maker
        echo "run $(cat requirements/*.txt pyproject.toml | sha256sum)" >.venv/state""")
