"""Losses that attacks raise, written on points: one label per sample, or one per voxel and region.

Each is a ``Loss``: ``(points, progress) -> (B,)``, the mean over the points that count, so that classification (one
point) and segmentation (one per voxel) share them. With K classes the logits are ``z_1 .. z_K``, ``y`` is the label and
``t`` the rival that a targeted attack aims at.

Sources: Carlini & Wagner, "Towards evaluating the robustness of neural networks", S&P 2017 (margin); Croce & Hein,
"Reliable evaluation of adversarial robustness with an ensemble of diverse parameter-free attacks", ICML 2020, equations
6 (DLR) and 7 (targeted DLR), with 1e-12 added to the denominators as in the reference implementation.

Example:
    The DLR loss ignores shift and scale of the logits, which the margin does not:

    >>> logits = torch.tensor([[[3.0], [2.0], [-1.0]]])
    >>> def points(z):
    ...     return Points(z, torch.tensor([[0]]), torch.tensor([[True]]))
    >>> [(margin(points(z), 0.0).item(), dlr(points(z), 0.0).item()) for z in (logits, 10 * logits + 1)]
    [(-1.0, -0.25), (-10.0, -0.25)]
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.tasks.base import Points

TINY = 1e-12


def cross_entropy(points: Points, progress: float) -> Tensor:
    """``(B,)`` cross-entropy."""
    return points.mean(F.cross_entropy(points.logits, points.labels, reduction="none"))


def margin(points: Points, progress: float) -> Tensor:
    """``(B,)`` largest other logit minus that of the label, ``max_{i != y} z_i - z_y``; any K >= 2."""
    return points.mean(lead_of_others(points))


def balanced_hinge(points: Points, progress: float) -> Tensor:
    """``(B,)`` the margin of each point up to 1 beyond the decision; every class that a sample has weighs the same.

    A point that is wrong by 1 has nothing left to give, and the others go on pulling with a gradient that never fades,
    however sure the network is: another way to lower a Dice than any cross-entropy or soft Dice.

    Example:
        Margins -3 and 2, of which 1 counts, for the two points of class 0, and -1 for that of class 1:

        >>> logits = torch.tensor([[[3.0, 0.0, 0.0], [0.0, 2.0, 1.0]]])
        >>> points = Points(logits, torch.tensor([[0, 0, 1]]), torch.ones(1, 3, dtype=torch.bool))
        >>> balanced_hinge(points, 0.0)
        tensor([-1.])
    """
    return points.class_mean(lead_of_others(points).clamp(max=1.0))


def dlr(points: Points, progress: float) -> Tensor:
    """``(B,)`` difference of logits ratio: the margin over ``z_(1) - z_(3)``, the first minus the third largest logit.

    Raises:
        InputError: fewer than three classes, for which it is not defined.
    """
    _needs_classes(points, 3, "dlr", "margin")
    ranked = points.logits.topk(3, dim=1).values
    return points.mean(lead_of_others(points) / (ranked[:, 0] - ranked[:, 2] + TINY))


def targeted_dlr(points: Points, progress: float) -> Tensor:
    """``(B,)`` the lead of the rival, ``z_t - z_y``, over ``z_(1) - (z_(3) + z_(4)) / 2``.

    Raises:
        InputError: fewer than four classes, for which it is not defined, or points without rivals.
    """
    _needs_classes(points, 4, "targeted_dlr", "targeted_margin")
    ranked = points.logits.topk(4, dim=1).values
    return points.mean(_lead_of_rival(points) / (ranked[:, 0] - (ranked[:, 2] + ranked[:, 3]) / 2 + TINY))


def targeted_margin(points: Points, progress: float) -> Tensor:
    """``(B,)`` logit of the rival minus that of the label, ``z_t - z_y``; any K >= 2.

    Raises:
        InputError: points without rivals.
    """
    return points.mean(_lead_of_rival(points))


def lead_of_others(points: Points) -> Tensor:
    """``(B, N)`` ``max_{i != y} z_i - z_y``. The label is masked with -inf: a 0 would win over negative logits."""
    labels = points.labels[:, None]
    others = points.logits.scatter(1, labels, -torch.inf)
    return others.amax(1) - points.logits.gather(1, labels)[:, 0]


def _lead_of_rival(points: Points) -> Tensor:
    """``(B, N)`` ``z_t - z_y``."""
    if points.rivals is None:
        raise InputError.of("rivals", None, "one class per sample or point", "give the attack's call its rivals")
    pair = points.logits.gather(1, torch.stack([points.rivals, points.labels], 1))
    return pair[:, 0] - pair[:, 1]


def _needs_classes(points: Points, least: int, name: str, instead: str) -> None:
    classes = points.logits.shape[1]
    if classes < least:
        raise InputError.of(f"loss {name}", f"{classes} classes", f"{least} classes or more", f"use {instead}")
