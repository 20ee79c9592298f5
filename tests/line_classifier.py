"""One number, two classes: everything about an attack on it can be traced by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.defenses import Batch, Defense
from monai_adv.tasks import ClassificationTask


class Line(nn.Module):
    """Logits ``[0, w x]`` of images ``(B, 1)``, w = 1 at first: an image of class 1 is right while x > 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones((), dtype=torch.float64))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([torch.zeros_like(x), self.weight * x], 1)


class RightWhere(ClassificationTask):
    """Classification on a line that is right where a function of the logit says so, whatever the label."""

    def __init__(self, right: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        object.__setattr__(self, "right", right)  # a task is frozen

    def correct(self, output: Any, target: Any) -> Tensor:
        return self.right(output[:, 1])  # type: ignore[no-any-return,attr-defined]


def ones(*values: float) -> Batch:
    """A batch of these numbers, all of class 1."""
    images = torch.tensor(values, dtype=torch.float64)[:, None]
    return Batch(images, torch.ones(len(values), dtype=torch.long), torch.arange(len(values)))


def inputs_of(network: nn.Module, defense: Defense, batch: Batch) -> list[Tensor]:
    """What the network saw in the forwards with gradients for its weights: the images trained on, one per forward."""
    seen: list[Tensor] = []

    def keep(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if next(module.parameters()).requires_grad:
            seen.append(inputs[0].detach().clone())

    handle = network.register_forward_pre_hook(keep)
    for part in defense.losses(network, batch):
        part.loss.backward()
    handle.remove()
    return seen


def trained_on(defense: Defense, batch: Batch, network: nn.Module | None = None) -> list[float]:
    """The numbers that the last forward of a step trains on."""
    return inputs_of(network or Line(), defense, batch)[-1][:, 0].tolist()


def two_faced() -> nn.Module:
    """A line behind BatchNorm that has seen other data, as a young network in training: its modes disagree.

    In eval mode an image x has the logits ``[0, x + 2]``, in train mode ``[0, x minus the batch's mean]`` up to scale.
    """
    norm = nn.BatchNorm1d(1, eps=1e-12, momentum=0.0, affine=False, dtype=torch.float64)
    norm.running_mean.fill_(-2.0)  # type: ignore[union-attr]
    return nn.Sequential(norm, Line()).train()
