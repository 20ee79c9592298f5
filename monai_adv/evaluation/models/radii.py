"""The radii of an evaluation in the words of a case."""

from __future__ import annotations

from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.evaluation.models.protocol import Case
from monai_adv.evaluation.records import Level


def case_raw_unit(case: Case) -> float | None:
    """Intensity in the files of one network unit, where the case knows it."""
    try:
        return 1 / case.threat(Level("linf", 1.0, "raw")).eps
    except InputError:
        return None


def in_words(case: Case, level: Level, images: Tensor | None = None) -> str:
    """A radius in all its units for these images, by default the case's; without the box."""
    return case.threat(level).words(case.images if images is None else images, case_raw_unit(case))
