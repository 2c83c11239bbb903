"""The Debian packages: installed, upgraded, interrupted, removed, purged on a copy of this machine's Debian.

No systemd runs there; what the units do when one does is shown on a booted Debian (tests/guide).
"""

from __future__ import annotations

import gzip
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from shadowmesh import __version__
from shadowmesh.cli.completion import PLACES
from shadowmesh.testing import artifacts, guide
from shadowmesh.testing.artifacts import ARCH, ROOT
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.markdown import links
from shadowmesh.testing.netlab import Lab

pytestmark = [pytest.mark.netns, pytest.mark.packaging]

PROGRAMS = ["relay", "daemon"]
CONFIG = "/etc/shadowmesh/client-config.yaml"
KEY = "/etc/shadowmesh/encryption.key"
RELAY_CONFIG = "/etc/shadowmesh/relay-config.yaml"


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    """A host that has never heard of ShadowMesh, with both packages in /opt."""
    with Lab("a") as lab:
        machine = Machine(lab.relay)
        machine.shell("rm -rf /etc/shadowmesh /usr/local/bin/shadowmesh*; ! getent passwd shadowmesh")
        for program in PROGRAMS:
            shutil.copy(artifacts.deb(program), machine.path(f"/opt/{program}.deb"))
        yield machine


def dpkg(machine: Machine, what: str, *, check: bool = True) -> str:
    command = f"cd /opt && dpkg --force-unsafe-io {what} </dev/null"
    done = machine.shell(command, check=check, timeout=120)
    return done.stdout + done.stderr


def files(machine: Machine) -> dict[str, str]:
    """What is there beside dpkg's own records: path -> mode, owner and link target."""
    unlike = ("/var/lib/dpkg", "/var/lib/systemd", "/var/cache", "/var/log")
    skip = rf"\( -name '*-' -o {' -o '.join(f'-path {path}' for path in unlike)} \)"
    shown = r"-printf '%p\t%M %u %l\n'"
    text = machine.shell(f"find /etc /usr /var -maxdepth 4 {skip} -prune -o {shown}").stdout
    found = dict(line.split("\t", 1) for line in text.splitlines())
    return {path: rest for path, rest in found.items() if not path.startswith("/etc/.pwd.lock")}


def accounts(machine: Machine) -> str:
    return machine.shell("getent passwd shadowmesh; getent group shadowmesh; true").stdout


def test_lintian_has_nothing_to_say() -> None:
    """But what is overridden, each with its reason."""
    debs = [str(artifacts.deb(program)) for program in PROGRAMS]
    argv = ["lintian", "--allow-root", "--jobs", "2", "--fail-on", "error,warning", *debs]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, ""), done.stdout


@pytest.mark.parametrize("program", PROGRAMS)
def test_what_is_in_a_package(program: str) -> None:
    name = f"shadowmesh-{program}"
    deb = artifacts.deb(program)
    assert deb.name == f"{name}_{__version__}_{ARCH}.deb"
    listing = subprocess.run(["dpkg-deb", "-c", deb], capture_output=True, text=True, check=True).stdout
    rows = [line.split(maxsplit=5) for line in listing.splitlines()]
    assert {owner for _, owner, *_ in rows} == {"root/root"}
    assert not [row for row in rows if re.match(r"(?!l).....w|(?!l)........w|...s|......s", row[0])]
    assert len({(row[3], row[4]) for row in rows}) == 1
    unit = (ROOT / f"build/deb/{name}/usr/lib/systemd/system/{name}.service").read_text()
    hardened = (ROOT / f"deploy/systemd/{name}.service").read_text()
    added = set(unit.splitlines()) - set(hardened.splitlines())
    kept = {line for line in added if not line.startswith("#")}
    conditions = {f"ConditionPathExists={CONFIG}", f"ConditionPathExists={KEY}"}
    start = {f"ExecStart=/usr/bin/{name} " + {"relay": f"-config {RELAY_CONFIG}", "daemon": CONFIG}[program]}
    assert kept == start | (conditions if program == "daemon" else set())
    assert {"Type=notify", "NotifyAccess=all"} <= set(unit.splitlines()) & set(hardened.splitlines())


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_package_has_the_pages_that_it_names(program: str) -> None:
    name = f"shadowmesh-{program}"
    root = ROOT / f"build/deb/{name}"
    texts = [root / f"usr/lib/systemd/system/{name}.service", *(root / "DEBIAN").iterdir()]
    named = re.findall(
        r"\S*\bdocs?/\S+\.md", "".join(file.read_text() for file in texts if file.suffix != ".md")
    )
    named = [page for page in named if "md5sums" not in page]
    assert named
    for page in named:
        assert (root / page.lstrip("/")).is_file(), page
    for page in (
        f"share/man/man8/{name}.8.gz",
        f"lib/{name}/shadowmesh.1.gz",
        f"lib/{name}/shadowmesh.yaml.5.gz",
    ):
        text = gzip.decompress((root / "usr" / page).read_bytes()).decode().replace("\\-", "-")
        assert re.search(r'^\.TH \S+ \d "\d{4}-\d\d-\d\d" ', text), page
        assert "shadowmesh demo" not in text


