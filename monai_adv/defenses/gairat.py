"""GAIRAT: geometry-aware instance-reweighted adversarial training.

Source: Zhang et al., "Geometry-aware instance-reweighted adversarial training", ICLR 2021, Algorithms 1 and 2, equation
6: a sample that PGD gets wrong early is near the boundary and gets a large weight,
``w = (1 + tanh(lambda + 5 (1 - 2 kappa / K))) / 2``, scaled to mean 1. kappa counts how many of the iterates x_0 to
x_{K-1} are right; it is not the first wrong step, a sample that recovers counts again. (For odd K the official code
rounds K / 2 down.) Its weights begin with "epoch 60", counted from 1: after a burn-in of 59 epochs.

The weights carry no gradient. Their mean is taken over the attacked samples of all ranks, so that the number of ranks
does not matter. They are computed as ``sigmoid(2 (lambda + ...))``, which is the same number without the cancellation
of 1 + tanh near -1: also when all samples are far from the boundary (w = 6e-6) their ratios are exact.

Segmentation: right means Dice above the threshold. Samples that cannot be attacked keep weight 1. Where weights count,
the loss is that of each sample alone (no batch Dice).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from monai_adv.attacks.ascent import Iterate
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.settings import not_negative, setting
from monai_adv.statistics import wide_dtype

PRESETS: dict[str, dict[str, Any]] = {
    "gairat_cifar": {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.007 / 0.031, "lam": -1.0,
                     "burn_in": 59, "box": (0.0, 1.0)},
    # The IMA paper's comparison: its radii.
    "ima_covid": {"norm": "l2", "eps": 12.0, "unit": "norm", "box": (0.0, 1.0)},
    "ima_pathmnist": {"norm": "l2", "eps": 3.0, "unit": "norm", "box": (0.0, 1.0)},
}  # fmt: skip

STEEPNESS = 5.0


@dataclass(frozen=True)
class GAIRATSettings(AttackSettings):
    """Hyper-parameters of GAIRAT."""

    lam: float | None = setting(
        -1.0, "lambda: the smaller, the more unequal the weights; none: infinite, all weights 1 (SAT)",
        "a number from -30 to 30, or none", lambda v: -30 <= v <= 30,
    )  # fmt: skip
    burn_in: float = setting(
        59 / 120, "epochs with all weights 1 at the start; below 1 a share of the training (official: 59 of 120)",
        "a number >= 0", not_negative,
    )  # fmt: skip


class GAIRAT(Defense):
    """Standard adversarial training with more weight on samples near the decision boundary.

    Example:
        Without unequal weights it is standard adversarial training, bit for bit:

        >>> from monai_adv.defenses.sat import SAT, SATSettings
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> gairat, sat = GAIRAT(task, GAIRATSettings(lam=None)), SAT(task, SATSettings())
        >>> bool(gairat(network, images, target) == sat(network, images, target))
        True
    """

    settings_class = GAIRATSettings
    settings: GAIRATSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``mean_i w_i L(f(x'_i), y_i)``; ``L(f(x'), y)`` during the burn-in."""
        self.begin(batch)
        settings = self.settings
        off = settings.eps == 0 or settings.lam is None or self.epoch < self.epochs_of("burn_in", settings.burn_in)
        lam = None if off else settings.lam
        kappa = torch.zeros(len(batch.images), dtype=wide_dtype(batch.images.device), device=batch.images.device)

        def count(iterate: Iterate) -> Tensor:
            right = self.task.correct(iterate.output, iterate.target)
            kappa[iterate.index] += right
            return torch.zeros_like(right)  # nobody leaves

        ascent = settings.ascent(self.channels, leave=None if lam is None else count)
        noisy, _, index = self.attack(network, batch, ascent)
        output = network(noisy)
        if lam is None:
            loss = self.task.training_loss(output, batch.target)
        else:
            kappa = kappa[: len(index)]
            self.statistics.add("kappa", kappa)
            weights = torch.ones(len(batch.images), dtype=kappa.dtype, device=index.device)
            weights = weights.index_copy(0, index, geometry_weights(kappa, settings.steps, lam))
            losses = self.task.sample_training_loss(output, batch.target)
            loss = (weights.to(losses.dtype) * losses).mean()
        yield self.part(batch, loss, noisy=output)


def geometry_weights(kappa: Tensor, steps: int, lam: float) -> Tensor:
    """``(B,)`` weights of mean 1 over the batches of all ranks.

    Args:
        kappa: ``(B,)`` right iterates of each sample, 0 to ``steps``.
        steps: K.
        lam: lambda.

    Example:
        >>> [round(w, 3) for w in geometry_weights(torch.tensor([0.0, 10.0]), steps=10, lam=0.0).tolist()]
        [2.0, 0.0]
    """
    weights = torch.sigmoid(2 * (lam + STEEPNESS * (1 - 2 * kappa / steps)))
    total = torch.stack([weights.sum(), torch.full_like(weights.sum(), len(weights))])
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(total)
    return weights * total[1] / total[0]


METHOD = Method(
    "GAIRAT",
    GAIRAT,
    family="adversarial",
    idea="attacked images, those near the boundary with more weight",
    paper="Zhang et al., ICLR 2021",
    state="nothing",
    cost="2K + 3",
    most=lambda s: 2 * s.steps + 3,
    presets=PRESETS,
)
