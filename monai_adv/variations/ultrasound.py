"""What ultrasound machines do: speckle, another gain, shadows.

Sources: Wagner, Smith, Sandrik & Lopez, "Statistics of speckle in ultrasound B-scans", IEEE Trans. Sonics Ultrason. 30,
1983 (the intensity of fully developed speckle is exponential; a mean of L independent looks has a variance of 1 / L);
Szabo, "Diagnostic Ultrasound Imaging: Inside Out", 2014 (log compression, gain, shadows).

A B-mode image shows the logarithm of the echo: from black to white it spans a dynamic range, here 60 dB, so a factor of
the echo is a shift of the grey value. What is black has no echo, or lies outside the fan, and stays black.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_adv.variations.base import Variation
from monai_adv.variations.display import shares, shown
from monai_adv.variations.scan import Scan

RANGE = 60.0
"""dB from black to white."""
WIDTH = 0.2
"""Of a shadow, as a share of the image's."""


def speckle(scan: Scan, looks: float, generator: torch.Generator) -> Tensor:
    """The echo's intensity times the mean of ``looks`` exponential draws of mean 1, voxel by voxel."""
    echo = shares(scan)
    draws = torch.empty(int(looks), *echo.shape[1:], dtype=echo.dtype).exponential_(generator=generator)
    return _heard(echo, 10 * draws.mean(0).clamp(min=torch.finfo(echo.dtype).tiny).log10(), scan)


def gain(scan: Scan, decibels: float, generator: torch.Generator) -> Tensor:
    """All echoes louder, or weaker, by so many dB."""
    echo = shares(scan)
    return _heard(echo, torch.full_like(echo[:1], decibels), scan)


def shadow(scan: Scan, decibels: float, generator: torch.Generator) -> Tensor:
    """Echoes weaker by so many dB below something that lets no sound pass: a band down to the lower edge."""
    echo = shares(scan)
    rows, columns = echo.shape[2:]
    side, depth = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    middle = (WIDTH / 2 + side * (1 - WIDTH)) * columns
    top = (0.2 + 0.3 * depth) * rows
    half = WIDTH * columns / 2
    across = ((torch.arange(columns, dtype=echo.dtype) + 0.5 - middle).abs() - 0.8 * half) / (0.4 * half)
    profile = (1 + torch.cos(math.pi * across.clamp(0, 1))) / 2  # half of it is reached at the edge
    below = (torch.arange(rows, dtype=echo.dtype) + 0.5 > top).to(echo.dtype)
    return _heard(echo, -decibels * below[:, None] * profile, scan)


def _heard(echo: Tensor, decibels: Tensor, scan: Scan) -> Tensor:
    return torch.where(echo > 0, shown(echo + decibels / RANGE, scan), scan.voxels)


ULTRASOUND = (
    Variation(
        "ultrasound", "speckle", "multiplicative noise of the echo; independent looks that are averaged",
        "looks {}", (16.0, 4.0, 2.0, 1.0), math.inf, "Wagner et al. 1983", speckle,
    ),
    Variation(
        "ultrasound", "high_gain", f"all echoes louder, of {RANGE:g} dB from black to white",
        "{} dB", (3.0, 6.0, 12.0, 18.0), 0.0, "Szabo 2014", gain,
    ),
    Variation(
        "ultrasound", "low_gain", f"all echoes weaker, of {RANGE:g} dB from black to white",
        "{} dB", (-3.0, -6.0, -12.0, -18.0), 0.0, "Szabo 2014", gain,
    ),
    Variation(
        "ultrasound", "shadow", f"a band of {WIDTH:.0%} of the width, weaker below some depth",
        "{} dB", (6.0, 12.0, 20.0, 40.0), 0.0, "Szabo 2014", shadow,
    ),
)  # fmt: skip
