"""SEA, the segmentation ensemble attack: losses that complement each other, each raised while the radius shrinks.

Source: Croce, Singh, Hein, "Towards reliable evaluation and fast training of robust semantic segmentation models",
ECCV 2024: section 3.1 (losses), 3.2 (the radius-reduction schedule around APGD), 3.3 (the worst case over the losses).
Their score is accuracy or the mean IoU of the whole data set; here it is the task's margin, which is a sample's own, so
that the worst case of each sample is exact.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.attacks.base import Loss, Until
from monai_adv.attacks.ensemble import Ensemble, EnsembleAttack, Stage
from monai_adv.attacks.relay import Phase, Relay
from monai_adv.tasks.base import Points


def masked_cross_entropy(points: Points, progress: float) -> Tensor:
    """``(B,)`` plain cross-entropy, whose gradient is that of the points which are still right.

    A wrong point has nothing left to give, but its cross-entropy goes on growing and would take over the gradient. The
    value stays that of all points, because APGD judges its steps by it: that of the right ones alone falls with every
    point that is won.

    Args:
        points: logits ``(B, K, N)`` and labels; points that do not count add nothing.
        progress: share of the steps already made; the loss does not depend on it.

    Example:
        The first voxel is right, the second wrong:

        >>> logits = torch.tensor([[[2.0, 2.0], [0.0, 0.0]]], requires_grad=True)
        >>> points = Points(logits, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
        >>> torch.autograd.grad(masked_cross_entropy(points, 0.0).sum(), logits)[0]
        tensor([[[-0.0596,  0.0000],
                 [ 0.0596, -0.0000]]])
    """
    return points.mean(_of_right_points(points))


def balanced_masked_cross_entropy(points: Points, progress: float) -> Tensor:
    """``(B,)`` as :func:`masked_cross_entropy`, with the same total weight for every class that a sample has."""
    return points.class_mean(_of_right_points(points))


def jensen_shannon(points: Points, progress: float) -> Tensor:
    """``(B,)`` Jensen-Shannon divergence of the probabilities and the one-hot truth, between 0 and log 2.

    It depends on the probability q of the label only: ``log 2 + (q log q - (1 + q) log(1 + q)) / 2``. Its gradient
    vanishes where q does, so points that are wrong and sure are left alone.

    Example:
        >>> points = Points(torch.zeros(1, 2, 1), torch.tensor([[0]]), torch.ones(1, 1, dtype=torch.bool))
        >>> q = 0.5
        >>> expected = math.log(2) + (q * math.log(q) - (1 + q) * math.log(1 + q)) / 2
        >>> math.isclose(float(jensen_shannon(points, 0.0)), expected, rel_tol=1e-6)
        True
    """
    log_q = -F.cross_entropy(points.logits, points.labels, reduction="none")
    q = log_q.exp()
    return points.mean(math.log(2) + (q * log_q - (1 + q) * q.log1p()) / 2)


def _of_right_points(points: Points) -> Tensor:
    """``(B, N)`` cross-entropy, with the gradient of the points that are right."""
    cross_entropy = F.cross_entropy(points.logits, points.labels, reduction="none")
    right = points.logits.detach().argmax(1) == points.labels
    return torch.where(right, cross_entropy, cross_entropy.detach())


LOSSES: tuple[tuple[str, Loss | None], ...] = (
    ("masked CE", masked_cross_entropy),
    ("balanced masked CE", balanced_masked_cross_entropy),
    ("JS", jensen_shannon),
)
"""The paper's three losses."""


def radius_reduction(loss: Loss | None, steps: int = 300) -> tuple[Phase, ...]:
    """The paper's schedule: 30 % of the steps at twice the radius, 30 % at 1.5 times, 40 % at the radius itself.

    Far from the image the decision is changed for many voxels at once; on the way back most of it can be kept.

    Example:
        >>> [(phase.multiple, phase.steps) for phase in radius_reduction(jensen_shannon)]
        [(2.0, 90), (1.5, 90), (1.0, 120)]
    """
    first = round(0.3 * steps)
    return Phase(first, loss, 2.0), Phase(first, loss, 1.5), Phase(steps - 2 * first, loss)


@dataclass(frozen=True)
class SEA(EnsembleAttack):
    """The worst case of each sample over the losses, each with the schedule of :func:`radius_reduction`.

    Args:
        threat: norm, radius, box, channels.
        steps: gradient steps per loss.
        losses: (name, loss) in order; a sample that one of them finished is not attacked with the next.
        until: when a sample is finished.

    Example:
        ``SEA(Threat("linf", 0.1))(network, images, target, task, generator=generator).images``
    """

    steps: int = 300
    losses: tuple[tuple[str, Loss | None], ...] = LOSSES
    until: Until = "lowest"

    def __post_init__(self) -> None:
        _ = self.ensemble  # checks the settings

    def stages(self) -> tuple[Stage, ...]:
        """One per loss, named after it."""
        return tuple(
            Stage(f"SEA {name}", Relay(self.threat, radius_reduction(loss, self.steps), self.until))
            for name, loss in self.losses
        )

    @property
    def ensemble(self) -> Ensemble:
        """The stages, with a look at the clean images first."""
        return Ensemble(self.stages(), self.until)
