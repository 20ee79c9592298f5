"""Classes and regions of label maps, as nnU-Net's own evaluation has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_adv.metrics.score import mean_known
from monai_adv.metrics.segmentation import Mask, dice

Labels = Mapping[str, int | Sequence[int]]


def class_masks(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Labels) -> dict[str, tuple[Mask, Mask]]:
    """What was found and what is there of each class or region of dataset.json's ``labels``.

    Voxels with the label "ignore" count nowhere.
    """
    counted = np.ones(truth.shape, bool)
    if "ignore" in labels:
        counted = ~np.isin(truth, label_values(labels["ignore"]))
    values = {name: label_values(labels[name]) for name in class_names(labels)}
    return {n: (np.isin(prediction, v) & counted, np.isin(truth, v) & counted) for n, v in values.items()}


def class_names(labels: Labels) -> tuple[str, ...]:
    """The foreground classes or regions.

    Example:
        >>> class_names({"background": 0, "organ": [1, 2], "tumour": 2, "ignore": 3})
        ('organ', 'tumour')
    """
    return tuple(n for n, v in labels.items() if n not in ("background", "ignore") and set(label_values(v)) != {0})


def dice_per_class(prediction: npt.NDArray[Any], truth: npt.NDArray[Any], labels: Labels) -> dict[str, float]:
    """Hard Dice of each class or region; NaN where neither has it, 0 where only one has.

    Example:
        >>> dice_per_class(np.array([1, 1, 0]), np.array([1, 0, 0]), {"background": 0, "organ": 1, "tumour": 2})
        {'organ': 0.6666666666666666, 'tumour': nan}
    """
    return {name: dice(*masks) for name, masks in class_masks(prediction, truth, labels).items()}


def mean_dice(per_class: Mapping[str, float]) -> float:
    """Mean over the classes that are not NaN; NaN if there is none."""
    return mean_known(per_class.values())


def label_values(label: int | Sequence[int]) -> list[int]:
    """The voxel values of a class (one) or region (several) of dataset.json."""
    return [int(v) for v in label] if isinstance(label, list | tuple) else [int(label)]  # type: ignore[arg-type]
