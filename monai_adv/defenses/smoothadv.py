"""SmoothAdv: adversarial training of the smoothed model.

Source: Salman et al., "Provably robust deep learning via adversarially trained smoothed classifiers", NeurIPS 2019,
equation 6 and pseudocode 1 (PGD): the attack raises the loss of the mean probability over m draws of noise, which stay
the same for all its steps; then the attacked image is trained with each of these draws.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from monai_adv.certificates.smoothed import Noise, as_logits, summed
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import AttackSettings
from monai_adv.network_state import unwrap_ddp
from monai_adv.settings import not_negative, positive, setting
from monai_adv.tasks.segmentation import judged_alone

PRESETS: dict[str, dict[str, Any]] = {
    # Salman et al., CIFAR-10: steps of 2 / K from the clean image; epsilon grows over ten epochs.
    "salman_cifar": {"norm": "l2", "unit": "norm", "eps": 1.0, "steps": 10, "relative_step": 0.2, "start": "clean",
                     "sigma": 0.5, "draws": 2, "warmup_epochs": 10.0, "box": (0.0, 1.0)},
}  # fmt: skip


@dataclass(frozen=True)
class SmoothAdvSettings(AttackSettings):
    """Hyper-parameters of SmoothAdv."""

    sigma: float = setting(
        0.25, "standard deviation of the noise in every voxel, in the unit of the network's input; that of the "
        "certificate", "a number > 0", positive,
    )  # fmt: skip
    draws: int = setting(2, "noisy copies m of each image", "a whole number >= 1", positive)
    warmup_epochs: float = setting(
        0.0, "epochs in which the radius grows to eps (below 1: a share of the training; 0: none)", "a number >= 0",
        not_negative,
    )  # fmt: skip


class SmoothAdv(Defense):
    """The mean loss of attacked images under noise, the attack being one on the smoothed model.

    Example:
        With radius 0 and hardly any noise it is the clean loss:

        >>> import torch
        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> smooth = SmoothAdv(task, SmoothAdvSettings(eps=0, sigma=1e-6))
        >>> bool((smooth(network, images, target) - task.training_loss(network(images), target)).abs() < 1e-5)
        True
    """

    settings_class = SmoothAdvSettings
    settings: SmoothAdvSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """m parts: ``L(f(x' + noise_i), y) / m``."""
        self.begin(batch)
        settings, images = self.settings, batch.images
        noise = Noise(settings.sigma, self.channels).draws(images, settings.draws, self.generator(images.device))
        growing = self.epochs_of("warmup_epochs", settings.warmup_epochs)
        share = min(1.0, (self.epoch + 1) / growing) if growing else 1.0
        radius = images.new_full((len(images),), share * settings.eps)
        scorable = self.task.scorable(batch.target).nonzero()[:, 0]
        smoothed = _Smoothed(unwrap_ddp(network), noise[:, scorable], judged_alone(self.task))
        noisy, found, _ = self.attack(smoothed, batch, settings.ascent(self.channels), radius=radius)
        more = settings.draws - 1  # each of its passes is one of m copies
        self.statistics.passes.forward += more * found.passes.forward
        self.statistics.passes.backward_input += more * found.passes.backward_input
        for one in noise:
            yield self.noisy_part(network, batch, noisy + one, 1 / settings.draws)


class _Smoothed(nn.Module):
    """The mean probability over given draws, as logits."""

    def __init__(self, network: nn.Module, noise: Tensor, regions: bool) -> None:
        super().__init__()
        self.network, self.noise, self.regions = network, noise, regions

    def forward(self, images: Tensor) -> Tensor:
        """``(B, K, *spatial)``."""
        place = torch.arange(len(images), device=images.device) % self.noise.shape[1]  # see ``padded``: repeated ones
        log, _ = summed(self.network, images, self.noise[:, place], self.regions)
        return as_logits(log, len(self.noise))


METHOD = Method(
    "SmoothAdv",
    SmoothAdv,
    family="smoothing",
    idea="images with Gaussian noise, attacked through the smoothed model",
    paper="Salman et al., NeurIPS 2019",
    state="nothing",
    cost="m (2K + 3), for m draws",
    most=lambda s: s.draws * (2 * s.steps + 3),
    presets=PRESETS,
)
