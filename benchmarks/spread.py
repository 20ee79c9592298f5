"""A cell of the tables in docs/results: mean and standard deviation over seeds or folds."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float], empty: str) -> str:
    """``mean±deviation``; of one value the mean alone, as it has no deviation; ``empty`` without any."""
    if not values:
        return empty
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean}±{statistics.stdev(values):.1f}" if len(values) > 1 else mean
