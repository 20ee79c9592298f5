"""White noise: the random, not the adversarial, enemy.

Source: the noise evaluation of Ma & Liang, CMPB 2023, section 3, with zero-mean noise (their code draws one-sided
noise).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from monai_adv.threats import Threat


@dataclass(frozen=True)
class WhiteNoise:
    """Zero-mean random noise of the threat's full size: uniform on the L2 sphere, or uniform in the L-inf box.

    Example:
        >>> noise = WhiteNoise(Threat("l2", 3.0))
        >>> images = torch.zeros(2, 1, 8, 8)
        >>> noisy = noise(images, torch.Generator().manual_seed(0))
        >>> [round(float(size), 4) for size in (noisy - images).flatten(1).norm(dim=1)]
        [3.0, 3.0]
    """

    threat: Threat

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """``(B, C, *spatial)`` images with noise; one draw per sample from ``generator`` (on the images' device)."""
        self.threat.check(images)
        radius = self.threat.radius(images)
        return images + self.threat.random(images, radius, generator, surface=self.threat.norm == "l2")
