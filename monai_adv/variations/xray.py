"""What happens to radiographs: exposure, blur, compression.

Sources: Hendrycks & Dietterich, "Benchmarking neural network robustness to common corruptions and perturbations", ICLR
2019 (kinds); ITU-T T.81, 1992 (JPEG); a detector's or focal spot's blur by its full width at half maximum.
"""

from __future__ import annotations

import io
import math

import numpy as np
import numpy.typing as npt
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from monai_adv.variations.base import NotApplicable, Variation
from monai_adv.variations.display import shares, shown
from monai_adv.variations.scan import Scan

Plane = npt.NDArray[np.uint8]
FWHM = 2 * math.sqrt(2 * math.log(2))
"""Of a Gaussian, in standard deviations."""


def exposure(scan: Scan, exponent: float, generator: torch.Generator) -> Tensor:
    """A characteristic curve that is shifted: the share of white to the power of ``exponent``."""
    return shown(shares(scan) ** exponent, scan)


def blur(scan: Scan, width: float, generator: torch.Generator) -> Tensor:
    """A Gaussian of this full width at half maximum in pixels, within each slice; the mean intensity stays."""
    sigma = width / FWHM
    smooth = gaussian_filter(scan.voxels.double().numpy(), (0, 0, sigma, sigma), mode="reflect")
    return torch.from_numpy(smooth).to(scan.voxels)


def jpeg(scan: Scan, quality: float, generator: torch.Generator) -> Tensor:
    """Through a JPEG file of 8 bits, in colour if there are three channels."""
    values = (shares(scan) * 255).round().to(torch.uint8)
    if values.shape[1] != 1:
        raise NotApplicable("it is a volume, of which a JPEG file holds one slice")
    grey = values[:, 0].numpy()
    planes = [np.moveaxis(grey, 0, -1)] if len(grey) == 3 else list(grey)
    read = [_through_jpeg(plane, int(quality)) for plane in planes]
    back = np.moveaxis(read[0], -1, 0) if len(grey) == 3 else np.stack(read)
    return shown(torch.from_numpy(back.copy())[:, None].to(scan.voxels) / 255, scan)


def _through_jpeg(plane: Plane, quality: int) -> Plane:
    from PIL import Image  # here: the core, which knows the names of variations, does without

    buffer = io.BytesIO()
    Image.fromarray(plane).save(buffer, "JPEG", quality=quality)
    with Image.open(buffer) as file:
        return np.asarray(file)


XRAY = (
    Variation(
        "xray", "overexposure", "darker, by a characteristic curve with this exponent",
        "γ {}", (1.25, 1.5, 2.0, 3.0), 1.0, "gamma curve", exposure,
    ),
    Variation(
        "xray", "underexposure", "brighter, by a characteristic curve with this exponent",
        "γ {}", (0.8, 0.67, 0.5, 0.33), 1.0, "gamma curve", exposure,
    ),
    Variation(
        "xray", "blur", "a Gaussian blur; its full width at half maximum",
        "{} pixels", (1.5, 2.5, 4.0, 6.0), 0.0, "Hendrycks & Dietterich 2019", blur,
    ),
    Variation(
        "xray", "jpeg", "saved as JPEG and read again; its quality",
        "quality {}", (80.0, 50.0, 25.0, 10.0), math.inf, "ITU-T T.81", jpeg,
    ),
)  # fmt: skip
