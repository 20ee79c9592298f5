"""RST: robust self-training on labelled images: clean and attacked images, one loss each.

Source: Sun et al., "MIRST-DM: Multi-instance RST with drop-max layer for robust classification of breast cancer",
MICCAI 2022, which trains RST (Carmon et al., "Unlabeled data improves adversarial robustness", NeurIPS 2019) on
labelled images alone: ``L(f(x), y) + w L(f(x'), y)`` with w = 1. Carmon et al. themselves train TRADES on labelled and
pseudo-labelled images; that is not this method.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.settings import not_negative, setting

PRESETS: dict[str, dict[str, Any]] = {
    # The paper gives the radius of the evaluation and w; steps and step are ours.
    "mirst_busi": {"norm": "linf", "eps": 5 / 255, "steps": 10, "relative_step": 0.25, "weight_noisy": 1.0,
                   "box": (0.0, 1.0)},
    # Yang et al., "A closer look at accuracy vs. robustness", NeurIPS 2020: the same loss in their code.
    "yang_cifar": {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.2, "attack_mode": "train",
                   "weight_noisy": 1.0, "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class RSTSettings(AttackSettings):
    """Hyper-parameters of RST."""

    weight_noisy: float = setting(
        1.0, "weight w of the loss of attacked images; the clean loss has weight 1", "a number >= 0", not_negative
    )


class RST(Defense):
    """The clean loss plus w times the loss of attacked images.

    Example:
        With radius 0 and w = 1 it is twice the clean loss, bit for bit:

        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> rst = RST(task, RSTSettings(eps=0))
        >>> bool(rst(network, images, target) == 2 * task.training_loss(network(images), target))
        True
    """

    settings_class = RSTSettings
    settings: RSTSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """Two parts: ``L(f(x), y)`` and ``w L(f(x'), y)``; with w = 0 the first alone."""
        self.begin(batch)
        yield self.clean_part(network, batch)
        weight = self.settings.weight_noisy
        if weight == 0:
            return
        noisy, _, _ = self.attack(network, batch, self.settings.ascent(self.channels))
        yield self.noisy_part(network, batch, noisy, weight)


METHOD = Method(
    "RST",
    RST,
    family="dual",
    idea="clean and attacked images, a loss each",
    paper="Carmon et al., NeurIPS 2019; here as in Sun et al., MICCAI 2022",
    state="nothing",
    cost="2K + 6",
    most=lambda s: 2 * s.steps + 6 if s.weight_noisy else 3,
    presets=PRESETS,
)
