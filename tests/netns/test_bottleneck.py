"""Bulk through a slow line with a long queue: pings beside it stay quick, and the line stays full.

The marks are those of `./scripts/bench bottleneck`; here they are ten times wider.
Pings by another relay than the slow one have ten times what was measured on a busy machine.
"""

from __future__ import annotations

import shutil

import pytest

from bench.bottleneck import BESIDE, Case, measure, started

pytestmark = [
    pytest.mark.netns,
    pytest.mark.skipif(not (shutil.which("iperf3") and shutil.which("tc")), reason="needs iperf3 and tc"),
]


@pytest.mark.parametrize("way", ["up", "down"])
def test_pings_do_not_wait_behind_bulk(way: str) -> None:
    with started("cubic") as lab:
        numbers = measure(lab, Case(way, "cubic", "cubic", 2), 3)
    assert numbers["ping"] < 600
    assert numbers["p99"] < 1500
    assert numbers["lost"] < 10
    assert numbers["goodput"] > 50


def test_a_slow_relay_holds_up_no_other_relay() -> None:
    with started("cubic", beside=True) as lab:
        numbers = measure(lab, Case(BESIDE, "cubic", "cubic", 1), 3)
    assert numbers["ping"] < 10
    assert numbers["p99"] < 100
    assert numbers["lost"] < 2
    assert numbers["goodput"] > 50
