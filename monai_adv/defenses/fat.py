"""FAT: friendly adversarial training.

Source: Zhang et al., "Attacks which do not kill training make adversarial learning stronger", ICML 2020, Algorithms 1
and 2: of the images that the network gets wrong, train on the least bad. PGD stops tau steps after its first wrong
iterate, for every sample by itself. A sample that never gets wrong is trained on as it is after K steps.

Each iterate is looked at before the step that leaves it: a right one makes the step; a wrong one makes it too while it
has slips left, of which there are tau at first; a wrong one without any stays. tau grows as training goes on
(``tau_epochs``), and with tau >= K and omega = 0 this is standard adversarial training.

Segmentation: a sample is wrong when its Dice is not above the threshold, so FAT trains on patches whose Dice has just
fallen to it. The order of the batch is kept (the official code reorders images and labels).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.attacks.ascent import Ascended, Iterate
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings, clean_share, numbers
from monai_adv.errors import InputError
from monai_adv.settings import not_negative, setting

PRESETS: dict[str, dict[str, Any]] = {
    "fat_cifar": {"norm": "linf", "eps": 0.031, "steps": 10, "relative_step": 0.007 / 0.031, "tau_epochs": "50,90",
                  "box": (0.0, 1.0)},
    # The IMA paper's comparison.
    "ima_covid": {"norm": "l2", "eps": 12.0, "unit": "norm", "tau": 0, "box": (0.0, 1.0)},
    "ima_pathmnist": {"norm": "l2", "eps": 3.0, "unit": "norm", "tau": 0, "box": (0.0, 1.0)},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms", "steps": 3, "relative_step": 0.7, "clean_weight": 0.5},
}  # fmt: skip


@dataclass(frozen=True)
class FATSettings(AttackSettings):
    """Hyper-parameters of FAT."""

    tau: int = setting(0, "steps that the attack makes from wrong images", "a whole number >= 0", not_negative)
    tau_epochs: str | float | None = setting(
        None,
        "epochs, counted from 0, at which tau grows by 1; below 1 shares of the training; none: never",
        "increasing numbers, as '50,90' or '0.4,0.75'",
    )
    omega: float = setting(
        0.001, "standard deviation of the noise added at every step, in units of intensity", "a number >= 0",
        not_negative,
    )  # fmt: skip

    clean_weight: float = clean_share()

    def check(self) -> None:
        super().check()
        epochs = self.epochs
        if any(a >= b for a, b in zip((-1, *epochs), epochs, strict=False)):
            raise InputError.of("tau_epochs", self.tau_epochs, "increasing numbers >= 0, as '50,90'")

    @property
    def epochs(self) -> tuple[float, ...]:
        """``tau_epochs`` as numbers."""
        return numbers("tau_epochs", self.tau_epochs, float, "numbers between commas, as '50,90', or none")


class FAT(Defense):
    """Adversarial training on images that are only just wrong.

    Example:
        An image that is wrong without an attack is trained on as it is:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network = nn.Linear(2, 2, bias=False)
        >>> network.weight.data = torch.eye(2)
        >>> fat = FAT(ClassificationTask(), FATSettings(eps=0.5, unit="norm", start="clean", omega=0))
        >>> images = torch.tensor([[1.0, 0.0], [1.0, 2.0]])
        >>> friendly, _, _ = fat.friendly(network, Batch(images, torch.tensor([0, 0])))
        >>> (friendly != images).any(1).tolist()
        [True, False]
    """

    settings_class = FATSettings
    settings: FATSettings

    @property
    def tau(self) -> int:
        """Steps from wrong images in this epoch."""
        growth = (self.epochs_of("tau_epochs", epoch) for epoch in self.settings.epochs)
        return self.settings.tau + sum(self.epoch >= epoch for epoch in growth)

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """``L(f(x'), y)`` with the friendly images x'; with ``clean_weight`` c ``c L(f(x), y)`` before, as SAT."""
        self.begin(batch)
        clean = self.settings.clean_weight
        if clean > 0:
            yield self.clean_part(network, batch, clean)
        noisy, _, _ = self.friendly(network, batch)
        yield self.noisy_part(network, batch, noisy, 1 - clean)

    def friendly(self, network: nn.Module, batch: Batch) -> tuple[Tensor, Ascended, Tensor]:
        """The early-stopped attack, as :meth:`Defense.attack` returns it."""
        slips = torch.full((len(batch.images),), self.tau, device=batch.images.device)

        def leave(iterate: Iterate) -> Tensor:
            wrong = ~self.task.correct(iterate.output, iterate.target)
            left = slips[iterate.index]
            slips[iterate.index] = torch.where(wrong, left - 1, left)
            return wrong & (left <= 0)

        ascent = self.settings.ascent(self.channels, noise=self.settings.omega, leave=leave)
        found = self.attack(network, batch, ascent)
        self.statistics.add("attack_steps", found[1].steps, of=len(batch.images))
        return found


METHOD = Method(
    "FAT",
    FAT,
    family="early_stop",
    idea="attacked images that are only just wrong",
    paper="Zhang et al., ICML 2020",
    state="nothing",
    cost="up to 2K + 3 (6 with a clean share)",
    most=lambda s: 2 * s.steps + (6 if s.clean_weight else 3),
    presets=PRESETS,
)
