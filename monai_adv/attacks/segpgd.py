"""SegPGD: PGD that first spends its budget on the voxels that are still right.

Source: Gu, Zhao, Tresp, Torr, "SegPGD: an effective and efficient adversarial attack for evaluating and boosting
segmentation robustness", ECCV 2022, equations 4 to 6 and Algorithm 1.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_adv.attacks.base import Loss
from monai_adv.attacks.pgd import PGD
from monai_adv.tasks.base import Points


def segpgd_loss(points: Points, progress: float) -> Tensor:
    """``(B,)`` cross-entropy, weighted 1 - lambda on right points and lambda on wrong ones, lambda = progress / 2.

    The paper's lambda at step t = 1 ... T is (t - 1) / 2T: wrong points are ignored at first and count as much as
    right ones at the end.

    Args:
        points: logits ``(B, K, N)`` and labels; points that do not count add nothing.
        progress: share of the steps already made, 0 to 1; (t - 1) / T.

    Example:
        Two voxels, the first right and the second wrong, each with a cross-entropy of its own:

        >>> logits = torch.tensor([[[2.0, 2.0], [0.0, 0.0]]])
        >>> points = Points(logits, torch.tensor([[0, 1]]), torch.ones(1, 2, dtype=torch.bool))
        >>> right, wrong = F.cross_entropy(logits, points.labels, reduction="none")[0]
        >>> bool(segpgd_loss(points, 0.0) == right / 2)
        True
        >>> torch.allclose(segpgd_loss(points, 1.0), (right + wrong) / 4)
        True
    """
    cross_entropy = F.cross_entropy(points.logits, points.labels, reduction="none")
    right = points.logits.detach().argmax(1) == points.labels
    share = progress / 2
    return points.mean(torch.where(right, 1 - share, share) * cross_entropy)


@dataclass(frozen=True)
class SegPGD(PGD):
    """PGD on :func:`segpgd_loss`; fields as in :class:`PGD`, other defaults.

    ``loss`` can be exchanged, ``steps`` should be large (the paper goes up to 100), and the step is fixed. The
    strongest iterate by the task's own score is returned, and a sample that can score no lower leaves the batch.

    Example:
        ``SegPGD(Threat("linf", 0.1), steps=100)(network, images, target, task).images``
    """

    steps: int = 100
    loss: Loss | None = segpgd_loss
