"""Percentiles, without interpolation."""

import math
from collections.abc import Sequence


def percentile(ordered: Sequence[float], p: float) -> float:
    """The smallest value that `p` percent of the sorted values do not exceed; 0 if there are none."""
    return ordered[max(0, math.ceil(len(ordered) * p / 100) - 1)] if ordered else 0.0
