"""SAT: standard adversarial training.

Source: Madry et al., "Towards deep learning models resistant to adversarial attacks", ICLR 2018, equation 2.1: train on
the worst image that projected gradient descent finds in the ball. Ma & Liang (IMA), CMPB 2023, compare with it as SAT.

``clean_weight`` mixes clean images in, as Goodfellow et al., "Explaining and harnessing adversarial examples", ICLR
2015, section 6, do with half of the loss.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings, clean_share

PRESETS: dict[str, dict[str, Any]] = {
    # Madry et al., CIFAR-10.
    "madry_cifar": {"norm": "linf", "eps": 8 / 255, "steps": 10, "relative_step": 0.25, "attack_mode": "train",
                    "box": (0.0, 1.0)},
    # The IMA paper's comparison: 20 steps of 4 / 20 of the radius, from a point on the surface.
    "ima_covid": {"norm": "l2", "eps": 12.0, "unit": "norm", "steps": 20, "start": "surface",
                  "attack_mode": "train", "box": (0.0, 1.0)},
    "ima_hippocampus": {"norm": "l2", "eps": 15.0, "unit": "norm", "steps": 20, "start": "surface"},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms", "steps": 2, "relative_step": 1.0, "clean_weight": 0.5},
}  # fmt: skip


@dataclass(frozen=True)
class SATSettings(AttackSettings):
    """Hyper-parameters of standard adversarial training."""

    clean_weight: float = clean_share()


class SAT(Defense):
    """Standard adversarial training: the loss of attacked images alone.

    Example:
        With radius 0 its loss is the clean loss, bit for bit:

        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> sat = SAT(task, SATSettings(eps=0))
        >>> bool(sat(network, images, target) == task.training_loss(network(images), target))
        True
    """

    settings_class = SATSettings
    settings: SATSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """``L(f(x'), y)``; with ``clean_weight`` c two parts, ``c L(f(x), y)`` and ``(1 - c) L(f(x'), y)``."""
        self.begin(batch)
        clean = self.settings.clean_weight
        if clean > 0:
            yield self.clean_part(network, batch, clean)
        noisy, _, _ = self.attack(network, batch, self.settings.ascent(self.channels))
        yield self.noisy_part(network, batch, noisy, 1 - clean)


METHOD = Method(
    "SAT",
    SAT,
    family="adversarial",
    idea="attacked images",
    paper="Madry et al., ICLR 2018",
    state="nothing",
    cost="2K + 3 (6 with a clean share)",
    most=lambda s: 2 * s.steps + (6 if s.clean_weight else 3),
    presets=PRESETS,
)
