"""A radius by the noise of the user's own images: an attack as large as what the scanner adds anyway."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from monai_adv.errors import InputError
from monai_adv.noise import noise_of

Array = npt.NDArray[Any]
FIXED = (0.05, 0.1)
"""RMS of the examples and of our published figures."""
FACTORS = (0.5, 1.0, 2.0)
"""Of the noise, at which a model is evaluated."""
SPREAD = 3.0


@dataclass(frozen=True)
class Scan:
    """An image as the network sees it.

    Attributes:
        name: of the case.
        images: ``(C, *spatial)``.
        raw_units: intensity of the files in one network unit, of each channel; None where nobody knows it.
        notes: what has been done to it that changes its noise.
    """

    name: str
    images: Array
    raw_units: tuple[float | None, ...]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Measured:
    """The noise of one scan, a value for each channel in network units."""

    scan: Scan
    sigmas: tuple[float, ...]
    grey_levels: bool

    @property
    def rms(self) -> float:
        """Over all channels, as an L2 radius in RMS counts them."""
        return math.sqrt(math.fsum(s * s for s in self.sigmas) / len(self.sigmas))


@dataclass(frozen=True)
class Suggestion:
    """What the scans say.

    Attributes:
        measured: of every scan that could be used.
        problems: the others, and why.
        eps: the median noise of the scans, RMS in network units, to two digits.
    """

    measured: tuple[Measured, ...]
    problems: tuple[str, ...]
    eps: float

    @property
    def levels(self) -> tuple[float, ...]:
        """Radii of an evaluation."""
        return tuple(two_digits(factor * self.eps) for factor in FACTORS)

    @property
    def typical(self) -> Measured:
        """The scan in the middle."""
        return sorted(self.measured, key=lambda m: m.rms)[len(self.measured) // 2]

    @property
    def raw_unit(self) -> tuple[float, float, float] | None:
        """Lowest, median and highest intensity of the files in one network unit; None where it is not known."""
        units = [unit for m in self.measured for unit in m.scan.raw_units]
        if not units or None in units:
            return None
        low, middle, high = np.quantile(np.array(units, dtype=float), [0, 0.5, 1])
        return float(low), float(middle), float(high)


def suggest(scans: Iterable[Scan]) -> Suggestion:
    """Measure scans.

    Args:
        scans: one after the other; none is kept but the smaller part of it that a picture needs.

    Raises:
        InputError: none can be used.
    """
    measured, problems = [], []
    for scan in scans:
        try:
            noises = [noise_of(channel, f"{scan.name}, channel {c}") for c, channel in enumerate(scan.images)]
        except InputError as error:
            problems.append(str(error))
            continue
        kept = Scan(scan.name, _middle(scan.images), scan.raw_units, scan.notes)
        measured.append(Measured(kept, tuple(n.sigma for n in noises), any(n.grey_levels for n in noises)))
    if not measured:
        first = problems[0] if problems else "there are no images"
        raise InputError(f"images: received none in which noise can be measured: {first}")
    return Suggestion(tuple(measured), tuple(problems), two_digits(float(np.median([m.rms for m in measured]))))


def two_digits(value: float) -> float:
    """As people write a radius.

    Example:
        >>> two_digits(0.04372), two_digits(123.0)
        (0.044, 120.0)
    """
    return float(f"{value:.2g}")


def words(found: Suggestion, unit_name: str = "of the files' intensity") -> list[str]:
    """The suggestion as lines of text."""
    sigmas = [m.rms for m in found.measured]
    low, middle, high = np.quantile(sigmas, [0, 0.5, 1])
    raw = found.raw_unit
    alike = raw is not None and raw[2] <= raw[0] * (1 + 1e-6)
    lines = [
        f"Noise of {len(sigmas)} scans, standard deviation in units of the network's input: median {middle:.3g}, from "
        f"{low:.3g} to {high:.3g}."
    ]
    channels = len(found.measured[0].sigmas)
    if channels > 1:
        each = np.median([m.sigmas for m in found.measured], axis=0)
        lines.append("By channel: " + ", ".join(f"{c}: {s:.3g}" for c, s in enumerate(each)) + ".")
    if raw is None:
        lines.append("What one network unit is in the intensities of the files is not known here.")
    else:
        spread = "the same for all scans" if alike else f"from {raw[0]:.4g} to {raw[2]:.4g}: each scan has its own"
        lines.append(f"One network unit is {raw[1]:.4g} {unit_name} ({spread}).")
    for rms in dict.fromkeys((*FIXED, found.eps)):
        in_files = "" if raw is None else f", {rms * raw[1]:.3g} {unit_name}{'' if alike else ' in the median scan'}"
        lines.append(f"RMS {rms:g} is {rms / middle:.2g} times the median noise{in_files}.")
    lines += [*remarks(found), ""]
    levels = " ".join(f"{level:g}" for level in found.levels)
    lines += [
        "A radius of the size of the noise (for training), and half and twice of it (for evaluation):",
        f"  eps: {found.eps:g}, unit: rms, norm: l2",
        f"  monai-adv evaluate ... --norm l2 --unit rms --eps {levels}",
    ]
    return lines


def remarks(found: Suggestion) -> list[str]:
    """What makes the figures less than they look."""
    sigmas = sorted(m.rms for m in found.measured)
    said = [
        "The estimate sees noise that differs from voxel to voxel. Interpolation, smoothing and lossy compression hide "
        "part of it, so it is more likely too small than too large; fine texture (speckle) counts as noise."
    ]
    if notes := dict.fromkeys(note for m in found.measured for note in m.scan.notes):
        said += list(notes)
    if sum(m.grey_levels for m in found.measured) > len(sigmas) / 2:
        said.append(
            "Most of these images have no more than 256 grey levels: rounding, and often windowing or compression, has "
            "changed the scanner's noise. Take the figure for how rough these pictures are, not for physics."
        )
        if found.raw_unit is not None and found.eps * found.raw_unit[1] < 1:
            said.append(
                "The noise is below one grey level: resizing or compression has smoothed it away, and the radius below "
                "is no guide. Measure the original scans, or take a radius by the table of docs/choose_your_radius.md."
            )
    if len(sigmas) > 2 and sigmas[-1] > SPREAD * sigmas[0]:
        said.append(
            f"The scans differ by a factor of {sigmas[-1] / sigmas[0]:.2g}: one radius is a compromise between them."
        )
    said += [f"Not used: {problem}" for problem in found.problems]
    return said


def picture(found: Suggestion, file: Path) -> None:
    """A slice of the scan in the middle, and the same with white noise of the radii's size, as PNG.

    An attack of that size is not random: it is where the network is weak. Its size is what the picture shows.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    slice_ = found.typical.scan.images[0]
    generator = np.random.default_rng(0)
    radii = list(dict.fromkeys((0.0, *sorted((*FIXED, found.eps)))))
    figure = Figure(figsize=(3 * len(radii), 3.4), layout="constrained")
    low, high = np.quantile(slice_, [0.005, 0.995])
    for axes, rms in zip(np.atleast_1d(figure.subplots(1, len(radii))), radii, strict=True):
        noise = generator.standard_normal(slice_.shape)
        noise *= rms / math.sqrt(float(np.mean(noise**2)))
        axes.imshow(slice_ + noise, cmap="gray", vmin=low, vmax=high, interpolation="nearest")
        suggested = " (suggested)" if rms == found.eps else ""
        axes.set_title(f"+ RMS {rms:g}{suggested}" if rms else found.typical.scan.name, fontsize=9)
        axes.set_axis_off()
    FigureCanvasAgg(figure)
    figure.savefig(file, format="png")


def _middle(images: Array) -> Array:
    """``(C, H, W)``: the slice in the middle of every further axis."""
    return np.array(images[(slice(None), *(size // 2 for size in images.shape[1:-2]))], dtype=np.float64)


def spaced(names: Sequence[str], count: int) -> list[str]:
    """So many names, evenly over the list.

    Example:
        >>> spaced(["a", "b", "c", "d", "e"], 3)
        ['a', 'c', 'e']
    """
    if count >= len(names):
        return list(names)
    return [names[round(i * (len(names) - 1) / max(1, count - 1))] for i in range(count)]