COPIED = {"relay": {"monitoring/alerts.yml", "deploy"}, "daemon": {"monitoring/", "client-config.yaml"}}


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_package_has_what_its_pages_copy(program: str) -> None:
    artifacts.deb(program)
    root, share = ROOT / f"build/deb/shadowmesh-{program}", f"/usr/share/shadowmesh-{program}/"
    pages = "".join(page.read_text() for page in root.glob("usr/share/doc/*/*.md"))
    named = set(re.findall(rf"{share}([\w./-]*\w/?)", pages))
    assert COPIED[program] <= named
    for path in named:
        assert (root / share.lstrip("/") / path).exists(), path
    for name in ("deploy", "monitoring"):
        assert files_below(root / share.lstrip("/") / name) == files_below(ROOT / name)


def files_below(directory: Path) -> set[str]:
    return {str(file.relative_to(directory)) for file in directory.rglob("*") if file.is_file()}


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_link_of_a_packages_pages_leads_somewhere(program: str) -> None:
    artifacts.deb(program)
    root = ROOT / f"build/deb/shadowmesh-{program}"
    pages = {*root.glob("usr/share/doc/*/*.md")}
    names = {page.name for page in pages}
    assert {page.name for page in (ROOT / "docs").glob("*.md")} | {"README.md", "CHANGELOG.md"} <= names
    walked = 0
    for page in pages:
        for link, target, found in links(page):
            assert target.is_relative_to(root), f"{page.name}: {link}"
            assert found, f"{page.name}: {link}"
            walked += 1
    assert walked > 100


def test_the_same_tree_is_packed_to_the_same_bytes(tmp_path: Path) -> None:
    """The commit's time stands for all times: SOURCE_DATE_EPOCH."""
    sums = set()
    for turn in range(2):
        tree = tmp_path / f"tree{turn}"
        shutil.copytree(ROOT / "build/deb/shadowmesh-relay/DEBIAN", tree / "DEBIAN")
        shutil.copytree(ROOT / "build/deb/shadowmesh-relay/usr/share", tree / "usr/share", symlinks=True)
        os.utime(tree / "usr", (2e9 + turn, 2e9 + turn))
        argv = ["dpkg-deb", "--root-owner-group", "-Zxz", "--build", str(tree), str(tmp_path / f"{turn}.deb")]
        subprocess.run(
            argv, env={**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}, check=True, capture_output=True
        )
        sums.add((tmp_path / f"{turn}.deb").read_bytes())
    assert len(sums) == 1


def test_a_client_from_install_to_purge(machine: Machine) -> None:
    before = files(machine)
    machine.write(f"{KEY}.new", "0123")  # a first try has met a full disk
    said = dpkg(machine, "-i daemon.deb")
    assert f"made a network key for a first configuration: {KEY}" in said
    assert f"not started, for there is no {CONFIG} yet" in said
    assert re.fullmatch(r"[0-9a-f]{64}\n", machine.path(KEY).read_text())
    assert files(machine)[KEY].startswith("-rw------- root")
    assert machine.shell("shadowmesh version; shadowmesh-daemon --version").stdout.splitlines() == [
        f"shadowmesh {__version__}",
        f"shadowmesh-daemon {__version__}",
    ]
    assert "shadowmesh:x:" in accounts(machine)
    assert machine.shell("man -w shadowmesh.yaml shadowmesh shadowmesh-daemon").stdout.count(".gz\n") == 3
    # Configured with the file of the package, upgraded, removed: nothing of it is lost.
    machine.shell(f"cp /usr/share/shadowmesh-daemon/client-config.yaml {CONFIG}")
    machine.shell(f"sed -i 's/10.X/10.7/; s/YOUR_RELAY_IP/192.0.2.1/' {CONFIG}")
    checked = machine.shell(f"CREDENTIALS_DIRECTORY=/etc/shadowmesh shadowmesh check-config {CONFIG}").stdout
    assert checked == f"{CONFIG}: ok (client configuration)\n"
    kept = {path: machine.path(path).read_text() for path in (CONFIG, KEY)}
    for action in ("-i daemon.deb", "-r shadowmesh-daemon", "-i daemon.deb"):
        assert "made a network key" not in dpkg(machine, action)
        assert {path: machine.path(path).read_text() for path in kept} == kept
    machine.shell("install -d -m 700 -o shadowmesh /var/lib/shadowmesh; touch /var/lib/shadowmesh/device.key")
    dpkg(machine, "-P shadowmesh-daemon")
    assert files(machine) == before
    assert accounts(machine) == ""


