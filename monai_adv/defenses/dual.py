"""Dual adversarial training: clean and attacked images in a fixed proportion.

Source: Joel et al., "Using adversarial images to assess the robustness of deep learning models trained on diagnostic
images in oncology", JCO Clinical Cancer Informatics 2022; written as an equation in the ARFL paper (Hao et al., MICCAI
2024), equation 4: ``(1 - r) max L(f(x'), y) + r L(f(x), y)``.

The papers can be read in two ways. By default both versions of every sample are trained on, with the weights r and
1 - r. With ``mix="batch"`` each sample appears once, and a share r of every batch stays clean, as in Kurakin et al.,
"Adversarial machine learning at scale", ICLR 2017, Algorithm 1: the same loss in the mean with a noisier gradient, at
half of the price with r = 1/2.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.network_state import detached
from monai_adv.settings import setting
from monai_adv.tasks.base import Output

PRESETS: dict[str, dict[str, Any]] = {
    # Step and start are not given.
    "arfl_mammography": {"norm": "linf", "eps": 0.01, "steps": 7, "relative_step": 0.25, "r": 0.5,
                         "box": (0.0, 1.0)},
    "arfl_two_moons": {"norm": "linf", "eps": 0.05, "steps": 1, "relative_step": 1.0, "start": "clean", "r": 0.5},
    # Our own, for a trained segmentation model, as measured: docs/results/price.md.
    "finetune": {"norm": "l2", "eps": 0.1, "unit": "rms", "steps": 2, "relative_step": 1.0, "r": 0.65, "mix": "batch"},
}  # fmt: skip


@dataclass(frozen=True)
class DualSettings(AttackSettings):
    """Hyper-parameters of dual adversarial training."""

    r: float = setting(
        0.5,
        "share of the clean images: 1 is standard training, 0 standard adversarial training",
        "a number in [0, 1]",
        lambda v: 0 <= v <= 1,
    )
    mix: Literal["loss", "batch"] = setting(
        "loss",
        "loss: both versions of every sample, with weights r and 1 - r; batch: each sample once, a share r of every "
        "batch clean",
    )


class Dual(Defense):
    """``r`` times the clean loss plus ``1 - r`` times the loss of attacked images.

    Example:
        With r = 1 it is standard training, bit for bit and without an attack:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> dual = Dual(task, DualSettings(r=1.0))
        >>> bool(dual(network, images, target) == task.training_loss(network(images), target))
        True
        >>> dual.statistics.passes.backward_input
        0
    """

    settings_class = DualSettings
    settings: DualSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """``r L(f(x), y)`` and ``(1 - r) L(f(x'), y)``, a part of weight 0 left out; one part with ``mix="batch"``."""
        self.begin(batch)
        settings = self.settings
        if settings.mix == "batch":
            yield self._mixed_batch(network, batch)
            return
        clean = torch.zeros(len(batch.images), dtype=torch.bool, device=batch.images.device)
        if settings.r > 0:
            loss, output = self._loss(network, batch, batch.images, clean)
            yield self.part(batch, settings.r * loss, output)
            del loss, output  # before the attack
        if settings.r < 1:
            noisy, _, _ = self.attack(network, batch, settings.ascent(self.channels))
            loss, output = self._loss(network, batch, noisy, ~clean)
            yield self.part(batch, (1 - settings.r) * loss, noisy=output)

    def _loss(self, network: nn.Module, batch: Batch, images: Tensor, adversarial: Tensor) -> tuple[Tensor, Output]:
        """The loss of one version of the batch, and the output; ``adversarial`` ``(B,)`` tells which version it is."""
        output = network(images)
        return self.task.training_loss(output, batch.target), output

    def _mixed_batch(self, network: nn.Module, batch: Batch) -> LossPart:
        """Each sample once, clean or attacked."""
        adversarial = ~self._stays_clean(batch)
        chosen = adversarial & self.task.scorable(batch.target)
        noisy, _, _ = self.attack(network, batch, self.settings.ascent(self.channels), only=chosen)
        loss, output = self._loss(network, batch, noisy, adversarial)
        self.count(batch, forward=1, full=1)
        seen = detached(output)
        right = self.task.correct(seen, batch.target).float()
        self.statistics.add("clean_right", right[~adversarial])
        self.statistics.add("noisy_right", right[adversarial])
        return LossPart(loss, noisy_output=seen)

    def _stays_clean(self, batch: Batch) -> Tensor:
        """``(B,)`` bool: ``r B`` samples at random, because hosts order batches (nnU-Net: foreground last).

        A fraction of a sample is rounded up or down at random, so that the share is r in the mean, also for batches of
        one or two.
        """
        size, r, device = len(batch.images), self.settings.r, batch.images.device
        if r in (0, 1):  # no draw: the attack's random start is then that of SAT
            return torch.full((size,), r == 1, device=device)
        draws = torch.rand(size + 1, generator=self.generator(device), device=device)
        rank = draws[:-1].argsort().argsort()
        return rank < (r * size + draws[-1]).floor()


def passes(settings: DualSettings) -> float:
    """Network passes of a step per sample, in forwards; a fraction of a sample in a batch counts as such.

    Example:
        Half of the images clean: an attack of half of them, and one pass of all, where both versions take two.

        >>> passes(DualSettings(steps=2, mix="batch")), passes(DualSettings(steps=2))
        (5.0, 10.0)
    """
    attacked = 1 - settings.r
    if settings.mix == "batch":
        return 2 * settings.steps * attacked + 3
    return 3.0 * (settings.r > 0) + (2.0 * settings.steps + 3) * (attacked > 0)


METHOD = Method(
    "Dual",
    Dual,
    family="dual",
    idea="clean and attacked images in a fixed proportion",
    paper="Joel et al., JCO Clinical Cancer Informatics 2022",
    state="nothing",
    cost="2K + 6 (2K (1 - r) + 3 with mix: batch)",
    most=passes,
    presets=PRESETS,
)
