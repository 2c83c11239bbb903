from __future__ import annotations

from array import array

import pytest

from bench import generator
from bench.generator import Plan, Size
from bench.load import Sample
from shadowmesh.testing.program import LabError

SS = """\
0      0        203.0.113.1:9545   198.18.0.6:40312
\t cubic wscale:7,7 rto:201 rtt:0.05/0.01 mss:1448 cwnd:10
0      0        203.0.113.1:9545   198.18.0.6:40314
\t ts sack bbr wscale:7,7 rto:201 bbr:(bw:3Mbps,mrtt:0.03) send 3Mbps
"""


def test_a_plan_survives_the_command_line() -> None:
    plan = Plan(
        True, 7, ("203.0.113.1", 9545), ("198.18.0.6", 9600), 2.0, 0.3, 1, 2, (Size(64, 32),), 2.1, (5, 9)
    )
    assert Plan.from_json(plan.to_json()) == plan


def test_the_congestion_control_of_each_connection_is_found() -> None:
    assert generator.congestion_controls(SS) == ["cubic", "bbr"]


def test_costs_are_for_each_byte_of_payload_and_each_second_of_the_subject() -> None:
    numbers = generator._costs(Sample(2.0, 4000, 500_000_000, 0.4, 1.0))
    assert numbers == pytest.approx(
        {
            "frames": 2000,
            "gbit": 2.0,
            "cpu": 0.8,
            "frames per cpu": 10_000,
            "busy": 0.2,
            "generator": 0.5,
        }
    )


def test_a_run_in_which_nothing_came_through_is_an_error() -> None:
    with pytest.raises(LabError, match="nothing came through"):
        generator._costs(Sample(2.0, 0, 0, 0.4, 1.0))


def test_latencies_become_milliseconds() -> None:
    times = array("q", (1_000_000 * n for n in range(1, 101)))
    numbers = generator._quantiles({"bulk": times, "": times}, times)
    assert numbers == {
        "late p99": 99.0,
        "bulk p50": 50.0,
        "bulk p99": 99.0,
        "p50": 50.0,
        "p99": 99.0,
    }
