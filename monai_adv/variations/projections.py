"""Parallel-beam projections of slices and filtered back projection, for artefacts that arise between the two.

Source: Kak & Slaney, "Principles of Computerized Tomographic Imaging", 1988, sections 3.1 and 3.3.

Coarse on purpose: artefacts are smooth, are added to the slice, and vanish with their cause. Lengths are in pixels of
the grid that is projected.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import grid_sample, interpolate, pad

LARGEST = 128
"""Pixels along a side of the grid that is projected."""
ANGLES = 96


def coarse(slices: Tensor) -> tuple[Tensor, float]:
    """``(S, H, W)`` averaged to at most :data:`LARGEST` pixels a side, and how many pixels each of these spans."""
    factor = max(1, math.ceil(max(slices.shape[-2:]) / LARGEST))
    if factor == 1:
        return slices, 1.0
    height, width = (math.ceil(n / factor) * factor for n in slices.shape[-2:])
    padded = pad(slices[None], (0, width - slices.shape[-1], 0, height - slices.shape[-2]), mode="replicate")
    return torch.nn.functional.avg_pool2d(padded, factor)[0], float(factor)


def fine(values: Tensor, factor: float, height: int, width: int) -> Tensor:
    """The way back from :func:`coarse`, smoothly."""
    if factor == 1:
        return values
    larger = interpolate(values[None], scale_factor=factor, mode="bilinear", align_corners=False)[0]
    return larger[..., :height, :width]


def project(slices: Tensor, angles: int = ANGLES) -> Tensor:
    """``(S, H, W)`` to ``(S, angles, D)``: integrals along lines one pixel apart; D is the diagonal.

    Example:
        Whatever the angle, the lines hold the whole slice:

        >>> slices = torch.zeros(1, 5, 5)
        >>> slices[0, :4, 2] = 1
        >>> [round(float(lines.sum()), 2) for lines in project(slices, angles=2)[0]]
        [4.0, 4.0]
    """
    height, width = slices.shape[1:]
    size = detectors(height, width)
    x, y = _rotated(size, angles, slices)
    sampled = [  # angle by angle: all at once would need gigabytes
        grid_sample(slices[None], _normalised(xs, ys, height, width), align_corners=False)[0].sum(-2)
        for xs, ys in zip(x, y, strict=True)
    ]
    return torch.stack(sampled, dim=1)


def back_project(sinogram: Tensor, height: int, width: int) -> Tensor:
    """``(S, angles, D)`` to ``(S, H, W)``: the mean over the angles of the lines through each pixel."""
    count, angles, size = sinogram.shape
    theta = torch.arange(angles, dtype=sinogram.dtype) * (math.pi / angles)
    y, x = torch.meshgrid(_centred(height, sinogram), _centred(width, sinogram), indexing="ij")
    total = sinogram.new_zeros(count, height, width)
    for i, angle in enumerate(theta):
        place = (x * angle.cos() + y * angle.sin()) * (2 / size)
        grid = torch.stack([place, torch.zeros_like(place)], -1)[None]
        total += grid_sample(sinogram[None, :, i : i + 1], grid, padding_mode="border", align_corners=False)[0]
    return total / angles


def reconstruct(sinogram: Tensor, height: int, width: int) -> Tensor:
    """Filtered back projection with the ramp of Kak & Slaney, equation 61: the inverse of :func:`project`."""
    size = sinogram.shape[-1]
    length = 2 ** math.ceil(math.log2(2 * size))
    n = torch.arange(length, dtype=sinogram.dtype)
    n = torch.minimum(n, length - n)
    kernel = torch.where(n % 2 == 1, -1 / (math.pi * n.clamp(min=1)).square(), torch.zeros_like(n))
    kernel[0] = 0.25
    response = torch.fft.rfft(kernel).real
    filtered = torch.fft.irfft(torch.fft.rfft(sinogram, length) * response, length)[..., :size]
    return math.pi * back_project(filtered, height, width)


def detectors(height: int, width: int) -> int:
    """Lines that cover a slice at every angle."""
    return math.ceil(math.hypot(height, width)) + 2


def _centred(count: int, like: Tensor) -> Tensor:
    return torch.arange(count, dtype=like.dtype) - (count - 1) / 2


def _rotated(size: int, angles: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """``(angles, size, size)`` places in pixels: along each line (first), across the lines (last)."""
    along, across = torch.meshgrid(_centred(size, like), _centred(size, like), indexing="ij")
    theta = (torch.arange(angles, dtype=like.dtype) * (math.pi / angles)).view(-1, 1, 1)
    return across * theta.cos() - along * theta.sin(), across * theta.sin() + along * theta.cos()


def _normalised(x: Tensor, y: Tensor, height: int, width: int) -> Tensor:
    return torch.stack([x * (2 / width), y * (2 / height)], -1)[None]
