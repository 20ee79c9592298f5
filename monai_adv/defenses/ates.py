"""ATES: adversarial training with early stopping by difficulty.

Source: Sitawarin, Chakraborty & Wagner, "Improving adversarial robustness through progressive hardening", 2020
(arXiv:2003.09347): the difficulty of an image is ``psi = max_{k != y} p_k - p_y``, in [-1, 1]. PGD stops making a
sample harder once psi > lambda_t, and lambda_t rises to 1, where this is standard adversarial training. The authors'
training code is not public: the linear ramp and its start are ours.

Segmentation: ``psi = 1 - 2 soft Dice``, which takes the place of 1 - 2 p_y of two classes and has the same range. The
mean of psi over voxels would say nothing: with a small lesion it stays near -1 however wrong the lesion is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.ascent import Iterate
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.settings import not_negative, setting
from monai_adv.tasks.base import Output, Points, Target, TrainingTask
from monai_adv.tasks.divergence import mean_over_points

PRESETS: dict[str, dict[str, Any]] = {
    "ates_cifar": {"norm": "linf", "eps": 8 / 255, "steps": 10, "relative_step": 0.25, "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class ATESSettings(AttackSettings):
    """Hyper-parameters of ATES."""

    lam_first: float = setting(
        0.0, "difficulty at which the attack stops in the first epoch", "a number in [-1, 1] (1: SAT)",
        lambda v: -1 <= v <= 1,
    )  # fmt: skip
    ramp_epochs: float = setting(
        0.5, "epochs over which the difficulty rises to 1; below 1 a share of the training",
        "a number >= 0 (0: 1 at once)", not_negative,
    )  # fmt: skip


class ATES(Defense):
    """Adversarial training on images that become harder epoch by epoch.

    Example:
        >>> from monai_adv.tasks import ClassificationTask
        >>> ates = ATES(ClassificationTask(), ATESSettings(lam_first=0.5, ramp_epochs=10))
        >>> for epoch in (0, 5, 10, 20):
        ...     ates.on_epoch_start(epoch)
        ...     print(ates.lam)
        0.5
        0.75
        1.0
        1.0
    """

    settings_class = ATESSettings
    settings: ATESSettings

    @property
    def lam(self) -> float:
        """lambda_t of this epoch."""
        first = self.settings.lam_first
        if first == 1:
            return 1.0
        ramp = self.epochs_of("ramp_epochs", self.settings.ramp_epochs)
        return 1.0 if self.epoch >= ramp else first + (1 - first) * self.epoch / ramp

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x'), y)`` with x' as difficult as the epoch allows, or after K steps."""
        self.begin(batch)

        def leave(iterate: Iterate) -> Tensor:
            return difficulty(self.task, iterate.output, iterate.target) > self.lam

        ascent = self.settings.ascent(self.channels, leave=leave if self.lam < 1 else None)  # nothing is harder than 1
        noisy, result, _ = self.attack(network, batch, ascent)
        self.statistics.add("attack_steps", result.steps, of=len(batch.images))
        yield self.noisy_part(network, batch, noisy)


@torch.no_grad()
def difficulty(task: TrainingTask, output: Output, target: Target) -> Tensor:
    """``(B,)`` psi in [-1, 1]: likeliest wrong class minus the right one, or 1 - 2 soft Dice.

    A task whose margin has a lowest value scores its samples between 0 (there) and 1, as the Dice does.

    Example:
        >>> from monai_adv.tasks import ClassificationTask
        >>> logits = torch.tensor([[0.25, 0.5, 0.25]]).log()
        >>> difficulty(ClassificationTask(), logits, torch.tensor([0])).item()
        0.25
    """
    if math.isfinite(task.lowest_margin):
        return 1 - 2 * (task.soft_margin(output, target) - task.lowest_margin)
    return mean_over_points(task.all_points(output, target), _point_difficulty)


def _point_difficulty(points: Points) -> Tensor:
    probability = points.logits.softmax(1)
    right = probability.gather(1, points.labels[:, None])[:, 0]
    return probability.scatter(1, points.labels[:, None], 0.0).amax(1) - right


METHOD = Method(
    "ATES",
    ATES,
    family="early_stop",
    idea="attacked images that become harder epoch by epoch",
    paper="Sitawarin et al., arXiv 2003.09347, 2020",
    state="nothing",
    cost="up to 2K + 3",
    most=lambda s: 2 * s.steps + 3,
    presets=PRESETS,
)
