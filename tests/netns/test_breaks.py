"""What is broken in a lab is broken, and is mended afterwards, also when something fails meanwhile."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, suppress
from pathlib import Path

import pytest

from shadowmesh.testing import breaks
from shadowmesh.testing.netlab import RELAY_IP4, Lab
from shadowmesh.testing.program import Program, wait_for

pytestmark = pytest.mark.netns


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    with Lab("a") as lab:
        yield lab


def answers(lab: Lab) -> bool:
    return lab["a"].run("ping", "-n", "-c1", "-W1", RELAY_IP4, check=False).returncode == 0


def state(program: Program) -> str:
    found = re.search(r"^State:\s+(\w)", Path(f"/proc/{program.pid}/status").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


@pytest.mark.parametrize("what", ["carrier", "drop"])
def test_no_way_and_then_a_way_again(lab: Lab, what: str) -> None:
    broken: AbstractContextManager[None] = breaks.dropped(lab.relay, ("INPUT", "-i", "to-a"))
    if what == "carrier":
        broken = breaks.no_carrier(lab, "a")
    lab["a"].wait_for_ping(RELAY_IP4)
    with suppress(RuntimeError), broken:
        assert not answers(lab)
        raise RuntimeError
    lab["a"].wait_for_ping(RELAY_IP4)


def test_a_black_hole_is_for_one_port(lab: Lab) -> None:
    with lab.relay.listen(RELAY_IP4) as dead, lab.relay.listen(RELAY_IP4) as alive:
        with breaks.black_hole(lab, dead.getsockname()[1]):
            lab["a"].connect(RELAY_IP4, alive.getsockname()[1]).close()
            with lab["a"].new_socket() as late:
                late.settimeout(0.3)
                with pytest.raises(TimeoutError):
                    late.connect((RELAY_IP4, dead.getsockname()[1]))
        lab["a"].connect(RELAY_IP4, dead.getsockname()[1]).close()


def test_another_address_leads_to_the_relay_and_the_old_one_is_gone(lab: Lab) -> None:
    for net in ("198.18.100", "198.18.101", "198.18.100"):
        breaks.renumber(lab, "a", net)
        assert re.findall(
            r"inet (\S+)", lab["a"].run("ip", "-4", "-o", "addr", "show", "dev", "eth0").stdout
        ) == [f"{net}.2/30"]
        lab["a"].wait_for_ping(RELAY_IP4)


def test_a_program_stops_and_goes_on(lab: Lab) -> None:
    program = lab["a"].start("sleep", "60")
    with breaks.stopped(program):
        wait_for(lambda: state(program) == "T", "stop")
    wait_for(lambda: state(program) == "S", "sleep")
    program.kill()


@pytest.mark.parametrize(("kill", "status"), [(True, -9), (False, -15)])
def test_a_program_ends_and_another_is_started(lab: Lab, kill: bool, status: int) -> None:
    program, again = lab["a"].start("sleep", "60"), []
    with breaks.ended(program, lambda: again.append(1), kill=kill):
        assert program.status == status
        assert not again
    assert again
