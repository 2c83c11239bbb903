"""The guard against slow-downs: what a frame costs in instructions and system calls, whatever the clock says.

The bounds stand in bench/cost.py, with how to set others.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from bench import cost
from bench.counting import TOOLS, Counts
from bench.environment import missing_packages

pytestmark = pytest.mark.netns

MEASURES = (cost.relay_instructions, cost.engine_instructions, cost.relay_calls, cost.daemon_calls)
# As much as a slow way to log a line for each frame.
MORE_WORK = """
from shadowmesh.relay.connection import Connection
quick = Connection.on_binary
def on_binary(self, frame):
    f"{[number for number in range(200)]}"
    quick(self, frame)
Connection.on_binary = on_binary
"""


@pytest.fixture(autouse=True)
def counters() -> None:
    if missing := missing_packages(TOOLS):
        pytest.skip(f"not installed: {', '.join(missing)}")


@pytest.mark.parametrize("measure", MEASURES, ids=lambda measure: measure.__name__)
def test_a_frame_costs_no_more_than_it_did(measure: Callable[[], Counts]) -> None:
    found = measure()
    assert found
    dearer = {name: (count, cost.bound(name)) for name, count in found.items() if count > cost.bound(name)}
    assert not dearer, "counted, bound; bench/cost.py says what to do"


def test_a_frame_costs_the_same_among_many_peers() -> None:
    few, many = cost.relay_growth().values()
    assert many < 1.1 * few, (few, many)


def test_work_added_to_each_frame_is_seen() -> None:
    name = "relay, 1.4 KiB: instructions"
    found = cost.relay_instructions(["1.4 KiB"], MORE_WORK)
    assert found[name] > cost.bound(name)
    assert found[name] > cost.MEASURED[name] * cost.MARGIN