def test_a_relay_from_install_to_purge(machine: Machine) -> None:
    before = files(machine)
    dpkg(machine, "-i relay.deb")
    # Its configuration is good as it is: the service's user serves with it.
    as_service = "setpriv --reuid=shadowmesh --regid=shadowmesh --clear-groups --inh-caps=-all"
    assert machine.shell(f"{as_service} shadowmesh check-config {RELAY_CONFIG}").stdout.endswith(
        "ok (relay configuration)\n"
    )
    relay = machine.start(f"{as_service} shadowmesh-relay -config {RELAY_CONFIG}", name="packaged-relay")
    relay.wait_for_text("relay is ready")
    assert '"status":"healthy"' in machine.shell("curl -s http://localhost:8080/health").stdout.replace(
        " ", ""
    )
    second = machine.shell(f"{as_service} shadowmesh-relay -config {RELAY_CONFIG}", check=False)
    assert second.returncode == 1
    assert re.search("relay cannot start.*another program has this port", second.stderr)
    # The files of a running program are replaced by an upgrade: it still reloads, and ends in order.
    dpkg(machine, "-r shadowmesh-relay")
    machine.shell(f"kill -HUP {relay.pid}")
    relay.wait_for_text("configuration reloaded")
    assert relay.stop() == 0
    assert "Traceback" not in relay.text()

    machine.shell(f"echo 'region: mine' >{RELAY_CONFIG}; shadowmesh relay-keys add laptop || true")
    dpkg(machine, "-i relay.deb")
    assert machine.path(RELAY_CONFIG).read_text() == "region: mine\n"
    machine.shell(f"shadowmesh relay-keys add laptop; touch {RELAY_CONFIG}.bak2")
    dpkg(machine, "-P shadowmesh-relay")
    assert files(machine) == before
    assert accounts(machine) == ""


def test_both_on_one_host_share_the_user_until_the_last_is_purged(machine: Machine) -> None:
    before = files(machine)
    dpkg(machine, "-i relay.deb daemon.deb")
    assert (
        machine.shell("readlink -f /usr/bin/shadowmesh").stdout
        == "/usr/lib/shadowmesh-daemon/shadowmesh-daemon\n"
    )
    key = machine.path(KEY).read_text()
    dpkg(machine, "-r shadowmesh-daemon")
    assert (
        machine.shell("readlink -f /usr/bin/shadowmesh").stdout
        == "/usr/lib/shadowmesh-relay/shadowmesh-relay\n"
    )
    dpkg(machine, "-P shadowmesh-relay")
    assert "shadowmesh:x:" in accounts(machine)
    assert machine.path(KEY).read_text() == key
    dpkg(machine, "-P shadowmesh-daemon")
    assert files(machine) == before
    assert accounts(machine) == ""


def test_what_an_administrator_made_by_the_guide_stays(machine: Machine) -> None:
    """The user, a relay's configuration, and a client's with the key in it, of no use to the service."""
    machine.shell("useradd -r -s /bin/false shadowmesh")
    machine.write(CONFIG, guide.CLIENT_CONFIG, mode=0o600)
    machine.write(RELAY_CONFIG, guide.RELAY_CONFIG)
    assert "prompt" not in dpkg(machine, "-i relay.deb")
    assert machine.path(RELAY_CONFIG).read_text() == guide.RELAY_CONFIG
    dpkg(machine, "-P shadowmesh-relay")
    said = dpkg(machine, "-i daemon.deb")
    assert machine.path(CONFIG).read_text() == guide.CLIENT_CONFIG
    assert not machine.path(KEY).exists()
    assert f"not started, for there is no {KEY} yet" in said
    dpkg(machine, "-P shadowmesh-daemon")
    assert "/bin/false" in accounts(machine)


