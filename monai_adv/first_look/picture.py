"""A picture of models under attack: scan, ground truth, noise and what each model sees, a row per model."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib.style
import numpy as np
import numpy.typing as npt
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from monai_adv.evaluation.models.protocol import Picture
from monai_adv.files import whole_file
from monai_adv.first_look.phantom import LABELS
from monai_adv.metrics.score import mean_known
from monai_adv.metrics.segmentation import dice

CLASSES = tuple(LABELS)[1:]
CLASS_COLOURS = ("#2f9be8", "#e69f00")  # told apart by colour-blind readers too
OPACITY = 0.55


def mean_dice(found: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Mean Dice of the phantom's classes that are found or there; NaN if none is.

    Args:
        found, truth: label maps of one shape, a slice or a volume.

    Example:
        >>> mean_dice(np.array([1, 1, 0]), np.array([1, 0, 0]))
        0.6666666666666666
    """
    return mean_known(dice(found == LABELS[name], truth == LABELS[name]) for name in CLASSES)


@matplotlib.style.context("default")  # nnU-Net's logger enlarges every font of the process
def picture(slices: Mapping[str, Picture], rms: float, path: Path) -> float:
    """One row per model: scan, truth, prediction, noise, attacked scan, prediction.

    Args:
        slices: the same slice by model.
        rms: of the noise.
        path: of the PNG file.

    Returns:
        the factor by which the noise is shown stronger than it is.
    """
    first = next(iter(slices.values()))
    low, high = (float(v) for v in np.percentile(first.clean, (0.5, 99.8)))
    strongest = max(float(np.percentile(np.abs(p.attacked - p.clean), 99.5)) for p in slices.values())
    factor = _factor(strongest, (high - low) / 2)
    figure = Figure(figsize=(12, 2.05 * len(slices) + 0.85), dpi=110)
    FigureCanvasAgg(figure)
    axes: Any = figure.subplots(len(slices), 6, squeeze=False)
    for row, (model, shown) in zip(axes, slices.items(), strict=True):
        scan, attacked = (_grey(image, low, high) for image in (shown.clean, shown.attacked))
        noise = _grey(factor * (shown.attacked - shown.clean), -(high - low) / 2, (high - low) / 2)
        panels = [
            ("scan", scan),
            ("ground truth", _overlay(scan, shown.truth)),
            (f"on the scan: Dice {100 * mean_dice(shown.on_clean, shown.truth):.0f} %", _overlay(scan, shown.on_clean)),
            (f"noise, shown {factor:g} times stronger", noise),
            ("attacked scan", attacked),
            (
                f"on it: Dice {100 * mean_dice(shown.on_attacked, shown.truth):.0f} %",
                _overlay(attacked, shown.on_attacked),
            ),
        ]
        for axis, (title, pixels) in zip(row, panels, strict=True):
            axis.imshow(pixels, interpolation="nearest")
            axis.set_title(title, fontsize=9)
            axis.set(xticks=[], yticks=[])
            for side in axis.spines.values():
                side.set_visible(False)
        row[0].set_ylabel(model, fontsize=11, fontweight="bold")
    figure.subplots_adjust(left=0.025, right=0.995, top=0.93, bottom=0.075, wspace=0.04, hspace=0.14)
    figure.text(
        0.025, 0.015, f"{first.case}, {first.caption}. Each model meets the noise made against it, RMS {rms:g}.",
        fontsize=9, color="#444444",
    )  # fmt: skip
    for position, (name, colour) in enumerate(reversed(list(zip(CLASSES, CLASS_COLOURS, strict=True)))):
        figure.text(0.99 - 0.115 * position, 0.015, f"■ {name}", fontsize=9, color=colour, ha="right")
    with whole_file(path) as file:
        figure.savefig(file, format="png")
    return factor


def _factor(noise: float, half_window: float) -> float:
    """The largest of 1, 2, 5, 10, 20, 50, ... at which the noise still fits the grey scale."""
    ratio = max(1.0, half_window / max(noise, 1e-12))
    decade = 10.0 ** math.floor(math.log10(ratio))
    return decade * max(step for step in (1, 2, 5) if step * decade <= ratio)


def _grey(image: npt.NDArray[Any], low: float, high: float) -> npt.NDArray[Any]:
    return np.repeat(np.clip((image - low) / (high - low), 0, 1)[..., None], 3, axis=2)


def _overlay(image: npt.NDArray[Any], labels: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The label map in colour over a grey image."""
    result = image.copy()
    for label, colour in enumerate(CLASS_COLOURS, start=1):
        inside = labels == label
        result[inside] = (1 - OPACITY) * result[inside] + OPACITY * np.array(to_rgb(colour))
    return result
