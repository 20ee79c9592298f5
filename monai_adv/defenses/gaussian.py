"""Gaussian: training on noisy images, so that the smoothed model is worth certifying.

Source: Cohen, Rosenfeld, Kolter, "Certified adversarial robustness via randomized smoothing", ICML 2019, section 3.3
(Lecuyer et al., S&P 2019, before them): Gaussian noise of the certificate's own sigma on every training image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from monai_adv.certificates.smoothed import Noise
from monai_adv.defenses.base import Defense
from monai_adv.defenses.batch import Batch, LossPart
from monai_adv.defenses.method import Method
from monai_adv.defenses.settings import DefenseSettings
from monai_adv.settings import not_negative, setting
from monai_adv.threats import per_sample

PRESETS: dict[str, dict[str, Any]] = {
    # Cohen et al., CIFAR-10 in [0, 1]: 0.12, 0.25, 0.5 and 1, each certified with the same.
    "cohen_cifar": {"sigma": 0.25, "clean_share": 0.0, "box": (0.0, 1.0)},
}


@dataclass(frozen=True)
class GaussianSettings(DefenseSettings):
    """Hyper-parameters of training on noisy images."""

    sigma: float = setting(
        0.25, "standard deviation of the noise in every voxel, in the unit of the network's input; that of the "
        "certificate", "a number >= 0 (0: off)", not_negative,
    )  # fmt: skip
    clean_share: float = setting(
        0.0, "share of the images that get no noise, drawn anew for each (paper: 0)", "a number from 0 to 1",
        lambda v: 0 <= v <= 1,
    )  # fmt: skip


class Gaussian(Defense):
    """The loss of noisy images; the radius ``eps`` is that of robust validation alone.

    Example:
        With sigma 0 its loss is the clean loss, bit for bit:

        >>> from monai_adv.tasks import ClassificationTask
        >>> network, images, target = nn.Linear(3, 2), torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
        >>> task = ClassificationTask()
        >>> gaussian = Gaussian(task, GaussianSettings(sigma=0))
        >>> bool(gaussian(network, images, target) == task.training_loss(network(images), target))
        True
    """

    attacks = False
    settings_class = GaussianSettings
    settings: GaussianSettings

    def losses(self, network: nn.Module, batch: Batch) -> Iterator[LossPart]:
        """One part: ``L(f(x + noise), y)``."""
        self.begin(batch)
        settings, images = self.settings, batch.images
        self.count_no_attack(batch)
        if settings.sigma == 0:
            yield self.clean_part(network, batch)
            return
        generator = self.generator(images.device)
        noise = Noise(settings.sigma, self.channels).draws(images, 1, generator)[0]
        if settings.clean_share > 0:
            drawn = torch.rand(len(images), generator=generator, device=images.device)
            noise = noise * per_sample(drawn >= settings.clean_share, images)
        yield self.noisy_part(network, batch, images + noise)


METHOD = Method(
    "Gaussian",
    Gaussian,
    family="smoothing",
    idea="images with Gaussian noise, for a model that will be smoothed and certified",
    paper="Cohen et al., ICML 2019",
    state="nothing",
    cost="3",
    most=lambda s: 3,
    presets=PRESETS,
)
