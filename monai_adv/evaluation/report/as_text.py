"""Numbers as a reader finds them on the page."""

from __future__ import annotations

import math
from collections.abc import Callable

from monai_adv.evaluation.records import Level
from monai_adv.metrics.statistics import Interval


def percent(value: float) -> str:
    """A share in percent with one decimal; a sentence for what is not defined.

    Example:
        >>> percent(0.8049), percent(float("nan"))
        ('80.5', 'not defined')
    """
    return "not defined" if math.isnan(value) else f"{100 * value:.1f}"


def points(value: float) -> str:
    """A difference in percentage points, with a sign and a real minus."""
    return "not defined" if math.isnan(value) else f"{100 * value:+.1f}".replace("-", "−")


def interval(value: Interval, form: Callable[[float], str] = percent) -> str:
    """``"78.1 to 82.3"``, or a dash if there is none."""
    return f"{form(value.low)} to {form(value.high)}" if value.exists else "–"


def p_value(value: float) -> str:
    """Example:

    >>> p_value(0.0312), p_value(1e-9), p_value(1.0)
    ('0.031', '< 0.001', '1.000')
    """
    return "–" if math.isnan(value) else "< 0.001" if value < 0.001 else f"{value:.3f}"


def duration(seconds: float) -> str:
    """Example:

    >>> duration(42), duration(600), duration(7260)
    ('42 s', '10 min', '2 h 1 min')
    """
    if seconds < 60:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def number(value: float) -> str:
    """A count with narrow spaces, or a plain number."""
    return f"{value:,.0f}".replace(",", "\u202f")


def axis_name(level: Level, unit: str) -> str:
    """What the radii of a chain of levels are, with their unit."""
    where = "units of the image files" if level.unit == "raw" else unit.split(" (")[0]
    if level.is_rms:
        return f"root mean square change per voxel, in {where}"
    return f"{'L2' if level.norm == 'l2' else 'L-inf'} radius, in {where}"
