"""What CT scanners do: fewer photons, streaks between dense things, thicker slices.

Sources: Divel & Pelc, "Accurate Image Domain Noise Insertion in CT Images", IEEE TMI 39, 2020 (noise of the right size
and grain without raw data: its variance where the rays pass, its spectrum that of filtered back projection); Joseph &
Spital, "A method for correcting bone induced artifacts in computed tomography scanners", J Comput Assist Tomogr 2, 1978
(the error of a projection through bone grows with its square).

Intensities are HU, and say so by values below 0: air is -1000.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from monai_adv.variations.base import NotApplicable, Variation
from monai_adv.variations.projections import back_project, coarse, fine, project, reconstruct
from monai_adv.variations.scan import Scan

NOISE = 12.0
"""HU in the body at the scan's own dose, as protocols for the abdomen aim at: files do not tell."""
WATER = 0.0193
"""Attenuation of water per mm at 70 keV."""
BODY, DENSE = -500.0, 200.0
"""HU from which on something is body, and from which on bone, contrast agent or metal."""
VARIANCE_ANGLES = 48


def quantum_noise(scan: Scan, dose: float, generator: torch.Generator) -> Tensor:
    """The noise of a share ``dose`` of the photons, added to the noise that is there.

    A projection of N photons has the relative variance 1 / N, so the added variance is ``NOISE² (1 / dose - 1)``: its
    mean over the body. It is larger where the rays through a voxel cross more of the body, by the mean over them of
    exp(attenuation), and has the grain of filtered back projection (ramp spectrum, Hann window).
    """
    hu = _hu(scan)
    height, width = hu.shape[2:]
    flat = hu.reshape(-1, height, width)
    share = _variance_share(flat, _spacing(scan))
    white = torch.randn(flat.shape, generator=generator, dtype=hu.dtype)
    sd = NOISE * math.sqrt(1 / dose - 1)
    return hu + (sd * share.sqrt() * _ramp_noise(white)).reshape(hu.shape)


def streaks(scan: Scan, depth: float, generator: torch.Generator) -> Tensor:
    """Dark streaks from a hardened beam, up to ``depth`` HU in soft tissue.

    What is measured behind dense things falls short of the truth by a share of its square, which is put through
    filtered back projection; the share is such that the darkest voxel of soft tissue loses ``depth``. The dense things
    themselves keep their values, as after a scanner's own correction.
    """
    hu = _hu(scan)
    height, width = hu.shape[2:]
    flat = hu.reshape(-1, height, width)
    dense, factor = coarse((flat - DENSE).clamp(min=0) / 1000)
    error = -reconstruct(project(dense).square(), *dense.shape[-2:])
    artefact = fine(error, factor, height, width)
    soft = (flat > BODY) & (flat < DENSE)
    darkest = -float(artefact[soft].min()) if bool(soft.any()) else 0.0
    if float(dense.max()) == 0 or darkest <= 0:
        raise NotApplicable(f"nothing in it is denser than {DENSE:g} HU, with soft tissue beside")
    return hu + torch.where(flat < DENSE, artefact * (depth / darkest), 0).reshape(hu.shape)


def slice_thickness(scan: Scan, thickness: float, generator: torch.Generator) -> Tensor:
    """Means over slices of ``thickness`` mm, resampled linearly to where the thinner slices were."""
    hu = _hu(scan)
    own, count = _spacing(scan)[0], hu.shape[1]
    if count == 1:
        raise NotApplicable("a single slice")
    if own >= thickness:
        raise NotApplicable(f"its slices are {own:g} mm apart already")
    return torch.einsum("ts,cshw->cthw", thick_slices(count, own, thickness).to(hu.dtype), hu)


def thick_slices(count: int, own: float, thickness: float) -> Tensor:
    """``(count, count)`` matrix from slices ``own`` mm apart to thicker ones and back; float64.

    Example:
        >>> thick_slices(4, 1.0, 2.0) @ torch.tensor([0.0, 2.0, 4.0, 6.0], dtype=torch.float64)
        tensor([1., 2., 4., 5.], dtype=torch.float64)
    """
    edges = torch.arange(count + 1, dtype=torch.float64) * own
    boxes = math.ceil(count * own / thickness - 1e-9)
    starts = torch.arange(boxes, dtype=torch.float64)[:, None] * thickness
    overlap = (torch.minimum(edges[1:], starts + thickness) - torch.maximum(edges[:-1], starts)).clamp(min=0)
    means = overlap / overlap.sum(1, keepdim=True)
    place = ((torch.arange(count, dtype=torch.float64) + 0.5) * own / thickness - 0.5).clamp(0, boxes - 1)
    hats = (1 - (place[:, None] - torch.arange(boxes)).abs()).clamp(min=0)
    return hats @ means


def _hu(scan: Scan) -> Tensor:
    low, high = (float(v) for v in scan.voxels.aminmax())
    if low >= 0 or high - low < 100:
        raise NotApplicable(f"its intensities, {low:g} to {high:g}, are no HU, in which air is -1000")
    return scan.voxels


def _spacing(scan: Scan) -> tuple[float, float, float]:
    if scan.spacing is None:
        raise NotApplicable("the size of its voxels in mm is not known")
    return scan.spacing


def _variance_share(hu: Tensor, spacing: tuple[float, float, float]) -> Tensor:
    """``(S, H, W)`` variance relative to its mean over the body."""
    tissue, factor = coarse((1 + hu / 1000).clamp(min=0))
    size = factor * math.sqrt(spacing[1] * spacing[2])
    lines = project(tissue.double() * (WATER * size), VARIANCE_ANGLES)
    variance = fine(back_project(lines.exp(), *tissue.shape[-2:]), factor, *hu.shape[-2:])
    body = hu > BODY
    mean = variance[body].mean() if bool(body.any()) else variance.mean()
    return (variance / mean).to(hu.dtype)


def _ramp_noise(white: Tensor) -> Tensor:
    """White noise ``(S, H, W)`` with a ramp spectrum and variance 1."""
    height, width = white.shape[-2:]
    rows, columns = torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width)[None]
    radius = torch.hypot(rows, columns)
    response = (radius * (1 + torch.cos(2 * math.pi * radius.clamp(max=0.5)))).to(white.dtype)
    whole = torch.hypot(rows, torch.fft.fftfreq(width)[None])
    power = (whole * (1 + torch.cos(2 * math.pi * whole.clamp(max=0.5)))).square().mean()
    noise: Tensor = torch.fft.irfft2(
        torch.fft.rfft2(white) * response / power.sqrt().to(white.dtype), s=(height, width)
    )
    return noise


CT = (
    Variation(
        "ct", "quantum_noise", "a scan with fewer photons, whose noise has the grain of filtered back projection",
        "dose × {}", (0.5, 0.25, 0.1, 0.05), 1.0,
        f"Divel & Pelc 2020; {NOISE:g} HU at full dose are assumed", quantum_noise,
    ),
    Variation(
        "ct", "streaks", "dark streaks between dense things, from beam hardening; the darkest in soft tissue",
        "{} HU", (20.0, 50.0, 100.0, 200.0), 0.0, "Joseph & Spital 1978", streaks,
    ),
    Variation(
        "ct", "slice_thickness", "thicker slices: means along the slice axis, resampled back",
        "{} mm", (3.0, 5.0, 7.5, 10.0), 0.0, "averages over a rectangular slice profile", slice_thickness,
    ),
)  # fmt: skip
