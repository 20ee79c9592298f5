"""How far apart are the means of two groups of different cases, with an interval of the difference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy import stats

from monai_adv.metrics import statistics
from monai_adv.metrics.statistics import FEWEST, Interval


def newcombe(right: int, count: int, other_right: int, other_count: int, confidence: float = 0.95) -> Interval:
    """Interval of a difference of two proportions, the first minus the second.

    Source: Newcombe, Statist. Med. 1998, method 10 (hybrid of two Wilson intervals).

    Example:
        Of the paper, its Table II: 56 of 70 and 48 of 80.

        >>> found = newcombe(56, 70, 48, 80)
        >>> round(found.low, 4), round(found.high, 4)
        (0.0524, 0.3339)
    """
    if not count or not other_count:
        return Interval(math.nan, math.nan, "a group without cases")
    first, second = right / count, other_right / other_count
    one, other = (
        stats.binomtest(*pair).proportion_ci(confidence, method="wilson")
        for pair in ((right, count), (other_right, other_count))
    )
    below = math.hypot(first - one.low, other.high - second)
    above = math.hypot(one.high - first, second - other.low)
    return Interval(first - second - below, first - second + above, "Newcombe")


def bootstrap_difference(
    values: Sequence[float], others: Sequence[float], confidence: float = 0.95, *, seed: int = 0
) -> Interval:
    """BCa bootstrap interval of the difference of two means, the first minus the second, from resampled cases."""
    first, second = (np.asarray(sample, dtype=float) for sample in (values, others))
    if min(len(first), len(second)) < FEWEST:
        return Interval(math.nan, math.nan, f"a group of fewer than {FEWEST} cases")
    if max(np.ptp(first), np.ptp(second)) < statistics.EQUAL:
        return Interval(math.nan, math.nan, "within both groups every case has the same value")

    def difference(one: Any, other: Any, axis: int) -> Any:
        return one.mean(axis) - other.mean(axis)

    for method in ("BCa", "percentile"):  # where one group has no spread BCa has no acceleration
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            found = stats.bootstrap(
                (first, second), difference, n_resamples=statistics.RESAMPLES, method=method, vectorized=True,
                confidence_level=confidence, rng=np.random.default_rng(seed),
            ).confidence_interval  # fmt: skip
        if math.isfinite(found.low) and math.isfinite(found.high):
            return Interval(float(found.low), float(found.high), f"bootstrap ({method})")
    return Interval(math.nan, math.nan, "the resamples have no spread")
