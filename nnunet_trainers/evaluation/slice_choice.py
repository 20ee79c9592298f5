"""The worst mixture of two attacked versions of a volume whose slices are attacked one by one.

The slices of a 2D network share the Dice of the volume, a ratio of sums: which version of a slice is worse depends on
the rest of the volume. Flipping slice *i* changes a class's Dice ``D = 2 TP / S`` (``S`` predicted plus true voxels) to
``(2 TP + 2 dTP_i) / (S + dS_i)``, which is below D exactly if ``2 dTP_i < D dS_i``. So for one class a choice that no
single flip improves is the optimum (Dinkelbach, "On nonlinear fractional programming", 1967); for the mean over several
classes it is a local one.
"""

from __future__ import annotations

import torch
from torch import Tensor

from monai_adv.tasks.dice_score import dice, mean_dice


def worst_slices(true_positive: Tensor, size: Tensor) -> Tensor:
    """Which version of each slice to take, so that the volume's mean Dice becomes small.

    Args:
        true_positive: ``(2, B, K)`` voxels, of both versions, slices and classes.
        size: ``(2, B, K)`` predicted plus true voxels.

    Returns:
        ``(B,)`` bool: true for the second version. The mean Dice is not above that of either version alone.

    Example:
        Dice 2/3 with either version, 0 with the worse half of each:

        >>> true_positive = torch.tensor([[[1], [0]], [[0], [1]]])
        >>> size = torch.tensor([[[2], [1]], [[1], [2]]])
        >>> worst_slices(true_positive, size).tolist()
        [True, False]
    """
    counts = torch.stack([true_positive, size]).double()
    starts = torch.zeros_like(counts[0, 0, :, 0]).bool()
    found = [_descend(counts, start) for start in (starts, ~starts)]
    return min(found, key=lambda choice: float(_mean_dice(_total(counts, choice))))


def _descend(counts: Tensor, choice: Tensor) -> Tensor:
    """Flip all slices whose flip alone helps, or if that goes too far the best of them, until none helps."""
    while True:
        total = _total(counts, choice)
        value = _mean_dice(total)
        one, other = counts[:, 0], counts[:, 1]
        change = torch.where(choice[:, None], one - other, other - one)
        alone = _mean_dice(total[:, None] + change)
        if not bool((alone < value - 1e-12).any()):
            return choice
        together = choice ^ (alone < value)
        single = choice.clone()
        single[alone.argmin()] ^= True
        choice = together if _mean_dice(_total(counts, together)) < alone.min() else single


def _total(counts: Tensor, choice: Tensor) -> Tensor:
    """``(2, K)`` sums over the chosen slices."""
    return torch.where(choice[:, None], counts[:, 1], counts[:, 0]).sum(1)


def _mean_dice(totals: Tensor) -> Tensor:
    """The score of ``(2, ..., K)`` sums; infinite where nothing is scored, which no attack wants."""
    true_positive, size = totals
    return mean_dice(dice(true_positive, size)).nan_to_num(nan=torch.inf)
