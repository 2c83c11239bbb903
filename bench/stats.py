"""Median, percentile and spread."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple

median = statistics.median


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest of the values that at least `percent` of them do not exceed (nearest rank)."""
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[max(0, rank - 1)]


class Spread(NamedTuple):
    """What several rounds gave."""

    median: float
    least: float
    most: float


def spread(values: Sequence[float]) -> Spread:
    """Median, least and most; raises ValueError without values."""
    return Spread(median(values), min(values), max(values))
