"""Binary search for the decision boundary between a right and a wrong image.

Source: Ma & Liang, CMPB 2023, Algorithms 2 and 3, lines 9 to 11: N = 10 times the midpoint is looked at and replaces
one end of the segment; the midpoint of what remains is returned.
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
        wrong: ``(B,)`` bool: the network is wrong on ``images``; None if nobody looked.
        passes: network passes made, in samples.
    """

    images: Tensor
    wrong: Tensor | None
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
    judge: bool = True,
) -> BoundaryPoint:
    """Halve the segment between ``right`` and ``wrong`` ``halvings`` times, each sample on its own.

    Args:
        network: left exactly as found.
        right: ``(B, C, *spatial)`` images that the network gets right.
        wrong: images that it gets wrong.
        target: in the layout the task expects.
        task: correctness.
        halvings: network passes per sample; the segment shrinks by ``2 ** -halvings``.
        keep: ``"midpoint"``: of the segment that remains, on either side of the boundary (paper); ``"last_right"``: its
            end on which the network is right (official code for two of its data sets).
        mode: network mode, restored afterwards.
        judge: look at the midpoint of the segment that remains: one more pass. A training method that runs it through
            the network anyway saves that.

    Example:
        A boundary at 0.6 between 0 and 1, halved once: 0.5 is right, and 0.75 the midpoint of the rest:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(1, 2)
        >>> network.weight.data, network.bias.data = torch.tensor([[0.0], [-1.0]]), torch.tensor([0.0, 0.6])
        >>> zero, one, label = torch.zeros(1, 1), torch.ones(1, 1), torch.tensor([1])
        >>> point = bisect(network, zero, one, label, ClassificationTask(), halvings=1)
        >>> point.images.item(), point.wrong.item(), point.passes.forward
        (0.75, True, 2)
    """
    count = len(wrong)
    index = padded(torch.arange(count, device=wrong.device), network)
    right, wrong, target = right[index], wrong[index], take(target, index)
    passes = halvings
    with frozen(network, mode) as model:

        def is_wrong(images: Tensor) -> Tensor:
            return ~task.correct(model(any_batch_size(images, model)), target)

        for _ in range(halvings):
            midpoint = (right + wrong) / 2
            side = per_sample(is_wrong(midpoint), midpoint)
            right, wrong = torch.where(side, right, midpoint), torch.where(side, midpoint, wrong)
        found, found_wrong = (right + wrong) / 2, None
        if keep == "last_right":
            found, found_wrong = right, torch.zeros(len(right), dtype=torch.bool, device=right.device)
        elif judge:
            found_wrong, passes = is_wrong(found), halvings + 1
    found_wrong = None if found_wrong is None else found_wrong[:count]
    return BoundaryPoint(found[:count], found_wrong, Passes(forward=passes * len(index)))
