"""How one patient or one image scored: what attacks push down, and what reports show."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

Kind = Literal["classification", "segmentation"]


@dataclass(frozen=True)
class Score:
    """How one patient (segmentation) or one image (classification) scored.

    Attributes:
        case: its name.
        score: in [0, 1], larger is better: mean Dice over the classes that are there or found, or 1 for a right label
            and 0 for a wrong one. NaN where the ground truth has no class. So it is defined or not whatever a model
            finds: means before and after an attack are over the same patients.
        dice, hd95: per class (HD95 in mm); NaN where not defined, see volume_scores.py. Empty for classification.
        label: true class index; None for segmentation.
        probabilities: per class; empty for segmentation.
        absent: classes that the ground truth does not have.
        false_positives: those of them that were found all the same.
    """

    case: str
    score: float
    dice: dict[str, float] = field(default_factory=dict)
    hd95: dict[str, float] = field(default_factory=dict)
    label: int | None = None
    probabilities: tuple[float, ...] = ()
    absent: tuple[str, ...] = ()
    false_positives: tuple[str, ...] = ()

    @property
    def remaining(self) -> float:
        """What attacks push down and whose worst case is kept: the score.

        Without a class in the ground truth it is 1 while nothing is found and 0 then (0 where no voxel counts).
        """
        if math.isnan(self.score):
            return float(bool(self.absent) and not self.false_positives)
        return self.score


def mean_known(values: Iterable[float]) -> float:
    """Mean of what is not NaN; NaN if there is nothing."""
    known = [v for v in values if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan
