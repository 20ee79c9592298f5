"""Natural corruptions: what scanners do to images without an attacker, as a second axis beside the attacks.

Sources: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019 (kinds at five severities); the artefacts themselves are MONAI's transforms.

A corruption is not bounded by a radius, is chosen without looking at the network, and is the same for every network.

Network inputs are z-scored and have no zero of their own, but a gain, a gamma curve or the magnitude of a complex
signal need one. So every corruption works on the *unit image*: each channel of each sample shifted and scaled so that
its own minimum is 0 and its own maximum 1. The result is scaled back, and may leave the old range. All severities are
in these units: 0.1 is a tenth of the image's range.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from monai.transforms.intensity.array import (
    AdjustContrast,
    GaussianSmooth,
    GibbsNoise,
    RandBiasField,
    RandGaussianNoise,
    RandKSpaceSpikeNoise,
    RandRicianNoise,
    ScaleIntensity,
)
from monai.transforms.spatial.array import RandSimulateLowResolution
from monai.transforms.transform import Randomizable
from torch import Tensor

from monai_adv.errors import InputError, did_you_mean

Transform = Callable[..., Any]


@dataclass(frozen=True)
class Kind:
    """A corruption at its five severities.

    Attributes:
        meaning: what happens, and the unit of the levels, for tables.
        levels: one number per severity, mildest first.
        transform: of a level and the ``(C, *spatial)`` unit image; MONAI's.
        axes: numbers of spatial axes it exists for.
    """

    meaning: str
    levels: tuple[float, float, float, float, float]
    transform: Callable[[float, Tensor], Transform]
    axes: tuple[int, ...] = (2, 3)


def _spike(amplitude: float, image: Tensor) -> Transform:
    """A wave of this amplitude: one entry of k-space of ``amplitude * voxels`` (MONAI wants its logarithm)."""
    intensity = math.log(amplitude * image[0].numel())
    return RandKSpaceSpikeNoise(prob=1, intensity_range=(intensity, intensity), channel_wise=False)


def _low_resolution(level: float, image: Tensor) -> Transform:
    mode = "bilinear" if image.ndim == 3 else "trilinear"
    # Averages of what a larger voxel covers, not the value in its middle.
    return RandSimulateLowResolution(1, downsample_mode="area", upsample_mode=mode, zoom_range=(1 / level, 1 / level))


CORRUPTIONS: dict[str, Kind] = {
    "gaussian_noise": Kind(
        "zero-mean noise; standard deviation in image ranges",
        (0.02, 0.04, 0.07, 0.1, 0.15),
        lambda level, image: RandGaussianNoise(prob=1, std=level, sample_std=False, dtype=None),
        (1, 2, 3),
    ),
    "rician_noise": Kind(
        "noise of a magnitude image; standard deviation of its two parts in image ranges",
        (0.02, 0.04, 0.07, 0.1, 0.15),
        lambda level, image: RandRicianNoise(prob=1, std=level, sample_std=False, dtype=None),
        (1, 2, 3),
    ),
    "gain": Kind(
        "all intensities times 1 + level",
        (0.05, 0.1, 0.2, 0.3, 0.5),
        lambda level, image: ScaleIntensity(minv=None, maxv=None, factor=level, dtype=None),
        (1, 2, 3),
    ),
    "contrast": Kind(
        "gamma curve with exponent 1 + level",
        (0.1, 0.2, 0.4, 0.6, 1.0),
        lambda level, image: AdjustContrast(1 + level),
        (1, 2, 3),
    ),
    "bias_field": Kind(
        "intensities times a smooth random field exp(p), p a cubic polynomial with coefficients in -level to level",
        (0.05, 0.1, 0.2, 0.3, 0.5),
        lambda level, image: RandBiasField(degree=3, coeff_range=(-level, level), prob=1, dtype=None),
    ),
    "blur": Kind(
        "Gaussian blur; standard deviation in voxels",
        (0.5, 0.75, 1.0, 1.5, 2.0),
        lambda level, image: GaussianSmooth(level),
        (1, 2, 3),
    ),
    "low_resolution": Kind(
        "down-sampling by this factor and back",
        (2.0, 3.0, 4.0, 5.0, 6.0),
        _low_resolution,
    ),
    "gibbs_ringing": Kind(
        "k-space cut to a ball; share of its radius that is cut off",
        (0.4, 0.5, 0.6, 0.7, 0.8),
        lambda level, image: GibbsNoise(level),
    ),
    "k_space_spike": Kind(
        "one wrong entry of k-space, a wave over the image; amplitude in image ranges",
        (0.05, 0.1, 0.2, 0.3, 0.5),
        _spike,
    ),
}
"""Name, and what it does at its five severities."""


@dataclass(frozen=True)
class Corruption:
    """One corruption at one severity.

    Args:
        name: a key of :data:`CORRUPTIONS`.
        severity: 1 (mild) to 5 (strong).
        channels: the channels that are intensities and are changed; ``None`` means all.

    Raises:
        InputError: for an unknown name or severity.

    Example:
        A gain of 10 % of the image's own range, whatever its zero is:

        >>> images = torch.tensor([[[[-1.0, 0.0, 3.0]]]])
        >>> Corruption("gain", 2)(images, seed=0)
        tensor([[[[-1.0000,  0.1000,  3.4000]]]])
    """

    name: str
    severity: int
    channels: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if self.name not in CORRUPTIONS:
            raise InputError.of("name", self.name, "the name of a corruption", did_you_mean(self.name, CORRUPTIONS))
        if self.severity not in (1, 2, 3, 4, 5):
            raise InputError.of("severity", self.severity, "a whole number from 1 to 5")

    @torch.no_grad()
    def __call__(self, images: Tensor, seed: int | Sequence[int]) -> Tensor:
        """``(B, C, *spatial)`` corrupted images.

        Args:
            images: ``(B, C, *spatial)`` float, of any intensity range, on any device.
            seed: one per sample, such as its id: a sample's corruption then never depends on its batch. A single
                number gives sample i the seed ``seed + i``. With one seed, the severities show one growing artefact.

        Raises:
            InputError: not one seed per sample, or more or fewer axes than the corruption exists for.
        """
        kind, axes = CORRUPTIONS[self.name], images.ndim - 2
        if axes not in kind.axes or not images.is_floating_point():
            received = f"{images.dtype} {tuple(images.shape)}"
            allowed = " or ".join(f"{n}D" for n in kind.axes)
            raise InputError.of("images", received, f"a float tensor (B, C, *spatial), {allowed}, for {self.name}")
        channels = list(range(images.shape[1]) if self.channels is None else self.channels)
        if not all(0 <= c < images.shape[1] for c in channels):
            raise InputError.of("channels", self.channels, f"indices below {images.shape[1]}")
        seeds = [seed + i for i in range(len(images))] if isinstance(seed, int) else [int(s) for s in seed]
        if len(seeds) != len(images):
            raise InputError.of("seed", f"{len(seeds)} seeds", f"one per image, here {len(images)}")
        corrupted = images.clone()
        for row, its_seed in enumerate(seeds):  # MONAI's transforms take one image
            corrupted[row, channels] = self._one(images[row, channels], kind, its_seed)
        return corrupted

    def _one(self, image: Tensor, kind: Kind, seed: int) -> Tensor:
        """``(C, *spatial)``; a channel without contrast has no range, and stays as it is."""
        spatial = tuple(range(1, image.ndim))
        low = image.amin(spatial, keepdim=True)
        span = image.amax(spatial, keepdim=True) - low
        unit = torch.where(span > 0, (image - low) / span, 0)
        transform = kind.transform(kind.levels[self.severity - 1], unit)
        if isinstance(transform, Randomizable):
            transform.set_random_state(seed)
        changed = torch.as_tensor(transform(unit)).to(image)
        return torch.where(span > 0, low + span * changed, image)
