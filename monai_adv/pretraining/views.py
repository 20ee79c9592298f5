"""Two random views of a medical image, for contrastive learning."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from monai.data.meta_tensor import MetaTensor
from monai.transforms.compose import Compose
from monai.transforms.croppad.array import RandScaleCrop
from monai.transforms.intensity.array import (
    RandAdjustContrast,
    RandGaussianNoise,
    RandGaussianSmooth,
    RandScaleIntensity,
    RandShiftIntensity,
)
from monai.transforms.spatial.array import RandAxisFlip, Resize
from torch import Tensor

from monai_adv.errors import InputError
from monai_adv.settings import Settings, not_negative, setting


class Images(Protocol):
    """Images by number: a list, or a dataset."""

    def __getitem__(self, index: int, /) -> Any: ...

    def __len__(self) -> int: ...


def probability(value: float) -> bool:
    """A check for settings."""
    return 0 <= value <= 1


@dataclass(frozen=True)
class ViewSettings(Settings):
    """How strongly two views of an image differ. Colours are left out: medical images have intensities."""

    crop: float = setting(
        0.5, "smallest side of a crop, as a share of the image's", "a number in (0, 1]", lambda v: 0 < v <= 1
    )
    flip: float = setting(0.5, "probability of a flip along one random axis", "a number in [0, 1]", probability)
    intensity: float = setting(0.8, "probability of new brightness and contrast", "a number in [0, 1]", probability)
    shift: float = setting(
        0.5, "largest change of brightness, in standard deviations of the image", "a number >= 0", not_negative
    )
    scale: float = setting(0.5, "largest relative change of contrast", "a number in [0, 1)", lambda v: 0 <= v < 1)
    gamma: float = setting(1.5, "largest gamma; the smallest is its inverse", "a number >= 1", lambda v: v >= 1)
    blur: float = setting(0.5, "probability of a Gaussian blur", "a number in [0, 1]", probability)
    blur_sigma: float = setting(1.5, "largest width of the blur, in pixels", "a number > 0", lambda v: v > 0)
    noise: float = setting(0.5, "probability of Gaussian noise", "a number in [0, 1]", probability)
    noise_std: float = setting(
        0.1, "largest standard deviation of the noise, in those of the image", "a number >= 0", not_negative
    )
    keep_range: bool = setting(True, "clip a view to the range of its image, so that [0, 1] stays [0, 1]")


class TwoViews:
    """Crops, flips, changes, blurs and disturbs an image, twice.

    Intensities are changed in units of the image's own standard deviation, so images in [0, 1] and z-scored ones are
    treated alike. Crops are resized to the size of the image.

    Args:
        settings: see :class:`ViewSettings`.

    Example:
        >>> first, second = TwoViews(ViewSettings(crop=1, flip=0, intensity=0, blur=0, noise=0))(torch.eye(4)[None])
        >>> torch.allclose(first, torch.eye(4), atol=1e-6), torch.equal(first, second)
        (True, True)
    """

    def __init__(self, settings: ViewSettings | None = None) -> None:
        self.settings = ViewSettings() if settings is None else settings
        self.random = np.random.RandomState()

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> TwoViews:
        """Make what follows repeatable; MONAI's ``DataLoader`` calls this in its workers."""
        self.random = np.random.RandomState(seed) if state is None else state
        return self

    def __call__(self, image: Tensor | np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
        """Two views ``(C, *size)`` of an image ``(C, *size)``, float32."""
        values = torch.as_tensor(image)
        if isinstance(values, MetaTensor):
            values = values.as_tensor()
        values = values.float()
        if values.dim() not in (3, 4) or not values.isfinite().all():
            allowed = "a finite image (channels, height, width) or (channels, height, width, depth)"
            raise InputError.of("image", f"shape {tuple(values.shape)}", allowed)
        return self.view(values), self.view(values)

    def view(self, image: Tensor) -> Tensor:
        """One of them."""
        low, high, mean, std = image.min(), image.max(), image.mean(), image.std(correction=0)
        if std == 0:
            return image.clone()
        transform = self.transform(tuple(image.shape[1:]))
        transform.set_random_state(seed=int(self.random.randint(2**31)))
        view = transform((image - mean) / std)
        view = (view.as_tensor() if isinstance(view, MetaTensor) else view) * std + mean
        return view.clamp(low, high) if self.settings.keep_range else view

    def transform(self, size: Sequence[int]) -> Compose:
        """MONAI's transforms for standardised images of a size; those that are off are left out."""
        s = self.settings
        mode = "bilinear" if len(size) == 2 else "trilinear"
        sigma = (min(0.25, s.blur_sigma), s.blur_sigma)
        steps: list[Any] = []
        if s.crop < 1:
            steps += [RandScaleCrop(s.crop, 1.0, random_size=True), Resize(size, mode=mode, anti_aliasing=False)]
        if s.flip:
            steps.append(RandAxisFlip(s.flip))
        if s.intensity:
            steps.append(RandScaleIntensity(s.scale, s.intensity))
            steps.append(RandShiftIntensity(s.shift, prob=s.intensity))
            if s.gamma > 1:
                steps.append(RandAdjustContrast(s.intensity, gamma=(1 / s.gamma, s.gamma)))
        if s.blur:
            steps.append(RandGaussianSmooth(sigma, sigma, sigma, prob=s.blur))
        if s.noise:
            steps.append(RandGaussianNoise(s.noise, std=s.noise_std))
        return Compose(steps)


class TwoViewDataset(torch.utils.data.Dataset[tuple[Tensor, Tensor]]):
    """Two views of every image of a list or dataset; of ``(image, label)`` pairs it takes the image."""

    def __init__(self, images: Images, views: TwoViews) -> None:
        self.images = images
        self.views = views

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        item = self.images[index]
        if isinstance(item, tuple | list):
            item = item[0]
        if not isinstance(item, Tensor | np.ndarray):
            allowed = "a tensor or array (channels, *size), or a pair that starts with one"
            raise InputError.of(f"images[{index}]", type(item).__name__, allowed, "give the images without their keys")
        return self.views(item)
