"""`scripts/setup test` on a machine without any of the packages, its apt-get and npm only taking notes."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from guide.pages import ROOT
from shadowmesh.testing.machine import Machine
from shadowmesh.testing.netlab import Lab

pytestmark = pytest.mark.netns

POLICY = "/usr/sbin/policy-rc.d"
BASE = "cat chmod cp dirname env grep id mkdir rm sha256sum sh sort tr"
NOTES = """\
#!/bin/sh
services=started
/usr/sbin/policy-rc.d 2>/dev/null || [ $? != 101 ] || services=kept
echo "${0##*/} $* services $services" >>/run/notes
cp /opt/new/* /opt/bin
exit $(cat /run/status)
"""
PYTHON = """\
#!/bin/sh
case "$*" in
"-m venv --clear .venv") mkdir -p .venv/bin && cp "$0" .venv/bin/python ;;
"-c import sys; print"*) echo "3.x /usr" ;;
esac
"""


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Lab("a") as lab:
        machine = Machine(lab.relay)
        for name in BASE.split():
            machine.link(f"/opt/bin/{name}", f"/usr/bin/{name}")
        machine.write("/opt/bin/python3", PYTHON, mode=0o755)
        for name in ("bin/apt-get", "bin/systemctl", "new/npm"):
            machine.write(f"/opt/{name}", NOTES, mode=0o755)
        wscat = (f"tests/guide/wscat/{file}" for file in ("package.json", "package-lock.json"))
        for file in ("scripts/setup", *wscat):
            machine.write(f"/opt/tree/{file}", (ROOT / file).read_text(), mode=0o755)
        machine.write("/opt/tree/requirements/run.txt", "")
        machine.write("/opt/tree/pyproject.toml", "")
        machine.path(POLICY).unlink(missing_ok=True)
        yield machine


def setup(machine: Machine, what: str, status: int = 0) -> list[str]:
    """What was asked of apt-get, npm and systemctl; `status` is how they end."""
    machine.shell(f": >/run/notes; echo {status} >/run/status")
    done = machine.shell(f"PATH=/opt/bin /opt/tree/scripts/setup {what}", check=False)
    assert (done.returncode == 0) == (status == 0), done.stderr
    return machine.path("/run/notes").read_text().splitlines()


def test_services_of_new_packages_start_neither_now_nor_later(machine: Machine) -> None:
    notes = setup(machine, "test")
    (packages,) = [line for line in notes if line.startswith("apt-get install")]
    wanted = {
        "nginx",
        "prometheus",
        "npm",
        "iptables",
        "nftables",
        "ufw",
        "net-tools",
        "systemd",
        "openssl",
        "caddy",
        "debootstrap",
        "debian-archive-keyring",
        "systemd-container",
    }
    assert wanted | {"iproute2", "curl"} <= set(packages.split())
    assert "--no-install-recommends" in packages
    assert packages.endswith(" services kept")
    assert not machine.path(POLICY).exists()
    disabled = [line.partition(" services")[0] for line in notes if line.startswith("systemctl")]
    assert disabled == [f"systemctl --quiet disable {name}" for name in ("nginx", "caddy", "prometheus")]


def test_a_policy_of_the_machine_stays(machine: Machine) -> None:
    machine.write(POLICY, "#!/bin/sh\nexit 0\n", mode=0o755)
    setup(machine, "test")
    assert machine.path(POLICY).read_text() == "#!/bin/sh\nexit 0\n"


def test_a_failed_install_leaves_no_policy(machine: Machine) -> None:
    setup(machine, "test", status=100)
    assert not machine.path(POLICY).exists()


def test_a_demo_needs_none_of_it(machine: Machine) -> None:
    (packages,) = setup(machine, "lab")
    assert " iperf3 " in packages
    assert not {"nginx", "prometheus", "npm", "ufw"} & set(packages.split())


def test_wscat_is_installed_once_for_each_lock_file(machine: Machine) -> None:
    def npm(what: str = "test") -> int:
        return sum(line.startswith("npm ci --ignore-scripts") for line in setup(machine, what))

    assert [npm(), npm(), npm("")] == [1, 0, 0]
    machine.write("/opt/tree/tests/guide/wscat/package-lock.json", "{}")
    assert [npm(), npm()] == [1, 0]
