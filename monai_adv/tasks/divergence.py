"""How far apart two outputs are, per sample: the regularisers of TRADES, MART, LBGAT, written on points.

Each is a mean over the points that count, so that a weight means the same per voxel as per image, and a mean over the
resolutions of deep supervision with the training's weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from monai_adv.tasks.base import Output, Points, Target, TrainingTask

PointDivergence = Callable[[Points, Points], Tensor]
"""``(B, N)`` of the points of two outputs."""


def kl_divergence(task: TrainingTask, clean: Output, noisy: Output, target: Target) -> Tensor:
    """``(B,)`` Kullback-Leibler divergence KL(p(clean) || p(noisy)), in nats, summed over the classes.

    The gradient flows into both outputs. Regions (sigmoid) are Bernoulli variables.

    Example:
        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> clean, noisy = torch.tensor([[0.0, 0.0]]), torch.tensor([[1.0, 1.0]])  # the same probabilities
        >>> kl_divergence(ClassificationTask(), clean, noisy, torch.tensor([0]))
        tensor([0.])
    """
    return divergence(task, clean, noisy, target, point_kl)


def divergence(task: TrainingTask, clean: Output, noisy: Output, target: Target, of_points: PointDivergence) -> Tensor:
    """``(B,)`` mean of ``of_points`` over points and resolutions."""
    pairs = zip(task.all_points(clean, target), task.all_points(noisy, target), strict=True)
    return _total([w * p.mean(of_points(p, q)) for (w, p), (_, q) in pairs])


def point_kl(clean: Points, noisy: Points) -> Tensor:
    """``(B, N)`` KL of the softmax of two logits."""
    p, q = clean.logits.log_softmax(1), noisy.logits.log_softmax(1)
    return F.kl_div(q, p, reduction="none", log_target=True).sum(1)


def mean_over_points(points: list[tuple[float, Points]], of_points: Callable[[Points], Tensor]) -> Tensor:
    """``(B,)`` mean of the ``(B, N)`` values ``of_points`` over points and resolutions."""
    return _total([w * p.mean(of_points(p)) for w, p in points])


def _total(parts: list[Tensor]) -> Tensor:
    return sum(parts[1:], parts[0])
