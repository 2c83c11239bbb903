"""Whatever happens around the daemon, a transfer and a ping inside the tunnel go on soon after."""

from __future__ import annotations

import pytest

from shadowmesh.testing.faults import SCENARIOS, scene

pytestmark = pytest.mark.netns


@pytest.mark.parametrize("name", SCENARIOS)
def test_traffic_goes_on(name: str) -> None:
    scenario = SCENARIOS[name]
    with scene(scenario) as made:
        took = made.outage(scenario.fault)
        assert took < (6.0 if scenario.announced else 9.0), made.lab.logs()
        if scenario.two and not scenario.announced:
            assert took > 0.5  # it was broken, for silence is noticed after a second
