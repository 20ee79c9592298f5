"""CosPGD: PGD that weighs every voxel by how near its prediction is to the truth.

Source: Agnihotri, Jung, Keuper, "CosPGD: an efficient white-box adversarial attack for pixel-wise prediction tasks",
ICML 2024, equation 6 and Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.attacks.base import Loss
from monai_adv.attacks.pgd import PGD
from monai_adv.tasks.base import Points


def cospgd_loss(points: Points, progress: float, *, activation: Literal["softmax", "sigmoid"] = "softmax") -> Tensor:
    """``(B,)`` cross-entropy of each point times the cosine between its probabilities and the one-hot truth.

    The cosine, p_y / ||p||, is a weight and carries no gradient: near 1 on points that are right and sure, near 0 on
    those that are wrong and sure.

    Args:
        points: logits ``(B, K, N)`` and labels; points that do not count add nothing.
        progress: share of the steps already made; the loss does not depend on it.
        activation: what makes probabilities of the logits; ``"sigmoid"`` is another choice of the paper's.

    Example:
        With p = (1/2, 1/2) the cosine is 1 / sqrt(2) and the cross-entropy log 2:

        >>> points = Points(torch.zeros(1, 2, 3), torch.tensor([[0, 1, 0]]), torch.ones(1, 3, dtype=torch.bool))
        >>> bool(torch.isclose(cospgd_loss(points, 0.0), torch.tensor(2.0).log() / 2**0.5))
        True
    """
    cross_entropy = F.cross_entropy(points.logits, points.labels, reduction="none")
    with torch.no_grad():
        probability = points.logits.softmax(1) if activation == "softmax" else points.logits.sigmoid()
        cosine = F.normalize(probability, dim=1).gather(1, points.labels[:, None])[:, 0]
    return points.mean(cosine * cross_entropy)


@dataclass(frozen=True)
class CosPGD(PGD):
    """PGD on :func:`cospgd_loss`; fields as in :class:`PGD`, other defaults.

    The strongest iterate by the task's own score is returned, and a sample that can score no lower leaves the batch.
    For the sigmoid give ``loss=functools.partial(cospgd_loss, activation="sigmoid")``.

    Example:
        ``CosPGD(Threat("l2", 0.3), steps=100)(network, images, target, task).images``
    """

    steps: int = 100
    loss: Loss | None = cospgd_loss
