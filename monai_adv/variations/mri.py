"""What MRI scanners do: noise of a magnitude image, bias fields, motion, ghosts, spikes.

Sources: Gudbjartsson & Patz, "The Rician distribution of noisy MRI data", MRM 34, 1995; Collins et al., "Design and
construction of a realistic digital brain phantom" (BrainWeb), IEEE TMI 17, 1998 (non-uniformity of 20 % and 40 %); Shaw
et al., "MRI k-space motion artefact augmentation", MIDL 2019; American College of Radiology, MRI quality control
manual, 2015 (ghosting ratio); Bernstein et al., "Handbook of MRI pulse sequences", 2004 (spikes).

Zero means no signal. The *signal* of an image is the mean of the voxels that are as bright as its mean, or brighter.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

from monai_adv.variations.base import NotApplicable, Variation
from monai_adv.variations.scan import Scan

POSES = 4
"""Times that the patient moves during a scan."""
AT_REST = 0.2
"""Share of k-space, around its centre, that is always measured before the patient moves."""
UNDERSHOOT = 0.01
"""Share of the signal below 0 that interpolation may have left."""


def rician_noise(scan: Scan, ratio: float, generator: torch.Generator) -> Tensor:
    """Complex Gaussian noise under the magnitude: ``|x + n1 + i n2|``, at a signal-to-noise ratio in dB.

    The ratio is ``20 log10(signal / sigma)`` with the standard deviation sigma of either part.
    """
    image, signal = _magnitude(scan)
    sigma = signal * 10 ** (-ratio / 20)
    real, imaginary = (torch.randn(image.shape, generator=generator, dtype=image.dtype) for _ in range(2))
    size = image.abs()
    return image + torch.hypot(size + sigma * real, sigma * imaginary) - size


def bias_field(scan: Scan, gain: float, generator: torch.Generator) -> Tensor:
    """Times a smooth field between ``1 / gain`` and ``gain``: gain to the power of a cubic polynomial of size 1."""
    image, _ = _magnitude(scan)
    axes = [torch.linspace(-1, 1, n, dtype=image.dtype) if n > 1 else torch.zeros(1, dtype=image.dtype)
            for n in image.shape[1:]]  # fmt: skip
    legendre = [torch.stack([torch.ones_like(x), x, (3 * x**2 - 1) / 2, (5 * x**3 - 3 * x) / 2]) for x in axes]
    draws = 2 * torch.rand(4, 4, 4, generator=generator, dtype=image.dtype) - 1
    i, j, k = torch.meshgrid(*[torch.arange(4)] * 3, indexing="ij")
    flat = image.shape[1] == 1
    wanted = (i + j + k <= 3) & (i + j + k > 0) & ~((i > 0) & flat)
    field = torch.einsum("ijk,is,jh,kw->shw", draws * wanted, *legendre)
    return image * gain ** (field / field.abs().max())


def motion(scan: Scan, size: float, generator: torch.Generator) -> Tensor:
    """A patient who moves a few times during the scan, by up to ``size`` mm and ``size`` degrees in each axis.

    Each line of k-space is measured in one pose; its centre, which holds the shape of the organ, always in the pose of
    the label: blur and ghosts come from the lines outside of it. So the label stays where it was.
    """
    image, _ = _magnitude(scan)
    if scan.spacing is None:
        raise NotApplicable("the size of its voxels in mm is not known")
    axis = _phase_axis(image, generator)
    count = image.shape[axis]
    turns, shifts = (2 * torch.rand(2, POSES, 3, generator=generator, dtype=torch.float64) - 1) * size
    if image.shape[1] == 1:  # within the slice
        turns[:, 1:], shifts[:, 0] = 0, 0
    order = torch.fft.fftfreq(count).argsort()  # lines are measured one after the other
    pose_of = torch.zeros(count, dtype=torch.long)
    pose_of[order] = _poses(count, generator)
    space = torch.fft.fft(image, dim=axis)
    for pose in range(POSES):
        moved = torch.fft.fft(_moved(image, turns[pose], shifts[pose], scan.spacing), dim=axis)
        taken = (pose_of == pose + 1).view([-1 if a == axis else 1 for a in range(4)])
        space = torch.where(taken, moved, space)
    moved_in_part: Tensor = torch.fft.ifft(space, dim=axis).abs()
    return moved_in_part


def ghosting(scan: Scan, ratio: float, generator: torch.Generator) -> Tensor:
    """A ghost half the field of view away, from every second line of k-space that is weaker than the others.

    ``ratio`` is the ghost's intensity over that of what it is a ghost of; the mean intensity stays.
    """
    image, _ = _magnitude(scan)
    axis = _phase_axis(image, generator)
    loss = 2 * ratio / (1 + ratio)
    count = image.shape[axis]
    lines = (torch.fft.fftfreq(count) * count).round().abs()  # line -k is the mirror of line k, or the image is complex
    weights = (
        torch.where(lines % 2 == 1, 1 - loss, 1.0).to(image.dtype).view([-1 if a == axis else 1 for a in range(4)])
    )
    ghosted: Tensor = torch.fft.ifft(torch.fft.fft(image, dim=axis) * weights, dim=axis).abs()
    return ghosted


def spike(scan: Scan, amplitude: float, generator: torch.Generator) -> Tensor:
    """One wrong entry of k-space: a wave of ``amplitude`` times the signal under the magnitude."""
    image, signal = _magnitude(scan)
    waves = [torch.randint(1, max(2, n // 2), (), generator=generator).item() if n > 1 else 0 for n in image.shape[1:]]
    phase = sum(
        (torch.arange(n, dtype=image.dtype) * (2 * math.pi * k / n)).view([-1 if a == i else 1 for a in range(3)])
        for i, (n, k) in enumerate(zip(image.shape[1:], waves, strict=True))
    )
    phase = phase + 2 * math.pi * torch.rand((), generator=generator, dtype=image.dtype)
    wave = amplitude * signal
    return torch.hypot(image + wave * torch.cos(phase), wave * torch.sin(phase))


def _magnitude(scan: Scan) -> tuple[Tensor, Tensor]:
    """``(C, S, H, W)`` voxels, and the signal ``(C, 1, 1, 1)``."""
    image = scan.voxels
    bright = image >= 0.999 * image.mean((1, 2, 3), keepdim=True)  # also of a constant one, whatever its mean rounds to
    signal = (image * bright).sum((1, 2, 3), keepdim=True) / bright.sum((1, 2, 3), keepdim=True).clamp(min=1)
    low = float((image.amin((1, 2, 3), keepdim=True) + UNDERSHOOT * signal).min())
    if low < 0 or not bool((signal > 0).all()):
        found = f"{float(image.min()):g} to {float(image.max()):g}"
        raise NotApplicable(f"its intensities, {found}, are no magnitudes, of which 0 is no signal")
    return image, signal


def _phase_axis(image: Tensor, generator: torch.Generator) -> int:
    """Rows or columns."""
    return 2 + int(torch.randint(2, (), generator=generator))


def _poses(count: int, generator: torch.Generator) -> Tensor:
    """``(count,)`` pose of each line in the order of time: 0 is at rest, and at least around the centre."""
    middle, half = count // 2, max(1, round(AT_REST * count / 2))
    when = torch.rand(POSES, generator=generator, dtype=torch.float64).sort().values
    pose = torch.bucketize((torch.arange(count, dtype=torch.float64) + 0.5) / count, when)
    pose = torch.where(pose == pose[middle], 0, torch.where(pose < pose[middle], pose + 1, pose))
    pose[max(0, middle - half) : middle + half + 1] = 0
    return pose


def _moved(image: Tensor, turn: Tensor, shift: Tensor, spacing: tuple[float, float, float]) -> Tensor:
    """Rigidly: by degrees around, and mm along slices, rows and columns; from outside comes the nearest voxel."""
    a, b, c = torch.deg2rad(turn)
    one, zero = torch.ones_like(a), torch.zeros_like(a)

    def matrix(*rows: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        return torch.stack([torch.stack(row) for row in rows])

    around_slices = matrix((one, zero, zero), (zero, a.cos(), -a.sin()), (zero, a.sin(), a.cos()))
    around_rows = matrix((b.cos(), zero, b.sin()), (zero, one, zero), (-b.sin(), zero, b.cos()))
    around_columns = matrix((c.cos(), -c.sin(), zero), (c.sin(), c.cos(), zero), (zero, zero, one))
    turned = around_slices @ around_rows @ around_columns
    half = torch.tensor([n * mm / 2 for n, mm in zip(image.shape[1:], spacing, strict=True)], dtype=torch.float64)
    place = turned * half[None] / half[:, None]  # half the field of view is 1 to grid_sample
    theta = torch.cat([place, (shift / half)[:, None]], 1)
    theta = torch.cat([theta[:, :3].flip(0, 1), theta[:, 3:].flip(0)], 1)  # it counts from the last axis
    grid = affine_grid(theta[None].to(image.dtype), [1, *image.shape], align_corners=False)
    return grid_sample(image[None], grid, padding_mode="border", align_corners=False)[0]


MRI = (
    Variation(
        "mri", "rician_noise", "noise of a magnitude image, on top of the noise that is there; signal over noise",
        "{} dB", (30.0, 25.0, 20.0, 15.0), math.inf, "Gudbjartsson & Patz 1995", rician_noise,
    ),
    Variation(
        "mri", "bias_field", "smoothly brighter here and darker there; the largest factor",
        "× {}", (1.1, 1.2, 1.4, 1.8), 1.0, "BrainWeb: 20 % and 40 % are the first two", bias_field,
    ),
    Variation(
        "mri", "motion", "the patient moves four times during the scan, not while the centre of k-space is measured",
        "{0} mm and {0}°", (1.0, 2.0, 4.0, 8.0), 0.0, "Shaw et al. 2019", motion,
    ),
    Variation(
        "mri", "ghosting", "a ghost half the field of view away; its intensity over that of the organ",
        "{}", (0.025, 0.05, 0.1, 0.2), 0.0, "the first is what ACR's manual allows", ghosting,
    ),
    Variation(
        "mri", "spike", "one wrong entry of k-space, a wave over the image; its amplitude over the signal",
        "{}", (0.05, 0.1, 0.2, 0.4), 0.0, "Bernstein et al. 2004", spike,
    ),
)  # fmt: skip