def test_a_package_interrupted_half_way_is_finished_by_the_next_try(machine: Machine) -> None:
    dpkg(machine, "-i daemon.deb")
    machine.write(CONFIG, "mine: yes\n")
    key = machine.path(KEY).read_text()
    for victim in (
        "/usr/lib/shadowmesh-daemon/_internal/libcrypto.so.3.dpkg-new",
        "/var/lib/dpkg/updates/0001",
    ):
        program = machine.start("dpkg -i /opt/daemon.deb", name="dpkg")
        deadline = time.monotonic() + 60
        while not machine.path(victim).exists() and program.status is None:
            assert time.monotonic() < deadline
            time.sleep(0.002)
        program.kill()
        time.sleep(0.1)  # its child, which unpacks, sees the pipe closed
        dpkg(machine, "--configure -a", check=False)
        dpkg(machine, "-i daemon.deb")
        assert machine.shell("dpkg --audit").stdout == ""
        assert machine.path(KEY).read_text() == key
        assert machine.path(CONFIG).read_text() == "mine: yes\n"
    assert "dpkg-new" not in " ".join(files(machine))


KILL_DPKG = """\
#!/bin/sh
script=$(sed -n 's/^PPid:\t//p' /proc/$PPID/status)
grep -q dpkg /proc/$script/comm && kill -9 $script $PPID
"""


@pytest.mark.parametrize("program", PROGRAMS)
def test_scripts_of_a_package_interrupted_are_run_again(machine: Machine, program: str) -> None:
    """After the key and the configuration are made, and in the middle of a removal."""
    before = files(machine)
    config = KEY if program == "daemon" else RELAY_CONFIG

    def interrupted(what: str, at: str) -> str:
        machine.write(f"/usr/local/sbin/{at}", KILL_DPKG, mode=0o755)
        machine.shell(f"dpkg {what}", check=False, timeout=120)
        machine.path(f"/usr/local/sbin/{at}").unlink()
        return state()

    def state() -> str:
        shown = f"dpkg-query -W -f '${{db:Status-Abbrev}}' shadowmesh-{program}"
        return machine.shell(shown).stdout.strip()

    assert interrupted(f"-i /opt/{program}.deb", "deb-systemd-helper") == "iF"
    made = machine.path(config).read_text()
    dpkg(machine, "--configure -a")
    assert (state(), machine.path(config).read_text()) == ("ii", made)
    assert interrupted(f"-r shadowmesh-{program}", "update-alternatives") == "rF"
    dpkg(machine, f"-r shadowmesh-{program}")
    assert state() == "rc"
    assert machine.path(config).read_text() == made
    dpkg(machine, f"-P shadowmesh-{program}")
    assert files(machine) == before


@pytest.mark.parametrize("program", PROGRAMS)
def test_a_link_into_a_clone_is_not_written_through(machine: Machine, program: str) -> None:
    name = f"shadowmesh-{program}"
    machine.write("/opt/clone/deploy/nginx/shadowmesh-relay.conf", "mine\n")
    machine.link(f"/usr/share/{name}", "/opt/clone")
    before = files(machine)
    said = dpkg(machine, f"-i {program}.deb", check=False)
    assert f"{name}: /usr/share/{name} is a symbolic link to /opt/clone" in said
    assert {path for path in files(machine) if path not in before} == set()
    assert (
        machine.shell("find /opt/clone -type f").stdout == "/opt/clone/deploy/nginx/shadowmesh-relay.conf\n"
    )
    machine.path(f"/usr/share/{name}").unlink()
    dpkg(machine, f"-i {program}.deb")


@pytest.mark.parametrize(
    ("program", "unit"),
    [("relay", "shadowmesh-relay"), ("daemon", "shadowmesh-daemon"), ("daemon", "shadowmesh")],
)
def test_a_unit_of_an_administrator_is_named_and_what_it_needs_is_kept(
    machine: Machine, program: str, unit: str
) -> None:
    name, file = f"shadowmesh-{program}", f"/etc/systemd/system/{unit}.service"
    config, text = {
        "relay": (RELAY_CONFIG, guide.RELAY_CONFIG),
        "daemon": (CONFIG, guide.CLIENT_CONFIG),
    }[program]
    machine.write(file, f"[Service]\nExecStart=/opt/shadowmesh/{name} {config}\n")
    machine.write(config, text)
    machine.write(f"/usr/local/bin/{name}", "")
    said = dpkg(machine, f"-i {program}.deb").splitlines()
    (line,) = [line for line in said if "its service is not enabled" in line]
    assert line.startswith(f"{name}: ")
    change = (
        f"systemctl disable --now {unit}; rm {file}; systemctl daemon-reload; systemctl enable --now {name}"
    )
    assert line.endswith(f"to change over: {change}")
    assert f"/usr/local/bin/{name} hides the package's command" in "".join(said)
    links = f"find /etc/systemd/system -name '{name}.service' -o -name shadowmesh.service"
    found = machine.shell(links).stdout.split()
    assert found == ([file] if unit in (name, "shadowmesh") else [])
    dpkg(machine, f"-P {name}")
    assert machine.path(config).read_text() == text
    assert machine.path(file).is_file()


