"""How noisy an image is, as its own voxels show.

Immerkaer, "Fast noise variance estimation", CVIU 64, 1996: the difference of two Laplacians, ``[1, -2, 1]`` along each
of two axes, removes what is flat, a slope or an edge along an axis, and leaves noise with 6 times its standard
deviation. Its scale is taken by the median as in Donoho & Johnstone, "Ideal spatial adaptation by wavelet shrinkage",
Biometrika 81, 1994: edges and texture are few and do not count. Sigma is the median of the size over 0.6745.

What it cannot see: noise that neighbours share (interpolation, smoothing kernels, MRI filters, JPEG) comes out too
small, and texture as fine as a voxel (ultrasound speckle) comes out as noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_adv.errors import InputError

Array = npt.NDArray[Any]
KERNEL = (1.0, -2.0, 1.0)
GAIN = sum(k * k for k in KERNEL)
"""Of the standard deviation of white noise, by the kernel along two axes: sqrt(6) twice."""
MEDIAN = NormalDist().inv_cdf(0.75)
FEWEST = 100
"""Windows below which a median says nothing."""


@dataclass(frozen=True)
class Noise:
    """Of one channel of an image.

    Attributes:
        sigma: standard deviation, in the units of the image.
        used: share of the windows that could be used: the others touch a constant region or the ends of the range.
        grey_levels: whether the image has no more values than 8 bits do.
    """

    sigma: float
    used: float
    grey_levels: bool


def noise_of(image: Array, name: str = "image") -> Noise:
    """The standard deviation of the noise in one channel.

    Args:
        image: ``(*spatial)`` with two axes or more; noise is looked for in the planes of the last two.
        name: of the image, for an error.

    Raises:
        InputError: not finite, too small, or nothing in it varies.

    Example:
        A shift changes nothing, a factor comes out again:

        >>> image = np.random.default_rng(0).normal(0, 2, (64, 64))
        >>> sigma = noise_of(image).sigma
        >>> abs(sigma / 2 - 1) < 0.05, math.isclose(noise_of(image * 3 + 100).sigma, 3 * sigma)
        (True, True)
    """
    image = np.asarray(image, dtype=np.float64)
    if image.ndim < 2 or min(image.shape[-2:]) < 3:
        raise InputError.of(name, f"an image of shape {image.shape}", "one with two axes of 3 voxels or more")
    if not np.isfinite(image).all():
        raise InputError.of(name, "NaN or infinite voxels", "numbers", "fix the image")
    windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), axis=(-2, -1))
    lowest, highest = windows.min((-2, -1)), windows.max((-2, -1))
    low, high = image.min(), image.max()
    # Air that was cut to one value, padding and saturation have no noise left.
    inside = (lowest < highest) & ~(_often(image, low) & (lowest == low)) & ~(_often(image, high) & (highest == high))
    kernel = np.outer(KERNEL, KERNEL)
    residual = np.abs(np.einsum("...ij,ij->...", windows, kernel))[inside]
    if residual.size < FEWEST:
        raise InputError.of(
            name, f"an image with {residual.size} of {inside.size} windows in which anything varies",
            f"one with {FEWEST} or more", "it is constant, empty or tiny: no noise can be seen in it",
        )  # fmt: skip
    sigma = float(np.median(residual)) / (GAIN * MEDIAN)
    if sigma == 0:
        raise InputError.of(
            name, "an image without any noise in most of it", "a scan", "it was smoothed, masked or drawn"
        )
    return Noise(sigma, residual.size / inside.size, len(np.unique(image)) <= 256)


def _often(image: Array, value: float) -> bool:
    """Whether a value is a plateau: noise alone does not hit its own extreme many times."""
    return int((image == value).sum()) > max(3, math.ceil(1e-3 * image.size))
