"""How far apart two outputs are, per sample: the regularisers of TRADES, MART, LBGAT, written on points.

Each is a mean over the points that count, so that a weight means the same per voxel as per image, and a mean over the
resolutions of deep supervision with the training's weights.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from monai_adv.tasks.base import Output, Points, Target, TrainingTask

PointDivergence = Callable[[Tensor, Tensor], Tensor]
"""``(B, N)`` of two logits ``(B, K, N)``."""


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
    parts = [w * p.mean(of_points(p.logits, q.logits)) for (w, p), (_, q) in pairs]
    return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])


def point_kl(clean: Tensor, noisy: Tensor) -> Tensor:
    """``(B, N)`` KL of the softmax of two logits ``(B, K, N)``."""
    return F.kl_div(noisy.log_softmax(1), clean.log_softmax(1), reduction="none", log_target=True).sum(1)


def mean_over_points(points: list[tuple[float, Points]], of_points: Callable[[Points], Tensor]) -> Tensor:
    """``(B,)`` mean of the ``(B, N)`` values ``of_points`` over points and resolutions."""
    parts = [w * p.mean(of_points(p)) for w, p in points]
    return parts[0] if len(parts) == 1 else sum(parts[1:], parts[0])