def test_a_unit_edited_in_full_is_still_the_packages(machine: Machine) -> None:
    file = "/etc/systemd/system/shadowmesh-relay.service"
    machine.write(file, f"[Service]\nExecStart=/usr/bin/shadowmesh-relay -config {RELAY_CONFIG}\n")
    assert "its service is not enabled" not in dpkg(machine, "-i relay.deb")
    dpkg(machine, "-P shadowmesh-relay")
    assert not machine.path(RELAY_CONFIG).exists()


def test_completion_is_installed(machine: Machine) -> None:
    """By both packages, and that of the one that stays stays."""
    dpkg(machine, "-i relay.deb daemon.deb")
    dpkg(machine, "-P shadowmesh-daemon")
    for place in PLACES.values():
        assert "_SHADOWMESH_COMPLETE" in machine.shell(f"cat {place}").stdout
    script = (
        f". {PLACES['bash']}; COMP_WORDS=(shadowmesh rel); COMP_CWORD=1; _shadowmesh_completion shadowmesh"
    )
    done = machine.shell(f"bash -c '{script}; echo $COMPREPLY'")
    assert done.stdout.split() == ["relay-keys"]


@pytest.mark.parametrize("program", PROGRAMS)
def test_an_invitation_has_its_qr_code(program: str, tmp_path: Path) -> None:
    """Drawn by a library that wants more of Python than the rest."""
    command = tmp_path / "shadowmesh"
    command.symlink_to(
        artifacts.deb(program).parent.parent / f"build/programs/shadowmesh-{program}/shadowmesh-{program}"
    )
    config = tmp_path / "client-config.yaml"
    network = [
        "--network",
        "10.10.10.0/24",
        "--relay",
        "ws://192.0.2.1:9545",
        "--name",
        "a",
        "-o",
        str(config),
    ]
    subprocess.run([command, "init", "client", *network], check=True, capture_output=True)
    argv = [str(command), "invite", "laptop", "--qr", "--config", str(config)]
    done = subprocess.run(argv, capture_output=True, text=True, env={"LANG": "C.UTF-8"})
    assert done.returncode == 0, done.stderr
    assert "\u2588" in done.stdout


@pytest.mark.parametrize(
    ("journal", "last"),
    [
        (["relay cannot start: port", "starting"], "relay cannot start: port"),
        (["relay cannot start: port"], "relay cannot start: port"),
        (
            ["relay cannot start [relay] problems=1", "FILE:1:1: relay_prot: unknown"],
            "FILE:1:1: relay_prot: unknown",
        ),
        ([], "no word of it"),
    ],
)
def test_a_service_that_does_not_start_has_its_last_words_in_one_line(
    tmp_path: Path, journal: list[str], last: str
) -> None:
    bin = tmp_path / "bin"
    bin.mkdir()
    own = '"-t shadowmesh-relay --since @"'
    lines = "; ".join(f"echo '{line}'" for line in journal) or ":"
    for name, text in {
        "deb-systemd-invoke": 'echo "Could not execute systemctl: at X line 145." >&2; exit 1',
        "journalctl": f"case $* in *--sync*) ;; *{own}*) {lines} ;; esac",
    }.items():
        (bin / name).write_text(f"#!/bin/sh\n{text}\n")
        (bin / name).chmod(0o755)
    common = (ROOT / "packaging/debian/common.sh").read_text().replace("#NAME#", "shadowmesh-relay")
    environment = {"PATH": f"{bin}:{os.environ['PATH']}"}
    argv = ["sh", "-ec", f"{common}\nservice start"]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment)
    assert (done.returncode, done.stderr) == (
        0,
        f"shadowmesh-relay: shadowmesh-relay.service did not start: {last};"
        " more: journalctl -u shadowmesh-relay -n 20\n",
    )


def test_another_architecture_is_refused_in_words(machine: Machine) -> None:
    control = (ROOT / "build/deb/shadowmesh-daemon/DEBIAN/control").read_text()
    other = "arm64" if ARCH == "amd64" else "amd64"
    control = control.replace(f"Architecture: {ARCH}", f"Architecture: {other}")
    machine.write("/opt/other/DEBIAN/control", control)
    machine.shell("dpkg-deb --build /opt/other /opt/other.deb")
    said = dpkg(machine, "-i other.deb", check=False)
    assert f"package architecture ({other}) does not match system ({ARCH})" in said
    assert not machine.path("/usr/lib/shadowmesh-daemon").exists()
