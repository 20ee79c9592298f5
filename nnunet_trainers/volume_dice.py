"""Dice on whole label maps, as nnU-Net's own evaluation defines it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt


def dice_per_class(
    prediction: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Mapping[str, int | Sequence[int]]
) -> dict[str, float]:
    """Hard Dice ``2 TP / (2 TP + FP + FN)`` of each class or region of dataset.json's ``labels``.

    Voxels with the label "ignore" count nowhere. NaN where neither has the class.

    Example:
        >>> dice_per_class(np.array([1, 1, 0]), np.array([1, 0, 0]), {"background": 0, "organ": 1, "tumour": 2})
        {'organ': 0.6666666666666666, 'tumour': nan}
    """
    counted = np.ones(truth.shape, bool)
    if "ignore" in labels:
        counted = ~np.isin(truth, label_values(labels["ignore"]))
    result = {}
    for name, value in labels.items():
        if name in ("background", "ignore") or set(label_values(value)) == {0}:
            continue
        found, there = np.isin(prediction, label_values(value)) & counted, np.isin(truth, label_values(value)) & counted
        size = int(found.sum() + there.sum())
        result[name] = 2 * int((found & there).sum()) / size if size else math.nan
    return result


def mean_dice(per_class: Mapping[str, float]) -> float:
    """Mean over the classes that are not NaN; NaN if there is none."""
    known = [v for v in per_class.values() if not math.isnan(v)]
    return sum(known) / len(known) if known else math.nan


def label_values(label: int | Sequence[int]) -> list[int]:
    """The voxel values of a class (one) or region (several) of dataset.json."""
    return [int(v) for v in label] if isinstance(label, list | tuple) else [int(label)]  # type: ignore[arg-type]
