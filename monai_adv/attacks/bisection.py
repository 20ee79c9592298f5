"""Binary search for the decision boundary between a right and a wrong image.

Source: Ma & Liang, CMPB 2023, Algorithms 2 and 3 (N = 10 halvings; the final midpoint is returned).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from monai_adv.network_state import Mode, any_batch_size, frozen, padded
from monai_adv.statistics import Passes
from monai_adv.tasks.base import Target, Task, take
from monai_adv.threats import per_sample


@dataclass
class BoundaryPoint:
    """A point near the decision boundary.

    Attributes:
        images: ``(B, C, *spatial)``.
        wrong: ``(B,)`` bool: the network is wrong on ``images``.
        passes: network passes made, in samples.
    """

    images: Tensor
    wrong: Tensor
    passes: Passes


@torch.no_grad()
def bisect(
    network: nn.Module,
    right: Tensor,
    wrong: Tensor,
    target: Target,
    task: Task,
    *,
    halvings: int = 10,
    keep: Literal["midpoint", "last_right"] = "midpoint",
    mode: Mode = "eval",
) -> BoundaryPoint:
    """Halve the segment between ``right`` and ``wrong`` ``halvings`` times, each sample on its own.

    Args:
        network: left exactly as found.
        right: ``(B, C, *spatial)`` images that the network gets right.
        wrong: images that it gets wrong.
        target: in the layout the task expects.
        task: correctness.
        halvings: network passes per sample; the segment shrinks by ``2 ** -halvings``.
        keep: ``"midpoint"``: the last midpoint tried, on either side of the boundary (paper); ``"last_right"``: the end
            of the segment on which the network is right (official code for two of its data sets).
        mode: network mode, restored afterwards.
    """
    count = len(wrong)
    index = padded(torch.arange(count, device=wrong.device), network)
    right, wrong, target = right[index], wrong[index], take(target, index)
    found, found_wrong = wrong, torch.ones(len(wrong), dtype=torch.bool, device=wrong.device)
    with frozen(network, mode) as model:
        for _ in range(halvings):
            midpoint = (right + wrong) / 2
            found_wrong = ~task.correct(model(any_batch_size(midpoint, model)), target)
            side = per_sample(found_wrong, midpoint)
            right, wrong = torch.where(side, right, midpoint), torch.where(side, midpoint, wrong)
            found = midpoint
    if keep == "last_right":
        found, found_wrong = right, torch.zeros_like(found_wrong)
    return BoundaryPoint(found[:count], found_wrong[:count], Passes(forward=halvings * len(index)))
