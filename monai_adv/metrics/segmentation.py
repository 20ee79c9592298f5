"""Scores of one segmented volume: Dice and HD95 per class.

What is empty is scored by :mod:`monai_adv.tasks.dice_score`, as attacks aim at it; an HD95 needs both masks. A NaN is
left out of means over classes. A volume whose ground truth has no class has no score, whatever is found in it: else it
would enter the mean under attack and not the one before it. What is found where it is not is counted by itself.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch
from monai.metrics.hausdorff_distance import compute_hausdorff_distance

from monai_adv.errors import InputError
from monai_adv.metrics.score import Score, mean_known
from monai_adv.tasks import dice_score

Mask = npt.NDArray[np.bool_]


def dice(found: Mask, there: Mask) -> float:
    """``2 |found and there| / (|found| + |there|)``; NaN if both are empty, 0 if one of them is.

    Example:
        >>> dice(np.array([True, True, False]), np.array([True, False, False]))
        0.6666666666666666
    """
    both, size = int((found & there).sum()), int(found.sum()) + int(there.sum())
    return float(dice_score.dice(torch.tensor(both), torch.tensor(size)))


def hausdorff95(found: Mask, there: Mask, spacing: Sequence[float]) -> float:
    """95th percentile of the surface distances, the larger of both directions, by MONAI; NaN if one is empty.

    Args:
        found, there: of the same shape. An axis of size 1 is no axis: an image is not a volume one voxel thick.
        spacing: of the voxels along each axis, in mm.

    Example:
        >>> one, other = np.zeros((2, 5, 5), bool)
        >>> one[1, 1], other[1, 3] = True, True
        >>> hausdorff95(one, other, (1.0, 0.5))
        1.0
    """
    if not (found.any() and there.any()):
        return math.nan
    kept = tuple(float(s) for s, n in zip(spacing, there.shape, strict=True) if n > 1)
    if len(kept) < 2:  # a line, or one voxel: MONAI knows surfaces of two axes or more
        return math.nan
    one, other = (torch.from_numpy(np.ascontiguousarray(mask.squeeze()))[None, None] for mask in (found, there))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # MONAI warns of its own call
        return float(compute_hausdorff_distance(one, other, include_background=True, percentile=95, spacing=kept))


def check_spacing(spacing: Sequence[float], axes: int) -> tuple[float, ...]:
    """The spacing, if distances can be measured with it.

    Raises:
        InputError: not one number > 0 for each axis.
    """
    given = tuple(float(s) for s in spacing)
    if len(given) != axes or not all(0 < s < math.inf for s in given):
        raise InputError.of("spacing", given, f"{axes} numbers > 0, the size of a voxel in mm along each axis")
    return given


def volume_score(
    case: str, masks: Mapping[str, tuple[Mask, Mask]], spacing: Sequence[float], *, counted: bool = True
) -> Score:
    """The score of one volume.

    Args:
        case: its name.
        masks: per class what was found and what is there.
        spacing: in mm.
        counted: whether any voxel counts; where all are ignored, no class is missing either.
    """
    distances = {name: hausdorff95(*pair, spacing) for name, pair in masks.items()}
    return replace(overlap_score(case, masks, counted=counted), hd95=distances)


def overlap_score(case: str, masks: Mapping[str, tuple[Mask, Mask]], *, counted: bool = True) -> Score:
    """As :func:`volume_score`, without distances, which take long."""
    present = {name: bool(there.any()) for name, (_, there) in masks.items()}
    per_class = {name: dice(*pair) for name, pair in masks.items()}
    absent = tuple(name for name in masks if counted and not present[name])
    found = tuple(name for name in absent if masks[name][0].any())
    score = mean_known(per_class.values()) if any(present.values()) else math.nan
    return Score(case, score, per_class, absent=absent, false_positives=found)
