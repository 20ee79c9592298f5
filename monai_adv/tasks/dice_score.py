"""What is scored: the one place that says which classes of a segmentation count, in reports as in attacks.

==============  =============  ====
ground truth    segmentation   Dice
==============  =============  ====
empty           empty          NaN
empty           not empty      0
not empty       empty          0
not empty       not empty      2 TP / (predicted + there)
==============  =============  ====

A NaN is left out of means over classes and cases. So one false voxel of a class that is not there counts as much as
the loss of a whole organ: with one class present it halves the score. Attacks aim at that voxel, and keep it.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEAR = 1.0
"""Logits below its threshold from which on a class that is not there is raised together with the Dice."""

FAR = 0.01
"""Weight of a lead below that."""

FOUND = 0.25
"""Logits above the threshold at which such a class has enough: it survives rounding and another batch."""


def dice(true_positive: Tensor, size: Tensor) -> Tensor:
    """Dice of each class in double precision.

    Args:
        true_positive: voxels that are found and there, of any shape.
        size: of the same shape, voxels found plus voxels there.

    Example:
        Half found; missed; found and not there; neither:

        >>> dice(torch.tensor([1, 0, 0, 0]), torch.tensor([3, 2, 1, 0]))
        tensor([0.6667, 0.0000, 0.0000,    nan], dtype=torch.float64)
    """
    return torch.where(size > 0, 2 * true_positive.double() / size.clamp(min=1), torch.nan)


def mean_dice(per_class: Tensor) -> Tensor:
    """``(...,)`` mean over the last axis of what is not NaN; NaN if there is nothing.

    Example:
        >>> mean_dice(torch.tensor([0.75, float("nan"), 0.25]))
        tensor(0.5000)
    """
    return per_class.nanmean(-1)


def lead(logits: Tensor, valid: Tensor, alone: bool) -> Tensor:
    """``(B, K)`` how far each foreground class or region is from being found somewhere; above 0 it is found.

    Args:
        logits: ``(B, K + 1, *spatial)`` with background first; ``alone``: ``(B, K, *spatial)``.
        valid: ``(B, 1, *spatial)`` bool: voxels that count.
        alone: each class or region is judged for itself (a sigmoid), not against the others.

    Returns:
        the largest lead of a voxel: over the best other class, or (``alone``) over 0; ``-inf`` where no voxel counts.

    Example:
        Class 1 is found in the second voxel, class 2 lacks one logit there:

        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 1.0], [0.0, 0.0]]])
        >>> lead(logits, torch.ones(1, 1, 2, dtype=torch.bool), alone=False)
        tensor([[ 1., -1.]])
    """
    if alone:
        leads = logits
    else:
        first, best = logits.max(1, keepdim=True)
        second = logits.scatter(1, best, -torch.inf).amax(1, keepdim=True)
        classes = torch.arange(logits.shape[1], device=logits.device).view(1, -1, *[1] * (logits.ndim - 2))
        leads = (logits - torch.where(classes == best, second, first))[:, 1:]
    return leads.masked_fill(~valid, -torch.inf).flatten(2).amax(2)


def within_reach(leads: Tensor, absent: Tensor) -> Tensor:
    """``(B,)`` what an attack raises beside the Dice: the leads of absent classes that are found, or nearly.

    It keeps a false voxel that was found and takes one that is near. One that is far costs too much of the radius to be
    followed blindly (see :func:`nearest`): it counts little, but something, since there may be nothing else to win.

    Args:
        leads: ``(B, K)`` of :func:`lead`.
        absent: ``(B, K)`` bool: classes whose first voxel lowers the score.
    """
    raised = leads.clamp(-NEAR, FOUND) + FAR * (leads + NEAR).clamp(max=0)
    return raised.masked_fill(~(absent & leads.isfinite()), 0.0).sum(1)


def nearest(leads: Tensor, absent: Tensor) -> Tensor:
    """``(B,)`` the largest lead of an absent class that is not found yet; 0 if there is none."""
    missing = absent & (leads < FOUND) & leads.isfinite()
    return torch.where(missing.any(1), leads.masked_fill(~missing, -torch.inf).amax(1), 0.0)
